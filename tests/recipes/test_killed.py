"""A run killed anywhere and started again ends with the bits of one that was never broken."""

import importlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pocketlm.model.checkpoint import load_checkpoint

TINY = Path(__file__).with_name("tiny.py")
STAGES = ("corpus", "base", "select", "mid", "merged", "chat", "int4")
Hook = tuple[str, str, int]  # what to do, at which function ("module:name"), at its n-th call

KILLS: dict[str, Hook] = {
    "while documents are read": ("kill", "pocketlm.corpus.read_step:document_json", 300),
    "while the second source is encoded": ("kill", "pocketlm.stages.curate:write_shard", 5),
    "when a folder gets its name": ("kill", "os:rename", 3),
    "between two stages": ("kill", "pocketlm.runner.run:Run._print_outcome", 2),
    "in a training step": ("kill", "pocketlm.train.loop:train_step", 4),
    "in the first save of a state": (
        "halve",
        "pocketlm.train.distributed.sharded_tensors:save_file",
        1,
    ),
    "in a later save of a state": (
        "halve",
        "pocketlm.train.distributed.sharded_tensors:save_file",
        4,
    ),
    "when a state is to get its name": ("kill", "pocketlm.train.checkpoint:publish", 3),
    "when an older state is taken away": ("kill", "pocketlm.train.checkpoint:drop_old", 2),
    "in the save of a milestone": ("halve", "pocketlm.model.checkpoint:save_file", 2),
    "in the save of a checkpoint": ("halve", "pocketlm.model.checkpoint:save_file", 4),
    "between a milestone and the state of its step": (
        "kill",
        "pocketlm.train.checkpoint:StateWriter.write",
        2,
    ),
    "when the last state is written and the checkpoint is not": (
        "kill",
        "pocketlm.stages.training:save_checkpoint",
        1,
    ),
    "while samples are scored": ("kill", "pocketlm.stages.select:score", 3),
    "while merges are tried": ("kill", "pocketlm.stages.merge:domain_losses", 3),
    "when a stage is written down as finished": ("kill", "pocketlm.runner.run:list_outputs", 6),
}


def run_recipe(words: list[str], hook: Hook | None, log: str) -> None:
    """The command, in a process that was forked when everything slow was imported."""
    import torch

    from pocketlm.cli import app

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if hook:
        install(*hook)
    app(words)


def install(action: str, place: str, number: int) -> None:
    """Replaces a function by one that at its `number`-th call kills the process, or halves what it
    wrote and then does.

    "slow" adds `number` milliseconds to every call.
    """
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def replaced(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if action == "slow":
            time.sleep(number / 1000)
        if calls != number or action == "slow":
            return original(*arguments, **options)
        if action == "halve":
            original(*arguments, **options)
            written = Path(arguments[1])
            os.truncate(written, written.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, replaced)


class Runner:
    """Runs of the short recipe, each in a process of its own."""

    def __init__(self, documents: Path, log: Path) -> None:
        self.documents, self.log = documents, log
        self.context = multiprocessing.get_context("forkserver")
        stages = (
            "curate",
            "pretrain",
            "select",
            "merge",
            "finetune",
            "quantize",
            "evaluate",
            "report",
            "export",
            "find_mix",
        )
        # to import, so once for all runs
        slow = ("pocketlm.cli", "pocketlm.runner.run", "torch._dynamo", "reasoning_gym")
        self.context.set_forkserver_preload(
            [*slow, *(f"pocketlm.stages.{name}" for name in stages)]
        )

    def start(self, out: Path, hook: Hook | None = None) -> BaseProcess:
        words = ["run", str(TINY), str(self.documents), "--short", "--out", str(out)]
        process = self.context.Process(target=run_recipe, args=(words, hook, str(self.log)))  # type: ignore[attr-defined]
        process.start()
        return process

    def status(self, process: BaseProcess) -> int | None:
        process.join(60)
        return process.exitcode

    def finish(self, out: Path) -> None:
        assert self.status(self.start(out)) == 0, self.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def runner(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        found = Runner(documents, tmp_path_factory.mktemp("log") / "shown.txt")
        # starts the server, which imports, with this environment
        warm = found.context.Process(target=os.getpid)
        warm.start()
        warm.join(60)
    return found


@pytest.fixture(scope="module")
def unbroken(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and how many seconds it took."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    start = time.monotonic()
    runner.finish(out)
    return out, time.monotonic() - start


def left_by(out: Path) -> dict[str, Any]:
    """Everything a run left that does not tell the time: bytes of files, and the figures of
    metrics.
    """
    assert sorted(folder.name for folder in out.iterdir() if folder.is_dir()) == sorted(STAGES)
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        if file.is_file() and "tensorboard" not in file.parts and file.parent != out:
            name = str(file.relative_to(out))
            if file.name == "throughput.json":
                continue
            if file.name == "metrics.jsonl":
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                found[name] = [
                    (row["step"], row["loss"], row["grad_norm"], row["lr"], row["tokens"])
                    for row in rows
                ]
            elif file.name == "stage.json":
                found[name] = {
                    key: json.loads(file.read_text())[key] for key in ("digest", "status")
                }
            else:
                found[name] = file.read_bytes()
    return found


def assert_alike(out: Path, unbroken: Path) -> None:
    expected, found = left_by(unbroken), left_by(out)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_milestones_are_whole_checkpoints_and_counted_in_the_record(
    unbroken: tuple[Path, float],
) -> None:
    base = unbroken[0] / "base"
    names = ["step-00000002", "step-00000004"]
    assert sorted(folder.name for folder in (base / "milestones").iterdir()) == names
    counted = json.loads((base / "stage.json").read_text())["files"]
    for name in names:
        weights = base / "milestones" / name / "model.safetensors"
        assert counted[f"milestones/{name}/model.safetensors"] == weights.stat().st_size
        load_checkpoint(weights.parent)
    first, last = (base / "milestones" / name / "model.safetensors" for name in names)
    assert first.read_bytes() != last.read_bytes()
    assert last.read_bytes() == (base / "model.safetensors").read_bytes()


def test_two_unbroken_runs_are_alike(
    runner: Runner, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    runner.finish(tmp_path / "run")
    assert_alike(tmp_path / "run", unbroken[0])


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed_once_ends_with_the_same_bits(
    runner: Runner, unbroken: tuple[Path, float], tmp_path: Path, moment: str
) -> None:
    assert runner.status(runner.start(tmp_path / "run", KILLS[moment])) == -signal.SIGKILL
    runner.finish(tmp_path / "run")
    assert_alike(tmp_path / "run", unbroken[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits(
    runner: Runner, unbroken: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    process = runner.start(tmp_path / "run")
    time.sleep(Random(seed).uniform(0.05, 0.95) * unbroken[1])
    process.kill()
    runner.status(process)
    runner.finish(tmp_path / "run")
    assert_alike(tmp_path / "run", unbroken[0])


@pytest.mark.parametrize(("function", "count"), [("os:rename", 9), ("os:replace", 14)])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    runner: Runner, unbroken: tuple[Path, float], tmp_path: Path, function: str, count: int
) -> None:
    """At every count-th call, counted anew in each start: fewer would never get past the longest
    stretch of a stage.
    """
    statuses = []
    while not statuses or statuses[-1] == -signal.SIGKILL:
        statuses.append(runner.status(runner.start(tmp_path / "run", ("kill", function, count))))
        assert len(statuses) < 40, "it does not get on"
    assert statuses[-1] == 0 and len(statuses) > 3, runner.log.read_text()[-3000:]
    assert_alike(tmp_path / "run", unbroken[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("stage", "begun", "hook"),
    [
        ("mid", "mid/resume/step-*", ("slow", "pocketlm.train.loop:train_step", 250)),
        ("corpus", "corpus/resume/*", ("slow", "pocketlm.corpus.read_step:document_json", 3)),
    ],
)
def test_a_run_asked_to_stop_says_so_and_goes_on_later(
    runner: Runner,
    unbroken: tuple[Path, float],
    tmp_path: Path,
    number: signal.Signals,
    stage: str,
    begun: str,
    hook: Hook,
) -> None:
    assert stopped(runner, tmp_path / "run", hook, begun, number) == 130
    shown = runner.log.read_text()
    assert (
        f"interrupted in stage {stage}; run the same command again to go on" in shown
        and "Traceback" not in shown
    )
    runner.finish(tmp_path / "run")
    assert_alike(tmp_path / "run", unbroken[0])


def test_a_stage_asked_to_stop_saves_the_step_it_is_at(runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        stopped(
            runner,
            out,
            ("slow", "pocketlm.train.loop:train_step", 500),
            "base/resume/step-*",
            signal.SIGTERM,
        )
        == 130
    )
    states = sorted((out / "base" / "resume").glob("step-*"))
    # due at 2 and 4
    assert [json.loads((state / "state.json").read_text())["step"] for state in states] == [2, 3]
    assert len((out / "base" / "metrics.jsonl").read_text().splitlines()) == 3


def stopped(
    runner: Runner, out: Path, hook: Hook, begun: str, number: signal.Signals
) -> int | None:
    """Exit status of a run that gets a signal soon after something matches `begun`."""
    process = runner.start(out, hook)
    deadline = time.monotonic() + 60
    while not list(out.glob(begun)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid
    time.sleep(0.1)  # into the next step
    os.kill(process.pid, number)
    return runner.status(process)
