"""The command line: it teaches, and a user's mistake is one message with exit status 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer

RECIPE = '''"""A toy recipe of two stages.

It writes [small] files.
"""
import errno, os, time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Write:
    name: str
    text: str = "hello"
    num_steps: int = 3


def write(config, out, documents=None):
    if config.text == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "text.txt"))
    if config.text == "broken":
        return out + 1
    if config.text == "bad":
        raise ValueError("a line that is [bold]wrong[/bold]")
    if config.text == "wait" and not (out / "seen").exists():
        (out / "seen").touch()
        time.sleep(60)
    (out / "text.txt").write_text(config.text)
    return out


def recipe(
    run, documents: Path, *, num_steps: int = 3, text: str = "hello", quick: bool = False, x=1
):
    first = run(write, Write(name="first", num_steps=num_steps), documents=documents)
    run(write, Write(name="second", text=text + ("!" if quick else "")), documents=first)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POCKETLM_TRACEBACK", raising=False)
    Path("toy.py").write_text(RECIPE)
    Path("notes.txt").write_text("one")
    return tmp_path


def pocketlm(*words: str) -> tuple[int, str]:
    """Exit status, and everything that was shown."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "command", ["run", "verify-resume", "plan", "chat", "eval", "bench", "export"]
)
def test_help_teaches_with_examples(command: str) -> None:
    status, shown = pocketlm(command, "--help")
    assert (
        status == 0
        and "Examples" in shown
        and f"pocketlm {command} runs" in shown.replace("recipes", "runs")
    )


def test_the_command_starts_without_anything_heavy() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'datasets'}"
    code = f"import sys, pocketlm.cli; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "set()\n"
    )


def test_a_recipe_is_run_and_its_stages_are_told(toy: Path) -> None:
    status, shown = pocketlm("run", "toy.py", "notes.txt")
    assert status == 0 and "stage 2 of 2 · write · second" in shown and "together" in shown
    assert (toy / "runs" / "toy" / "second" / "text.txt").read_text() == "hello"
    status, shown = pocketlm("run", "toy.py", "notes.txt")
    assert status == 0 and shown.count("done before") == 2


def test_a_recipes_help_shows_its_docstring_and_flags(toy: Path) -> None:
    status, shown = pocketlm("run", "toy.py", "--help")
    assert status == 0 and "It writes [small] files." in shown
    for word in ("documents", "--num-steps", "--quick", "--no-quick", "--x", "--dry-run"):
        assert word in shown


def test_a_recipes_flags_are_read_by_their_types(toy: Path) -> None:
    status, _ = pocketlm(
        "run",
        "toy.py",
        "notes.txt",
        "--text",
        "bye",
        "--quick",
        "--out",
        "elsewhere",
        "--num-steps",
        "5",
    )
    assert status == 0
    assert (toy / "elsewhere" / "second" / "text.txt").read_text() == "bye!"
    assert '"num_steps": 5' in (toy / "elsewhere" / "first" / "stage.json").read_text()


def test_a_dry_run_shows_the_state_of_each_stage(toy: Path) -> None:
    pocketlm("run", "toy.py", "notes.txt", "--only", "first")
    status, shown = pocketlm(
        "run", "toy.py", "notes.txt", "--dry-run", "--set", "second.num_steps=20"
    )
    first, second = (line for line in shown.splitlines() if "  write  " in line)
    assert status == 0 and "done" in first and "to do" in second and "num_steps=20" in second
    assert not (toy / "runs" / "toy" / "second").exists()
    _, shown = pocketlm("run", "toy.py", "notes.txt", "--dry-run", "--num-steps", "9")
    assert "changed" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "nowhere.py: no such recipe; there are toy.py"),
        (["notes.txt"], "a recipe is a Python file"),
        (["empty.py"], "no function recipe(run, ...)"),
        (["unfinished.py"], "unfinished.py:2: not Python"),
        (["toy.py"], "Missing argument"),
        (["toy.py", "nowhere.txt"], "stage first: input documents: nowhere.txt does not exist"),
        (["toy.py", "notes.txt", "--num-step", "5"], "--num-steps"),
        (["toy.py", "notes.txt", "--num-steps", "many"], "--num-steps"),
        (["toy.py", "notes.txt", "--set", "first.num_step=5"], "did you mean 'num_steps'"),
        (["toy.py", "notes.txt", "--set", "fist.num_steps=5"], "did you mean 'first'"),
        (["toy.py", "notes.txt", "--only", "third"], "no stage 'third'"),
        (["toy.py", "notes.txt", "--text", "bad"], "a line that is [bold]wrong[/bold]"),
    ],
)
def test_a_mistake_is_one_message(toy: Path, words: list[str], message: str) -> None:
    Path("empty.py").write_text("x = 1\n")
    Path("unfinished.py").write_text("x = 1\ndef (\n")
    status, shown = pocketlm("run", *words)
    assert status == 2 and message in shown
    assert "Traceback" not in shown and len(shown.splitlines()) < 25


def test_the_traceback_of_a_failed_stage_is_kept_in_a_file(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, shown = pocketlm("run", "toy.py", "notes.txt", "--text", "bad")
    assert status == 2 and "in stage second" in shown
    assert "Traceback" in (toy / "runs" / "toy" / "error.log").read_text()
    monkeypatch.setenv("POCKETLM_TRACEBACK", "1")
    assert isinstance(
        CliRunner().invoke(app, ["run", "toy.py", "notes.txt", "--text", "bad"]).exception,
        ValueError,
    )


def test_a_changed_configuration_is_shown_and_nothing_is_overwritten(toy: Path) -> None:
    pocketlm("run", "toy.py", "notes.txt")
    status, shown = pocketlm("run", "toy.py", "notes.txt", "--text", "bye")
    assert status == 2 and 'text: "hello" -> "bye"' in shown
    assert (toy / "runs" / "toy" / "second" / "text.txt").read_text() == "hello"


def test_a_full_disk_says_where_and_how_much_is_free(toy: Path) -> None:
    status, shown = pocketlm("run", "toy.py", "notes.txt", "--text", "full")
    assert (
        status == 2
        and "the disk is full" in shown
        and "MB are free at" in shown
        and "second" in shown
    )


def test_a_mistake_in_the_program_keeps_its_traceback(toy: Path) -> None:
    assert isinstance(
        CliRunner().invoke(app, ["run", "toy.py", "notes.txt", "--text", "broken"]).exception,
        TypeError,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(toy: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "pocketlm.cli", "run", "toy.py", "notes.txt", "--text", "wait"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    seen, deadline = (
        toy / "runs" / "toy" / "second" / "seen",
        time.monotonic() + 120,
    )  # beside other work it starts slowly
    while not seen.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen.exists()
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        "interrupted in stage second; run the same command again to go on" in shown
        and "Traceback" not in shown
    )
    assert pocketlm("run", "toy.py", "notes.txt", "--text", "wait")[0] == 0


@pytest.fixture
def checkpoint(toy: Path) -> Path:
    """A tiny model of random weights, on disk."""
    tokenizer = train_tokenizer(["a few words"], 262)
    shape = small(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, max_position_embeddings=256)
    folder = toy / "tiny"
    folder.mkdir()
    save_checkpoint(folder, Transformer(shape), tokenizer)
    return folder


def test_models_are_measured_side_by_side(checkpoint: Path) -> None:
    Path("asked.jsonl").write_text(
        '{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "1 + 2?", "answer": "3"}\n'
    )
    shutil.copytree(checkpoint, "other/tiny")
    status, shown = pocketlm(
        "eval", "tiny", "other/tiny", "--suite", "asked.jsonl", "--out", "results"
    )
    assert (
        status == 0
        and "other-tiny" in shown
        and "accuracy" in shown
        and "best constant answer" in shown
    )
    answers = Path("results/transcripts/other-tiny.asked.jsonl")
    assert len(answers.read_text().splitlines()) == 2
    status, again = pocketlm(
        "eval", "tiny", "other/tiny", "--suite", "asked.jsonl", "--out", "results"
    )
    assert status == 0 and "best constant answer" in again  # the same one: nothing is left to do
    status, shown = pocketlm("eval", "tiny", "--suite", "asked.jsonl", "--out", "results")
    assert status == 2 and "holds an evaluation with other models" in shown
    Path("results/request.json").unlink()
    status, shown = pocketlm("eval", "tiny", "--suite", "asked.jsonl", "--out", "results")
    assert status == 2 and "not empty" in shown
    status, shown = pocketlm("eval", "tiny", "--suite", "nothing")
    assert status == 2 and "nothing" in shown


def test_an_evaluation_goes_on_neither_with_other_documents_nor_with_another_safety(
    checkpoint: Path,
) -> None:
    Path("benchmarks").mkdir()
    file, row = Path("benchmarks/arc_easy_test.jsonl"), {"query": "1 + 1?", "gold": 0}
    file.write_text(json.dumps({**row, "choices": ["2", "7"]}))
    command = ("eval", "tiny", "--suite", "arc_easy", "--data", "benchmarks", "--out", "results")
    assert pocketlm(*command)[0] == 0
    status, shown = pocketlm(*command, "--unsafe-exec")
    assert status == 2 and "an evaluation with other unsafe_exec" in shown
    file.write_text(json.dumps({**row, "choices": ["2", "8"]}))
    status, shown = pocketlm(*command)
    assert status == 2 and "answers to suite arc_easy, whose documents changed" in shown
    request = json.loads(Path("results/request.json").read_text())
    del request["unsafe_exec"]  # as a version before wrote it
    Path("results/request.json").write_text(json.dumps(request))
    Path("results/transcripts/basis.json").unlink()
    assert pocketlm(*command)[0] == 0


def test_benchmarks_are_read_from_a_folder_and_shown_a_row_each(checkpoint: Path) -> None:
    Path("benchmarks").mkdir()
    row = {"query": "Question: 1 + 1?\nAnswer:", "choices": ["2", "7"], "gold": 0}
    Path("benchmarks/arc_easy_test.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    status, shown = pocketlm(
        "eval", "tiny", "--suite", "arc_easy,bpb.arc_easy", "--data", "benchmarks", "--limit", "2"
    )
    assert status == 0, shown
    assert "arc_easy" in shown and "bits per byte" in shown and "50.0" in shown  # the guess
    status, shown = pocketlm("eval", "tiny", "--suite", "piqa", "--data", "benchmarks")
    assert status == 2 and "holds no piqa_val.jsonl" in shown and "Traceback" not in shown
    status, shown = pocketlm("eval", "tiny", "--suite", "piqa", "--data", "nowhere")
    assert status == 2 and "no such folder" in shown


def test_a_protocol_without_some_data_says_what_to_leave_out_and_then_that_it_was(
    checkpoint: Path,
) -> None:
    Path("benchmarks").mkdir()
    row = {"query": "Question: 1 + 1?\nAnswer:", "choices": ["2", "7"], "gold": 0}
    Path("benchmarks/arc_easy_test.jsonl").write_text(json.dumps(row))
    command = ("eval", "tiny", "--suite", "r1-base.arc_easy,r1-final.livecodebench,piqa")
    command += ("--data", "benchmarks", "--out", "results")
    status, printed = pocketlm(*command)
    printed = " ".join(printed.split())
    assert status == 2 and "--without livecodebench,piqa" in printed
    assert "r1-final.livecodebench: " in printed and "holds no piqa_val.jsonl" in printed
    status, printed = pocketlm(*command, "--without", "livecodebench,piqa")
    printed = " ".join(printed.split())
    assert status == 0 and "(--without): r1-final.livecodebench, piqa" in printed
    evaluation = json.loads(Path("results/evaluation.json").read_text())
    assert list(evaluation["suites"]) == ["r1-base.arc_easy"]
    assert evaluation["left_out"] == ["r1-final.livecodebench", "piqa"]
    status, printed = pocketlm(*command, "--without", "livecodebench")
    assert status == 2 and "an evaluation with other without" in " ".join(printed.split())
    for wrong, line in (("arc", "not among the suites"), ("arc_easy", "names every suite")):
        status, printed = pocketlm("eval", "tiny", "--suite", "arc_easy", "--without", wrong)
        assert status == 2 and line in " ".join(printed.split())


def test_a_baseline_in_transformers_is_compared_document_by_document(checkpoint: Path) -> None:
    Path("asked.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    command = ("eval", "tiny", "--suite", "asked.jsonl", "--baseline", "tiny", "--out", "results")
    status, printed = pocketlm(*command)
    assert status == 0, printed
    evaluation = json.loads(Path("results/evaluation.json").read_text())
    assert evaluation["models"]["tiny-transformers"]["runtime"] == "transformers"
    (pair,) = evaluation["differences"]
    assert (pair["model"], pair["compared_to"]) == ("tiny-transformers", "tiny")
    first, second = (
        json.loads(Path(f"results/transcripts/{label}.asked.jsonl").read_text())
        for label in ("tiny", "tiny-transformers")
    )
    assert first["ids"] == second["ids"] and first["completion"] == second["completion"]


def test_a_checkpoint_is_exported_beside_itself(checkpoint: Path) -> None:
    status, shown = pocketlm("export", "tiny", "--to", "hf")
    assert (
        status == 0
        and shown.strip().endswith("tiny-hf/hf")
        and Path("tiny-hf/hf/model.safetensors").is_file()
    )
    status, shown = pocketlm("export", "tiny", "--to", "hf")
    assert status == 2 and "not empty" in shown


@pytest.mark.parametrize("target", ["mlx", "compressed-tensors"])
def test_a_four_bit_checkpoint_leaves_for_other_runtimes_and_is_not_read_back_as_floats(
    checkpoint, target
) -> None:
    status, shown = pocketlm("export", "tiny", "--to", target, "--out", "no")
    assert status == 2 and f"{target} holds four-bit models; quantize this one first" in " ".join(
        shown.split()
    )
    model, tokenizer = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, prepare(model, SCHEMES["int4_channel"]), tokenizer)
    status, shown = pocketlm("export", "tiny", "--to", target)
    assert status == 0 and shown.strip().endswith(f"tiny-{target}/{target}"), shown
    status, shown = pocketlm("import", f"tiny-{target}/{target}")
    assert status == 2 and "cannot honour quantization_config" in " ".join(shown.split())


def test_a_checkpoint_answers_lines_from_a_pipe(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["chat", "tiny", "--max-tokens", "4"], input="hello\n")
    assert result.exit_code == 0 and "a base model" in result.output and "a second" in result.output
    assert pocketlm("chat", "tiny", "--temperature", "-1")[0] == 2
    assert pocketlm("chat", "tiny", "--stop", "")[0] == 2


@pytest.mark.parametrize(
    "command", [["chat"], ["eval", "--suite", "pocket"], ["export", "--to", "gguf"]]
)
def test_a_model_that_is_not_there_is_named(toy: Path, command: list[str]) -> None:
    for model, message in (
        ("nowhere", "nowhere: no such model"),
        ("notes.txt", "notes.txt: not a model"),
        (".", "no checkpoint (no config.json)"),
    ):
        status, shown = pocketlm(command[0], model, *command[1:])
        assert status == 2 and message in shown
