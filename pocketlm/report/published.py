"""A paper's figures beside ours, as rows for the terminal, the report and docs/results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pocketlm.report.evaluation import error_text, value_text

SAME_SIZE = 2.0  # a model of at most so many times our parameters, or at least one so-many-th
FEWEST = 3  # published models, the nearest in size, where none is of the same
OPEN_MARK, MEMORY_MARK = "?", "†"
LEGEND = {
    OPEN_MARK: "the paper leaves fields of the protocol open; what stands here may be another",
    MEMORY_MARK: "quoted from memory, not read in the paper",
}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One suite in one published table. ours: figures with standard errors, by our models' labels.
    papers: by the published models' names, empty where a field differs. differs: those fields.
    """

    suite: str
    source: str
    ours: dict[str, str]
    papers: dict[str, str]
    differs: tuple[str, ...]


def beside(evaluation: dict[str, Any]) -> list[Beside]:
    """A row for each suite and each table that prints it; none where no paper does."""
    names = peers(evaluation)
    rows = []
    for suite, entry in _entries(evaluation):
        differs = tuple(entry["differs"])
        ours = {
            label: f"{value_text(figures)} ± {error_text(figures)}"
            for label, model in evaluation["models"].items()
            if (figures := model["suites"].get(suite))
        }
        papers = {
            cell["model"]: _cell_text(cell, bool(entry["open"]))
            for cell in entry["cells"]
            if cell["model"] in names
        }
        rows.append(
            Beside(
                suite=suite,
                source=entry["source"],
                ours=ours,
                papers={} if differs else papers,
                differs=differs,
            )
        )
    return rows


def legend(rows: Sequence[Beside]) -> list[str]:
    """What the marks mean that stand in these rows."""
    texts = "".join(text for row in rows for text in row.papers.values())
    return [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in texts]


def peers(evaluation: dict[str, Any]) -> list[str]:
    """The published models of our size by their parameters: within SAME_SIZE of one of ours, else
    the FEWEST nearest.
    """
    sizes = {
        cell["model"]: cell["parameters"]
        for _, entry in _entries(evaluation)
        for cell in entry["cells"]
    }
    counted = [model.get("parameters") for model in evaluation["models"].values()]
    ours = [number / 1e6 for number in counted if number]
    if not ours:
        return sorted(sizes, key=lambda name: sizes[name])
    ratios = {
        name: min(max(size / mine, mine / size) for mine in ours) for name, size in sizes.items()
    }
    near = {name for name, ratio in ratios.items() if ratio <= SAME_SIZE}
    chosen = near or set(sorted(ratios, key=lambda name: ratios[name])[:FEWEST])
    return sorted(chosen, key=lambda name: (sizes[name], name))


def _entries(evaluation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, suite in evaluation["suites"].items():
        for entry in suite.get("published", ()):
            yield name, entry


def _cell_text(cell: dict[str, Any], is_open: bool) -> str:
    memory = MEMORY_MARK * (cell["certainty"] == "from memory")
    return f"{cell['value']}{OPEN_MARK * is_open}{memory}"
