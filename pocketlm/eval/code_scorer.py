"""Score programs that a model wrote: judged in the sandbox, pass@k from several samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from pocketlm.eval.answer_program import answered_program, between_last_fences
from pocketlm.sandbox.judge import Cases, Task
from pocketlm.sandbox.sandbox import Sandbox, SandboxError, judge, judge_cases

VERDICTS = {  # score -> verdict of the sandbox
    "pass@1": "pass",
    **{name: name for name in ("fail", "timeout", "memory", "crash", "protocol")},
    "output_cap": "output cap",
}


class CodeKey(Protocol):
    """What is read of a problem (suites/suite.py's Problem)."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> Task | Cases | None: ...


def needs_sandbox(problem: Any, completion: str) -> dict[str, float]:
    """The scorer of a code suite until one with a sandbox takes its place. SandboxError: always."""
    raise SandboxError(f"problem {problem.id}: a model's program is run in an open sandbox only")


def code_scorer(sandbox: Sandbox) -> Any:
    """A scorer that judges programs in this sandbox: pass@1 of one answer, and 1 for the verdict
    beside it. infrastructure: how often the sandbox failed before it gave one.
    """
    return partial(_scores, sandbox)


def _scores(sandbox: Sandbox, problem: CodeKey, completion: str) -> dict[str, float]:
    task = problem.task
    if task is None:
        raise ValueError(f"problem {problem.id} has no tests to run")
    failed = sandbox.counts["infrastructure"]
    program = program_of(task, completion)
    if isinstance(task, Cases):
        judgement = judge_cases(program, task, sandbox)
    else:
        judgement = judge(replace(task, program=program), sandbox)
    scores = {name: float(judgement.verdict == verdict) for name, verdict in VERDICTS.items()}
    return {**scores, "infrastructure": float(sandbox.counts["infrastructure"] - failed)}


def program_of(task: Task | Cases, completion: str) -> str:
    """The program that an answer stands for."""
    if isinstance(task, Cases):
        return task.begin + between_last_fences(completion)
    return answered_program(task.begin, task.names, completion)


def verdict_counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many answers had each verdict; "infrastructure": how many attempts of a sandbox that
    failed, each tried again.
    """
    names = {**VERDICTS, "infrastructure": "infrastructure"}
    return {
        verdict: round(sum(row["scores"][name] * len(row.get("samples", [""])) for row in rows))
        for name, verdict in names.items()
    }


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
