"""Charts as inline SVG, drawn by hand: bars, curves, histograms, and a triangle of three weights.

Curves are drawn 320 units wide, the width of a phone, so that their text stays readable at every
size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import significant

WIDTH, HEIGHT = 320.0, 176.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 8.0, 10.0, 24.0
TICK_STEPS = (1, 2, 2.5, 5, 10)

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """Where values lie on the drawing: x from left to right, y upwards."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float = RIGHT

    def x(self, value: float) -> float:
        return LEFT + _part(value, self.x_low, self.x_high) * (WIDTH - LEFT - self.right)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _part(value, self.y_low, self.y_high) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def bar(
    label: str, parts: Sequence[tuple[float, str, str]], *, start: float = 0.0, height: int = 12
) -> Element:
    """A bar as wide as its cell: (share of the width, colour, words) one after the other, from
    `start` on.
    """
    drawing = node(
        "svg",
        node("title", label),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        height=height,
        role="img",
    )
    drawing.set("aria-label", label)
    for share, colour, words in parts:
        if share > 0:
            place = min(100 * start, 99.6)  # what took no time is still to be seen
            wide = max(0.4, 100 * share)
            drawing.append(
                node(
                    "rect", node("title", words), x=place, y=0, width=wide, height=10, class_=colour
                )
            )
        start += share
    return drawing


def loss_curve(
    label: str, raw: Sequence[Point], smooth: Sequence[Point], rates: Sequence[Point]
) -> Element:
    """Loss over steps, raw and smoothed, on the left scale; the learning rate, dashed, from 0 to
    its peak.
    """
    lows, highs = min(y for _, y in raw), max(y for _, y in raw)
    frame = Frame(raw[0][0], max(raw[-1][0], raw[0][0] + 1), *_padded(lows, highs))
    peak = max((rate for _, rate in rates), default=0.0)
    shapes = [
        node("path", class_="raw", d=frame.path(raw)),
        node("path", class_="curve", d=frame.path(smooth)),
    ]
    if peak > 0:
        span = frame.y_high - frame.y_low
        scaled = [(step, frame.y_low + 0.94 * span * rate / peak) for step, rate in rates]
        shapes.insert(0, node("path", class_="rate", d=frame.path(scaled)))
    return _chart(label, *_axes(frame), *shapes)


def histogram(label: str, values: Sequence[float], low: float, high: float, bins: int) -> Element:
    """How many values fall in each of `bins` (even) bins from low to high, which has 0 as an edge.

    Values below 0 are grey; what lies outside is counted in the outermost bins.
    """
    wide = (high - low) / bins
    heights = [0] * bins
    for value in values:
        heights[max(0, min(bins - 1, math.floor((value - low) / wide)))] += 1
    frame = Frame(low, high, 0, max(1, *heights))
    shapes = []
    for place, height in enumerate(heights):
        start = low + place * wide
        colour = "c1" if start + wide / 2 > 0 else "rest"
        words = f"{significant(start)} to {significant(start + wide)}: {height}"
        left, right, top = frame.x(start), frame.x(start + wide), frame.y(height)
        size = {"width": max(0.5, right - left - 1), "height": frame.y(0) - top}
        shapes.append(
            node("rect", node("title", words), x=left + 0.5, y=top, class_=colour, **size)
        )
    zero = node("line", x1=frame.x(0), x2=frame.x(0), y1=TOP, y2=HEIGHT - BOTTOM, class_="zero")
    return _chart(label, *_axes(frame, whole=True), *shapes, zero)


def weight_curve(
    label: str, points: Sequence[Point], marks: Sequence[tuple[str, Point, str]]
) -> Element:
    """A loss over the weight of one of two branches, or over steps, with places named on it:
    (words, point, colour).

    The last place is the lowest: its words stand below it.
    """
    losses = [loss for _, loss in [*points, *(point for _, point, _ in marks)]]
    low, high = _padded(min(losses), max(losses))
    space = 0.14 * (high - low)  # for the words, the last mark's below its place
    furthest = max(1.0, *(x for x, _ in points))
    frame = Frame(0, furthest, low - space, high + space, right=14)
    shapes = [node("path", class_="curve", d=frame.path(points))]
    for number, (words, (weight, loss), colour) in enumerate(marks, start=1):
        x, y = frame.x(weight), frame.y(loss)
        place = weight / furthest
        anchor = "start" if place < 0.15 else "end" if place > 0.85 else "middle"
        shapes.append(
            node("circle", node("title", words), cx=x, cy=y, r=4.5, class_=f"mark {colour}")
        )
        level = y + 18 if number == len(marks) else y - 9
        shapes.append(node("text", words, x=x, y=level, text_anchor=anchor, class_="strong"))
    return _chart(label, *_axes(frame), *shapes)


def triangle(
    label: str,
    corners: Sequence[str],
    points: Sequence[tuple[Sequence[float], float]],
    marks: Sequence[tuple[str, Sequence[float], str]],
) -> Element:
    """Losses over three weights that sum to 1: a dot each, the stronger its colour the lower the
    loss.
    """
    left, right, top, bottom = 34.0, 286.0, 26.0, 244.0

    def place(weights: Sequence[float]) -> Point:
        # the first branch above, the second left, the third right
        across = weights[2] + weights[0] / 2
        return left + across * (right - left), bottom - weights[0] * (bottom - top)

    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    radius = max(2.0, min(14.0, 120 / math.sqrt(2 * len(points))))
    shapes = []
    for weights, loss in points:
        x, y = place(weights)
        strength = 1 - _part(loss, low, high)
        shares = ", ".join(
            f"{name} {weight:.2f}" for name, weight in zip(corners, weights, strict=True)
        )
        words = node("title", f"{shares}: {loss:.4f}")
        dot = node(
            "circle",
            words,
            cx=x,
            cy=y,
            r=radius,
            class_="c1 dot",
            opacity=0.08 + 0.92 * strength**2,
        )
        shapes.append(dot)
    for words, weights, colour in marks:
        x, y = place(weights)
        ring = f"mark {colour}"
        shapes.append(node("circle", node("title", words), cx=x, cy=y, r=4.5, class_=ring))
        shapes.append(node("text", words, x=x, y=y - 9, text_anchor="middle", class_="strong"))
    (_, second, third), ends = corners, bottom + radius + 14
    shapes.append(node("text", corners[0], x=160, y=top - radius - 3, text_anchor="middle"))
    shapes.append(node("text", second, x=2, y=ends, text_anchor="start"))
    shapes.append(node("text", third, x=318, y=ends, text_anchor="end"))
    return _chart(label, *shapes, height=ends + 6)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean of y over about a twentieth of the points, around each: so the curve does not lag
    behind.
    """
    reach = max(2, len(points) // 40)
    sums = [0.0, *accumulate(y for _, y in points)]
    slopes = []
    for place, (x, _) in enumerate(points):
        first, last = max(0, place - reach), min(len(points), place + reach + 1)
        slopes.append((x, (sums[last] - sums[first]) / (last - first)))
    return slopes


def thinned(points: Sequence[Point], limit: int = 240) -> list[Point]:
    """At most about `limit` of the points, first and last among them, so that a long run draws as
    fast.
    """
    every = max(1, math.ceil(len(points) / limit))
    kept = list(points[::every])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """About `wanted` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * multiple for multiple in TICK_STEPS if scale * multiple >= 0.999 * raw)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


# ---- parts ----


def _axes(frame: Frame, *, whole: bool = False) -> list[Element]:
    """Level lines with their numbers at the left, numbers below; `whole`: y counts things."""
    shapes = []
    for value, words in _named(ticks(frame.y_low, frame.y_high, 4, whole=whole)):
        y = frame.y(value)
        shapes.append(node("line", x1=LEFT, x2=WIDTH - frame.right, y1=y, y2=y, class_="grid"))
        shapes.append(node("text", words, x=LEFT - 5, y=y + 3.8, text_anchor="end"))
    for value, words in _named(ticks(frame.x_low, frame.x_high, 4)):
        x = frame.x(value)
        anchor = "end" if x > WIDTH - frame.right - 12 else "middle"
        shapes.append(node("text", words, x=x, y=HEIGHT - BOTTOM + 15, text_anchor=anchor))
    return shapes


def _named(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with as many decimals as tell them apart."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    decimals = next((d for d in range(8) if abs(round(step, d) - step) < 1e-6 * step), 8)
    return [(value, f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")) for value in values]


def _chart(label: str, *shapes: Element, height: float = HEIGHT) -> Element:
    size = f"0 0 {WIDTH:.0f} {height:.0f}"
    drawing = node("svg", node("title", label), *shapes, viewBox=size, role="img")
    drawing.set("aria-label", label)
    return drawing


def _part(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _padded(low: float, high: float) -> Point:
    """A range a little wider than the values, and never empty."""
    space = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - space, high + space
