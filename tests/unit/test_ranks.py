"""A recipe on several ranks: the first decides, writes and explains; the others join it where a stage asks for all."""

import os
import signal
import time
from pathlib import Path

import pytest
from rank_processes import start_ranks

from pocketlm.train.ranks import ALONE, joined, ranks

RECIPE = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
from pocketlm.train.parallel import on_all_ranks
from pocketlm.train.ranks import ranks

@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    optim: str | None = "some"
    rows_per_step: int = 12
    micro_batch_size: int = 1
    failing: str = ""  # ranks that do
    seconds: float = 0.0

def leave_trace(config, out, **inputs):
    time.sleep(config.seconds)
    assert all((path / "rank-0").exists() for path in inputs.values())
    (out / f"rank-{ranks().rank}").touch()
    if str(ranks().rank) in config.failing:
        raise ValueError(f"{config.name} cannot be done")
    return out

@on_all_ranks
def train(config, out, **inputs):
    return leave_trace(config, out, **inputs)

def prepare(config, out, **inputs):
    return leave_trace(config, out, **inputs)

def recipe(run):
    """Four stages."""
    text = run(prepare, Config(name="text", seconds=0.3))
    base = run(train, Config(name="base"), text=text)
    chosen = run(prepare, Config(name="chosen", seconds=0.3), base=base)
    return run(train, Config(name="chat"), base=base, chosen=chosen)
'''


def command(words: list[str], log: str) -> None:
    from pocketlm.cli import app

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    app(words)


def run_on(world_size: int, folder: Path, *words: str) -> tuple[list[int | None], str]:
    """(exit status of each rank, what they showed together) of `pocketlm run` with the recipe above."""
    recipe, log = folder / "four.py", folder / "shown.txt"
    recipe.write_text(RECIPE)
    log.write_text("")
    told = ["run", str(recipe), "--out", str(folder / "run"), *words]
    processes = start_ranks(world_size, command, told, str(log))
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes], log.read_text()


def traces(folder: Path) -> dict[str, list[str]]:
    """Which ranks ran each stage."""
    stages = sorted(path for path in (folder / "run").iterdir() if path.is_dir())
    return {stage.name: sorted(path.name[-1] for path in stage.glob("rank-*")) for stage in stages}


def test_stages_that_train_run_on_all_ranks_and_the_others_on_the_first_alone(tmp_path: Path) -> None:
    statuses, shown = run_on(3, tmp_path)
    assert statuses == [0, 0, 0], shown
    assert traces(tmp_path) == {"base": ["0", "1", "2"], "chat": ["0", "1", "2"], "chosen": ["0"], "text": ["0"]}
    assert shown.count("stage 2 of 4 · train · base") == 1


def test_a_finished_stage_is_passed_by_all_ranks(tmp_path: Path) -> None:
    for stage in ("text", "base"):
        assert run_on(2, tmp_path, "--only", stage)[0] == [0, 0]
    statuses, shown = run_on(2, tmp_path)
    assert statuses == [0, 0] and "base: done before" in shown and "chat: ran" in shown
    assert traces(tmp_path) == {"base": ["0", "1"], "chat": ["0", "1"], "chosen": ["0"], "text": ["0"]}


@pytest.mark.parametrize(("stage", "failing"), [("text", "0"), ("base", "0 1 2"), ("chat", "0")])
def test_an_error_is_told_once_and_ends_all_ranks(stage: str, failing: str, tmp_path: Path) -> None:
    statuses, shown = run_on(3, tmp_path, "--set", f"{stage}.failing={failing}")
    assert statuses == [2, 2, 2]
    assert shown.count(f"{stage} cannot be done") == 1 and "Traceback" not in shown
    assert "cannot be done" in (tmp_path / "run" / "error.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set", "base.rows_per_step=4"],
            "base.rows_per_step 4 does not divide into micro-batches of base.micro_batch_size 1 on 3 ranks; make it a "
            "multiple of 3",
        ),
        (["--set", "nothing.x=1"], "the recipe has no stage 'nothing'"),
        (["--wrong"], "No such option: --wrong"),
    ],
)
def test_bad_input_is_told_once_before_anything_starts(words: list[str], message: str, tmp_path: Path) -> None:
    statuses, shown = run_on(3, tmp_path, *words)
    assert statuses == [2, 2, 2] and not (tmp_path / "run").exists()
    assert shown.count(message) == 1


@pytest.mark.parametrize(("word", "shows"), [("--dry-run", "4 stages"), ("--help", "Four stages.")])
def test_a_dry_run_and_help_end_all_ranks_in_order(word: str, shows: str, tmp_path: Path) -> None:
    statuses, shown = run_on(2, tmp_path, word)
    assert statuses == [0, 0] and not (tmp_path / "run").exists()
    assert shown.count(shows) == 1


@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_waits_or_works_alone_can_be_asked_to_stop(asked: int, tmp_path: Path) -> None:
    recipe, log = tmp_path / "four.py", tmp_path / "shown.txt"
    recipe.write_text(RECIPE)
    told = ["run", str(recipe), "--out", str(tmp_path / "run"), "--set", "text.seconds=20"]
    processes = start_ranks(2, command, told, str(log))
    while not (tmp_path / "run" / "text" / "stage.json").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(processes[asked].pid or 0, signal.SIGTERM)
    processes[asked].join(10)
    assert processes[asked].exitcode == 130
    if asked == 1:  # torchrun would pass it on
        os.kill(processes[0].pid or 0, signal.SIGTERM)
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [130, 130]
    assert log.read_text().count("interrupted in stage text; run the same command again to go on") == 1


def test_alone_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as board:
        assert ranks() is ALONE and board.may_explain() and board.may_explain()
        board.tell("go")  # to nobody
