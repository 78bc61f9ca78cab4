"""The plan of a run as a table for the terminal."""

from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from pocketlm.estimate.devices import Device
from pocketlm.estimate.estimate import Estimate, totals
from pocketlm.estimate.speed import LEFT_OUT_ERROR
from pocketlm.runner.schedule import at_once

UNKNOWN = "?"
STEPS_OF = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def plan_tables(estimates: list[Estimate], title: str, width: int, *, published: bool) -> Group:
    """A row for each stage, a line for all, and below what is to be known about single ones.

    width: of the terminal; where the table is wider, the columns of LEAST are left out in that
    order, and the line below names them. published: times come from published trainings and not
    from this machine.
    """
    several = any(one.devices > 1 for one in estimates if one.stage.work)
    acted = any(one.actual_seconds is not None for one in estimates)
    noted: dict[str, list[str]] = {}  # what is to be known -> the stages it is true of
    for one in (one for one in estimates if one.notes):
        noted.setdefault("; ".join(one.notes), []).append(one.stage.call.name)
    numbers = {note: str(number) for number, note in enumerate(noted, start=1)}
    rows = [
        _cells(one) | ({"note": numbers["; ".join(one.notes)]} if one.notes else {})
        for one in estimates
    ]
    notes = [f"{numbers[note]}  {', '.join(names)}: {note}" for note, names in noted.items()]
    together = totals(estimates)
    rows.append(_together(together))
    empty = {name for name in rows[0] if not any(cells.get(name) for cells in rows[:-1])}
    if not several:
        empty |= {"devices", "hours"}
    if not acted:
        empty |= {"actual", "ratio"}
    names = [name for name in rows[0] if name not in empty]
    left_out = _too_wide(rows, names, width)
    names = [name for name in names if name not in left_out]
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(
            "" if name == "note" else name,
            justify="left" if name == "stage" else "right",
            no_wrap=True,
            style="dim" if name == "note" else None,
        )
    for cells in rows[:-1]:
        table.add_row(*(escape(cells.get(name, "")) for name in names))
    table.add_section()
    table.add_row(*(escape(rows[-1].get(name, "")) for name in names))
    below = [*notes, *_legend(together, left_out, published=published, several=several)]
    return Group(table, *(escape(line) for line in below))


# left out of a table that is wider than the terminal, in this order; --json has all
LEAST = ("FLOPs", "devices", "hours", "ratio", "tokens", "disk")


def _too_wide(rows: list[dict[str, str]], names: list[str], width: int) -> list[str]:
    """The columns to leave out, so that none is ever folded."""
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names}
    widths |= {"note": len(str(len(rows)))} if "note" in names else {}
    left_out: list[str] = []
    for name in LEAST:
        # a space beside each cell, and one at either end
        if sum(widths.values()) + 2 * len(widths) + 1 <= width:
            break
        if widths.pop(name, None) is not None:
            left_out.append(name)
    return left_out


def _cells(one: Estimate) -> dict[str, str]:
    """What the row of a stage shows, by column."""
    stage = one.stage
    bound = "≤ " if stage.at_most else "≥ " if stage.at_least else ""
    trains = stage.work is not None or stage.like is not None

    def cell(value: float | None, words: Callable[[float], str]) -> str:
        return UNKNOWN if value is None else bound + words(value) if value else ""

    return {
        "stage": stage.call.name,
        "note": "",
        "tokens": cell(stage.tokens, amount),
        "FLOPs": cell(stage.flops, _flops),
        "devices": str(one.devices) if trains else "",
        "memory": size(one.memory.peak) if one.memory else "",
        "time": cell(one.seconds, span),
        "hours": cell(one.device_hours, hours) if trains or one.seconds is None else "",
        "disk": cell(stage.disk, size),
        "actual": "" if one.actual_seconds is None else span(one.actual_seconds),
        "ratio": _ratio(one.ratio),
    }


def _together(together: dict[str, Any]) -> dict[str, str]:
    """What the last row shows, by column."""
    return {
        "stage": "together",
        "tokens": amount(together["tokens"]),
        "FLOPs": _flops(together["flops"]),
        "memory": size(together["memory_bytes"]),
        "time": span(together["seconds"]),
        "hours": hours(together["device_hours"]),
        "disk": size(together["disk_bytes"]),
        "actual": span(together["actual_seconds"]),
        "ratio": _ratio(together["actual_over_planned"]),
    }


def _legend(
    together: dict[str, Any], left_out: list[str], *, published: bool, several: bool
) -> list[str]:
    """The lines below the table: what its figures are, and are not."""
    lines = []
    if left_out:
        lines.append(f"Too wide for this terminal, left out: {', '.join(left_out)} (--json).")
    if together["unknown"]:
        lines.append(f"Not in the times: {', '.join(together['unknown'])}.")
    lines.append(
        f"{'memory: of each device. hours: of all devices. ' * several}disk: what stays; while a "
        "stage trains, its state "
        f"takes up to {size(together['resume_bytes'])} more."
    )
    lines.append(
        "Times are of published trainings, which the model of them, fitted to the others, misses "
        f"by {LEFT_OUT_ERROR:.0%}."
        if published
        else "Times are of steps tried on this machine just now."
    )
    return lines


def memory_verdict(estimates: list[Estimate], device: Device, count: int) -> list[str]:
    """Of each stage that trains, the memory it needs of what a device has; then, once each, what
    was assumed, or would make it fit.
    """
    trained = [one for one in estimates if getattr(one.stage.call.config, "optim", None)]
    longest = max((len(one.stage.call.name) for one in trained), default=0)
    notes: dict[str, list[str]] = {}
    lines = []
    for one in trained:
        name = one.stage.call.name
        for note in one.notes:
            notes.setdefault(note, []).append(name)
        if one.memory is None:
            lines.append(f"{name:<{longest}}  {UNKNOWN}")
            continue
        fits = "fits" if one.memory.peak <= device.memory_bytes else "TOO LARGE"
        share = count // at_once(one.stage.call.num_beside, count)
        busy = "" if one.devices == share else f", {one.devices} of {share} devices busy"
        lines.append(
            f"{name:<{longest}}  {size(one.memory.peak):>8} of "
            f"{size(device.memory_bytes)}: {fits}{busy}"
        )
    return lines + [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def amount(number: float) -> str:
    """2.1T, 410k, 12."""
    unit, letter = next(((unit, letter) for unit, letter in STEPS_OF if number >= unit), (1, ""))
    return f"{number / unit:.3g}{letter}"


def size(number: float | None) -> str:
    """15.2 GB, 310 kB; a question mark where it is not known."""
    if number is None:
        return UNKNOWN
    unit, letter = next(((unit, letter) for unit, letter in STEPS_OF if number >= unit), (1, ""))
    return f"{number / unit:.3g} {letter.replace('B', 'G')}B"


def span(seconds: float) -> str:
    """4.2 s, 3.4 min, 5.0 h, 4.1 days."""
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def _flops(number: float) -> str:
    """2.6e15."""
    return f"{number:.2g}".replace("e+", "e")


def hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _ratio(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"
