"""docs/results/benchmarks.md: what evaluations measured, beside what papers print, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pocketlm.report.evaluation import difference_text, figure_rows, limits_reached
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
    """Paired differences, a row each, and for each file how many documents of all suites that are
    right or wrong it has won and lost.
    """
    if not evaluation["differences"]:
        return
    yield "### Files against their checkpoints, document by document\n"
    names = ["file", "suite", "difference", "n", "better", "worse", "McNemar p"]
    rows, sums = [], dict[tuple[str, str], list[int]]()
    for pair in evaluation["differences"]:
        who, counts = (pair["model"], pair["compared_to"]), [pair["n"]]
        counts += [pair["better"], pair["worse"]]
        p = f"{pair['p_value']:.2g}" if "p_value" in pair else ""
        rows.append(
            [" against ".join(who), pair["suite"], difference_text(pair), *map(str, counts), p]
        )
        if p:
            sums[who] = [a + b for a, b in zip(sums.get(who, [0, 0, 0]), counts, strict=True)]
    for who, (n, better, worse) in sums.items():
        difference = f"{100 * (better - worse) / n:+.2f} points"
        rows.append([" against ".join(who), "together", difference, str(n), str(better)])
        rows[-1] += [str(worse), ""]
    yield from table(names, rows)


def _notes(evaluation: dict[str, Any]) -> Iterator[str]:
    """What was cut, and the fields of each suite that its paper leaves open."""
    lines, suites = limits_reached(evaluation), dict[str, list[str]]()
    for name, suite in evaluation["suites"].items():
        for text in sorted(
            {text for entry in suite.get("published", ()) for text in entry["open"]}
        ):
            suites.setdefault(text, []).append(name)
    lines += [f"{', '.join(names)}: {text}" for text, names in suites.items()]
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
