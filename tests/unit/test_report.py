"""Report: a run as one page that is whole, harmless and shorter where the recipe is."""

import json
import math
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pocketlm.report.goals import Goal, judge
from pocketlm.report.plots import smoothed, thinned, ticks
from pocketlm.stages.report import ReportConfig, report

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}
SOURCES = {"problems": "maths", "notes": "knowledge", "docstrings": "knowledge", "code": "code"}
FAMILIES = ("chain_sum", "leg_counting", "simple_equations", "number_sorting", "spell_backward")
ACCURACY = {
    "phase2": 0.41,
    "long": 0.44,
    "chat": 0.78,
    "rounded": 0.61,
    "int4": 0.77,
    "gguf": 0.77,
    "pte": 0.76,
}
HOSTILE = "</pre><script>alert('x')</script><img src=http://evil.example/a.png>\x00\ud800 & \"quoted\""

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


def write_stage(
    run: Path, stage: str, name: str, seconds: float, files: dict[str, Any], **inputs: Any
) -> Path:
    """A folder as a finished stage leaves it; a list is written as JSON lines."""
    folder = run / name
    told = {key: {"path": str(value), "fingerprint": "stage 0"} for key, value in inputs.items()}
    record = {
        "stage": stage,
        "config": {
            "name": name,
            "seq_len": 256,
            "optim": {"class": "OptimConfig", "lr": 0.004, "num_steps": 600},
        },
        "inputs": told,
        "digest": "0123456789abcdef",
        "pocketlm": "0.1.0",
        "started": "2026-01-01T10:00:00+00:00",
        "status": "finished",
        "seconds": seconds,
    }
    for path, content in {"stage.json": record, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        lines = [content] if isinstance(content, dict) else content
        (folder / path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def steps(count: int, start: float, end: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    rows = []
    for step in range(count):
        done = step / count
        loss = end + (start - end) * math.exp(-6 * done) + rng.gauss(0, 0.05)
        lr = 0.004 * min(1, (step + 1) / 30) * (1 - 0.9 * done)
        row = {"step": step, "loss": loss, "lr": lr, "grad_norm": 1.0, "tokens": 2048}
        rows.append({**row, "tokens_per_second": 14000.0, "seconds": 0.146})
    return {"metrics.jsonl": rows}


def curation() -> dict[str, Any]:
    sources = {}
    for place, (name, domain) in enumerate(SOURCES.items()):
        dropped = {"length": 40 * place, "near_duplicate": 25 * place, "repetition": 9, "contaminated": 7}
        kept = {
            split: {"documents": number, "bytes": number * 400, "tokens": number * 170}
            for split, number in (("train", 800), ("validation", 12), ("probe", 14))
        }
        read = {"documents": 826 + sum(dropped.values()), "bytes": 400_000}
        sources[name] = {"domain": domain, "read": read, "dropped": dropped, "kept": kept}
    examples = {name: [f"A text that {name} dropped.", HOSTILE, "third"] for name in ("length", "repetition")}
    tokenizer = {"vocab_size": 1024, "bytes_per_token": dict.fromkeys(SOURCES, 2.4)}
    return {"curation.json": {"sources": sources, "examples": examples, "tokenizer": tokenizer}}


def mix() -> dict[str, Any]:
    even = dict.fromkeys(SOURCES, 0.25)
    found = dict(zip(SOURCES, (0.62, 0.17, 0.06, 0.15), strict=True))
    size = dict(zip(SOURCES, (0.21, 0.13, 0.16, 0.5), strict=True))
    bits = {
        name: {"code": 2.2 + off, "knowledge": 2.5 - off, "maths": 1.9 - 3 * off, "mean": 2.2 - off}
        for name, off in (("found", 0.05), ("uniform", 0.0), ("proportional", -0.02))
    }
    told = {"shares": found, "uniform": even, "proportional": size, "utility": found, "utility_by_probe": {}}
    return {"mix.json": {**told, "bits_per_byte": bits}}


def selection(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    influence = {
        name: [rng.gauss(0.3 - 0.1 * place, 0.2) for _ in range(400)] for place, name in enumerate(SOURCES)
    }
    kept = {
        name: {"documents": sum(v > 0 for v in values) * 2, "of": 800, "tokens": 1}
        for name, values in influence.items()
    }
    return {"selection.json": {"shares": dict.fromkeys(SOURCES, 0.25), "kept": kept, "influence": influence}}


def merged(names: tuple[str, ...], resolution: int) -> dict[str, Any]:
    def loss(weights: tuple[float, ...]) -> dict[str, float]:
        far = sum((weight - (0.6, 0.3, 0.1, 0.0)[place]) ** 2 for place, weight in enumerate(weights))
        return {"code": 1.6 + far / 9, "maths": 1.2 + far / 7, "mean": 1.4 + far / 8}

    grid = [()]
    for _ in names[1:]:
        grid = [(*w, n) for w in grid for n in range(resolution + 1 - sum(w))]
    tried = [tuple(n / resolution for n in (*w, resolution - sum(w))) for w in grid]
    best = min(tried, key=lambda weights: loss(weights)["mean"])
    told = {
        "weights": dict(zip(names, best, strict=True)),
        "best": loss(best),
        "uniform": loss(tuple(1 / len(names) for _ in names)),
        "single": {name: loss(tuple(float(other == name) for other in names)) for name in names},
        "search": [{"weights": dict(zip(names, w, strict=True)), "loss": loss(w)} for w in tried],
    }
    return {"merge.json": told}


def evaluation() -> dict[str, Any]:
    models, files = {}, {}
    for label, accuracy in ACCURACY.items():
        shipped = label in ("gguf", "pte")
        solved = round(60 * accuracy)
        total = {"found": 48 if label not in ("phase2",) else 3, "of": 50}
        models[label] = {
            "path": f"model.{label}" if shipped else label,
            "bytes": 812_000 if shipped else 4_700_000,
            "accuracy": solved / 60,
            "problems": {family: {"solved": solved, "total": 60} for family in FAMILIES},
            "constant_answer": dict.fromkeys(FAMILIES, 0.08),
            "bits_per_byte": {"code": 1.91, "knowledge": 2.04, "maths": 1.43},
            "needle": {"256": {"found": 50, "of": 50}, "1024": total},
            "tokens_per_second": 812.4,
        }
        rows = [
            {
                "id": f"{family}-{n}",
                "family": family,
                "prompt": f"Compute {n} + 40 - 2. {HOSTILE if n == 3 else ''}",
                "completion": f"{n} + 40 = {n + 40}\n{n + 40} - 2 = {n + 38}\n#### {n + 38 + n % 2}",
                "answer": str(n + 38),
                "correct": n % 2 == 0,
            }
            for family in FAMILIES
            for n in (2, 3, 4)
        ]
        files[f"transcripts/{label}.jsonl"] = rows
    return {"evaluation.json": {"suite": "pocket", "models": models}, **files}


def whole_run(run: Path) -> dict[str, Path]:
    """Stage folders of a recipe that has every stage, by name."""
    exported = {"model": "int4", "quantization": "int4_group32"}
    sizes = {"model.gguf": 812_000, "model.pte": 812_000, "hf": 3_300_000}
    folders = [
        write_stage(run, "curate", "corpus", 31.0, curation()),
        write_stage(run, "find_mix", "mix", 74.0, mix(), corpus="corpus"),
        write_stage(run, "pretrain", "teacher", 221.0, steps(600, 6.9, 2.1, 1), corpus="corpus", mix="mix"),
        write_stage(run, "pretrain", "phase2", 120.5, steps(600, 3.1, 2.2, 2), corpus="corpus", mix="mix"),
        write_stage(run, "select", "select1", 20.2, selection(3), corpus="corpus", model="phase2"),
        write_stage(
            run, "pretrain", "mid1", 60.1, steps(300, 0.5, 0.2, 4), model="phase2", teacher="teacher"
        ),
        write_stage(run, "select", "select2", 20.9, selection(5), corpus="corpus", model="mid1"),
        write_stage(run, "extend_context", "long", 55.0, steps(100, 0.9, 0.4, 6), teacher="teacher"),
        write_stage(run, "merge", "merge", 12.0, merged(("a", "b"), 10), corpus="corpus"),
        write_stage(
            run, "merge", "merge3", 12.0, merged(("maths", "code", "knowledge"), 10), corpus="corpus"
        ),
        write_stage(run, "merge", "merge4", 12.0, merged(("a", "b", "c", "d"), 4), corpus="corpus"),
        write_stage(run, "finetune", "chat", 64.0, steps(250, 1.4, 0.6, 7), corpus="/a/place/corpus"),
        write_stage(run, "quantize", "int4", 48.0, steps(120, 0.3, 0.05, 8), model="chat"),
        write_stage(run, "export", "files", 9.5, {"export.json": {**exported, "bytes": sizes}}, model="int4"),
        write_stage(run, "evaluate", "evaluation", 82.0, evaluation(), corpus="corpus"),
    ]
    return {folder.name: folder for folder in folders}


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
    "evaluation",
    "road",
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


def test_every_drawing_is_described(whole: str) -> None:
    drawings = [attributes for tag, attributes in Reader(whole).tags if tag == "svg"]
    assert len(drawings) > 30
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings)


def test_a_short_recipe_gives_a_short_page(run: dict[str, Path], tmp_path: Path) -> None:
    stages = [run[name] for name in ("chat", "int4", "files")]
    page = Reader(make_page(tmp_path, replace(CONFIG, goals=()), stages, run["evaluation"]))
    assert page.parts == ["short", "evaluation", "road", "curves", "answers", "recipe"]
    assert "4 stages in 3 min 24 s" in page.text  # the evaluation, not named among them, comes last


def test_the_first_paragraph_says_what_the_figures_say(whole: str) -> None:
    text = Reader(whole).text
    assert "model.gguf (812 kB) solves 230 of 300 problems; model.pte" in text
    assert "the best constant answer to each family would solve 8.0 %" in text
    assert "3 of 3 goals are met." in text


def test_each_config_field_changes_something(run: dict[str, Path], tmp_path: Path, whole: str) -> None:
    changes = {"title": "Another", "goals": CONFIG.goals[:1], "examples": 1}
    for field, value in changes.items():
        page = make_page(tmp_path, replace(CONFIG, **{field: value}), list(run.values()), run["evaluation"])
        assert page != whole, field
    no_examples = make_page(tmp_path, replace(CONFIG, examples=0), list(run.values()), run["evaluation"])
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
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not JSON"):
        attempt(torn)


def test_a_loss_that_is_not_finite_is_said_and_not_drawn(run: dict[str, Path], tmp_path: Path) -> None:
    rows = steps(40, 3.0, 2.0, 1)["metrics.jsonl"]
    rows[7]["loss"] = float("nan")
    broken = write_stage(tmp_path, "pretrain", "broken", 1.0, {"metrics.jsonl": rows})
    for row in rows:
        row["loss"] = float("inf")
    lost = write_stage(tmp_path, "pretrain", "lost", 1.0, {"metrics.jsonl": rows})
    page = make_page(tmp_path, CONFIG, [broken, lost], run["evaluation"])
    assert "1 steps without a finite loss" in page and "40 steps without a finite loss" in page
    assert "nan" not in page.replace("finance", "")


def test_figures_an_evaluation_lacks_are_left_blank(tmp_path: Path) -> None:
    told = evaluation()
    for model in told["evaluation.json"]["models"].values():
        del model["bits_per_byte"], model["needle"], model["tokens_per_second"]
    folder = write_stage(tmp_path, "evaluate", "bare", 1.0, told)
    page = Reader(make_page(tmp_path, CONFIG, [], folder))
    assert "not measured" in page.text and "2 of 3 goals are met, 1 not measured." in page.text


MODELS: dict[str, Any] = {
    "before": {"accuracy": 1.0, "needle": {"1024": {"found": 1, "of": 50}}},
    "after": {"accuracy": 0.98, "needle": {"1024": {"found": 45, "of": 50}}},
    "other": {"accuracy": 0.5},
}


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [
        (Goal(text="", model="after", at_least=0.98), 0.98, True),
        (Goal(text="", model="after", at_least=0.981), 0.98, False),
        (Goal(text="", model="after", at_least=-0.02, compared_to="before"), -0.02, True),
        (Goal(text="", model="after", at_least=-0.01, compared_to="before"), -0.02, False),
        (Goal(text="", model="after", at_least=0.9, measure="needle 1024", beside=("before",)), 0.9, True),
        (Goal(text="", model="other", at_least=0.9, measure="needle 1024"), None, None),
    ],
)
def test_a_goal_is_judged_by_the_evaluation(goal: Goal, figure: float | None, met: bool | None) -> None:
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
