"""Suites by name: a benchmark, a protocol's row or all of its rows, a JSONL file; and their
problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random

from pocketlm.eval.suites.own_problems import file_suite
from pocketlm.eval.suites.protocols import BY_NAME, PROTOCOLS, SUITES
from pocketlm.eval.suites.ruler import RulerProblems, ruler_suites
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.tokenizer import Tokenizer

SAMPLE_SEED = 1234  # allenai/OLMo-Eval@168b933, olmes_v0_1/README.md


def named_suites(names: Sequence[str]) -> tuple[Suite, ...]:
    """The suites that these names stand for, in order, each once.

    A name is a suite's ("arc_easy", "pocket"), a protocol's ("r1": all its rows;
    "r1-base.arc_easy": one), RULER's with a length ("ruler@4096"), or a JSONL file with "prompt"
    and "answer" on each line.
    FileNotFoundError: none of these. ValueError: no name, or two files that would have the same.
    """
    suites: dict[str, Suite] = {}
    for suite in (suite for name in names for suite in _named(name)):
        if suites.setdefault(suite.name, suite) != suite:
            raise ValueError(f"two suites are called {suite.name!r}; rename one of the files")
    if not suites:
        raise ValueError("no suite is named; give --suite NAME")
    return tuple(suites.values())


def without(suites: Sequence[Suite], names: Sequence[str]) -> tuple[Suite, ...]:
    """The suites but those of these names: a benchmark's, in whichever protocol ("livecodebench"),
    or a row's ("r1-final.livecodebench"). ValueError: no suite has such a name, or all have one.
    """
    known = {name for suite in suites for name in (suite.name, benchmark_of(suite))}
    if wrong := [name for name in names if name not in known]:
        raise ValueError(
            f"--without {', '.join(wrong)}: not among the suites, which are "
            f"{', '.join(suite.name for suite in suites)}"
        )
    rest = [suite for suite in suites if not {suite.name, benchmark_of(suite)} & set(names)]
    if names and not rest:
        raise ValueError("--without names every suite; nothing would be measured")
    return tuple(rest)


def benchmark_of(suite: Suite) -> str:
    """A suite's name without its protocol's."""
    return suite.name.removeprefix(f"{suite.protocol_name}.")


def _named(name: str) -> tuple[Suite, ...]:
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name in BY_NAME:
        return (BY_NAME[name],)
    if ruler := ruler_suites(name):
        return ruler
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"suite {name!r} is neither one of {', '.join(SUITES)}, nor a protocol "
            f"({', '.join(PROTOCOLS)}), nor ruler@LENGTH, nor a file; "
            'a suite file is JSONL with "prompt" and "answer" on each line'
        )
    return (file_suite(Path(name)),)


def load_problems(
    suite: Suite,
    data: Path | None = None,
    limit: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Problem, ...]:
    """The suite's problems, or `limit` of them: each family's first ones, so that a part of MMLU is
    of all its subjects; of programs, whose tests are long to read, the first. tokenizer: of the
    model, for those that are drawn at a length in tokens (needs_tokenizer).
    """
    if isinstance(suite.problems, RulerProblems) and tokenizer is not None:
        return tuple(islice(suite.problems.fitted(suite, tokenizer, data), limit))
    problems = suite.problems.load(data)
    if suite.sampled:
        problems = list(problems)
        if len(problems) > 1.5 * suite.sampled:
            problems = Random(SAMPLE_SEED).sample(problems, suite.sampled)
    if limit is None or suite.runs_code:
        return tuple(islice(problems, limit))
    return over_families(problems, limit)


def over_families(problems: Iterable[Problem], limit: int) -> tuple[Problem, ...]:
    """At most `limit` problems in their order: the first of every family, then the second of every
    one, and so on. Where the first `limit` have no family, no more are read.
    """
    rest = iter(problems)
    first = tuple(islice(rest, limit))
    if not any(problem.family for problem in first):
        return first
    taken: Counter[str] = Counter()
    ranked = []
    for place, problem in enumerate(chain(first, rest)):
        ranked.append((taken[problem.family], place, problem))
        taken[problem.family] += 1
    chosen = sorted(ranked, key=lambda entry: entry[:2])[:limit]
    return tuple(problem for _, _, problem in sorted(chosen, key=lambda entry: entry[1]))


def needs_tokenizer(suite: Suite) -> int:
    """How many problems are drawn when a tokenizer is known; 0 for those that need none."""
    drawn = suite.problems
    return drawn.trials * len(drawn.lengths) if isinstance(drawn, RulerProblems) else 0


def shots_of(
    suite: Suite, data: Path | None, problem_families: set[str]
) -> dict[str, list[Problem]]:
    """The shots for the problems of each family. ValueError: fewer than the suite shows."""
    if not suite.shots or suite.shots_from is None:
        return {family: [] for family in problem_families}
    chosen: dict[str, list[Problem]] = {}
    for shot in suite.shots_from.load(data):
        shots = chosen.setdefault(shot.family if suite.shots_by_family else "", [])
        if len(shots) < suite.shots:
            shots.append(shot)
    by_family = {
        family: chosen.get(family if suite.shots_by_family else "", [])
        for family in problem_families
    }
    for family, shots in by_family.items():
        if len(shots) < suite.shots:
            where = f" of family {family}" if suite.shots_by_family else ""
            raise ValueError(
                f"suite {suite.name} shows {suite.shots} examples, but there are only "
                f"{len(shots)}{where} to take them from"
            )
    return by_family
