"""The plan of a run as a table for the terminal."""

from itertools import compress
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from pocketlm.estimate.estimate import Estimate, totals
from pocketlm.estimate.speed import LEFT_OUT_ERROR

UNKNOWN = "?"
STEPS_OF = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def plan_tables(estimates: list[Estimate], title: str, *, published: bool) -> Group:
    """A row for each stage, a line for all, and below what is to be known about single ones.

    published: times come from published trainings and not from this machine.
    """
    acted = any(each.actual_seconds is not None for each in estimates)
    several = any(each.devices > 1 for each in estimates if each.stage.work)
    names = [
        "stage",
        "tokens",
        "FLOPs",
        "devices",
        "memory",
        "time",
        "hours",
        "disk",
        "actual",
        "ratio",
    ]
    shown = [several or name not in ("devices", "hours") for name in names[:8]] + 2 * [acted]
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in compress(names, shown):
        table.add_column(
            name,
            justify="left" if name == "stage" else "right",
            no_wrap=name != "stage",
            overflow="fold",
        )
    notes: list[str] = []
    for each in estimates:
        mark = ""
        if each.notes:
            notes.append(f"{len(notes) + 1}  {each.stage.call.name}: {'; '.join(each.notes)}")
            mark = f" [dim]{len(notes)}[/dim]"
        table.add_row(*compress(_cells(each, mark), shown))
    together = totals(estimates)
    table.add_section()
    cells = [
        "together",
        amount(together["tokens"]),
        _flops(together["flops"]),
        "",
        size(together["memory_bytes"]),
    ]
    cells += [
        span(together["seconds"]),
        hours(together["device_hours"]),
        size(together["disk_bytes"]),
    ]
    cells += (
        [span(together["actual_seconds"]), _ratio(together["actual_over_planned"])]
        if acted
        else ["", ""]
    )
    table.add_row(*compress(cells, shown))
    below = [*notes, *_told(together, published=published, several=several)]
    return Group(table, *(escape(line) for line in below))


def _cells(each: Estimate, mark: str) -> list[str]:
    stage = each.stage
    most = "≤ " * stage.at_most
    return [
        stage.call.name + mark,
        UNKNOWN if stage.tokens is None else most + amount(stage.tokens),
        UNKNOWN if stage.flops is None else most + _flops(stage.flops),
        str(each.devices) if stage.work or stage.like else "",
        size(each.memory.peak) if each.memory else "",
        UNKNOWN if each.seconds is None else most + span(each.seconds),
        UNKNOWN if each.device_hours is None else most + hours(each.device_hours),
        UNKNOWN if stage.disk is None else most + size(stage.disk),
        "" if each.actual_seconds is None else span(each.actual_seconds),
        _ratio(each.ratio),
    ]


def _told(together: dict[str, Any], *, published: bool, several: bool) -> list[str]:
    lines = []
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
