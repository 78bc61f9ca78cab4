"""Open the sandbox: find the best layer that holds, then judge programs in it."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

from pocketlm.sandbox.judge import Cases, Judgement, Outcome, Task, judge_once, run_once
from pocketlm.sandbox.layers import Layer, Limits, bare_layers, base_python, layers

ATTEMPTS = 3  # of a task whose workers fail
FAILURES = 0.02  # the share of failed attempts above which the sandbox is of no use
FEWEST = 100  # attempts before that share is looked at
RIGHT = Task(
    program="def double(x):\n    return [x, x]\n",
    tests="assert double(3) == [3, 3]\nassert double('a') == ['a', 'a']\n",
    names=("double",),
)
WRONG = Task(program="def double(x):\n    return (x, x)\n", tests=RIGHT.tests, names=RIGHT.names)
# what a program without files, network, processes and signals prints
PROBE = """
import os, socket
def attempt(action):
    try:
        action()
    except BaseException:
        return "denied"
    return "allowed"
print(
    attempt(lambda: open({secret!r}).read()),
    attempt(lambda: open({fresh!r}, "w").write("x")),
    attempt(lambda: socket.create_connection(("127.0.0.1", {port}), timeout=1)),
    attempt(lambda: os.kill({pid}, 0)),
    attempt(lambda: os.fork() or os._exit(0)),
)
"""


class SandboxError(ValueError):
    """No sandbox, or one that does not work: nothing that a model did."""


@dataclass
class Sandbox:
    """An open sandbox. counts: verdicts given; failed attempts as "infrastructure"."""

    layer: Layer
    python: str
    limits: Limits
    refused: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def description(self) -> str:
        """Which layer runs, for a report."""
        user = "" if self.layer.user is None else f", as user {self.layer.user}"
        return f"{self.layer.name}{user}"


def open_sandbox(
    *, unsafe_exec: bool = False, limits: Limits | None = None, python: str | None = None
) -> Sandbox:
    """The sandbox of the best layer in which a right and a wrong answer are judged so, and in which
    a program reaches neither files, network nor processes.

    unsafe_exec: without such a layer, run with limits alone. SandboxError: there is none.
    """
    limits, python = limits or Limits(), python or base_python()
    refused: dict[str, str] = {}
    for layer in layers(python):
        why = fault_of(layer, python)
        if not why:
            return Sandbox(layer, python, limits, refused)
        refused[f"{layer.name} (user {layer.user})" if layer.user else layer.name] = why
    if unsafe_exec:
        for layer in bare_layers():
            if not (why := _wrong_verdict(layer, python)):
                return Sandbox(layer, python, limits, refused)
            refused[f"limits alone (user {layer.user})" if layer.user else "limits alone"] = why
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    hint = "" if unsafe_exec else "; --unsafe-exec runs it with limits alone, files readable"
    raise SandboxError(
        f"code written by a model is run in a sandbox, and none holds here ({reasons}). On Linux "
        f"have a kernel with Landlock (5.13 or newer) or install bubblewrap{hint}"
    )


def fault_of(layer: Layer, python: str) -> str:
    """Why this layer does not hold; "" where it does."""
    return _wrong_verdict(layer, python) or _reach(layer, python)


def _wrong_verdict(layer: Layer, python: str) -> str:
    for task, verdict in ((RIGHT, "pass"), (WRONG, "fail")):
        judgement = judge_once(task, layer, python, Limits())
        if judgement.verdict != verdict:
            detail = f"{judgement.verdict} ({judgement.detail})"
            return f"an answer that should {verdict} is judged {detail}"
    return ""


def _reach(layer: Layer, python: str) -> str:
    """What a program in this layer reaches that it must not."""
    with _bait() as (secret, port):
        source = PROBE.format(secret=str(secret), fresh=f"{secret}.new", port=port, pid=os.getpid())
        run = run_once(source, "", layer, python, Limits())
        left_behind = Path(f"{secret}.new").exists()
    answers = run.stdout.split()
    names = ("a file", "writing", "the network", "a process", "a process of its own")
    if run.verdict != "finished" or len(answers) != len(names):
        return f"its probe {run.verdict} {run.detail} {run.stderr[-200:]}"
    reached = [name for name, answer in zip(names, answers, strict=True) if answer != "denied"]
    if reached or left_behind:
        return f"a program in it reaches {', '.join(reached) or 'a file'}"
    return ""


@contextlib.contextmanager
def _bait() -> Iterator[tuple[Path, int]]:
    """A file that anybody may read, in a folder that anybody may write, and an open port."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        os.chmod(secret, 0o644)
        yield secret, server.getsockname()[1]


def judge(task: Task, sandbox: Sandbox) -> Judgement:
    """The verdict on a program. SandboxError: workers fail, in one task ATTEMPTS times or in too
    many of all attempts; never a verdict on the model.
    """
    detail = ""
    for _ in range(ATTEMPTS):
        judgement = judge_once(task, sandbox.layer, sandbox.python, sandbox.limits)
        if not _failed(judgement.verdict, judgement.detail, sandbox):
            return judgement
        detail = judgement.detail
    raise SandboxError(f"a program cannot be judged: {detail}; see docs/evaluation.md")


def judge_cases(program: str, cases: Cases, sandbox: Sandbox) -> Judgement:
    """The verdict on a program that is asked all cases, up to the first that it does not pass.
    SandboxError as in `judge`.
    """
    seconds = 0.0
    timed = replace(sandbox, limits=replace(sandbox.limits, cpu_seconds=cases.cpu_seconds))
    for number, case in enumerate(cases.read(), start=1):
        if isinstance(case, Task):
            judgement = judge(replace(case, program=program), timed)
        else:
            judgement = _judge_output(program, *case, timed)
        seconds += judgement.seconds
        if judgement.verdict != "pass":
            detail = f"case {number}: {judgement.detail}"
            return Judgement(verdict=judgement.verdict, detail=detail, seconds=seconds)
    return Judgement(verdict="pass", detail="", seconds=seconds)


def _judge_output(program: str, stdin: str, expected: str, sandbox: Sandbox) -> Judgement:
    """Whether a program ends well and prints the expected text for this input. Lines are compared
    without spaces at their ends, numbers by their value (LiveCodeBench's rule).
    """
    room = max(sandbox.limits.output_bytes, 2 * len(expected.encode("utf-8", "replace")))
    roomy = replace(sandbox, limits=replace(sandbox.limits, output_bytes=room))
    outcome = run_program(program, stdin, roomy)
    verdict, detail = outcome.verdict, outcome.detail
    if verdict == "finished" and outcome.status != 0:
        error = outcome.stderr.strip().split("\n")[-1]
        verdict, detail = "fail", f"status {outcome.status} {error}"[:500]
    elif verdict == "finished":
        same = same_output(outcome.stdout, expected)
        verdict, detail = ("pass", "") if same else ("fail", "another output")
    return Judgement(verdict=verdict, detail=detail, seconds=outcome.seconds)


def run_program(code: str, stdin: str = "", sandbox: Sandbox | None = None) -> Outcome:
    """What a Python program prints for this input, run in the sandbox; without one given, in one of
    the best layer, opened once.

    SandboxError: no layer holds here, or as in `judge`. Safe to call from several threads.
    """
    sandbox, detail = sandbox or _opened_once(), ""
    for _ in range(ATTEMPTS):
        outcome = run_once(code, stdin, sandbox.layer, sandbox.python, sandbox.limits)
        if not _failed(outcome.verdict, outcome.detail, sandbox):
            return outcome
        detail = outcome.detail
    raise SandboxError(f"a program cannot be run: {detail}; see docs/evaluation.md")


@cache
def _opened_once() -> Sandbox:
    return open_sandbox()


def same_output(given: str, expected: str) -> bool:
    """Equal lines; or in each line as many numbers of equal value."""
    lines, wanted = (
        [line.strip() for line in text.strip().split("\n")] for text in (given, expected)
    )
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(line: str, wanted: str) -> bool:
    if line == wanted:
        return True
    numbers, expected = _numbers(line.split()), _numbers(wanted.split())
    return numbers is not None and numbers == expected


def _numbers(words: Iterable[str]) -> list[Decimal] | None:
    try:
        numbers = [Decimal(word) for word in words]
    except InvalidOperation:
        return None
    return numbers if all(number.is_finite() for number in numbers) else None


def _failed(verdict: str, detail: str, sandbox: Sandbox) -> bool:
    """Count an attempt; whether the sandbox failed. SandboxError: it fails too often."""
    sandbox.counts[verdict] += 1
    failed, total = sandbox.counts["infrastructure"], sandbox.counts.total()
    if verdict == "infrastructure" and total >= FEWEST and failed > FAILURES * total:
        raise SandboxError(
            f"{failed} of {total} attempts to judge a program failed, the last: {detail}; the "
            "machine, not the model, is at fault"
        )
    return verdict == "infrastructure"
