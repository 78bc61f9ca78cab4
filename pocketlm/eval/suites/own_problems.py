"""Suites of our own: drawn problems that training never saw, and a user's JSONL file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.eval.scorers import bits_per_byte, match
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_lines import json_lines
from pocketlm.problems.generated import generate_problems

# a base model goes on to the next problem: not part of its answer. A chat model ends its turn
RUN_ONS = ("\nQuestion:", "\nAnswer:", "\n\n\n")


@dataclass(frozen=True, kw_only=True)
class DrawnProblems:
    """So many held-out problems of each family, drawn with this seed; no prompt appears twice.
    solutions: the right answer is the worked solution, with the answer in its last line.
    """

    families: tuple[str, ...]
    per_family: int
    seed: int
    solutions: bool = False

    def load(self, data: Path | None = None) -> Iterator[Problem]:
        """ValueError: a family with too few distinct problems."""
        for family in self.families:
            seen: set[str] = set()
            drawn = generate_problems([family], 4 * self.per_family, self.seed, held_out=True)
            for problem in drawn:
                if problem["prompt"] not in seen:
                    seen.add(problem["prompt"])
                    yield Problem(
                        id=problem["id"],
                        family=family,
                        prompt=problem["prompt"],
                        answer=problem["response" if self.solutions else "answer"],
                    )
                if len(seen) == self.per_family:
                    break
            if len(seen) < self.per_family:
                raise ValueError(
                    f"family {family}: only {len(seen)} distinct held-out problems, "
                    f"{self.per_family} wanted"
                )


POCKET_FAMILIES = (
    "chain_sum",
    "leg_counting",
    "simple_equations",
    "complex_arithmetic",
    "simple_geometry",
)
POCKET = Suite(
    name="pocket",
    # 360 problems: one percentage point is between three and four of them
    problems=DrawnProblems(families=POCKET_FAMILIES, per_family=72, seed=2_000_000),
    kind="generation",
    scorer=match,
    metric="accuracy",
    chat=True,
    stop_strings=RUN_ONS,
    max_new_tokens=160,
)
# the same problems by the likelihood of their solutions: it moves where few answers are right yet
SOLUTIONS = Suite(
    name="pocket.solutions",
    problems=DrawnProblems(families=POCKET_FAMILIES, per_family=72, seed=2_000_000, solutions=True),
    kind="bits_per_byte",
    scorer=bits_per_byte,
    metric="bits_per_byte",
    chat=True,
)


@dataclass(frozen=True, kw_only=True)
class FileProblems:
    """Rows of a user's JSONL file, packed or not: "prompt" and "answer", and perhaps "id",
    "family".
    """

    path: Path

    def load(self, data: Path | None = None) -> Iterator[Problem]:
        """ValueError names file and line of what is no problem."""
        empty = True
        for number, row in json_lines(self.path):
            empty = False
            yield _problem(row, self.path.stem, number, f"{self.path}:{number}")
        if empty:
            raise ValueError(
                f'{self.path}: no problems; write one object with "prompt" and "answer" on each '
                "line"
            )


def _problem(row: Any, stem: str, number: int, where: str) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with "prompt" and "answer"')
    for key in ("answer", "id", "family"):
        if isinstance(row.get(key), int | float) and not isinstance(row[key], bool):
            row[key] = str(row[key])
    for key in ("prompt", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(
                f'{where}: "{key}" is missing or not a text; give it a non-empty string'
            )
    row = {"id": f"{stem}-{number}", "family": stem, **row}
    fields = {key: row[key] for key in ("id", "family", "prompt", "answer")}
    for key, text in fields.items():
        check_text(text, f'{where}: "{key}"')
    return Problem(**fields)


def file_suite(path: Path) -> Suite:
    """A user's file, asked and matched as the pocket suite is."""
    return Suite(
        name=path.stem,
        problems=FileProblems(path=path),
        kind="generation",
        scorer=match,
        metric="accuracy",
        chat=True,
        stop_strings=RUN_ONS,
        max_new_tokens=160,
    )


def check_text(text: Any, where: str) -> None:
    """Nothing, or a ValueError where this is no text, or one that UTF-8 cannot write."""
    if not isinstance(text, str):
        raise ValueError(f"{where} is {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"half a surrogate pair at character {error.start}"
        raise ValueError(f"{where} holds {place}; repair the text") from None
