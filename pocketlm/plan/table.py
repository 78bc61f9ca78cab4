"""The plan of a run as a table for the terminal."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from pocketlm.plan.estimate import Estimate, totals
from pocketlm.plan.speed import LEFT_OUT_ERROR

UNKNOWN = "?"
STEPS_OF = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def plan_tables(estimates: list[Estimate], title: str, *, published: bool) -> Group:
    """A row for each stage, a line for all, and below what is to be known about single ones.

    published: times come from published trainings and not from this machine.
    """
    acted = any(each.actual_seconds is not None for each in estimates)
    table = Table(title=title, title_justify="left")
    names = ("stage", "tokens", "FLOPs", "devices", "memory", "time", "hours", "disk", *(("actual", "ratio") * acted))
    for name in names:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    notes: list[str] = []
    for each in estimates:
        mark = ""
        if each.notes:
            notes.append(f"{len(notes) + 1}  {each.stage.call.name}: {'; '.join(each.notes)}")
            mark = f" [dim]{len(notes)}[/dim]"
        table.add_row(*_cells(each, mark, acted))
    together = totals(estimates)
    table.add_section()
    table.add_row(
        "together",
        amount(together["tokens"]),
        f"{together['flops']:.2g}",
        "",
        size(together["memory_bytes"]),
        span(together["seconds"]),
        hours(together["device_hours"]),
        size(together["disk_bytes"]),
        *((span(together["actual_seconds"]), _ratio(together["actual_over_planned"])) if acted else ()),
    )
    below = [*notes, *_told(together, published=published)]
    return Group(table, *(escape(line) for line in below))


def _cells(each: Estimate, mark: str, acted: bool) -> list[str]:
    stage = each.stage
    most = "≤ " * stage.at_most
    return [
        stage.call.name + mark,
        UNKNOWN if stage.tokens is None else most + amount(stage.tokens),
        UNKNOWN if stage.flops is None else f"{most}{stage.flops:.2g}",
        str(each.devices) if stage.work or stage.like else "",
        size(each.memory) if stage.work else "",
        UNKNOWN if each.seconds is None else most + span(each.seconds),
        UNKNOWN if each.device_hours is None else most + hours(each.device_hours),
        UNKNOWN if stage.disk is None else most + size(stage.disk),
        *(("" if each.actual_seconds is None else span(each.actual_seconds), _ratio(each.ratio)) if acted else ()),
    ]


def _told(together: dict[str, Any], *, published: bool) -> list[str]:
    lines = []
    if together["unknown"]:
        lines.append(f"Not in the times: {', '.join(together['unknown'])}.")
    lines.append(
        "memory: of each device. hours: of all devices. disk: what stays; while a stage trains, its state takes up to "
        f"{size(together['resume_bytes'])} more."
    )
    lines.append(
        f"Times are of published trainings, which the model of them, fitted to the others, misses by {LEFT_OUT_ERROR:.0%}."
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


def hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _ratio(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"
