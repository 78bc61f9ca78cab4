"""Runs broken on purpose: a recipe is killed (SIGKILL) at random moments, started again until it is
done, and compared.

Processes are forked from one that imported everything slow, so that a kill and a new start cost
about a second.
"""

import filecmp
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from pocketlm.model.files import read_json
from pocketlm.runner.record import RECORD, read_record

AIMS = ("anywhere", "save", "save", "stage change")  # what a kill waits for, drawn for each
PLACES = (
    "training step",
    "save of a state",
    "stage change",
    "other work of a stage",
    "before a stage",
)
TERM_SECONDS = 2  # after one rank's death the others get SIGTERM, which torchrun sends them at once
LEAVE_SECONDS = 60  # in which they must be gone
NEAR_SECONDS = 0.1  # of a change of stage, for a kill to count as in it
Command = Callable[[list[str]], None]


@dataclass(frozen=True)
class Kill:
    """One that hit: at which of PLACES, in which stage, and whether all processes died of it or
    one, which the others noticed.
    """

    place: str
    stage: str
    alone: bool


class Launcher:
    """Starts commands, each as so many ranks, from a server process that has imported what they
    need.
    """

    def __init__(self, command: Command, log: Path, modules: Iterable[str] = ()) -> None:
        """command: a function of a module, called with the words. log: the file that gets what it
        shows.

        modules: to import at the start, besides the usual.
        """
        self.command, self.log = command, log.absolute()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            [command.__module__, "pocketlm.runner.run", "torch._dynamo", *modules]
        )

    def start(self, words: list[str], ranks: int = 1) -> list[BaseProcess]:
        """The processes, one for each rank."""
        meeting = self._meeting(ranks) if ranks > 1 else {}
        found: list[BaseProcess] = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            arguments = (self.command, words, str(self.log), {**meeting, **own})
            found.append(self.context.Process(target=_command, args=arguments))  # type: ignore[arg-type]
            found[-1].start()
        return found

    def _meeting(self, ranks: int) -> dict[str, str]:
        """What torchrun puts into the environment of its ranks; as with it the store is not one of
        theirs, and outlives each.
        """
        import torch.distributed as dist

        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), **sizes, **agent}

    def finish(self, words: list[str], ranks: int = 1) -> None:
        """Runs a command to its end. RuntimeError with the last lines shown where it fails."""
        self.expect_done(self.start(words, ranks))

    def expect_done(self, processes: list[BaseProcess]) -> None:
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            shown = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(
                f"the run failed by itself, exit status {[p.exitcode for p in processes]}:\n{shown}"
            )


def _command(command: Command, words: list[str], log: str, environment: dict[str, str]) -> None:
    """The command, in a process forked when everything slow was imported."""
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    command(words)


# ---- kills ----


def break_run(
    launcher: Launcher,
    words: list[str],
    out: Path,
    ranks: int,
    randoms: Iterator[Random],
    span: float,
) -> Iterator[Kill]:
    """Starts the command again and again, kills it at a moment drawn from each of `randoms`, and at
    last lets it finish.

    Ends when the run is done, whether all randoms were used or not; each kill that hit comes out.
    span: seconds in which a kill without another aim falls. RuntimeError where ranks do not leave
    within a minute of one's death, or a start fails by itself.
    """
    for random in randoms:
        begun = time.time()
        processes = launcher.start(words, ranks)
        aim, alone = random.choice(AIMS), ranks > 1 and random.random() < 0.5
        _await(aim, processes, out, random, span)
        if not all(process.is_alive() for process in processes):
            launcher.expect_done(processes)
            return
        for process in [random.choice(processes)] if alone else processes:
            process.kill()
        moment = time.time()
        for patience, ask in ((TERM_SECONDS, True), (LEAVE_SECONDS, False)):
            for process in processes:
                process.join(max(0.0, moment + patience - time.time()))
                if ask and process.is_alive():
                    process.terminate()
        if left := [number for number, process in enumerate(processes) if process.is_alive()]:
            for process in processes:
                process.kill()
            raise RuntimeError(
                f"ranks {left} did not leave within {LEAVE_SECONDS} s of another's death"
            )
        if not any(process.exitcode for process in processes):
            return  # it was done before the kill arrived
        place, stage = where_it_hit(out, begun, moment)
        yield Kill(place, stage, alone)
    launcher.finish(words, ranks)


def _await(aim: str, processes: list[BaseProcess], out: Path, random: Random, span: float) -> None:
    """Returns at the moment to kill, or when a process ended. The clock starts when the command
    holds the folder.
    """

    def until(happened: Callable[[], Any], seconds: float = 3600.0) -> None:
        deadline = time.monotonic() + seconds
        while (
            time.monotonic() < deadline and all(p.is_alive() for p in processes) and not happened()
        ):
            time.sleep(0.001)

    own = f"{processes[0].pid}\n"
    until(lambda: (out / ".lock").is_file() and (out / ".lock").read_text() == own)
    before, started = _finished(out), time.time()
    if aim == "save":
        until(lambda: _states_begun(out, started), random.uniform(0.2, 4.0) * span)
        until(lambda: False, random.uniform(0, 0.02))
    elif aim == "stage change":
        until(lambda: _finished(out) != before, random.uniform(0.2, 4.0) * span)
        until(lambda: False, random.uniform(0, NEAR_SECONDS))
    else:
        until(lambda: False, random.uniform(0, span))


def where_it_hit(out: Path, begun: float, moment: float) -> tuple[str, str]:
    """(one of PLACES, the stage) of a kill at `moment` in processes started at `begun`, from what
    lies there.
    """
    finished = {folder.name: at for folder, at in _finished(out).items()}
    if finished and moment - max(finished.values()) < NEAR_SECONDS:
        return "stage change", max(finished, key=finished.__getitem__)
    opened = {file.parent.name: file.stat().st_mtime for file in out.glob(f"*/{RECORD}")}
    running = [name for name, at in opened.items() if at >= begun and name not in finished]
    if not running:
        return "before a stage", ""
    if _states_begun(out, begun):
        return "save of a state", running[0]
    trains = (out / running[0] / "metrics.jsonl").is_file()
    return "training step" if trains else "other work of a stage", running[0]


def _finished(out: Path) -> dict[Path, float]:
    """When each finished stage was."""
    files = {folder: folder / RECORD for folder in out.glob("*") if _status(folder) == "finished"}
    return {folder: file.stat().st_mtime for folder, file in files.items()}


def _states_begun(out: Path, since: float) -> bool:
    """Whether a state is being written that was begun since then."""
    for folder in out.glob("*/resume/partial-*"):
        try:
            if folder.stat().st_mtime >= since:
                return True
        except FileNotFoundError:  # it has just got its name
            continue
    return False


def _status(folder: Path) -> str:
    record = read_record(folder)
    return record["status"] if record else ""


# ---- what was left ----


@dataclass(frozen=True)
class Likeness:
    """Whether a stage of two runs agrees, to the bit; None where it has no such thing. `first`:
    where they part, in words.
    """

    stage: str
    steps: int
    tokens: bool | None
    losses: bool | None
    weights: bool | None
    first: str | None

    @property
    def same(self) -> bool:
        return self.first is None


def compare(unbroken: Path, broken: Path, stages: Iterable[str]) -> list[Likeness]:
    """Each stage's token ids, losses with gradient norms, and weights in one run against
    another.
    """
    return [_compare_stage(name, unbroken / name, broken / name) for name in stages]


def _compare_stage(name: str, unbroken: Path, broken: Path) -> Likeness:
    one, other = _lines(unbroken), _lines(broken)
    pairs = list(zip_longest(one, other, fillvalue={}))
    parted: dict[str, str] = {}
    for what, keys in (
        ("token ids", ("step", "token_digest")),
        ("losses", ("step", "loss", "grad_norm", "lr")),
    ):
        wrong = next(
            (
                n
                for n, pair in enumerate(pairs)
                if any(pair[0].get(k) != pair[1].get(k) for k in keys)
            ),
            None,
        )
        if wrong is not None:
            parted[what] = f"{what} part at step {wrong}"
    files = sorted(file.relative_to(unbroken) for file in unbroken.rglob("*.safetensors"))
    for file in files:
        if "weights" not in parted and not (
            (broken / file).is_file() and filecmp.cmp(unbroken / file, broken / file, shallow=False)
        ):
            parted["weights"] = f"{file} differs"
    if _status(broken) != "finished":
        parted["stage"] = "the stage is not finished"
    return Likeness(
        stage=name,
        steps=len(one),
        tokens="token ids" not in parted if pairs else None,
        losses="losses" not in parted if pairs else None,
        weights="weights" not in parted if files else None,
        first="; ".join(parted.values()) or None,
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.is_file()
        else []
    )


def seconds_of(out: Path, stages: Iterable[str]) -> float:
    """How long these stages ran, from their records."""
    return sum(read_json(out / name / RECORD)["seconds"] for name in stages)


def copied_stages(source: Path, target: Path, stages: Iterable[str]) -> None:
    """The folders of finished stages, as they are, in another run's."""
    for name in stages:
        if not (target / name).exists():
            shutil.copytree(source / name, target / f".{name}.partial", dirs_exist_ok=True)
            (target / f".{name}.partial").rename(target / name)
