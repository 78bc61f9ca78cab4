"""The way to the result: every stage with its seconds, the curves of those that trained, and every
config.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, count, duration, significant
from pocketlm.report.page import figure, fold, legend, multiples, number, paragraph, section, table
from pocketlm.report.plots import Point, bar, loss_curve, smoothed, thinned

DATA_FILES = (*("curation.json", "probes.json", "mix.json", "leave_one_out.json"), "selection.json")
KINDS = {
    "data": ("c2", "choosing text"),
    "training": ("c1", "training"),
    "other": ("c3", "the rest"),
}


@dataclass(frozen=True)
class Stage:
    """A finished stage: its stage.json, the JSON files it wrote by name, and its steps if it
    trained.
    """

    name: str
    record: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[dict[str, Any]] = ()

    @property
    def seconds(self) -> float:
        return float(self.record["seconds"])

    @property
    def kind(self) -> str:
        if any(name in self.files for name in DATA_FILES):
            return "data"
        return "training" if self.steps else "other"


def road_section(stages: Sequence[Stage], added: Mapping[str, Sequence[str]]) -> Element:
    """The stages in order with what each added, each bar where its time lies in the whole."""
    whole = sum(stage.seconds for stage in stages) or 1.0
    start, rows = 0.0, []
    for stage in stages:
        colour, share = KINDS[stage.kind][0], stage.seconds / whole
        title = f"{stage.name}: {duration(stage.seconds)}, {100 * share:.0f} % of the whole"
        cell = node("td", bar(title, [(share, colour, title)], start=start), class_="bar")
        origin = node("td", ", ".join(_origins(stage)) or MISSING, class_="hide-narrow origin")
        function = node("td", node("code", stage.record["stage"]), class_="hide-narrow")
        words = node("td", "; ".join(added[stage.name]) or MISSING, class_="added")
        took = number(duration(stage.seconds))
        rows.append([stage.name, words, function, origin, cell, took])
        start += share
    headings = [
        "stage",
        "what it added",
        node("th", "function", class_="hide-narrow", scope="col"),
        node("th", "made from", class_="hide-narrow", scope="col"),
        "when",
        "took",
    ]
    stages_table = table("Stages in order, and the time of each", headings, rows, class_="full")
    used = [KINDS[kind] for kind in KINDS if any(stage.kind == kind for stage in stages)]
    longest = max(stages, key=lambda stage: stage.seconds)
    intro = f"{len(stages)} stages in {duration(whole)}. "
    intro += f"The longest: {longest.name}, {duration(longest.seconds)}."
    return section("road", "The road", paragraph(intro), legend(used), stages_table)


def _origins(stage: Stage) -> Iterable[str]:
    """Where a stage's inputs came from: a stage of this run by its name, anything else by its last
    part.
    """
    for value in stage.record["inputs"].values():
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None:
                path = Path(entry["path"])
                yield path.name if path.is_absolute() else str(path)


def curves_section(stages: Sequence[Stage]) -> Element | None:
    """The loss of every stage that trained: raw, smoothed, and the learning rate."""
    figures = [_curve(stage) for stage in stages if stage.steps]
    if not figures:
        return None
    intro = (
        "Loss in nats a token over steps: thin as measured, thick smoothed. Dashed: the learning "
        "rate, from "
        "0 to its peak. Each chart has its own scale; a distance to a teacher (KL) is no "
        "cross-entropy, and "
        "the two are not to be compared."
    )
    return section("curves", "Loss, stage by stage", paragraph(intro), multiples(figures))


def _curve(stage: Stage) -> Element:
    finite = [row for row in stage.steps if _is_finite(row["loss"])]
    tokens = sum(row["tokens"] for row in stage.steps)
    seconds = sum(row["seconds"] for row in stage.steps)
    facts = f"{_what_loss(stage)} · {len(stage.steps):,} steps · {count(tokens)} tokens"
    facts += f" · {count(tokens / seconds)} tokens/s" if seconds else ""
    if lost := len(stage.steps) - len(finite):
        facts += f" · {lost:,} step{'s' if lost > 1 else ''} without a finite loss"
    if not finite:
        return node("figure", node("figcaption", node("strong", stage.name), f" {facts}"))
    raw: list[Point] = [(row["step"] + 1, row["loss"]) for row in finite]
    rates: list[Point] = [(row["step"] + 1, row["lr"]) for row in finite]
    smooth = smoothed(raw)
    peak = significant(max(rate for _, rate in rates))
    facts += f" · ends near {smooth[-1][1]:.3f} · learning rate up to {peak}"
    label = (
        f"Loss of {stage.name}: from {smooth[0][1]:.2f} to {smooth[-1][1]:.2f} in {len(raw)} steps"
    )
    chart = loss_curve(label, thinned(raw), thinned(smooth), thinned(rates))
    return figure(chart, node("strong", stage.name), f" {facts}")


def _what_loss(stage: Stage) -> str:
    """What the stage's loss measures, as far as its record tells."""
    if stage.record["stage"] == "quantize":
        return "KL to the full-precision parent"
    if stage.record["inputs"].get("teacher"):
        mixed = (stage.record["config"].get("distillation") or {}).get("label_share")
        return f"KL to the teacher, {mixed:.0%} cross-entropy" if mixed else "KL to the teacher"
    return "cross-entropy"


def recipe_section(stages: Sequence[Stage]) -> Element:
    """Every stage's config and inputs as they were recorded."""
    folds = []
    for stage in stages:
        inputs = stage.record["inputs"]
        parts = [node("pre", _plain(stage.record["config"]))]
        if inputs:
            parts += [paragraph("Inputs", quiet=True), node("pre", _plain(inputs))]
        folds.append(fold(f"{stage.name} ({stage.record['stage']})", *parts))
    intro = "Every stage's configuration and inputs, as recorded when it ran."
    return section("recipe", "The recipe itself", paragraph(intro), *folds)


def _plain(record: dict[str, Any]) -> str:
    """JSON with one field of the config a line, and deeper ones only where a line would be long."""
    return "\n".join(f"{name}: {_value(value)}" for name, value in record.items())


def _value(value: Any, indent: int = 2) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= 96 or not isinstance(value, (dict, list)):
        return line
    space = "\n" + " " * indent
    if isinstance(value, list):
        return "".join(f"{space}- {_value(entry, indent + 2)}" for entry in value)
    return "".join(f"{space}{name}: {_value(entry, indent + 2)}" for name, entry in value.items())


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
