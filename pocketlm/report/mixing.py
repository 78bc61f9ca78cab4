"""The mix: the shares of every mix that was compared, what each was worth on held-out text, and
what the methods tell of how they came to it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.heat_map import heat_map, transposed
from pocketlm.report.markup import node
from pocketlm.report.mix_file import OLD_MIXES, Details, compared_mixes, details_of
from pocketlm.report.number_format import MISSING, count, percent, points, signed, significant
from pocketlm.report.page import (
    Cell,
    figure,
    fold,
    multiples,
    number,
    paragraph,
    section,
    swatch,
    table,
)
from pocketlm.report.plots import bar, weight_curve
from pocketlm.report.spread import least_difference, not_beaten
from pocketlm.report.style import COLOURS
from pocketlm.report.timeline import Stage

NAMED_SOURCES = 3  # that a sentence names
UNFOLDED_ROWS = 12  # of a table
Rows = Mapping[str, Mapping[str, float | str]]


def mix_section(stages: Sequence[Stage]) -> Element | None:
    """Shares of each source in every mix, and the proxies' bits per byte."""
    with_mix = [stage for stage in stages if "mix.json" in stage.files]
    parts = [part for stage in with_mix for part in _mix(stage, named=len(with_mix) > 1)]
    return section("mix", "The mix: how much of each source", *parts) if parts else None


def _mix(stage: Stage, *, named: bool) -> list[Element]:
    file = stage.files["mix.json"]
    selected, mixes = compared_mixes(file)
    ordered = {selected: mixes[selected], **mixes}
    details = {name: details_of(mix) for name, mix in ordered.items()}
    objectives = file.get("objectives", {})
    methods = "; ".join(f"{name}: {mix['method']}" for name, mix in ordered.items())
    return [
        *([node("h3", stage.name)] if named else []),
        paragraph(f"{chosen_sentence(selected, mixes)} {verdict_sentence(selected, mixes)}"),
        paragraph(f"{methods[0].upper()}{methods[1:]}.{_missing(mixes)}", quiet=True),
        _shares_table(selected, ordered, details),
        _bits(ordered, objectives),
        *[
            paragraph(f"{name}: {line}.")
            for name, mix in mixes.items()
            for line in mix.get("warnings", ())
        ],
        *[part for name in ordered for part in _told_by_method(name, details[name])],
    ]


# ---- two sentences ----


def chosen_sentence(selected: str, mixes: Mapping[str, Mapping[str, Any]]) -> str:
    """What the selected mix is, and where it departs from the sizes of the sources."""
    shares = mixes[selected]["shares"]
    most = sorted(shares, key=lambda name: -shares[name])[:NAMED_SOURCES]
    parts = ", ".join(f"{percent(shares[name])} {name}" for name in most if shares[name] > 0)
    text = f"Trained on: {selected} ({mixes[selected]['method']}), which is {parts}"
    text += (
        " and less of the rest" if sum(share > 0 for share in shares.values()) > len(most) else ""
    )
    by_size = _plain_mix(mixes, "proportional")
    if by_size is None or by_size == selected:
        return f"{text}."
    moved = {name: shares[name] - mixes[by_size]["shares"].get(name, 0.0) for name in shares}
    up, down = (choose(moved, key=lambda name: moved[name]) for choose in (max, min))
    if moved[up] < 5e-4:
        return f"{text}, the same as by size."
    by = f"{points(moved[up])} of {up} and {points(moved[down])} of {down}"
    return f"{text}; against the mix by size that is {by}."


def verdict_sentence(selected: str, mixes: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the selected mix is the best of those compared, by the rule of spread.py."""
    if len(mixes) < 2:
        return "It was compared with no other."
    column = mixes[selected].get("objective", "mean")  # what it was asked for
    means = {name: mix["bits_per_byte"][column] for name, mix in mixes.items()}
    lowest = min(means, key=lambda name: means[name])
    others = ", ".join(
        f"{signed(means[selected] - means[name], 3)} against {name}"
        for name in means
        if name != selected
    )
    what = f"held-out bits per byte, {column} of the domains ({others}; lower is better)"
    seeds = num_seeds(mixes)
    if seeds < 2:
        outcome = (
            f"has the lowest of the {len(means)}"
            if lowest == selected
            else f"has not the lowest of the {len(means)}, which is that of {lowest}"
        )
        tail = "one seed each, so how far chance alone takes them apart is unknown"
        return f"Trained alike from the same start, it {outcome} in {what}; {tail}."
    least = least_difference(
        [mix["bits_per_byte_deviation"][column] for mix in mixes.values()], seeds
    )
    level = not_beaten(means, least)
    rule = f"{significant(least)}, two standard errors over {seeds} seeds"
    if level == [selected]:
        outcome = f"is the best of the {len(means)}, beyond {rule}"
    elif selected in level:
        rest = ", ".join(name for name in level if name != selected)
        outcome = f"cannot be told from {rest}: they lie within {rule}"
    else:
        outcome = f"is worse than {lowest}, beyond {rule}"
    return f"Trained alike from the same starts, it {outcome}, in {what}."


def num_seeds(mixes: Mapping[str, Mapping[str, Any]]) -> int:
    """Trainings of each mix."""
    return min(len(mix.get("bits_per_byte_by_seed", [0])) for mix in mixes.values())


def _plain_mix(mixes: Mapping[str, Mapping[str, Any]], kind: str) -> str | None:
    return next((name for name, mix in mixes.items() if mix["method"] == OLD_MIXES[kind]), None)


def _missing(mixes: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of the plain mixes nothing is compared with."""
    absent = [kind for kind in OLD_MIXES if _plain_mix(mixes, kind) is None]
    return f" Not compared with the {' and the '.join(absent)} mix." if absent else ""


# ---- tables ----


def _shares_table(
    selected: str, ordered: Mapping[str, Mapping[str, Any]], details: Mapping[str, Details]
) -> Element:
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(ordered)}
    columns = {
        (place, name): column
        for name, detail in details.items()
        for place, column in detail.columns.items()
    }
    largest = max((s for mix in ordered.values() for s in mix["shares"].values()), default=0) or 1
    rows: list[list[Cell]] = []
    for source in ordered[selected]["shares"]:
        row: list[Cell] = []
        bars = []
        for name, mix in ordered.items():
            share = mix["shares"].get(source, 0.0)
            words = f"{source}, {name}: {percent(share)}"
            bars.append(bar(words, [(share / largest, colours[name], words)], height=7))
            row.append(number(percent(share), strong=name == selected))
        values = [column.get(source) for column in columns.values()]
        row += [None if value is None else number(significant(value)) for value in values]
        rows.append([source, node("td", *bars, class_="bar"), *row])
    headings: list[Cell] = ["source", "share"]
    headings += [node("span", swatch(colour), name) for name, colour in colours.items()]
    places = [place for place, _ in columns]
    headings += [
        _plain(place) if places.count(place) == 1 else f"{_plain(place)} ({name})"
        for place, name in columns
    ]
    caption = f"Shares of each source in {len(ordered)} mixes"
    return table(caption, headings, rows, class_="full")


def _bits(
    mixes: Mapping[str, Mapping[str, Any]], objectives: Mapping[str, Mapping[str, float]]
) -> Element:
    """Bits per byte of every mix, their spread over seeds, and what finding the mix cost."""
    bits = {name: mix["bits_per_byte"] for name, mix in mixes.items()}
    domains = list(next(iter(bits.values())))
    least = {domain: min(values[domain] for values in bits.values()) for domain in domains}
    costs = {name: mix["cost"] for name, mix in mixes.items() if "cost" in mix}
    rows: list[list[Cell]] = []
    for name, values in bits.items():
        around = mixes[name].get("bits_per_byte_deviation")
        row: list[Cell] = [name]
        for domain in domains:
            text = f"{values[domain]:.3f}" + (f" ± {around[domain]:.3f}" if around else "")
            note = _weights(objectives[domain]) if domain in objectives else None
            row.append(number(text, strong=values[domain] == least[domain], note=note))
        if costs:
            row.append(number(_cost(costs.get(name))))
        rows.append(row)
    headings: list[Cell] = ["bits per byte", *domains]
    if costs:
        headings.append("cost of the method")
    label = "Held-out bits per byte after training on each mix"
    seeds = num_seeds(mixes)
    label += f": mean and deviation over {seeds} seeds" if seeds > 1 else ""
    return table(label, headings, rows)


def _weights(objective: Mapping[str, float]) -> str:
    return ", ".join(f"{domain} {weight:.2f}" for domain, weight in objective.items())


def _cost(cost: Mapping[str, int] | None) -> str:
    """What finding a mix took, beyond the training it is compared by."""
    if cost is None:
        return MISSING
    if not cost["flops"]:
        return "none"
    proxies = f"{cost['proxies']} prox{'y' if cost['proxies'] == 1 else 'ies'}"
    return f"{proxies}, {significant(cost['flops'])} FLOPs"


def _told_by_method(name: str, details: Details) -> list[Element]:
    """What one method tells: matrices as heat maps, searches as curves, rows of figures as tables,
    single figures in a row, the rest folded.
    """
    maps = [
        figure(
            heat_map(f"{name}: {_plain(place)} of each source for each capability", matrix),
            node("strong", f"{name}: {_plain(place)}"),
        )
        for place, matrix in (
            (place, transposed(matrix)) for place, matrix in details.matrices.items()
        )
    ]
    figures = ", ".join(
        f"{_plain(place)} {value if isinstance(value, str) else _figure(value)}"
        for place, value in details.figures.items()
    )
    maps += [
        figure(curve, node("strong", f"{name}: {_plain(place)}"))
        for place, rows in details.tables.items()
        if (curve := _search_curve(name, place, rows)) is not None
    ]
    parts = [multiples(maps)] if maps else []
    parts += [_figures_table(name, place, rows) for place, rows in details.tables.items()]
    parts += [paragraph(f"{name}: {figures}.")] if figures else []
    if details.others:
        text = "\n".join(
            f"{place}: {json.dumps(value, ensure_ascii=False)}"
            for place, value in details.others.items()
        )
        parts.append(fold(f"{name}: what else its method tells", node("pre", text)))
    return parts


def _search_curve(name: str, place: str, rows: Rows) -> Element | None:
    """The objective over what was tried, where the rows of a table are numbers with one: a line
    search, with its lowest named; None for another table.
    """
    try:
        points = sorted((float(step), float(row["objective"])) for step, row in rows.items())
    except (KeyError, ValueError):
        return None
    if len(points) < 2:
        return None
    best = min(points, key=lambda point: point[1])
    label = f"{name}: the objective of each {_plain(place)}"
    return weight_curve(label, points, [(f"{best[0]:g}", best, "c1")])


def _figures_table(name: str, place: str, rows: Rows) -> Element:
    columns = list(next(iter(rows.values())))
    cells: list[list[Cell]] = [
        [row, *(_cell(figures[column], column) for column in columns)]
        for row, figures in rows.items()
    ]
    headings: list[Cell] = [_plain(place), *(_plain(column) for column in columns)]
    drawn = table(f"{name}: {_plain(place)}", headings, cells)
    summary = f"{name}: {_plain(place)}, {len(rows)} rows"
    return fold(summary, drawn) if len(rows) > UNFOLDED_ROWS else drawn


def _cell(value: float | str, column: str) -> Cell:
    if isinstance(value, str):
        return value
    return number(percent(value) if column.startswith("shares.") else _figure(value))


def _figure(value: float) -> str:
    return count(value) if isinstance(value, int) else significant(value)


def _plain(place: str) -> str:
    """A place in mix.json as words."""
    return place.replace("_", " ").replace(".", ", ")
