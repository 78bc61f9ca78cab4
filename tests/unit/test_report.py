"""Report: a run as one page that is whole, harmless and shorter where the recipe is."""

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finished_run import (
    earlier_evaluation,
    evaluation,
    mix,
    mix_of_0_1,
    steps,
    whole_run,
    write_stage,
)
from rich.console import Console

from pocketlm.commands.evaluation_table import evaluation_table
from pocketlm.report.evaluation import read_evaluation
from pocketlm.report.goals import Goal, judge
from pocketlm.report.plots import smoothed, thinned, ticks
from pocketlm.stages.report import ReportConfig, report

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}

CONFIG = ReportConfig(
    name="report",
    title="pocket: a model that reasons, made here",
    goals=(
        Goal(text="The .gguf solves 70 %", model="gguf", at_least=0.70),
        Goal(
            text="Training on the grid costs at most two points",
            model="int4",
            at_least=-0.02,
            compared_to="chat",
            beside=("rounded",),
        ),
        Goal(
            text="Needles at four times the window",
            model="long",
            measure="needle 1024",
            at_least=0.9,
            beside=("phase2",),
        ),
    ),
)


class Reader(HTMLParser):
    """The page's tags, checked for balance, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\xa0", " ")

    @property
    def parts(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


def make_page(tmp_path: Path, config: ReportConfig, stages: list[Path], evaluated: Path) -> str:
    out = tmp_path / config.name
    out.mkdir(exist_ok=True)
    assert report(config, out, stages=stages, evaluation=evaluated) == out
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return whole_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def whole(run: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_page(tmp_path_factory.mktemp("out"), CONFIG, list(run.values()), run["evaluation"])


ALL_PARTS = [
    "short",
    "road",
    "evaluation",
    "goals",
    "speed",
    "curves",
    "curation",
    "mix",
    "selection",
    "merge",
    "answers",
    "recipe",
]


def test_a_whole_run_gives_a_balanced_page_with_every_part(whole: str) -> None:
    assert Reader(whole).parts == ALL_PARTS


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(whole: str) -> None:
    for tag, attributes in Reader(whole).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "src"
            assert name != "href" or str(value).startswith("#")
    assert "url(" not in whole and "@import" not in whole


def test_what_documents_and_models_say_is_text(whole: str) -> None:
    assert "<script" not in whole and "\x00" not in whole
    shown = Reader(whole).text
    assert shown.count("</pre><script>alert('x')</script><img src=http://evil.example/a.png>") >= 3


def test_speeds_stand_beside_what_memory_would_allow(whole: str) -> None:
    text = Reader(whole).text
    assert "9,876" in text and "432" in text and "37.0 %" in text and "65.5 kB" in text
    assert "on 2 threads, medians of 3" in text and "at the 12.5 GB/s of memory" in text


def test_how_fast_curation_was_and_its_slowest_task_are_told(whole: str) -> None:
    text = Reader(whole).text
    assert "on local:2: 812.5 documents and 3.25 MB a second" in text
    assert "part 2 of notes, took 1.75 s" in text


def test_files_that_were_not_read_stand_in_a_table_with_their_reason(whole: str) -> None:
    text = Reader(whole).text
    assert "Of 61 files in the sources' folders 54 were read." in text
    assert "kind not read" in text and "a.pdf" in text


def test_answers_that_were_cut_are_counted_and_marked(whole: str) -> None:
    text = Reader(whole).text
    assert (
        "phase2: 12 of 300 answers reached max_new_tokens 160 or the model's length and were cut "
        "there." in text
    )
    assert "cut before its end" in text


def test_answers_that_were_cut_stand_under_the_table_in_the_terminal() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    console.print(evaluation_table(evaluation()["evaluation.json"], console.width))
    line = (
        "phase2: 12 of 300 answers reached max_new_tokens 160 or the model's length and were cut "
        "there"
    )
    assert shown.getvalue().count("were cut there") == 1 and line in shown.getvalue()
    assert "gguf against int4 on pocket: -1.00 points (95 %: -3.00 to +1.00)" in shown.getvalue()
    assert "2 of them are other tokens to it" in shown.getvalue()


def test_an_evaluation_of_an_earlier_version_is_drawn_alike(
    whole: str, run: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_stage(tmp_path, "evaluate", "evaluation", 1.0, earlier_evaluation())
    stages = [path for path in run.values() if path.name != "evaluation"]
    before, today = Reader(make_page(tmp_path, CONFIG, stages, folder)), Reader(whole)
    assert before.parts == today.parts
    for text in ("solves 230 of 300 problems", "3 of 3 goals are met.", "12 of 300 answers"):
        assert text in before.text and text in today.text
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    console.print(evaluation_table(read_evaluation(folder), console.width))
    assert "best constant answer" in shown.getvalue() and "chain sum" in shown.getvalue()


def test_several_suites_have_a_column_each_in_the_report_and_a_row_in_the_terminal(
    tmp_path: Path,
) -> None:
    content = evaluation()
    measured = content["evaluation.json"]
    measured["suites"]["bpb.arc_easy"] = {
        "kind": "bits_per_byte",
        "metric": "bits_per_byte",
        "sources": {"shots": "not found here"},
    }
    measured["suites"]["mmlu"] = {"kind": "choices", "metric": "acc", "chance": 0.25}
    for model in measured["models"].values():
        figures = {"value": 1.2345, "standard_error": 0.0123, "n": 50, "contexts_truncated": 0}
        model["suites"]["bpb.arc_easy"] = {"metric": "bits_per_byte", **figures}
        problems = {f"subject_{n}": {"solved": 1, "total": 2} for n in range(57)}
        figures = {"value": 0.5, "standard_error": 0.047, "n": 114, "contexts_truncated": 3}
        model["suites"]["mmlu"] = {"metric": "acc", "problems": problems, **figures}
    folder = write_stage(tmp_path, "evaluate", "evaluation", 1.0, content)
    text = Reader(make_page(tmp_path, CONFIG, [], folder)).text
    assert "bpb.arc easy" in text and "1.234" in text and "subject" not in text
    assert "3 of 3 goals are met." in text  # the first suite's
    shown = io.StringIO()
    console = Console(file=shown, width=300)
    console.print(evaluation_table(read_evaluation(folder), console.width))
    lines = shown.getvalue().splitlines()
    (row,) = (line for line in lines if line.startswith("│ mmlu"))
    assert "50.0 ± 4.7" in row and "25.0" in row
    assert "bpb.arc_easy: shots (not found here)" in lines
    assert "gguf, mmlu: 3 of 114 contexts are longer than the model reads" in shown.getvalue()


CHATS = {
    "rows": 20,
    "learnt": 4,
    "examples": 6,
    "left_out": {"too_long": 15, "weight_0": 1},
    "truncated": {"longer than 61 tokens": 2},
    "beyond_cap": 1_234,
    "fields_not_rendered": {"reasoning_content": 3},
    "special_words_as_text": 2,
    "sources": {
        "chats": {"rows": 18, "learnt": 3, "left_out": {"too_long": 15}},
        "more": {"rows": 2, "learnt": 1},
    },
}


def test_conversations_that_were_left_out_are_told_by_stage_source_and_reason(
    run: dict[str, Path], tmp_path: Path
) -> None:
    chat = write_stage(tmp_path, "finetune", "chat", 9.0, {"conversations.json": CHATS})
    whole = CHATS | {
        "learnt": 20,
        "left_out": {},
        "fields_not_rendered": {},
        "sources": {"chats": {}},
    }
    int4 = write_stage(tmp_path, "quantize", "int4", 9.0, {"conversations.json": whole})
    page = Reader(make_page(tmp_path, replace(CONFIG, goals=()), [chat, int4], run["evaluation"]))
    assert "conversations" in page.parts
    told = "chat: 16 of 20 conversations (80.0 %) were not learnt: too long 15, weight 0 1."
    assert told in page.text and "int4: 0" not in page.text
    assert (
        "chat: chats" in page.text
        and "reasoning content 3" in page.text
        and "longer than 61 tokens 2" in page.text
        and "1,234" in page.text
        and "int4: chats" not in page.text
    )


def test_every_drawing_is_described(whole: str) -> None:
    drawings = [attributes for tag, attributes in Reader(whole).tags if tag == "svg"]
    assert len(drawings) > 30
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings)


def test_a_short_recipe_gives_a_short_page(run: dict[str, Path], tmp_path: Path) -> None:
    stages = [run[name] for name in ("chat", "int4", "files")]
    page = Reader(make_page(tmp_path, replace(CONFIG, goals=()), stages, run["evaluation"]))
    assert page.parts == ["short", "road", "evaluation", "curves", "answers", "recipe"]
    assert "4 stages in 3 min 24 s" in page.text  # the evaluation, not named among them, comes last


def test_the_first_paragraph_says_what_the_figures_say(whole: str) -> None:
    text = Reader(whole).text
    assert "model.gguf (812 kB) solves 230 of 300 problems; model.pte" in text
    assert "the best constant answer to each family would solve 8.0 %" in text
    assert "3 of 3 goals are met." in text


def test_a_missed_goal_is_counted_at_the_top_and_named_in_a_section_of_its_own(
    run: dict[str, Path], tmp_path: Path
) -> None:
    goals = (Goal(text="The .pte solves 90 %", model="pte", at_least=0.9), *CONFIG.goals)
    page = Reader(make_page(tmp_path, replace(CONFIG, goals=goals), [], run["evaluation"]))
    assert "3 of 4 goals are met." in page.text and "✗ missed" in page.text
    missed = "Missed: The .pte solves 90 % (76.7 % reached, at least 90.0 % wanted)."
    assert missed in page.text and "Tried" not in page.text
    assert page.text.index(missed) > page.text.index("Every model, measured")


def test_what_was_tried_stands_under_a_missed_goal_alone(
    run: dict[str, Path], tmp_path: Path
) -> None:
    missed = Goal(text="The .pte solves 90 %", model="pte", at_least=0.9, tried="twice the steps.")
    met = replace(CONFIG.goals[0], tried="nothing, it was easy.")
    text = Reader(
        make_page(tmp_path, replace(CONFIG, goals=(missed, met)), [], run["evaluation"])
    ).text
    assert "at least 90.0 % wanted). Tried: twice the steps." in text and "it was easy" not in text


def test_claims_of_the_papers_are_judged_apart_from_the_goals(
    run: dict[str, Path], tmp_path: Path
) -> None:
    claims = (Goal(text="The .pte solves 90 %", model="pte", at_least=0.9), CONFIG.goals[0])
    text = Reader(make_page(tmp_path, replace(CONFIG, claims=claims), [], run["evaluation"])).text
    assert (
        "3 of 3 goals are met." in text
        and text.count("✗ not shown") == 1
        and text.count("✓ shown") == 1
    )


def test_each_config_field_changes_something(
    run: dict[str, Path], tmp_path: Path, whole: str
) -> None:
    changes = {
        "title": "Another",
        "goals": CONFIG.goals[:1],
        "claims": CONFIG.goals[:1],
        "examples": 1,
    }
    for field, value in changes.items():
        page = make_page(
            tmp_path, replace(CONFIG, **{field: value}), list(run.values()), run["evaluation"]
        )
        assert page != whole, field
    no_examples = make_page(
        tmp_path, replace(CONFIG, examples=0), list(run.values()), run["evaluation"]
    )
    assert "answers" not in Reader(no_examples).parts and "Examples of what" not in no_examples
    with pytest.raises(ValueError, match=r"mine\.examples is -1"):
        ReportConfig(name="mine", title="", examples=-1)


def test_a_folder_that_is_no_finished_stage_is_named(run: dict[str, Path], tmp_path: Path) -> None:
    def attempt(folder: Path, evaluated: Path = run["evaluation"]) -> None:
        make_page(tmp_path, CONFIG, [folder], evaluated)

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is no stage of a run \(no stage.json\)"):
        attempt(tmp_path / "empty")
    begun = write_stage(tmp_path, "pretrain", "begun", 1.0, {})
    record = json.loads((begun / "stage.json").read_text())
    (begun / "stage.json").write_text(json.dumps({**record, "status": "started"}))
    with pytest.raises(ValueError, match=r"begun has not finished \(it is started\)"):
        attempt(begun)
    (begun / "stage.json").write_text("[]")
    with pytest.raises(ValueError, match=r"stage.json: not the record of a stage"):
        attempt(begun)
    with pytest.raises(ValueError, match=r"mix holds no evaluation.json"):
        attempt(run["corpus"], run["mix"])
    torn = write_stage(tmp_path, "pretrain", "torn", 1.0, {})
    (torn / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2:\d+: not JSON"):
        attempt(torn)


def test_a_loss_that_is_not_finite_is_said_and_not_drawn(
    run: dict[str, Path], tmp_path: Path
) -> None:
    rows = steps(40, 3.0, 2.0, 1)["metrics.jsonl"]
    rows[7]["loss"] = float("nan")
    broken = write_stage(tmp_path, "pretrain", "broken", 1.0, {"metrics.jsonl": rows})
    for row in rows:
        row["loss"] = float("inf")
    lost = write_stage(tmp_path, "pretrain", "lost", 1.0, {"metrics.jsonl": rows})
    page = make_page(tmp_path, CONFIG, [broken, lost], run["evaluation"])
    assert "1 step without a finite loss" in page and "40 steps without a finite loss" in page
    assert "nan" not in page and "inf " not in page


def test_figures_an_evaluation_lacks_are_left_blank(tmp_path: Path) -> None:
    told = evaluation()
    for model in told["evaluation.json"]["models"].values():
        del model["bits_per_byte"], model["needle"], model["tokens_per_second"]
    folder = write_stage(tmp_path, "evaluate", "bare", 1.0, told)
    page = Reader(make_page(tmp_path, CONFIG, [], folder))
    assert "not measured" in page.text and "2 of 3 goals are met, 1 not measured." in page.text


MODELS: dict[str, Any] = {
    "before": {
        "suites": {"pocket": {"value": 1.0}, "piqa": {"value": 0.6}},
        "needle": {"1024": {"found": 1, "of": 50}},
    },
    "after": {
        "suites": {"pocket": {"value": 0.98}, "piqa": {"value": 0.7}},
        "needle": {"1024": {"found": 45, "of": 50}},
    },
    "other": {"suites": {"pocket": {"value": 0.5}}},
}


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [
        (Goal(text="", model="after", at_least=0.98), 0.98, True),
        (Goal(text="", model="after", at_least=0.981), 0.98, False),
        (Goal(text="", model="after", at_least=-0.02, compared_to="before"), -0.02, True),
        (Goal(text="", model="after", at_least=-0.01, compared_to="before"), -0.02, False),
        (
            Goal(text="", model="after", at_least=0.9, measure="needle 1024", beside=("before",)),
            0.9,
            True,
        ),
        (Goal(text="", model="other", at_least=0.9, measure="needle 1024"), None, None),
        (Goal(text="", model="after", at_least=0.7, measure="accuracy piqa"), 0.7, True),
        (Goal(text="", model="other", at_least=0.1, measure="accuracy piqa"), None, None),
    ],
)
def test_a_goal_is_judged_by_the_evaluation(
    goal: Goal, figure: float | None, met: bool | None
) -> None:
    verdict = judge(goal, MODELS)
    assert verdict.figure == pytest.approx(figure) if figure else verdict.figure is None
    assert verdict.met is met
    assert verdict.beside == ({"before": 0.02} if goal.beside else {})


def test_a_goal_about_what_was_not_evaluated_is_a_mistake() -> None:
    with pytest.raises(
        ValueError, match=r"names 'pte', which was not evaluated; known: before, after, other"
    ):
        judge(Goal(text="", model="pte", at_least=0.7), MODELS)
    with pytest.raises(ValueError, match=r"measure 'acc' is unknown"):
        Goal(text="", model="pte", at_least=0.7, measure="acc")


def test_ticks_are_round_and_within_the_range() -> None:
    assert ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(1.9, 7.2, 4) == [2.0, 4.0, 6.0]
    assert ticks(0, 2, 4, whole=True) == [0, 1, 2]
    assert ticks(3.0, 3.0, 4) == [3.0]


def test_a_smoothed_constant_is_that_constant_and_thinning_keeps_both_ends() -> None:
    level = [(float(step), 2.5) for step in range(1000)]
    assert [y for _, y in smoothed(level)] == pytest.approx([2.5] * 1000)
    few = thinned(level)
    assert len(few) <= 241 and few[0] == level[0] and few[-1] == level[-1]


def test_a_mix_is_drawn_whatever_its_name_and_that_of_an_older_version_too(
    run: dict[str, Path], tmp_path: Path
) -> None:
    content = mix()["mix.json"]
    mixes = content["mixes"]
    content |= {"selected": "by law", "mixes": {"by law": mixes["found"], "flat": mixes["uniform"]}}
    renamed = write_stage(tmp_path / "run", "find_mix", "renamed", 1.0, {"mix.json": content})
    old = write_stage(tmp_path / "run", "find_mix", "old", 1.0, {"mix.json": mix_of_0_1()})
    page = make_page(tmp_path, CONFIG, [renamed, old], run["evaluation"])
    text = Reader(page).text
    assert "Trained on: by law (way found), which is 62.0 % problems" in text.replace("\xa0", " ")
    assert (
        "By law: way found; flat: way uniform. Not compared with the uniform and the prop" in text
    )
    assert "has the lowest of the 2 in held-out bits per byte" in text
    assert "has the lowest of the 3 in held-out bits per byte" in text
    assert text.count("one seed each, so how far chance alone takes them apart is unknown") == 2
    assert "Trained on: found (from each source's utility in one simulated run" in text
    assert "Shares of each source in 2 mix" in page and "Shares of each source in 3 mix" in page


def test_a_merge_says_how_its_weights_were_found_and_on_which_rows_its_losses_are(
    whole: str,
) -> None:
    text = Reader(whole).text
    assert "11 combinations were tried" in text and "66 combinations were tried" in text
    assert "35 weights were tried on the way down the slopes of the loss" in text
    assert text.count("Weights were chosen on some rows, and these losses are of others.") == 2
    assert text.count("It was chosen on these very rows") == 1
    assert text.count("against the trunk") == 2
