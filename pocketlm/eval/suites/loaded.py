"""Suites with their problems, ready to be put to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.eval.answers_file import documents_digest
from pocketlm.eval.code_scorer import code_scorer
from pocketlm.eval.figures import best_constant_answer, chance
from pocketlm.eval.published.beside import published
from pocketlm.eval.suites.named import benchmark_of, load_problems, needs_tokenizer, shots_of
from pocketlm.eval.suites.ruler import RulerProblems
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.sandbox.sandbox import open_sandbox


@dataclass(frozen=True, kw_only=True)
class LoadedSuite:
    """A suite with its problems and the shots of each family.

    count: of the problems, which are not there yet where they are drawn for a model's tokenizer.
    data, limit: where they come from, and how many were wanted. sandbox: what its programs run in.
    """

    suite: Suite
    problems: tuple[Problem, ...]
    shots: dict[str, list[Problem]]
    count: int
    data: Path | None
    limit: int | None
    sandbox: str = ""

    def basis(self) -> dict[str, str]:
        """What kept answers and verdicts depend on, beside the suite's fields."""
        documents = documents_digest(self.problems, self.shots)
        return {"documents": documents, "sandbox": self.sandbox or "none"}

    def described(self) -> dict[str, Any]:
        """Its protocol, what an answer without reading would score, and what papers print of it."""
        blind: dict[str, Any] = {}
        constant = self.suite.constant_answer and not self.suite.runs_code
        if self.suite.kind == "generation" and constant:
            blind = {"constant_answer": best_constant_answer(self.problems)}
        elif self.suite.kind == "choices":
            blind = {"chance": chance(self.problems)}
        place = {"sandbox": self.sandbox} if self.sandbox else {}
        papers = published(self.suite, self.limit)
        return {
            **self.suite.protocol(),
            **{"n": self.count, "limit": self.limit},
            **({"families": families} if (families := len(self.shots)) > 1 else {}),
            **place,
            **blind,
            **({"published": papers} if papers else {}),
        }

    def drawn_for(self, tokenizer: Tokenizer) -> LoadedSuite:
        """The suite, with the problems that are drawn for this tokenizer."""
        if not needs_tokenizer(self.suite):
            return self
        problems = load_problems(self.suite, self.data, self.limit, tokenizer)
        return replace(self, problems=problems, shots={problem.family: [] for problem in problems})


def loaded(suite: Suite, data: Path | None, limit: int | None) -> LoadedSuite:
    """The suite with its problems, at most `limit` of them over all families; those of some are
    drawn later (drawn_for).
    """
    problems: tuple[Problem, ...] = ()
    if isinstance(suite.problems, RulerProblems):
        suite.problems.check(data)
        trials = needs_tokenizer(suite)
        count = min(trials, limit or trials)
    else:
        problems = load_problems(suite, data, limit)
        count = len(problems)
    return LoadedSuite(
        suite=suite,
        problems=problems,
        shots=shots_of(suite, data, {problem.family for problem in problems}),
        count=count,
        data=data,
        limit=limit,
    )


def all_loaded(suites: Sequence[Suite], data: Path | None, limit: int | None) -> list[LoadedSuite]:
    """The suites with their problems. FileNotFoundError or ValueError: some cannot be had; all of
    these are named, and how the rest is measured without them.
    """
    tests: list[LoadedSuite] = []
    failed: dict[str, list[Suite]] = {}
    errors: list[Exception] = []
    for suite in suites:
        try:
            tests.append(loaded(suite, data, limit))
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
            failed.setdefault(str(error), []).append(suite)
    if errors and not tests:
        raise errors[0]
    if errors:
        lines = [
            f"{', '.join(suite.name for suite in which)}: {text}" for text, which in failed.items()
        ]
        names = dict.fromkeys(benchmark_of(suite) for which in failed.values() for suite in which)
        absent = all(isinstance(error, FileNotFoundError) for error in errors)
        raise (FileNotFoundError if absent else ValueError)(
            f"{'; '.join(lines)}; or measure the rest: --without {','.join(names)} (in a recipe, "
            "the field without)"
        )
    return tests


def with_sandbox(tests: Sequence[LoadedSuite], *, unsafe_exec: bool) -> list[LoadedSuite]:
    """The suites; those of programs with a scorer that runs them in a sandbox, which judged a right
    and a wrong answer before. ValueError: no sandbox holds here.
    """
    if not any(test.suite.runs_code for test in tests):
        return list(tests)
    sandbox = open_sandbox(unsafe_exec=unsafe_exec)
    scorer = code_scorer(sandbox)
    return [
        replace(test, suite=replace(test.suite, scorer=scorer), sandbox=sandbox.description)
        if test.suite.runs_code
        else test
        for test in tests
    ]
