"""The table of every evaluated model: suites, families of the first one, bits per byte, needles,
size and speed.
"""

import math
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.evaluation import (
    constant_share,
    difference_line,
    error_text,
    families_of,
    first_suite,
    limits_reached,
    solved_of,
    value_text,
)
from pocketlm.report.goals import measured
from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, percent, size
from pocketlm.report.page import Cell, number, paragraph, section, table
from pocketlm.report.published import beside, legend, peers

SPEED = "tokens_per_second"


def evaluation_section(evaluation: dict[str, Any]) -> Element:
    """Every model in order: its figure on each suite, what it solves of the first one's families,
    bits per byte, needles, size and speed.
    """
    models, suites = evaluation["models"], list(evaluation["suites"])
    first = first_suite(evaluation)
    families = families_of(evaluation, first)
    domains, lengths = _names(models, "bits_per_byte"), _names(models, "needle")
    headings = ["model", *(["all problems"] if len(suites) == 1 else map(_spaced, suites))]
    headings += ["size", "tokens/s", *map(_spaced, families)]
    headings += [f"bits/byte, {domain}" for domain in domains]
    headings += [f"needle, {length}" for length in lengths]
    rows = [
        _model_row(label, model, suites, families, domains, lengths)
        for label, model in models.items()
    ]
    whole = table("Evaluation of every model", headings, rows, class_="sticky wide")
    others = [None] * len(domains + lengths)
    next(whole.iter("tbody")).append(_blind_row(evaluation, families, others))
    more = []
    if any(SPEED in model for model in models.values()):
        more.append("Tokens/s: one answer at a time, on the machine of this run.")
    if domains:
        more.append("Bits/byte: of held-out text, lower is better.")
    if lengths:
        more.append("Needle: how often a fact hidden in that many tokens is found.")
    parts = [paragraph(_note(evaluation)), whole, paragraph(" ".join(more), quiet=True)]
    if rows_beside := beside(evaluation):
        names = peers(evaluation) if any(row.papers for row in rows_beside) else []
        headings = ["suite", *models, *names, "source, or what differs from it"]
        cells: list[list[Cell]] = [
            [
                row.suite,
                *(node("td", row.ours.get(label, MISSING)) for label in models),
                *(node("td", row.papers.get(name, MISSING)) for name in names),
                node("td", "; ".join([row.source, *row.differs])),
            ]
            for row in rows_beside
        ]
        parts += [
            table("Published figures, percent", headings, cells, class_="wide"),
            paragraph("; ".join(legend(rows_beside)), quiet=True),
        ]
    if limits := limits_reached(evaluation):
        parts.append(paragraph(f"{'; '.join(limits)}."))
    if differences := evaluation.get("differences"):
        lines = [node("li", difference_line(difference)) for difference in differences]
        parts += [
            paragraph("Each exported file against its checkpoint, document by document:"),
            node("ul", *lines),
        ]
    return section("evaluation", "Every model, measured", *parts)


def _note(evaluation: dict[str, Any]) -> str:
    figures = next(iter(evaluation["models"].values()))["suites"]
    if len(figures) > 1:
        return (
            "Each suite's figure, in percent (bits per byte: lower is better), with its standard "
            "error over documents where pointed at. The last row is what needs no reading: the "
            "best constant answer to each family, or a guess among the choices."
        )
    problems = figures[first_suite(evaluation)]["n"]
    error = 50 / math.sqrt(max(1, problems))  # of a share of one half, where it is largest
    return (
        f"Greedy answers, no examples given; in percent. With {problems} problems a total has a "
        f"standard error of up to {error:.1f} points, a family's is larger: small differences mean "
        "little. The last row is what one answer, given to every problem of a family, would score."
    )


def _blind_row(evaluation: dict[str, Any], families: list[str], others: list[None]) -> Element:
    """The last row: what one answer to every problem of a family, or a guess, would solve."""
    constant = evaluation["suites"][first_suite(evaluation)].get("constant_answer", {})
    totals = [number(percent(constant_share(evaluation, name))) for name in evaluation["suites"]]
    rates = [number(_bare(constant.get(family))) for family in families]
    name = "best constant answer" if len(evaluation["suites"]) == 1 else "constant answer or guess"
    heading, blank = node("th", name, scope="row"), [node("td") for _ in others]
    return node("tr", heading, *totals, node("td"), node("td"), *rates, *blank, class_="apart")


def _model_row(
    label: str,
    model: dict[str, Any],
    suites: list[str],
    families: list[str],
    domains: list[str],
    lengths: list[str],
) -> list[Cell]:
    row: list[Cell] = [label]
    row += [_suite_cell(model["suites"].get(name), single=len(suites) == 1) for name in suites]
    speed = model.get(SPEED)
    row += [number(size(model["bytes"])), None if speed is None else number(f"{speed:,.0f}")]
    problems = model["suites"].get(suites[0], {}).get("problems", {})
    for family in families:
        counts = problems.get(family)
        share = counts["solved"] / counts["total"] if counts and counts["total"] else None
        note = f"{counts['solved']} of {counts['total']}" if counts else None
        row.append(number(_bare(share), heat=share, note=note))
    for domain in domains:
        bits = model.get("bits_per_byte", {}).get(domain)
        row.append(None if bits is None else number(f"{bits:.3f}"))
    for length in lengths:
        share = measured(model, f"needle {length}")
        counts = model.get("needle", {}).get(length)
        cut = f", {counts['cut']} cut" if counts and counts.get("cut") else ""
        note = counts and f"{counts['found']} of {counts['of']}{cut}"
        row.append(number(_bare(share), heat=share, note=note))
    return row


def _suite_cell(figures: dict[str, Any] | None, *, single: bool) -> Cell:
    if figures is None:
        return None
    solved, total = solved_of(figures)
    if single and total:
        return number(percent(figures["value"]), strong=True, note=f"{solved} of {total}")
    note = f"{figures['metric']}, standard error {error_text(figures)}, {figures['n']:,} documents"
    return number(value_text(figures), strong=True, note=note)


def _names(models: dict[str, Any], key: str) -> list[str]:
    """The domains or lengths that any model was measured on, in order."""
    return list(dict.fromkeys(name for model in models.values() for name in model.get(key, {})))


def _bare(share: float | None) -> str:
    """A percentage in a column of them."""
    return MISSING if share is None else f"{100 * share:.1f}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
