"""A picture of the road: what the model solves and finds, stage by stage, from left to right."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.added import SOLVED, by_folder, measured_names, needle_measure, road_to, solves
from pocketlm.report.goals import measured
from pocketlm.report.markup import node
from pocketlm.report.number_format import duration, percent
from pocketlm.report.page import figure, legend
from pocketlm.report.timeline import KINDS, Stage

WIDTH, TOP, BOTTOM, SIDE = 640.0, 24.0, 168.0, 34.0
BAND = (188.0, 14.0)  # where the time of all stages lies, and how high
NAMES = 216.0


def road_picture(stages: Sequence[Stage], evaluation: dict[str, Any]) -> Element | None:
    """The models on the way to the last one that was measured, a place each, with the share that
    they solve and find; below, the time of every stage. None where fewer than two were measured.
    """
    models = by_folder(evaluation["models"])
    road = _measured_road(stages, models)
    if len(road) < 2:
        return None
    needle = needle_measure(models)
    curves = {"c1": (SOLVED, "problems solved")} if solves(road[0][1]) else {}
    if needle:
        curves["c3"] = (needle, f"needles found in {int(needle.split()[1]):,} tokens")
    places = [SIDE + (WIDTH - 2 * SIDE) * number / (len(road) - 1) for number in range(len(road))]
    shapes = [_level(share) for share in (0.0, 0.5, 1.0)]
    for number, (colour, (measure, _)) in enumerate(curves.items()):
        figures = [measured(model, measure) for _, model in road]
        shapes += _curve(places, figures, colour, below=number > 0)
    for place, (name, _) in zip(places, road, strict=True):
        shapes.append(node("text", name, x=place, y=NAMES, text_anchor="middle", class_="cell"))
    label = "What each model on the road solves and finds"
    drawing = node("svg", node("title", label), viewBox=f"0 0 {WIDTH:.0f} 222", role="img")
    drawing.set("aria-label", label)
    drawing.extend([*shapes, *_time_band(stages)])
    words = [(colour, text) for colour, (_, text) in curves.items()]
    used = [KINDS[kind] for kind in KINDS if any(stage.kind == kind for stage in stages)]
    caption = (
        "Models on the way, from the first that was measured to the last. The band is the time of "
        f"all stages, {duration(sum(stage.seconds for stage in stages))}: "
        f"{', '.join(words for _, words in used)}, in the colours of the table of stages."
    )
    chart = node("div", drawing, class_="scroll wide-picture")
    return figure(node("div", legend(words), chart), caption)


def _measured_road(
    stages: Sequence[Stage], models: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """(name, figures) of the models that were measured, on the way to the last of them; an export
    stands by the name of its file.
    """
    names = {
        stage.name: next((name for name in measured_names(stage) if name in models), None)
        for stage in stages
    }
    last = next((stage.name for stage in reversed(stages) if names[stage.name]), "")
    road = [names[stage.name] for stage in road_to(stages, last)]
    return [(name, models[name]) for name in road if name is not None]


def _curve(
    places: Sequence[float], figures: Sequence[float | None], colour: str, *, below: bool
) -> list[Element]:
    """A line through what was measured, a dot and its percentage at each place."""
    points = [
        (x, BOTTOM - share * (BOTTOM - TOP), share)
        for x, share in zip(places, figures, strict=True)
        if share is not None
    ]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
    shapes = [node("path", class_=f"line {colour}", d=path)] if len(points) > 1 else []
    for x, y, share in points:
        words = percent(share)
        shapes.append(
            node("circle", node("title", words), cx=x, cy=y, r=4.5, class_=f"mark {colour}")
        )
        level = min(y + 17, BOTTOM - 3) if below else max(y - 9, 11)
        shapes.append(
            node("text", f"{100 * share:.0f}", x=x, y=level, text_anchor="middle", class_="strong")
        )
    return shapes


def _level(share: float) -> Element:
    y = BOTTOM - share * (BOTTOM - TOP)
    return node("line", x1=SIDE - 14, x2=WIDTH - SIDE + 14, y1=y, y2=y, class_="grid")


def _time_band(stages: Sequence[Stage]) -> list[Element]:
    """Every stage's time in its colour, one after another."""
    whole = sum(stage.seconds for stage in stages) or 1.0
    start, shapes = SIDE - 14, []
    for stage in stages:
        wide = (WIDTH - 2 * SIDE + 28) * stage.seconds / whole
        words = node("title", f"{stage.name}: {duration(stage.seconds)}")
        size = {"width": max(0.5, wide - 0.7), "height": BAND[1]}
        shapes.append(node("rect", words, x=start, y=BAND[0], class_=KINDS[stage.kind][0], **size))
        start += wide
    return shapes
