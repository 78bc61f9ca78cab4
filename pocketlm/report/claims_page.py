"""The page of claims: a verdict, a picture and a table for each, in Markdown and SVG."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any
from xml.etree.ElementTree import Element, tostring

from pocketlm.report.claims import MOST_SEEDS
from pocketlm.report.claims_curves import unclear_parts
from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, duration, percent, points, signed

OUTCOMES = {"shown": "**shown**", "refuted": "**refuted**", "unclear": "unclear"}
# of measures that are no shares
DECIMALS = {"bits": 3, "rank_me": 1, "tokens_per_second": 0}
LINE = 22  # units of height of an arm in the picture
LABELS, CHART = 150, 380  # units of width


def claims_markdown(claims: Mapping[str, dict[str, Any]], pictures: Sequence[str]) -> str:
    """The page. claims: each a claim.json, by its name; pictures: the file name of each one's."""
    lines = [
        "# Claims, each beside its controls",
        "",
        *_wrapped(
            "Written by `pocketlm run recipes/claims.py --claim all --seeds 3`, with `--more "
            "NAME=SEEDS` for claims of more seeds and `--study RUN` for a study of mixes that had "
            "run. A condition is shown where the whole "
            "90 % interval (95 % at each end) of its mean over the seeds meets it, refuted where "
            "none of it does, and "
            "unclear otherwise; a claim is shown when all its conditions are, and refuted when one "
            "is. The conditions stand in the recipe and were written before the runs. A verdict is "
            "on networks and budgets of the size that was run, not of the papers'. Time is that of "
            "a claim's stages on the machine that ran them, without those that claims share. The "
            "figures of every arm and seed: [claims.json](claims.json)."
        ),
        "",
        "| claim | source | seeds | verdict | time |",
        "|---|---|---|---|---|",
        *(
            f"| [{_title(name)}](#{name}): {claim['claim']} | {claim['source']} | {claim['seeds']} "
            f"| {OUTCOMES[claim['outcome']]} | {_time(claim)} |"
            for name, claim in claims.items()
        ),
        "",
    ]
    for (name, claim), picture in zip(claims.items(), pictures, strict=True):
        lines += _claim(name, claim, picture)
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def _claim(name: str, claim: dict[str, Any], picture: str) -> list[str]:
    measures = list(next(iter(claim["arms"].values()))["figures"])
    return [
        f"## {_title(name)}",
        "",
        *_wrapped(f"{claim['claim']} ({claim['source']}.) Verdict: {OUTCOMES[claim['outcome']]}."),
        "",
        f"![{measures[0]} of each arm, a dot for each seed]({picture})",
        "",
        "| arm | what it is | " + " | ".join(measures) + " |",
        "|---|---|" + "---|" * len(measures),
        *(
            f"| {label} | {arm['what']} | "
            + " | ".join(_spread(measure, arm["figures"][measure]) for measure in measures)
            + " |"
            for label, arm in claim["arms"].items()
        ),
        "",
        "Mean over the seeds, with their standard deviation.",
        "",
        "| condition | figure | wanted | mean (90 % interval) | verdict |",
        "|---|---|---|---|---|",
        *map(_condition, claim["parts"]),
        "",
        *_undecided(claim["parts"]),
        *_curves(claim, picture),
        *([*_wrapped(claim["note"]), ""] if claim["note"] else []),
    ]


def _time(claim: dict[str, Any]) -> str:
    """Claims of earlier versions have none."""
    return duration(claim["seconds"]) if "seconds" in claim else MISSING


def _title(name: str) -> str:
    return name.replace("-", " ").capitalize()


def _undecided(parts: Sequence[dict[str, Any]]) -> list[str]:
    """What would decide the unclear conditions, were mean and deviation to stay as they are."""
    unclear = [part for part in parts if part["outcome"] == "unclear" and "seeds_needed" in part]
    needed = [
        f'"{part["text"]}" would take {part["seeds_needed"] or f"more than {MOST_SEEDS}"} seeds'
        for part in unclear
        if part["low"] is not None
    ]
    if not needed:
        return []
    return [*_wrapped(f"With this mean and deviation {'; '.join(needed)} to decide."), ""]


def _curves(claim: dict[str, Any], picture: str) -> list[str]:
    if not unclear_parts(claim):
        return []
    return [f"![mean and interval as seeds were added]({curves_file(picture)})", ""]


def curves_file(picture: str) -> str:
    """The name of the picture of unclear conditions, from that of the arms."""
    return picture.removesuffix(".svg") + "-seeds.svg"


def condition_figure(part: dict[str, Any], value: float | None) -> str:
    """A figure of a condition in words: points where it is a difference of shares."""
    return _figure(part["measure"], value, difference=part["compared_to"] is not None)


def _condition(part: dict[str, Any]) -> str:
    def text(value: float | None) -> str:
        return condition_figure(part, value)

    what = f"{part['measure']} of {part['model']}"
    if part["compared_to"]:
        what += f" less that of {part['compared_to']}"
    wanted = (
        f"at least {text(part['at_least'])}"
        if part["at_least"] is not None
        else f"at most {text(part['at_most'])}"
    )
    interval = "" if part["low"] is None else f" ({text(part['low'])} to {text(part['high'])})"
    outcome = OUTCOMES[part["outcome"]]
    return f"| {part['text']} | {what} | {wanted} | {text(part['mean'])}{interval} | {outcome} |"


def _spread(measure: str, figures: dict[str, Any]) -> str:
    text = _figure(measure, figures["mean"], difference=False)
    deviation = figures["deviation"]
    if deviation is None:
        return text
    decimals = DECIMALS.get(measure.split()[0])
    return (
        f"{text} ± {100 * deviation:.1f}"
        if decimals is None
        else (f"{text} ± {deviation:,.{decimals}f}")
    )


def _figure(measure: str, value: float | None, *, difference: bool) -> str:
    if value is None:
        return MISSING
    decimals = DECIMALS.get(measure.split()[0])
    if decimals is None:
        return points(value) if difference else percent(value)
    return signed(value, decimals) if difference else f"{value:,.{decimals}f}"


def arms_picture(claim: dict[str, Any], measure: str) -> str:
    """An SVG file: for each arm a dot of every seed and a line at their mean, over the measure."""
    arms = claim["arms"]
    values = [
        value
        for arm in arms.values()
        for value in arm["figures"][measure]["figures"]
        if value is not None
    ]
    share = measure.split()[0] not in DECIMALS
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    spread = (high - low) or 1.0
    height = LINE * len(arms) + 30
    drawing = node(
        "svg",
        node("title", f"{measure}: {claim['claim']}"),
        node("rect", x=0, y=0, width=LABELS + CHART + 30, height=height, fill="white"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {LABELS + CHART + 30} {height}",
        font_family="sans-serif",
        font_size=12,
    )

    def x(value: float) -> float:
        return LABELS + CHART * (value - low) / spread

    for row, (label, arm) in enumerate(arms.items()):
        for shape in _arm(label, arm["figures"][measure], row, x):
            drawing.append(shape)
    drawing.append(node("text", measure, x=LABELS - 12, y=height - 6, text_anchor="end"))
    for value in (low, (low + high) / 2, high):
        words = _figure(measure, value, difference=False)
        drawing.append(node("text", words, x=x(value), y=height - 6, text_anchor="middle"))
    return tostring(drawing, encoding="unicode") + "\n"


def _arm(label: str, figures: dict[str, Any], row: int, x: Any) -> list[Element]:
    y = LINE * row + 16
    shapes = [
        node("text", label, x=LABELS - 12, y=y + 4, text_anchor="end"),
        node("line", x1=LABELS, x2=LABELS + CHART, y1=y, y2=y, stroke="#ddd"),
    ]
    for value in figures["figures"]:
        if value is not None:
            shapes.append(node("circle", cx=x(value), cy=y, r=4, fill="#2a6f97", opacity=0.55))
    if figures["mean"] is not None:
        mean = x(figures["mean"])
        ends = {"x1": mean, "x2": mean, "y1": y - 8, "y2": y + 8}
        shapes.append(node("line", **ends, stroke="#012a4a", stroke_width=2))
    return shapes
