"""The merge: every weight that was tried, and the best beside the plain choices."""

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
    merges = [stage for stage in stages if "merge.json" in stage.files]
    parts = [part for stage in merges for part in _merge(stage, named=len(merges) > 1)]
    return section("merge", "The merge: one model out of specialists", *parts) if parts else None


def _merge(stage: Stage, *, named: bool) -> list[Element]:
    merge = stage.files["merge.json"]
    best = merge.get("best") or _loss_of(merge, merge["weights"])
    specialist = min(loss["mean"] for loss in merge["single"].values())
    against = {
        "the uniform average": merge["uniform"]["mean"],
        "the best specialist alone": specialist,
        **({"the trunk": merge["trunk"]["mean"]} if "trunk" in merge else {}),
    }
    weights = " + ".join(
        f"{weight:.3g} × {name}" for name, weight in merge["weights"].items() if weight >= 5e-4
    )
    gains = ", ".join(
        f"{signed(best['mean'] - loss, 4)} against {name}" for name, loss in against.items()
    )
    how = {"slopes": "weights were tried on the way down the slopes of the loss"}
    searched = merge.get("method") != "uniform"
    intro = (
        f"{len(merge['search'])} {how.get(merge.get('method', 'grid'), 'combinations were tried')}."
        f" Best: {weights}, with a mean validation loss of {best['mean']:.4f} ({gains}). "
    )
    if not searched:
        intro = f"The uniform average, no other tried: {best['mean']:.4f} ({gains})."
    elif "reported_on" in merge:
        intro += "Weights were chosen on some rows, and these losses are of others."
    else:  # of the first version
        intro += "It was chosen on these very rows, which flatters it a little."
    if sum(weight > 0 for weight in merge["weights"].values()) == 1:
        intro += " That is one specialist alone: averaging did not help here."
    rows: dict[str, dict[str, float]] = {"best": best, "uniform": merge["uniform"]}
    rows |= {"trunk": merge["trunk"]} if "trunk" in merge else {}
    rows |= {f"{name} alone": loss for name, loss in merge["single"].items()}
    domains = list(best)
    least = {domain: min(loss[domain] for loss in rows.values()) for domain in domains}
    cells: list[list[Cell]] = [
        [name, *(number(f"{loss[d]:.4f}", strong=loss[d] == least[d]) for d in domains)]
        for name, loss in rows.items()
    ]
    losses = table("Validation loss of the merges", ["loss (nats a token)", *domains], cells)
    title = [node("h3", stage.name)] if named else []
    return [*title, paragraph(intro), *([_search(merge)] if searched else []), losses]


def _search(merge: dict[str, Any]) -> Element:
    """What was tried, with the losses that weights were chosen by."""
    names = list(merge["weights"])
    if len(names) == 2:
        return _line(merge, names)
    return _triangle(merge, names) if len(names) == 3 else _bars(merge, names)


def _line(merge: dict[str, Any], names: list[str]) -> Element:
    first, second = names
    points = sorted((row["weights"][first], row["loss"]["mean"]) for row in merge["search"])
    best = (merge["weights"][first], _loss_of(merge, merge["weights"])["mean"])
    # of the first version, where a grid of odd steps leaves it out
    uniform = (0.5, dict(points).get(0.5, merge["uniform"]["mean"]))
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


def _triangle(merge: dict[str, Any], names: list[str]) -> Element:
    points = [
        ([row["weights"][name] for name in names], row["loss"]["mean"]) for row in merge["search"]
    ]
    best = [merge["weights"][name] for name in names]
    marks = [("uniform", [1 / 3] * 3, "c3"), ("best", best, "c4")]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    label = f"Mean validation loss over the weights of {', '.join(names)}"
    words = (
        "Each dot is a merge, the nearer to a corner the more of that specialist; mean validation "
        "loss "
    )
    words += f"from {low:.4f} (strong) to {high:.4f} (faint)."
    return _one(figure(triangle(label, names, points, marks), words))


def _bars(merge: dict[str, Any], names: list[str]) -> Element:
    tried = sorted(merge["search"], key=lambda row: row["loss"]["mean"])
    low, high = tried[0]["loss"]["mean"], tried[-1]["loss"]["mean"]
    rows: list[list[Cell]] = []
    for row in tried[:BARS]:
        loss = row["loss"]["mean"]
        weights = " · ".join(f"{row['weights'][name]:.3g}" for name in names)
        share = (loss - low) / (high - low) if high > low else 0.0
        words = f"{weights}: {loss:.4f}"
        rows.append(
            [
                weights,
                node("td", bar(words, [(share, "c1", words)]), class_="bar"),
                number(f"{loss:.4f}"),
            ]
        )
    headings = (" · ".join(names), f"above the best, of {high - low:.4f} to the worst", "mean loss")
    return table(
        f"The {len(rows)} best of {len(tried)} combinations", headings, rows, class_="full"
    )


def _loss_of(merge: dict[str, Any], weights: dict[str, float]) -> dict[str, float]:
    """The losses of these weights: tried ones are all in the search."""
    return next(row["loss"] for row in merge["search"] if row["weights"] == weights)


def _one(chart: Element) -> Element:
    chart.set("class", "one")
    return chart
