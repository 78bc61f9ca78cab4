"""What more seeds would show: for each unclear condition, its mean and interval as the seeds were
added one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any
from xml.etree.ElementTree import Element, tostring

from pocketlm.report.claims import half_width
from pocketlm.report.markup import node

WIDTH, HEIGHT, LEFT, TOP = 250, 150, 70, 34  # units of a chart, and of the room for its words


def curve_of(figures: Sequence[float]) -> list[tuple[int, float, float]]:
    """(seeds, mean, half of the 90 % interval) after two seeds, three, and so on to all."""
    return [
        (count, fmean(figures[:count]), half_width(stdev(figures[:count]), count))
        for count in range(2, len(figures) + 1)
    ]


def unclear_parts(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions of a claim that two seeds or more left unclear."""
    parts = [part for part in claim["parts"] if part["outcome"] == "unclear"]
    return [part for part in parts if part["low"] is not None]


def curves_picture(claim: Mapping[str, Any], text: Callable[[dict[str, Any], float], str]) -> str:
    """An SVG file with a chart for each unclear condition: mean and interval over the number of
    seeds, the limit a broken line. text: a figure of a condition in words.
    """
    parts = unclear_parts(claim)
    height = len(parts) * (HEIGHT + TOP + 30)
    drawing = node(
        "svg",
        node("title", f"as seeds were added: {claim['claim']}"),
        node("rect", x=0, y=0, width=LEFT + WIDTH + 250, height=height, fill="white"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {LEFT + WIDTH + 250} {height}",
        font_family="sans-serif",
        font_size=12,
    )
    for number, part in enumerate(parts):
        for shape in _chart(part, number * (HEIGHT + TOP + 30), text):
            drawing.append(shape)
    return tostring(drawing, encoding="unicode") + "\n"


def _chart(
    part: dict[str, Any], top: int, text: Callable[[dict[str, Any], float], str]
) -> list[Element]:
    curve = curve_of(part["figures"])
    limit = part["at_least"] if part["at_least"] is not None else part["at_most"]
    # with two seeds the interval is so wide that it would hide all others: it is cut there
    widest = max(half for _, _, half in curve[1:] or curve)
    middle = [mean for _, mean, _ in curve]
    low, high = min(*middle, limit) - widest, max(*middle, limit) + widest
    last = curve[-1][0]

    def x(seeds: int) -> float:
        return LEFT + WIDTH * (seeds - 2) / max(1, last - 2)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return top + TOP + HEIGHT * (high - inside) / ((high - low) or 1.0)

    upper = [f"{x(n):.1f},{y(mean + half):.1f}" for n, mean, half in curve]
    lower = [f"{x(n):.1f},{y(mean - half):.1f}" for n, mean, half in reversed(curve)]
    means = [f"{x(n):.1f},{y(mean):.1f}" for n, mean, _ in curve]
    right = LEFT + WIDTH
    shapes = [
        node("text", part["text"], x=LEFT, y=top + 20, font_weight="bold"),
        node("polygon", points=" ".join(upper + lower), fill="#2a6f97", opacity=0.25),
        node("polyline", points=" ".join(means), fill="none", stroke="#012a4a", stroke_width=2),
        node(
            "line", x1=LEFT, x2=right, y1=y(limit), y2=y(limit), stroke="#b00", stroke_dasharray="5"
        ),
        node("text", f"limit {text(part, limit)}", x=right + 8, y=y(limit) + 4, fill="#b00"),
    ]
    if abs(y(middle[-1]) - y(limit)) > 14:  # else the words would lie on each other
        words = f"mean {text(part, middle[-1])}"
        shapes.append(node("text", words, x=right + 8, y=y(middle[-1]) + 4))
    for value in (low, high):
        shapes.append(node("text", text(part, value), x=LEFT - 8, y=y(value), text_anchor="end"))
    for seeds in sorted({2, (2 + last) // 2, last}):
        words, below = f"{seeds} seeds", top + TOP + HEIGHT + 18
        shapes.append(node("text", words, x=x(seeds), y=below, text_anchor="middle"))
    return shapes
