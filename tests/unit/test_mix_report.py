"""The sections of the mix and of leaving sources out, read back from what they draw."""

import math
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from pocketlm.report.heat_map import heat_map, transposed
from pocketlm.report.leave_one_out import clear_effects, leave_one_out_section
from pocketlm.report.mix_file import details_of
from pocketlm.report.mixing import chosen_sentence, mix_section, verdict_sentence
from pocketlm.report.spread import least_difference, not_beaten
from pocketlm.report.timeline import Stage

SOURCES = ("notes", "sums", "code")
BY_SIZE = "each source by its size"


def text_of(part: Element | None) -> str:
    assert part is not None
    return " ".join("".join(part.itertext()).replace("\xa0", " ").split())


def mix(shares: tuple[float, ...], seeds: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """A mix whose mean is as given for each seed, and its maths a tenth higher."""
    figures = [{"maths": value + 0.1, "mean": value} for value in seeds]
    mean = sum(seeds) / len(seeds)
    content: dict[str, Any] = {
        "method": "by a law",
        "shares": dict(zip(SOURCES, shares, strict=True)),
        "bits_per_byte": {"maths": mean + 0.1, "mean": mean},
    }
    if len(seeds) > 1:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in seeds) / (len(seeds) - 1))
        content["bits_per_byte_deviation"] = {"maths": deviation, "mean": deviation}
        content["bits_per_byte_by_seed"] = figures
    return {**content, **more}


def test_the_least_difference_is_two_standard_errors_of_the_pooled_deviations() -> None:
    # deviations 0.03 and 0.04: pooled sqrt((9 + 16) / 2) hundredths; 2 x that x sqrt(2 / 4)
    assert least_difference([0.03, 0.04], 4) == pytest.approx(0.05)
    assert not_beaten({"a": 1.2, "b": 1.0, "c": 1.05}, 0.1) == ["b", "c"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ((1.10, 1.12), "it is the best of the 2, beyond"),
        ((1.01, 1.03), "it cannot be told from b: they lie within"),
        ((0.98, 1.00), "it cannot be told from b: they lie within"),
        ((0.88, 0.90), "it is worse than b, beyond"),
    ],
)
def test_a_mix_is_the_best_only_beyond_the_spread(other: tuple[float, ...], words: str) -> None:
    """Deviations of 0.02 / sqrt(2), two seeds: 2 x 0.01414 x 1 = 0.0283 apart."""
    mixes = {"a": mix((0.5, 0.5, 0), (1.0, 1.02)), "b": mix((0, 0.5, 0.5), other)}
    sentence = verdict_sentence("a", mixes)
    assert words in sentence and "0.0283, two standard errors over 2 seeds" in sentence


def test_the_verdict_is_on_the_mean_that_the_mix_was_asked_for() -> None:
    mixes = {"a": mix((1, 0, 0), (1.5,)), "b": mix((0, 1, 0), (1.2,))}
    assert "has not the lowest of the 2, which is that of b" in verdict_sentence("a", mixes)
    for name, value in (("a", 0.9), ("b", 1.1)):
        mixes[name]["bits_per_byte"]["mean for c"] = value
    mixes["a"]["objective"] = "mean for c"  # which asked for the same
    sentence = verdict_sentence("a", mixes)
    assert "has the lowest of the 2 in held-out bits per byte, mean for c of the" in sentence


def test_the_first_sentence_says_where_the_mix_departs_from_size() -> None:
    mixes = {
        "a": mix((0.6, 0.3, 0.1), (1.0,)),
        "sized": mix((0.2, 0.3, 0.5), (1.0,), method=BY_SIZE),
    }
    assert chosen_sentence("a", mixes).replace("\xa0", " ") == (
        "Trained on: a (by a law), which is 60.0 % notes, 30.0 % sums, 10.0 % code; "
        "against the mix by size that is +40.0 points of notes and −40.0 points of code."
    )
    assert chosen_sentence("sized", mixes).endswith(
        "50.0\xa0% code, 30.0\xa0% sums, 20.0\xa0% notes."
    )


def test_details_are_sorted_by_their_form_wherever_they_stand() -> None:
    slopes = {"maths": {"notes": 0.5, "sums": -2.0, "code": 0.0}}
    details = details_of(
        mix(
            (1, 0, 0),
            (1.0,),
            cost={"proxies": 3, "gradient_rows": 0, "flops": 9},
            law={"slopes": slopes, "name": "log-linear", "rank_correlation": 0.93},
            density={"notes": 1.0, "sums": 2.0},
            falls={"maths": 0.4, "code": 0.2},
            swarm=[{"notes": 1.0}],
        )
    )
    assert details.matrices == {"law.slopes": slopes}
    assert details.columns == {"density": {"notes": 1.0, "sums": 2.0}}
    assert details.figures == {
        "law.name": "log-linear",
        "law.rank_correlation": 0.93,
        "falls.maths": 0.4,
        "falls.code": 0.2,
    }
    assert details.others == {"swarm": [{"notes": 1.0}]}


def test_what_methods_tell_is_drawn_without_knowing_them() -> None:
    mixes = {
        "by law": mix(
            (1, 0, 0),
            (1.0, 1.1),
            cost={"proxies": 3, "gradient_rows": 0, "flops": 9_000_000},
            law={"slopes": {"maths": dict.fromkeys(SOURCES, 0.25)}, "rank_correlation": 0.93},
        ),
        "best of by law": mix((0, 0, 1), (1.2, 1.3)),
    }
    file = {"selected": "by law", "shares": mixes["by law"]["shares"], "mixes": mixes}
    section = mix_section([Stage("mix", {}, {"mix.json": file})])
    text = text_of(section)
    assert "by law: law, slopes" in text and "by law: law, rank correlation 0.93." in text
    assert "3 proxies, 9e+06 FLOPs" in text and "1.050 ± 0.071" in text and "best of by law" in text
    assert "Not compared with the uniform and the proportional mix." in text


SEARCH = {
    f"{size:g}": {
        "shares": {"notes": 0.2 + 0.1 * size, "sums": 0.3, "code": 0.5 - 0.1 * size},
        "bits_per_byte": {"maths": 1.0 + (size - 1) ** 2, "code": 2.0},
        "objective": 1.5 + (size - 1) ** 2,
    }
    for size in (0, 0.5, 1, 2)
}
FALLS = {
    probe: {"measured": 0.4, "noise": 0.01, "predicted": 0.38, "weight_decay": 0.002}
    for probe in ("maths", "code")
}


def test_a_line_search_and_the_falls_are_tables_and_the_search_a_curve() -> None:
    by_utility = mix((0.3, 0.3, 0.4), (1.0,), line_search=SEARCH, falls=FALLS, step_size=1.0)
    details = details_of(by_utility)
    assert details.tables["falls"] == FALLS and details.figures == {"step_size": 1.0}
    assert details.tables["line_search"]["0.5"] == {
        **{"shares.notes": 0.25, "shares.sums": 0.3, "shares.code": 0.45},
        **{"bits_per_byte.maths": 1.25, "bits_per_byte.code": 2.0, "objective": 1.75},
    }
    # shares of a candidate are no figures of the sources, to rank them by
    assert not details.columns and not details.matrices and not details.others
    file = {"selected": "a", "shares": by_utility["shares"], "mixes": {"a": by_utility}}
    section = mix_section([Stage("mix", {}, {"mix.json": file})])
    text = text_of(section)
    assert "line searchshares, notesshares, sumsshares, codebits per byte, maths" in text
    assert "0.525.0 %30.0 %45.0 %1.2521.75" in text and "maths0.40.010.380.002" in text
    assert section is not None
    (curve,) = [c for c in section.iter("svg") if "objective of each line search" in text_of(c)]
    assert [circle.find("title").text for circle in curve.iter("circle")] == ["1"]  # type: ignore
    path = next(node.get("d") for node in curve.iter("path") if node.get("class") == "curve")
    points = [tuple(map(float, pair.split())) for pair in (path or "")[1:].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points) and len(points) == 4
    assert max(points, key=lambda point: point[1]) == points[2]  # the lowest, for y goes down


def test_rows_of_unlike_figures_are_no_table_and_many_rows_are_folded() -> None:
    odd = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0}}
    runs = {f"run-{number}": {"x": float(number), "law": "log-linear"} for number in range(20)}
    content = mix((1, 0, 0), (1.0,), odd=odd, runs=runs)
    details = details_of(content)
    assert set(details.tables) == {"runs"}
    assert details.figures == {"odd.a.x": 1.0, "odd.a.y": 2.0, "odd.b.x": 1.0}
    file = {"selected": "a", "shares": content["shares"], "mixes": {"a": content}}
    section = mix_section([Stage("mix", {}, {"mix.json": file})])
    assert section is not None
    folded = [text_of(part.find("summary")) for part in section.iter("details")]
    assert folded == ["a: runs, 20 rows"] and "run-19 19 log-linear" in " ".join(
        " ".join(cell.itertext()) for cell in section.iter() if cell.tag in ("td", "th")
    )


def left_out(num_seeds: int) -> dict[str, Any]:
    effects = {"notes": {"maths": 0.3, "code": -0.02}, "sums": {"maths": 1.0, "code": 0.01}}
    loss = {name: {"nats_per_token": 2.5, "bits_per_byte": 1.25} for name in ("maths", "code")}
    spread = {source: {"maths": 0.2, "code": 0.2} for source in effects}
    return {
        "num_seeds": num_seeds,
        "effects": effects,
        **({"effects_deviation": spread} if num_seeds > 1 else {}),
        "losses": {"start": loss, "all": loss, "without": dict.fromkeys(effects, loss)},
        "warnings": ["equal shares repeat: sums 3.0 times"],
        "rank_correlations": [
            {"mix": "m", "figure": "utility", "capability": "maths", "spearman": 0.5, "sources": 2},
            {"mix": "m", "figure": "shares", "capability": "all", "spearman": None, "sources": 2},
        ],
    }


def test_effects_are_drawn_and_named_and_the_clear_ones_are_bold() -> None:
    file = left_out(4)  # a standard error of 0.1
    assert clear_effects(file) == {("notes", "maths"), ("sums", "maths")}
    section = leave_one_out_section([Stage("loo", {}, {"leave_one_out.json": file})])
    text = text_of(section)
    assert "for maths sums (+1.000), for code sums (+0.010)" in text
    assert "Equal shares repeat: sums 3.0 times." in text and "m: utility" in text
    assert section is not None
    bold = [node.text for node in section.iter("text") if "strong" in node.get("class", "")]
    assert bold == ["0.3", "1"]
    assert clear_effects(left_out(1)) == set()
    assert leave_one_out_section([Stage("base", {}, {})]) is None


def test_a_heat_map_is_blue_above_zero_and_stronger_further_from_it() -> None:
    values = {"a very long name of a source": {"x": 2.0, "y": -1.0}, "b": {"x": 0.5}}
    drawing = heat_map("label", values)
    cells = [node for node in drawing.iter("rect")]
    assert [cell.get("class") for cell in cells] == ["c1", "c4", "c1"]
    strengths = [float(cell.get("opacity", 0)) for cell in cells]
    assert strengths[0] > strengths[1] > strengths[2]
    words = [node.text for node in drawing.iter("title")]
    assert "a very long name of a source, y: −1" in words
    assert transposed(values) == {
        "x": {"a very long name of a source": 2.0, "b": 0.5},
        "y": {"a very long name of a source": -1.0},
    }
