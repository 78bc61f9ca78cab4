"""Published results as data: tables as their papers print them, every cell with its table and how
surely it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

# read: in the paper, its repository or a note made from it. sums agree: from memory, and sums or
# means that the paper prints come out with it. from memory: nothing confirms it
Certainty = Literal["read", "sums agree", "from memory"]
MARKS: dict[str, Certainty] = {"": "read", "s": "sums agree", "r": "from memory"}
ABSENT = "-"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure, in percent. parameters: of the model, in millions."""

    model: str
    parameters: float
    value: float
    certainty: Certainty


@dataclass(frozen=True, kw_only=True)
class Column:
    """A benchmark of a table, and its figures from top to bottom.

    suite: the row of eval/suites that follows its protocol; "" for a mean of several, or where we
    have none. protocol: what the paper states, by the names of Suite.protocol()'s fields.
    """

    benchmark: str
    suite: str
    protocol: Mapping[str, Any]
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper."""

    paper: str
    number: str
    columns: tuple[Column, ...]

    @property
    def source(self) -> str:
        """As it stands under a figure: "MobileLLM-R1, table 13"."""
        return f"{self.paper}, {self.number}"


def column(benchmark: str, suite: str, **protocol: Any) -> Column:
    """A column without figures yet."""
    return Column(benchmark=benchmark, suite=suite, protocol=protocol)


def table(paper: str, number: str, columns: tuple[Column, ...], text: str) -> Table:
    """A table from lines "model | millions of parameters | figure | figure ...".

    A figure is a number, followed by a mark of MARKS, or "-" where the paper has none. ValueError:
    a line of another length, or what is no figure.
    """
    rows = [_figures(line, len(columns), f"{paper}, {number}") for line in text.split("\n") if line]
    filled = (
        replace(head, cells=tuple(row[place] for row in rows if row[place] is not None))
        for place, head in enumerate(columns)
    )
    return Table(paper=paper, number=number, columns=tuple(filled))


def _figures(line: str, count: int, where: str) -> list[Cell | None]:
    model, parameters, *figures = (part.strip() for part in line.split("|"))
    if len(figures) != count:
        raise ValueError(f"{where}: {len(figures)} figures instead of {count} in {line!r}")
    cells: list[Cell | None] = []
    for figure in figures:
        mark = figure.lstrip("0123456789.")
        if figure == ABSENT:
            cells.append(None)
        elif mark not in MARKS:
            raise ValueError(f"{where}: {figure!r} of {model} is no figure")
        else:
            cells.append(
                Cell(
                    model=model,
                    parameters=float(parameters),
                    value=float(figure.removesuffix(mark)),
                    certainty=MARKS[mark],
                )
            )
    return cells
