"""The merge: every combination of weights that was tried, and the best beside the plain choices."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import signed
from pocketlm.report.page import Cell, figure, number, paragraph, section, table
from pocketlm.report.plots import bar, triangle, weight_curve
from pocketlm.report.timeline import Stage

BARS = 12  # of the best combinations, where there are more than three branches


def merging_section(stages: Sequence[Stage]) -> Element | None:
    """The search of every merge stage."""
    found = [stage for stage in stages if "merge.json" in stage.files]
    parts = [part for stage in found for part in _merge(stage, named=len(found) > 1)]
    return section("merge", "The merge: one model out of specialists", *parts) if parts else None


def _merge(stage: Stage, *, named: bool) -> list[Element]:
    told = stage.files["merge.json"]
    best = told.get("best") or _loss_of(told, told["weights"])
    against = [("the uniform average", told["uniform"]["mean"])]
    against.append(
        ("the best specialist alone", min(loss["mean"] for loss in told["single"].values()))
    )
    weights = " + ".join(
        f"{weight:g} × {name}" for name, weight in told["weights"].items() if weight
    )
    gains = ", ".join(f"{signed(best['mean'] - loss, 4)} against {name}" for name, loss in against)
    intro = (
        f"{len(told['search'])} combinations were tried. Best: {weights}, with a mean validation "
        "loss of "
        f"{best['mean']:.4f} ({gains}). It was chosen on these very rows, which flatters it a "
        "little."
    )
    if sum(weight > 0 for weight in told["weights"].values()) == 1:
        intro += " That is one specialist alone: averaging did not help here."
    rows: dict[str, dict[str, float]] = {"best": best, "uniform": told["uniform"]}
    rows |= {f"{name} alone": loss for name, loss in told["single"].items()}
    domains = list(best)
    least = {domain: min(loss[domain] for loss in rows.values()) for domain in domains}
    cells: list[list[Cell]] = [
        [name, *(number(f"{loss[d]:.4f}", strong=loss[d] == least[d]) for d in domains)]
        for name, loss in rows.items()
    ]
    shown = table("Validation loss of the merges", ["loss (nats a token)", *domains], cells)
    return [*([node("h3", stage.name)] if named else []), paragraph(intro), _search(told), shown]


def _search(told: dict[str, Any]) -> Element:
    names = list(told["weights"])
    if len(names) == 2:
        return _line(told, names)
    return _triangle(told, names) if len(names) == 3 else _bars(told, names)


def _line(told: dict[str, Any], names: list[str]) -> Element:
    first, second = names
    points = sorted((row["weights"][first], row["loss"]["mean"]) for row in told["search"])
    best = (told["weights"][first], _loss_of(told, told["weights"])["mean"])
    uniform = (0.5, told["uniform"]["mean"])
    marks = [(f"{second} alone", points[0], "c2"), (f"{first} alone", points[-1], "c2")]
    marks = [mark for mark in marks if mark[1][0] != best[0]]
    if best[0] != 0.5:
        marks.append(("uniform", uniform, "c3"))
    marks.append(("best", best, "c4"))
    label = f"Mean validation loss over the weight of {first}; lowest at {best[0]:g}"
    words = (
        f"Mean validation loss over the weight of {first} (0: {second} alone, 1: {first} alone)."
    )
    return _one(figure(weight_curve(label, points, marks), words))


def _triangle(told: dict[str, Any], names: list[str]) -> Element:
    points = [
        ([row["weights"][name] for name in names], row["loss"]["mean"]) for row in told["search"]
    ]
    best = [told["weights"][name] for name in names]
    marks = [("uniform", [1 / 3] * 3, "c3"), ("best", best, "c4")]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    label = f"Mean validation loss over the weights of {', '.join(names)}"
    words = (
        "Each dot is a merge, the nearer to a corner the more of that specialist; mean validation "
        "loss "
    )
    words += f"from {low:.4f} (strong) to {high:.4f} (faint)."
    return _one(figure(triangle(label, names, points, marks), words))


def _bars(told: dict[str, Any], names: list[str]) -> Element:
    tried = sorted(told["search"], key=lambda row: row["loss"]["mean"])
    low, high = tried[0]["loss"]["mean"], tried[-1]["loss"]["mean"]
    rows: list[list[Cell]] = []
    for row in tried[:BARS]:
        loss = row["loss"]["mean"]
        shown = " · ".join(f"{row['weights'][name]:g}" for name in names)
        share = (loss - low) / (high - low) if high > low else 0.0
        words = f"{shown}: {loss:.4f}"
        rows.append(
            [
                shown,
                node("td", bar(words, [(share, "c1", words)]), class_="bar"),
                number(f"{loss:.4f}"),
            ]
        )
    headings = (" · ".join(names), f"above the best, of {high - low:.4f} to the worst", "mean loss")
    return table(
        f"The {len(rows)} best of {len(tried)} combinations", headings, rows, class_="full"
    )


def _loss_of(told: dict[str, Any], weights: dict[str, float]) -> dict[str, float]:
    """The losses of these weights: tried ones are all in the search."""
    return next(row["loss"] for row in told["search"] if row["weights"] == weights)


def _one(chart: Element) -> Element:
    chart.set("class", "one")
    return chart
