"""docs/results/benchmarks.md: what evaluations measured, beside what papers print, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pocketlm.report.evaluation import figure_rows, limits_reached
from pocketlm.report.published import beside, legend, peers

INTRO = """# Benchmarks

Written by `python benchmarks/benchmarks_page.py FOLDER... --out docs/results/benchmarks.md` from
folders that the stage `evaluate` left (`pocketlm eval --out FOLDER`, or a script that calls it); no
figure here is typed by hand. How each suite is asked and scored: [evaluation](../evaluation.md).
"""


def benchmarks_page(
    evaluations: Mapping[str, dict[str, Any]], notes: Mapping[str, str] | None = None
) -> str:
    """The page of these evaluations, by the heading of each. notes: of some headings, what the
    models are and how they came about.
    """
    lines = [INTRO]
    for heading, evaluation in evaluations.items():
        lines.append(f"## {heading}\n")
        if note := (notes or {}).get(heading):
            lines.append(f"{note.strip()}\n")
        lines += [*_models(evaluation), *_figures(evaluation)]
        lines += [*_published(evaluation), *_differences(evaluation), *_notes(evaluation)]
    return "\n".join(lines).rstrip() + "\n"


def _models(evaluation: dict[str, Any]) -> Iterator[str]:
    rows = []
    for label, model in evaluation["models"].items():
        parameters = f"{model['parameters']:,}" if "parameters" in model else ""
        size, speed = f"{model['bytes'] / 1e6:,.1f}", f"{model['tokens_per_second']:,.0f}"
        place, runtime = model["path"], model.get("runtime", "")
        rows.append([label, place, runtime, parameters, size, speed, f"`{model['sha256'][:12]}`"])
    heading = ["model", "path", "runtime", "parameters", "MB", "tokens/s", "sha256 begins"]
    yield from table(heading, rows)


def _figures(evaluation: dict[str, Any]) -> Iterator[str]:
    """Every suite: figures with standard errors in percent, or bits per byte, and what needs no
    reading.
    """
    models = evaluation["models"]
    first = next(iter(models.values()))["suites"]
    rows = [[*row, first[row[0]].get("prompts", "")] for row in figure_rows(evaluation)]
    yield from table(["suite", "metric", "n", *models, "blind", "prompts"], rows)


def _published(evaluation: dict[str, Any]) -> Iterator[str]:
    """The papers' figures beside ours where no field differs; below, the fields of the others."""
    rows = beside(evaluation)
    if not rows:
        return
    yield "### Beside published figures\n"
    names = peers(evaluation)
    alike = [row for row in rows if not row.differs]
    if alike:
        models = evaluation["models"]
        yield from table(
            ["suite", *models, *names, "source"],
            [
                [
                    row.suite,
                    *(row.ours.get(label, "") for label in models),
                    *(row.papers.get(name, "") for name in names),
                    row.source,
                ]
                for row in alike
            ],
        )
    unlike = [(f"{row.source}: {'; '.join(row.differs)}", row.suite) for row in rows if row.differs]
    if unlike:
        yield "Not beside them, for their protocol is another:\n"
        yield from _by_text(unlike)
    yield from _list(legend(rows))


def _differences(evaluation: dict[str, Any]) -> Iterator[str]:
    """Of each file and suite: the difference with its interval, and in how many documents each is
    better.
    """
    pairs = evaluation["differences"]
    if not pairs:
        return
    yield "### Files against their checkpoints, document by document\n"
    headings = [
        *("suite", "model", "compared to", "n", "difference", "95 % interval"),
        *("better", "worse", "McNemar p", "other tokens"),
    ]
    yield from table(headings, [_difference_cells(pair) for pair in pairs])
    yield (
        "Differences are in percentage points, of bits per byte in bits. Better, worse: in how "
        "many documents. Other tokens: documents that the file's tokenizer writes otherwise. An "
        "interval of 0 alone says that no document here differs: of others, as many as 3 / n might "
        "(95 %).\n"
    )


def _difference_cells(pair: dict[str, Any]) -> list[str]:
    bits = pair["metric"] == "bits_per_byte"
    scale, digits = (1, 4) if bits else (100, 1)
    middle, low, high = (
        f"{scale * pair[key]:+.{digits}f}" for key in ("difference", "low", "high")
    )
    p_value = f"{pair['p_value']:.2g}" if "p_value" in pair else ""
    return [
        *(pair["suite"], pair["model"], pair["compared_to"], f"{pair['n']:,}"),
        *(middle, f"{low} to {high}", f"{pair['better']:,}", f"{pair['worse']:,}"),
        *(p_value, f"{pair.get('other_ids', 0):,}"),
    ]


def _notes(evaluation: dict[str, Any]) -> Iterator[str]:
    """What was cut, and the fields of each suite that its paper leaves open."""
    lines = limits_reached(evaluation)
    still_open = [
        (text, name)
        for name, suite in evaluation["suites"].items()
        for text in sorted({text for entry in suite.get("published", ()) for text in entry["open"]})
    ]
    if lines or still_open:
        yield "### Cut answers, and fields that a paper leaves open\n"
        yield from _list(lines)
        yield from _by_text(still_open)


def _by_text(lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A list of what is said (text, suite): a text of several suites once."""
    suites: dict[str, list[str]] = {}
    for text, suite in lines:
        suites.setdefault(text, []).append(suite)
    yield from _list([f"{', '.join(names)}: {text}" for text, names in suites.items()])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table, and an empty one after it. A bar in a cell is escaped."""
    for row in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _list(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"- {line}" for line in lines)
    yield from [""] * bool(lines)
