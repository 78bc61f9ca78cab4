"""Kill a recipe (SIGKILL) at random moments, and start it again until it is done.

Processes are forked from one that imported everything slow, so that a kill and a new start cost
about a second.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from pocketlm.runner.errors import BAD_INPUT
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
    """A kill that hit: at which of PLACES, in which stage, and whether it killed one of several
    processes, which the others noticed.
    """

    place: str
    stage: str
    alone: bool


class Launcher:
    """Starts commands, each as so many ranks, from a server process that has imported what they
    need.
    """

    def __init__(self, command: Command, log: Path, modules: Iterable[str] = ()) -> None:
        """command: a function of a module, called with the words. log: the file for its output.
        modules: to import at the start, besides the usual.
        """
        self.command, self.log = command, log.absolute()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            [command.__module__, "pocketlm.runner.run", "torch._dynamo", *modules]
        )

    def start(self, words: list[str], ranks: int = 1) -> list[BaseProcess]:
        """The processes, one for each rank."""
        shared = self._environment(ranks) if ranks > 1 else {}
        processes: list[BaseProcess] = []
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            arguments = (self.command, words, str(self.log), {**shared, **place})
            processes.append(self.context.Process(target=_command, args=arguments))  # type: ignore[arg-type]
            processes[-1].start()
        return processes

    def _environment(self, ranks: int) -> dict[str, str]:
        """What torchrun puts into the environment of its ranks. As there the store is none of
        theirs, and outlives each.
        """
        import torch.distributed as dist

        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), **sizes, **agent}

    def finish(self, words: list[str], ranks: int = 1) -> None:
        """Runs a command to its end. Where it fails, a RuntimeError with the end of its output; a
        ValueError where that is one message for what a user can mend.
        """
        self.expect_done(self.start(words, ranks))

    def expect_done(self, processes: list[BaseProcess]) -> None:
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            output = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            statuses = [process.exitcode for process in processes]
            mendable = set(statuses) <= {0, BAD_INPUT}
            failed = f"the run failed by itself, exit status {statuses}:\n{output}"
            raise ValueError(failed) if mendable else RuntimeError(failed)


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

    Ends when the run is done, whether all randoms were used or not; yields each kill that hit.
    span: seconds in which a kill without another aim falls. RuntimeError where ranks do not exit
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
        for patience, terminate in ((TERM_SECONDS, True), (LEAVE_SECONDS, False)):
            for process in processes:
                process.join(max(0.0, moment + patience - time.time()))
                if terminate and process.is_alive():
                    process.terminate()
        if stuck := [number for number, process in enumerate(processes) if process.is_alive()]:
            for process in processes:
                process.kill()
            raise RuntimeError(
                f"ranks {stuck} did not exit within {LEAVE_SECONDS} s of another's death"
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

    holder = f"{processes[0].pid}\n"
    until(lambda: (out / ".lock").is_file() and (out / ".lock").read_text() == holder)
    before, started = finished_at(out), time.time()
    if aim == "save":
        until(lambda: _states_begun(out, started), random.uniform(0.2, 4.0) * span)
        until(lambda: False, random.uniform(0, 0.02))
    elif aim == "stage change":
        until(lambda: finished_at(out) != before, random.uniform(0.2, 4.0) * span)
        until(lambda: False, random.uniform(0, NEAR_SECONDS))
    else:
        until(lambda: False, random.uniform(0, span))


def where_it_hit(out: Path, begun: float, moment: float) -> tuple[str, str]:
    """(one of PLACES, the stage) of a kill at `moment` in processes started at `begun`, from the
    files there.
    """
    finished = {folder.name: at for folder, at in finished_at(out).items()}
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


def finished_at(out: Path) -> dict[Path, float]:
    """When each finished stage was."""
    files = {folder: folder / RECORD for folder in out.glob("*") if status_of(folder) == "finished"}
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


def status_of(folder: Path) -> str:
    record = read_record(folder)
    return record["status"] if record else ""
