"""A claim over several seeds: its conditions, its verdict and its page."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from pocketlm.model.files import read_json, write_json
from pocketlm.report.claims import T_95, half_width, judge_over_seeds, outcome_of
from pocketlm.report.claims_curves import curve_of, curves_picture, unclear_parts
from pocketlm.report.claims_page import condition_figure
from pocketlm.report.goals import Goal
from pocketlm.report.number_format import percent
from pocketlm.stages.claims_page import ClaimsPageConfig, claims_page
from pocketlm.stages.judge import JudgeConfig, by_number, judge


def run_of(base: int, better: int, bits: float = 1.5) -> dict[str, Any]:
    """Needles found of 100 by two models."""
    return {
        label: {
            "path": label,
            "suites": {},
            "needle": {"1024": {"found": found, "of": 100, "cut": 0}},
            "bits_per_byte": {"maths": bits},
        }
        for label, found in (("base", base), ("better", better))
    }


MORE = Goal(text="more", model="better", compared_to="base", measure="needle 1024", at_least=0.1)


def test_a_difference_is_shown_only_where_its_whole_interval_is_beyond_the_margin() -> None:
    clear = judge_over_seeds(MORE, [run_of(20, 60), run_of(22, 65), run_of(18, 61)])
    assert clear.outcome == "shown" and clear.figures == pytest.approx((0.40, 0.43, 0.43))
    # Student's t with two degrees of freedom, 5 % above
    half = 2.920 * statistics.stdev((0.40, 0.43, 0.43)) / 3**0.5
    assert clear.low is not None and clear.high is not None
    assert clear.high - clear.low == pytest.approx(2 * half)
    noisy = judge_over_seeds(MORE, [run_of(20, 60), run_of(60, 65), run_of(18, 20)])
    assert noisy.outcome == "unclear"
    lower = judge_over_seeds(MORE, [run_of(20, 20), run_of(22, 23), run_of(18, 19)])
    assert lower.outcome == "refuted"


def test_one_seed_shows_nothing() -> None:
    judged = judge_over_seeds(MORE, [run_of(0, 100)])
    assert judged.outcome == "unclear" and judged.low is None and judged.mean == 1.0


def test_at_most_is_judged_from_the_other_side_and_bits_are_measured() -> None:
    most = Goal(text="few", model="base", measure="needle 1024", at_most=0.4)
    assert judge_over_seeds(most, [run_of(20, 0), run_of(22, 0)]).outcome == "shown"
    assert judge_over_seeds(most, [run_of(80, 0), run_of(82, 0)]).outcome == "refuted"
    bits = Goal(text="bits", model="base", measure="bits maths", at_most=1.6)
    assert judge_over_seeds(bits, [run_of(0, 0, 1.5), run_of(0, 0, 1.52)]).outcome == "shown"


def test_what_no_run_measured_is_an_error_that_names_it() -> None:
    other = Goal(text="code", model="base", measure="bits code", at_most=2.0)
    with pytest.raises(ValueError, match="evaluation 1 did not measure 'bits code'"):
        judge_over_seeds(other, [run_of(1, 2)])
    other = Goal(text="merge", model="merged", measure="needle 1024", at_least=0.5)
    with pytest.raises(ValueError, match="names 'merged', which evaluation 1 does not have; it"):
        judge_over_seeds(other, [run_of(1, 2)])


def answers(bits: float, more_bits: float) -> dict[str, Any]:
    """A model whose right answers were measured on two sets, beside a suite that it solves."""
    suites = {
        "pocket": {"metric": "accuracy", "value": 0.5},
        "bpb.one": {"metric": "bits_per_byte", "value": bits},
        "bpb.two": {"metric": "bits_per_byte", "value": more_bits},
    }
    return {"suites": suites, "rank_me": 12.5}


def test_bits_of_answers_are_the_mean_of_the_sets_that_measure_them() -> None:
    runs = [{"base": answers(1.0, 2.0)}, {"base": answers(1.2, 2.2)}]
    goal = Goal(text="likely", model="base", measure="bits answers", at_most=1.9)
    assert judge_over_seeds(goal, runs).figures == pytest.approx((1.5, 1.7))
    rank = Goal(text="rich", model="base", measure="rank_me", at_least=10.0)
    assert judge_over_seeds(rank, runs).figures == (12.5, 12.5)
    without = [{"base": {"suites": {}}}, {"base": {"suites": {}}}]
    with pytest.raises(ValueError, match="did not measure 'bits answers'"):
        judge_over_seeds(goal, without)


def test_how_many_seeds_would_decide_follows_from_mean_and_deviation() -> None:
    runs = [run_of(20, 33), run_of(20, 37), run_of(20, 29)]  # 13 points +- 4, 10 asked for
    judged = judge_over_seeds(MORE, runs)
    assert judged.outcome == "unclear" and judged.seeds_needed is not None
    # of that many the interval is on one side, of one fewer it is not
    needed = judged.seeds_needed
    for count, decided in ((needed, True), (needed - 1, False)):
        half = T_95[count - 2] * statistics.stdev(judged.figures) / count**0.5
        assert (half <= 0.03) is decided
    assert judge_over_seeds(MORE, runs[:1]).seeds_needed is None
    even = judge_over_seeds(MORE, [run_of(20, 20), run_of(20, 40)])  # at the limit itself
    assert even.outcome == "unclear" and even.seeds_needed is None


def test_seeds_that_stand_in_one_evaluation_are_judged_as_if_each_had_its_own(tmp_path) -> None:
    numbered = {
        f"{label}-{number + 1}": run[label]
        for number, run in enumerate([run_of(20, 60), run_of(22, 65), run_of(18, 61)])
        for label in run
    }
    write_json(tmp_path / "evaluation.json", {"suites": {}, "models": numbered, "differences": []})
    write_json(tmp_path / "stage.json", {"seconds": 12.5})
    config = JudgeConfig(
        name="retrieval",
        claim="It finds more.",
        source="A paper",
        parts=(MORE,),
        arms={"base": "the base", "better": "the better one"},
        measures=("needle 1024",),
        numbered=True,
    )
    (tmp_path / "out").mkdir()
    judge(config, tmp_path / "out", evaluations=[tmp_path], records=[tmp_path / "stage.json"] * 2)
    written = read_json(tmp_path / "out" / "claim.json")
    assert written["seeds"] == 3 and written["seconds"] == 25.0
    assert written["parts"][0]["figures"] == pytest.approx([0.40, 0.43, 0.43])
    with pytest.raises(ValueError, match="as many seeds of each label; it holds base: 3, other: 0"):
        by_number(numbered, ["base", "other"])


def test_a_claim_needs_all_its_conditions_and_falls_with_one() -> None:
    runs = [run_of(20, 60), run_of(22, 65), run_of(18, 61)]
    some = Goal(text="some", model="better", measure="needle 1024", at_least=0.3)
    all_of_them = Goal(text="all", model="better", measure="needle 1024", at_least=0.99)
    near = Goal(text="near", model="better", measure="needle 1024", at_least=0.62)
    shown, refuted, unclear = (judge_over_seeds(goal, runs) for goal in (some, all_of_them, near))
    assert outcome_of([shown, shown]) == "shown"
    assert outcome_of([shown, unclear]) == "unclear"
    assert outcome_of([shown, unclear, refuted]) == "refuted"


@pytest.mark.parametrize("limits", [{}, {"at_least": 0.1, "at_most": 0.2}])
def test_a_goal_has_one_limit(limits) -> None:
    with pytest.raises(ValueError, match="give at_least or at_most, one of the two"):
        Goal(text="both", model="base", **limits)


def test_an_unclear_condition_is_drawn_over_the_number_of_seeds(tmp_path: Path) -> None:
    figures = [0.5, 0.9, 0.7, 0.8]
    assert [(n, pytest.approx(mean)) for n, mean, _ in curve_of(figures)] == [
        (2, 0.7),
        (3, 0.7),
        (4, 0.725),
    ]
    assert curve_of(figures)[0][2] == pytest.approx(half_width(0.4 / 2**0.5, 2))
    runs = [run_of(20, round(100 * figure)) for figure in figures]
    part = judge_over_seeds(replace(MORE, compared_to=None, at_least=0.75), runs).as_data()
    assert part["outcome"] == "unclear"
    claim = {"claim": "It finds more.", "parts": [part, {**part, "outcome": "shown"}]}
    picture = fromstring(curves_picture(claim, condition_figure))
    names = [shape.tag.removeprefix("{http://www.w3.org/2000/svg}") for shape in picture]
    assert names.count("polyline") == names.count("polygon") == 1  # the clear one is not drawn
    words = [shape.text for shape in picture if shape.tag.endswith("text")]
    assert {f"limit {percent(0.75)}", "2 seeds", "3 seeds", "4 seeds", MORE.text} <= set(words)
    alone = {**part, "figures": [0.5], "low": None, "high": None}
    assert not unclear_parts({"claim": "", "parts": [alone]})


def test_the_page_tells_every_arm_and_condition_with_its_interval(tmp_path: Path) -> None:
    evaluations = []
    for seed, run in enumerate([run_of(20, 60), run_of(22, 65), run_of(18, 61)]):
        evaluations.append(tmp_path / f"needles-{seed}")
        evaluations[-1].mkdir()
        write_json(
            evaluations[-1] / "evaluation.json", {"suites": {}, "models": run, "differences": []}
        )
    config = JudgeConfig(
        name="retrieval",
        claim="It finds more.",
        source="A paper, section 5",
        parts=(MORE,),
        arms={"base": "the base", "better": "the better one"},
        measures=("needle 1024", "bits maths"),
        note="Smaller than theirs.",
    )
    out = tmp_path / "retrieval"
    out.mkdir()
    judge(config, out, evaluations=evaluations)
    written = read_json(out / "claim.json")
    assert written["outcome"] == "shown" and written["seeds"] == 3
    figures = written["arms"]["better"]["figures"]["needle 1024"]
    assert figures["mean"] == pytest.approx(0.62) and len(figures["figures"]) == 3
    page = claims_page(ClaimsPageConfig(name="claims"), tmp_path, claims=[out])
    text = (page / "claims.md").read_text()
    assert "## Retrieval" in text and max(map(len, text.splitlines())) < 200
    row = "| [Retrieval](#retrieval): It finds more. | A paper, section 5 | 3 | **shown** | 0.0"
    assert row in text
    assert "needle 1024 of better less that of base | at least +10.0" in text
    assert "| better | the better one | 62.0" in text and "Smaller than theirs." in text
    assert read_json(page / "claims.json") == {"retrieval": written}
    older = {key: value for key, value in written.items() if key != "seconds"}
    write_json(out / "claim.json", older)
    claims_page(ClaimsPageConfig(name="claims"), tmp_path, claims=[out])
    assert "| **shown** | – |" in (page / "claims.md").read_text()
    picture = (page / "retrieval.svg").read_text()
    assert picture.count("<circle") == 6 and "It finds more." in picture
    assert ">needle 1024</text>" in picture
