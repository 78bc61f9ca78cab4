"""docs/results/benchmarks.md: what evaluations measured, beside what papers print, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pocketlm.report.evaluation import difference_line, figure_rows, limits_reached
from pocketlm.report.published import beside, legend, peers

INTRO = """# Benchmarks

Written by `python benchmarks/benchmarks_page.py FOLDER... --out docs/results/benchmarks.md` from
folders that `pocketlm eval --out FOLDER` left; no figure here is typed by hand. How each suite is
asked and scored: [evaluation](../evaluation.md).
"""


def benchmarks_page(evaluations: Mapping[str, dict[str, Any]]) -> str:
    """The page of these evaluations, by the heading of each."""
    lines = [INTRO]
    for heading, evaluation in evaluations.items():
        lines += [f"## {heading}\n", *_models(evaluation), *_figures(evaluation)]
        lines += [*_published(evaluation), *_differences(evaluation), *_notes(evaluation)]
    return "\n".join(lines).rstrip() + "\n"


def _models(evaluation: dict[str, Any]) -> Iterator[str]:
    rows = []
    for label, model in evaluation["models"].items():
        parameters = f"{model['parameters']:,}" if "parameters" in model else ""
        size, speed = f"{model['bytes'] / 1e6:,.1f}", f"{model['tokens_per_second']:,.0f}"
        rows.append([label, model["path"], parameters, size, speed, f"`{model['sha256'][:12]}`"])
    yield from table(["model", "path", "parameters", "MB", "tokens/s", "sha256 begins"], rows)


def _figures(evaluation: dict[str, Any]) -> Iterator[str]:
    """Every suite: figures with standard errors in percent, or bits per byte, and what needs no
    reading.
    """
    models = evaluation["models"]
    first = next(iter(models.values()))["suites"]
    rows = [[*row, first[row[0]].get("prompts", "")] for row in figure_rows(evaluation)]
    yield from table(["suite", "metric", "n", *models, "blind", "prompts"], rows)


def _published(evaluation: dict[str, Any]) -> Iterator[str]:
    rows = beside(evaluation)
    if not rows:
        return
    names = peers(evaluation) if any(row.papers for row in rows) else []
    yield "### Beside published figures\n"
    yield from table(
        ["suite", *evaluation["models"], *names, "source, or what differs from it"],
        [
            [
                row.suite,
                *(row.ours.get(label, "") for label in evaluation["models"]),
                *(row.papers.get(name, "") for name in names),
                "; ".join([row.source, *row.differs]),
            ]
            for row in rows
        ],
    )
    yield from _list(legend(rows))


def _differences(evaluation: dict[str, Any]) -> Iterator[str]:
    if evaluation["differences"]:
        yield "### Files against their checkpoints, document by document\n"
        yield from _list([difference_line(pair) for pair in evaluation["differences"]])


def _notes(evaluation: dict[str, Any]) -> Iterator[str]:
    """What was cut, and the fields of each suite that its paper leaves open."""
    lines = limits_reached(evaluation)
    for name, suite in evaluation["suites"].items():
        texts = {text for entry in suite.get("published", ()) for text in entry["open"]}
        lines += [f"{name}: {text}" for text in sorted(texts)]
    if lines:
        yield "### Cut answers, and fields that a paper leaves open\n"
        yield from _list(lines)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table, and an empty one after it. A bar in a cell is escaped."""
    for row in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _list(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"- {line}" for line in lines)
    yield from [""] * bool(lines)
