"""A whole recipe, small: every stage of recipes/pocket.py runs, leaves what it promises, and is not
run again.
"""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.data.corpus_folder import held_out_texts
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.model.arithmetic import on_threads
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.stages.evaluate import opened

TINY = Path(__file__).with_name("tiny.py")
RECIPES = Path(__file__).parents[2] / "recipes"
CHECKPOINTS = (
    *("teacher-short", "teacher", "phase1", "base", "mid", "long", "branch-maths", "branch-texts"),
    *("merged", "chat", "ptq", "int4"),
)
TRAINED = tuple(name for name in CHECKPOINTS if name not in ("merged", "ptq"))
OTHERS = ("corpus", "mix", "select", "files", "evaluation", "report")
SOURCES = ("problems", "notes", "recall", "texts")
DOMAINS = {"maths", "knowledge", "code"}

# |bits per byte of the file - of its checkpoint|. The integers and scales are the same; activations
# are int8 a token in ours and ExecuTorch's, int8 a block of 32 in llama.cpp's. Measured: 0.0006
# (.gguf), 0.0001 (.pte), of 2 to 4 bits.
GGUF_TOLERANCE = 0.005
PTE_TOLERANCE = 0.001


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, in a folder that may be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def run(documents: Path, out: Path, *words: str) -> tuple[int, str]:
    """Exit status and everything shown of tiny.py."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["run", str(TINY), str(documents), "--out", str(out), *words]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file but the lock."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {
        str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    }


def is_distribution(shares: dict[str, float]) -> bool:
    return math.isclose(sum(shares.values()), 1, abs_tol=1e-6) and min(shares.values()) >= 0


# ---- what the stages leave ----


def test_every_stage_finishes_and_leaves_nothing_half_written(finished: Path) -> None:
    assert {folder.name for folder in finished.iterdir() if folder.is_dir()} == {
        *CHECKPOINTS,
        *OTHERS,
    }
    for name in (*CHECKPOINTS, *OTHERS):
        record = read(finished / name / "stage.json")
        assert record["status"] == "finished" and record["files"], name
    leftovers = [
        file for file in finished.rglob("*") if "partial" in file.name or file.name.endswith(".old")
    ]
    assert not leftovers and not (finished / "error.log").exists()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_a_folder_that_hugging_face_opens(finished: Path, name: str) -> None:
    files = {file.name for file in (finished / name).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    config = read(finished / name / "config.json")
    assert config["model_type"] == "qwen3"
    assert config["pocketlm"]["quantization"] == (
        "int4_group32" if name in ("ptq", "int4") else None
    )
    assert ("chat_template.jinja" in files) == (name in ("chat", "ptq", "int4"))
    model, tokenizer = load_checkpoint(finished / name)
    assert tokenizer.vocab_size == model.config.vocab_size == 512
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_stage_tells_of_each_step(finished: Path, name: str) -> None:
    rows = [
        json.loads(line) for line in (finished / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row.keys() >= {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds"}
        assert math.isfinite(row["loss"]) and row["lr"] > 0 and row["tokens"] > 0
    assert list((finished / name / "tensorboard").glob("events.*"))


def test_the_corpus_says_where_every_document_went(finished: Path) -> None:
    told = read(finished / "corpus" / "curation.json")
    assert tuple(told["sources"]) == SOURCES and told["tokenizer"]["vocab_size"] == 512
    for source in told["sources"].values():
        kept = sum(split["documents"] for split in source["kept"].values())
        assert source["read"]["documents"] == kept + sum(source["dropped"].values()) > 0
        assert set(source["kept"]) == {"train", "validation", "probe"}


def test_mix_selection_and_merge_say_how_they_chose(finished: Path) -> None:
    mix = read(finished / "mix" / "mix.json")
    assert list(mix["mixes"]) == ["found", "uniform", "proportional"]
    for compared in mix["mixes"].values():
        assert set(compared["shares"]) == set(SOURCES) and is_distribution(compared["shares"])
        assert set(compared["bits_per_byte"]) == DOMAINS | {"mean"}
    found = mix["mixes"]["found"]
    assert mix["selected"] == "found" and mix["shares"] == found["shares"]
    assert set(found["utility"]) == set(SOURCES) and set(found["utility_by_probe"]) == DOMAINS
    proxies = finished / "mix" / "proxies"
    line_search = {f"found-step-{size}" for size in found["line_search"]}
    assert line_search == {"found-step-0", "found-step-1"}
    trained = {proxy.name for proxy in proxies.iterdir()}
    assert trained <= {*mix["mixes"], "found-simulated-1", *line_search}
    # what the search chose is one of its steps; where no cap changes it, the prior is the run
    assert trained >= {"found-simulated-1", "found-step-1", "uniform"} and "found" not in trained
    for proxy in proxies.iterdir():
        assert len((proxy / "metrics.jsonl").read_text().splitlines()) == 4
        assert not (proxy / "resume").exists()
    selection = read(finished / "select" / "selection.json")
    assert is_distribution(selection["shares"]) and set(selection["kept"]) == set(
        selection["influence"]
    ) == set(SOURCES)
    assert all(kept["documents"] <= kept["of"] for kept in selection["kept"].values())
    merged = read(finished / "merged" / "merge.json")
    assert is_distribution(merged["weights"]) and set(merged["single"]) == {
        "branch-maths",
        "branch-texts",
    }
    assert len(merged["search"]) == 5  # two branches in quarters
    best = min(merged["search"], key=lambda row: row["loss"]["mean"])
    assert best["weights"] == merged["weights"]


def test_the_evaluation_measures_each_model_on_everything(finished: Path) -> None:
    evaluation = read(finished / "evaluation" / "evaluation.json")
    models = evaluation["models"]
    (difference,) = evaluation["differences"]
    assert (difference["model"], difference["compared_to"]) == ("model.gguf", "int4")
    assert (
        difference["n"] == 6
        and difference["other_ids"] == 0
        and difference["low"] <= difference["difference"]
    )
    assert len(models["model.gguf"]["sha256"]) == 64
    assert list(models) == ["base", "long", "chat", "ptq", "int4", "model.gguf"]
    for label, found in models.items():
        assert set(found["bits_per_byte"]) == DOMAINS and set(found["needle"]) == {"256"}
        assert (
            found["suites"]["exam"]["problems"]["exam"]["total"] == 6
            and found["tokens_per_second"] > 0
            and found["bytes"] > 0
        )
        answers = finished / "evaluation" / "transcripts" / f"{label}.exam.jsonl"
        rows = answers.read_text().splitlines()
        assert len(rows) == 6 and json.loads(rows[0]).keys() >= {
            "prompt",
            "completion",
            "answer",
            "correct",
        }


# ---- the exported files ----


def test_the_gguf_predicts_text_as_well_as_its_checkpoint(finished: Path) -> None:
    models = read(finished / "evaluation" / "evaluation.json")["models"]
    for domain, bits in models["int4"]["bits_per_byte"].items():
        assert models["model.gguf"]["bits_per_byte"][domain] == pytest.approx(
            bits, abs=GGUF_TOLERANCE
        )
    assert models["model.gguf"]["bytes"] < models["int4"]["bytes"] / 4


def test_the_pte_predicts_text_as_well_as_its_checkpoint(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    result = CliRunner().invoke(
        app, ["export", str(finished / "int4"), "--to", "pte", "--out", str(tmp_path / "files")]
    )
    assert result.exit_code == 0, result.output
    bits = {}
    for path in (finished / "int4", tmp_path / "files" / "model.pte"):
        with opened(path) as model:
            texts = held_out_texts(finished / "corpus", model.tokenizer, "validation", 200)
            bits[path.suffix] = {
                domain: bits_per_byte(model, own, 64) for domain, own in texts.items()
            }
    for domain, expected in bits[""].items():
        assert bits[".pte"][domain] == pytest.approx(expected, abs=PTE_TOLERANCE)


# ---- the second time ----


def test_a_second_run_executes_nothing(finished: Path, documents: Path) -> None:
    before = state(finished)
    status, shown = run(documents, finished)
    assert status == 0 and shown.count("done before") == len((*CHECKPOINTS, *OTHERS))
    assert state(finished) == before


def test_a_changed_config_stops_with_the_difference_and_changes_nothing(
    finished: Path, documents: Path
) -> None:
    before = state(finished)
    status, shown = run(documents, finished, "--set", "chat.optim.lr=0.001")
    assert status == 2 and "chat" in shown and "optim.lr: 0.004 -> 0.001" in shown
    assert "Traceback" not in shown and before == {
        name: found for name, found in state(finished).items() if name != "error.log"
    }
    (finished / "error.log").unlink(missing_ok=True)


def test_a_changed_input_file_stops_the_run_too(
    finished: Path, documents: Path, tmp_path: Path
) -> None:
    edited = shutil.copytree(documents, tmp_path / "documents")
    status, shown = run(edited, finished, "--dry-run")
    assert status == 0 and "changed" in shown  # the path is part of the config
    (documents / "texts" / "later.txt").write_text("A file that was not there before. " * 9)
    try:
        status, shown = run(documents, finished)
    finally:
        (documents / "texts" / "later.txt").unlink()
        (finished / "error.log").unlink(missing_ok=True)
    assert (
        status == 2
        and "stage corpus is finished with another configuration" in shown
        and "texts" in shown
    )


def test_one_stage_alone_is_run_with_only(copy: Path, documents: Path) -> None:
    """In this process, after all that its tests did, with the threads of the run: to the bit what
    it was there.
    """
    weights = (copy / "chat" / "model.safetensors").read_bytes()
    threads = read(copy / "chat" / "stage.json")["arithmetic"]["threads"]
    shutil.rmtree(copy / "chat")
    shutil.rmtree(copy / "report")
    with on_threads(threads):
        status, shown = run(documents, copy, "--only", "chat")
    assert status == 0 and "chat: ran" in shown and not (copy / "report").exists()
    assert read(copy / "chat" / "stage.json")["arithmetic"]["threads"] == threads == 1
    assert (copy / "chat" / "model.safetensors").read_bytes() == weights
    status, shown = run(documents, copy, "--only", "chit")
    assert status == 2 and "did you mean 'chat'" in shown


def test_one_stage_alone_on_two_threads_is_the_same_in_this_process_and_in_another(
    copy: Path, documents: Path, environment: dict[str, str]
) -> None:
    shutil.rmtree(copy / "chat")
    with on_threads(2):
        status, shown = run(documents, copy, "--only", "chat")
    assert status == 0, shown
    here = (copy / "chat" / "model.safetensors").read_bytes()
    shutil.rmtree(copy / "chat")
    words = ["run", str(TINY), str(documents), "--out", str(copy), "--only", "chat"]
    command = [sys.executable, "-m", "pocketlm.cli", *words]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**environment, "OMP_NUM_THREADS": "2"},
        timeout=300,
    )
    assert read(copy / "chat" / "stage.json")["arithmetic"]["threads"] == 2
    assert (copy / "chat" / "model.safetensors").read_bytes() == here


def test_only_says_what_it_needs(copy: Path, documents: Path) -> None:
    shutil.rmtree(copy / "chat")
    shutil.rmtree(copy / "int4")
    status, shown = run(documents, copy, "--only", "int4")
    assert status == 2 and "stage int4 needs chat, which is to do" in shown


def test_a_dry_run_shows_states_and_starts_nothing(
    copy: Path, documents: Path, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "report")
    before = state(copy)
    status, shown = run(documents, copy, "--dry-run", "--set", "int4.seed=9")
    listed = shown.splitlines()[1:]  # below the title
    lines = {line.split()[1]: line for line in listed if line[:1].isdecimal()}
    assert status == 0 and len(lines) == len((*CHECKPOINTS, *OTHERS))
    assert "done" in lines["chat"] and "changed" in lines["int4"] and "to do" in lines["report"]
    assert state(copy) == before
    status, shown = run(documents, tmp_path / "nowhere", "--dry-run")
    assert status == 0 and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("chat.seq_length=9", "did you mean 'seq_len'"),
        ("chat.optim.step=9", "did you mean 'num_steps'"),
        ("chats.seq_len=9", "did you mean 'chat'"),
        ("phase1.model.hiden_size=64", "did you mean 'hidden_size'"),
    ],
)
def test_an_unknown_field_in_a_setting_names_the_nearest(
    finished: Path, documents: Path, setting: str, message: str
) -> None:
    status, shown = run(documents, finished, "--set", setting)
    assert status == 2 and message in shown and "Traceback" not in shown
    (finished / "error.log").unlink(missing_ok=True)


# ---- the report, and the recipes people run ----


class Links(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.fetched += [f"<{tag}>" for name, _ in attrs if name in ("src", "href", "data")]
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "srcset", "poster", "background")
        ]


def test_the_report_is_one_page_that_fetches_nothing(finished: Path) -> None:
    page = (finished / "report" / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert [link for link in links.fetched if not link.startswith("data:")] == []
    assert not re.findall(r"@import|url\(\s*['\"]?(?!#|data:)", page)
    for word in ("A tiny run", "four bits cost nothing", "branch-maths", "model.gguf"):
        assert word in page
    assert {file.name for file in (finished / "report").iterdir()} == {"report.html", "stage.json"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pocket.py", ""),
        ("r1.py", ""),
        ("pro.py", ""),
        ("specialize.py", "{run}/base --text {documents}/texts"),
    ],
)
def test_the_recipes_people_run_can_be_planned(
    name: str, words: str, finished: Path, documents: Path, tmp_path: Path
) -> None:
    arguments = words.format(run=finished, documents=documents).split()
    command = ["run", str(RECIPES / name), *arguments, "--out", str(tmp_path / "run"), "--dry-run"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 0 and result.output.count("to do") >= 3, result.output
    assert not (tmp_path / "run").exists()
