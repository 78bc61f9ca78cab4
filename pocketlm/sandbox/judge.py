"""Judge a model's code: calls go to a worker that holds the code alone, tests run in another.

The judge hands messages over and counts seconds and bytes. It never runs what a model wrote, and
reads of it only the message of a program that fails to load, for people.
Plain values alone come back from the model's worker (values.py), to tests that rebuild them as
exact built-in types; the verdict comes from the tests' worker, which the model's code never enters.
So no verdict can be forged: to pass, a program must give the right values.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pocketlm.sandbox.layers import Layer, Limits
from pocketlm.sandbox.processes import (
    GRACE,
    Ended,
    Worker,
    death_of,
    exchange,
    next_frame,
    printed,
    start,
    stop,
)
from pocketlm.sandbox.worker import (
    LOADED,
    NOT_PLAIN,
    PROGRAM,
    QUESTION,
    RAISED,
    REPLY,
    STARTED,
    VERDICT,
)

# infrastructure: the sandbox or the benchmark's own code failed, never the model
Verdict = Literal[
    "pass", "fail", "timeout", "memory", "crash", "protocol", "output cap", "infrastructure"
]
START_SECONDS = 60.0  # for an interpreter to start on a loaded machine


@dataclass(frozen=True, kw_only=True)
class Task:
    """A program and what asks it. tests: trusted code, in which `names` stand for what the program
    defines. prelude: trusted code that the tests may use (a benchmark's prompt and reference).
    begin: the benchmark's own text that an answer goes on with, a part of the program.
    """

    program: str
    tests: str
    names: tuple[str, ...]
    prelude: str = ""
    begin: str = ""

    @property
    def digest(self) -> str:
        """A hash of all that the benchmark asks of a program."""
        whole = [self.tests, self.names, self.prelude, self.begin]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What a program is asked one after another, each by processes of its own.

    read: the cases, each an input with the output that it wants, or a Task without its program;
    read anew for every program, as a benchmark's may be gigabytes. digest: a hash of them all.
    begin: what stands before every program. cpu_seconds: of each case.
    """

    read: Callable[[], Iterable[tuple[str, str] | Task]]
    digest: str
    cpu_seconds: int
    begin: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict and why. seconds: from the start of the workers."""

    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A program that was run. stdout, stderr: what it printed, each at most `output_bytes` long.
    verdict: "finished", or what stopped it; detail: why. status: its exit status, where it
    finished.
    """

    stdout: str
    stderr: str
    verdict: Literal["finished"] | Verdict
    detail: str
    status: int
    seconds: float


def judge_once(task: Task, layer: Layer, python: str, limits: Limits) -> Judgement:
    """The verdict of one attempt; a failure of the sandbox is the verdict "infrastructure"."""
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            workers = {}
            for role in ("candidate", "tests"):
                workers[role] = start(layer, python, role, limits)
                stack.callback(stop, workers[role])
            _await_start(list(workers.values()), layer)
            verdict, detail = _converse(task, workers["candidate"], workers["tests"], limits)
        except Ended as ended:
            verdict, detail = ended.verdict, ended.detail
        except OSError as error:
            verdict, detail = "infrastructure", f"a worker cannot be started: {error}"
    return Judgement(
        verdict=verdict,  # type: ignore[arg-type]
        detail=detail,
        seconds=time.monotonic() - begin,
    )


def _await_start(workers: list[Worker], layer: Layer) -> None:
    """Until each has given up what the layer says. Ended: it has not."""
    deadline = time.monotonic() + START_SECONDS
    for worker in workers:
        event = next_frame([worker], deadline)
        if event is None:
            raise Ended("infrastructure", f"no worker started in {START_SECONDS:.0f} seconds")
        _, kind, content = event
        if kind != STARTED:
            stop(worker, GRACE)
            why = printed(worker) or f"status {worker.status}"
            raise Ended("infrastructure", f"a worker ended before it began: {why[-300:]}")
        if missing := layer.needs - set(json.loads(content)):
            raise Ended("infrastructure", f"the kernel gives no {' and no '.join(sorted(missing))}")


def _converse(task: Task, candidate: Worker, tests: Worker, limits: Limits) -> tuple[str, str]:
    """(verdict, detail), once the tests say it or one side ends."""
    candidate.send(PROGRAM, task.program.encode("utf-8", "surrogatepass"))
    request = {"prelude": task.prelude, "tests": task.tests, "names": task.names}
    tests.send(PROGRAM, json.dumps(request).encode())
    deadline = time.monotonic() + limits.wall_seconds
    loaded = waiting = False
    while True:
        event = next_frame([candidate, tests], deadline)
        if event is None:
            return "timeout", f"{limits.wall_seconds:g} seconds"
        worker, kind, content = event
        if worker is tests and kind == QUESTION:
            candidate.send(QUESTION, content)
            waiting = True
        elif worker is tests and kind == VERDICT:
            verdict, detail = json.loads(content)
            return verdict, detail
        elif not kind:
            return _death(worker)
        elif worker is candidate and not loaded and kind == LOADED:
            loaded = True
        elif worker is candidate and not loaded and kind == RAISED:
            return _load_error(content)
        elif worker is candidate and loaded and waiting and kind in (REPLY, RAISED, NOT_PLAIN):
            tests.send(kind, content)
            waiting = False
        else:
            return "protocol", f"a message nobody waited for: {kind!r}"


def _death(worker: Worker) -> tuple[str, str]:
    stop(worker, GRACE)
    verdict, detail = death_of(worker)
    if worker.role == "candidate":
        return verdict, detail
    if verdict == "timeout":
        return verdict, f"comparing the program's values took {detail}"
    return "infrastructure", f"the tests' worker {detail}: {printed(worker)[-300:]}"


def _load_error(content: bytes) -> tuple[str, str]:
    """Of a program that raised before any call. What it says is for people only."""
    text = content.decode("utf-8", "replace")
    try:
        name, message = json.loads(text)
        detail = f"while loading: {name}: {message}"[:500]
    except (ValueError, TypeError, RecursionError):
        return "protocol", "no readable error"
    return ("memory" if name == "MemoryError" else "fail"), detail


def run_once(program: str, stdin: str, layer: Layer, python: str, limits: Limits) -> Outcome:
    """Run a program with this input to its end, or to a limit."""
    begin = time.monotonic()
    verdict, detail = "finished", ""
    with contextlib.ExitStack() as stack:
        worker = None
        try:
            worker = start(layer, python, "program", limits)
            stack.callback(stop, worker)
            worker.to_stdin += stdin.encode("utf-8", "replace")
            _await_start([worker], layer)
            worker.send(PROGRAM, program.encode("utf-8", "surrogatepass"))
            verdict, detail = _until_end(worker, limits)
        except Ended as error:
            verdict, detail = error.verdict, error.detail
        except OSError as error:
            verdict, detail = "infrastructure", f"a worker cannot be started: {error}"
        texts = ["", ""]
        if worker is not None:
            kept = (bytes(part[: limits.output_bytes]) for part in worker.outputs.values())
            texts = [part.decode("utf-8", "replace") for part in kept]
    return Outcome(
        stdout=texts[0],
        stderr=texts[1],
        verdict=verdict,  # type: ignore[arg-type]
        detail=detail,
        status=worker.status or 0 if worker is not None else 0,
        seconds=time.monotonic() - begin,
    )


def _until_end(worker: Worker, limits: Limits) -> tuple[str, str]:
    deadline = time.monotonic() + limits.wall_seconds
    while len(worker.ended) < len(worker.outputs):
        if not exchange([worker], deadline):
            return "timeout", f"{limits.wall_seconds:g} seconds"
    stop(worker, max(0.0, deadline - time.monotonic()))
    if worker.killed:  # it closed its outputs and went on
        return "timeout", f"{limits.wall_seconds:g} seconds"
    verdict, detail = death_of(worker)
    if verdict == "crash" and (worker.status or 0) >= 0:  # it may end with any status it likes
        return "finished", ""
    return verdict, detail
