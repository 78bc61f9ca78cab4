"""Suites: named rows of problems, or a JSONL file of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.model.json_lines import json_lines

# (families, count, seed, held_out=True) -> problems with prompt, answer, family: corpus/problems.py
# has one
Generate = Callable[..., Iterator[dict[str, str]]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Problems to solve: dicts with id, prompt, answer, family (a user's file may add other
    keys).
    """

    name: str
    problems: tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class GeneratedSuite:
    """A row of the table below: so many held-out problems of each family, drawn with this seed."""

    families: tuple[str, ...]
    per_family: int
    seed: int


POCKET_FAMILIES = (
    "chain_sum",
    "leg_counting",
    "simple_equations",
    "complex_arithmetic",
    "simple_geometry",
)

SUITES = {
    # 360 problems: one percentage point is between three and four of them
    "pocket": GeneratedSuite(families=POCKET_FAMILIES, per_family=72, seed=2_000_000)
}


def load_suite(name: str, generate: Generate | None = None) -> Suite:
    """The suite of this name, or of this JSONL file (one object a line with "prompt" and "answer"),
    packed or not.

    `generate` draws the problems of a named suite; it is only ever asked for held-out ones. No
    prompt appears twice. ValueError or FileNotFoundError name the suite, or the file and line, that
    is wrong.
    """
    if name in SUITES:
        if generate is None:
            raise ValueError(f"suite {name!r} is generated: pass the problem generator")
        return Suite(name=name, problems=tuple(_generated(SUITES[name], generate)))
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"suite {name!r} is neither one of {', '.join(sorted(SUITES))} nor a file; "
            'a suite file is JSONL with "prompt" and "answer" on each line'
        )
    return Suite(name=path.stem, problems=tuple(_rows(path)))


def _generated(row: GeneratedSuite, generate: Generate) -> Iterator[dict[str, str]]:
    for family in row.families:
        seen: set[str] = set()
        for problem in generate([family], 4 * row.per_family, row.seed, held_out=True):
            if problem["prompt"] not in seen:
                seen.add(problem["prompt"])
                yield problem
            if len(seen) == row.per_family:
                break
        if len(seen) < row.per_family:
            raise ValueError(
                f"family {family}: only {len(seen)} distinct held-out problems, {row.per_family} "
                "wanted"
            )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    empty = True
    for number, row in json_lines(path):
        where = f"{path}:{number}"
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
        problem = {"id": f"{path.stem}-{number}", "family": path.stem, **row}
        for key in ("prompt", "answer", "id", "family"):
            _check_text(problem[key], f'{where}: "{key}"')
        empty = False
        yield problem
    if empty:
        raise ValueError(
            f'{path}: no problems; write one object with "prompt" and "answer" on each line'
        )


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{where} is {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"half a surrogate pair at character {error.start}"
        raise ValueError(f"{where} holds {place}; repair the text") from None
