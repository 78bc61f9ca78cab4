"""Score programs that a model wrote: judged in the sandbox, pass@k from several samples."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from pocketlm.sandbox.judge import Task
from pocketlm.sandbox.sandbox import Sandbox, SandboxError, judge

FENCE = re.compile(r"```(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


class CodeKey(Protocol):
    """What is read of a problem (suites/suite.py's Problem)."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> Task | None: ...


def needs_sandbox(problem: Any, completion: str) -> dict[str, float]:
    """The scorer of a code suite until one with a sandbox takes its place. SandboxError: always."""
    raise SandboxError(f"problem {problem.id}: a model's program is run in an open sandbox only")


def code_scorer(sandbox: Sandbox) -> Any:
    """A scorer that judges programs in this sandbox: pass@1 of one answer."""
    return partial(_passes, sandbox)


def _passes(sandbox: Sandbox, problem: CodeKey, completion: str) -> dict[str, float]:
    if problem.task is None:
        raise ValueError(f"problem {problem.id} has no tests to run")
    program = program_of(problem.task, completion)
    judgement = judge(replace(problem.task, program=program), sandbox)
    return {"pass@1": float(judgement.verdict == "pass")}


def program_of(task: Task, completion: str) -> str:
    """The program that an answer stands for: its last fenced block, or all of it, which goes on
    where the benchmark's own text (`begin`) ends.

    A block that defines the name under test again stands after a body for the one begun.
    """
    blocks = FENCE.findall(completion)
    if not blocks:
        return task.begin + completion
    defines = re.search(
        rf"^(?:async )?(?:def|class) {re.escape(task.names[0])}\b", blocks[-1], re.M
    )
    if task.begin and defines:
        return f"{task.begin}\n    pass\n\n{blocks[-1]}"
    return task.begin + blocks[-1]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k samples, drawn without replacement from n of which so many are
    correct, is correct: 1 - C(n - c, k) / C(n, k), the unbiased estimator (arXiv 2107.03374).
    ValueError: k is not from 1 to n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} correct among {n} samples is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def over_samples(scores: Sequence[dict[str, float]], ks: Sequence[int]) -> dict[str, float]:
    """Scores of one document from those of its samples: means, and pass@k of each k."""
    n = len(scores)
    means = {name: sum(score[name] for score in scores) / n for name in scores[0]}
    if not ks:
        return means
    if "pass@1" not in means:
        raise ValueError(f"pass@{', '.join(map(str, ks))} needs a scorer that gives pass@1")
    correct = sum(score["pass@1"] == 1.0 for score in scores)
    return {**means, **{f"pass@{k}": pass_at_k(n, correct, k) for k in ks}}
