"""Tables of a run for the terminal: its stages before it, and what each took after it."""

import textwrap
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from pocketlm.runner.dry_run import DryRun

STATE_COLOURS = {"done": "green", "unfinished": "yellow", "changed": "red", "to do": ""}
GAP = 2  # columns between two cells
LEAST_FIGURES = 12  # columns; a narrower column of key figures is left out


def stages_table(dry: DryRun, width: int) -> Group:
    """The stages, a line each: name, function, state on disk, and as many key figures as `width`
    columns hold.

    The inputs that are missing follow, a line for each stage that needs them.
    """
    rows = [
        [str(number), call.name, call.record["stage"], call.state().partition(" ")[0]]
        if call.missing()
        else [str(number), call.name, call.record["stage"], call.state()]
        for number, call in enumerate(dry.calls, start=1)
    ]
    headings = ["", "stage", "function", "state"]
    taken = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = width - sum(taken) - GAP * len(taken)
    table = Table(
        title=f"{dry.run_dir}: {len(dry.calls)} stages",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
    )
    if room >= LEAST_FIGURES:
        headings.append("config")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for cells, call in zip(rows, dry.calls, strict=True):
        colour = STATE_COLOURS.get(cells[3], "yellow")
        cells[3] = f"[{colour}]{cells[3]}[/]" if colour else cells[3]
        figures = textwrap.shorten(key_figures(call.config), room, placeholder=" …")
        table.add_row(*cells, *([escape(figures)] if room >= LEAST_FIGURES else []))
    lines = [
        f"{call.name} needs {escape(', '.join(call.missing()))}"
        for call in dry.calls
        if call.missing()
    ]
    return Group(table, *lines)


def key_figures(config: Any, count: int = 4) -> str:
    """What is worth seeing of a config on one line: its own `summary()`, else its first few plain
    fields.
    """
    if callable(getattr(config, "summary", None)):
        return config.summary()
    values = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name != "name"
    }
    plain = {
        name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))
    }
    return " ".join(f"{name}={value}" for name, value in list(plain.items())[:count])


def summary_table(title: str, rows: Sequence[tuple[str, str, str, float]]) -> Table:
    """What each stage of a run took: (stage, function, "ran" or the like, seconds)."""
    table = Table(title=title, title_justify="left")
    for heading in ("stage", "function", "", "seconds"):
        table.add_column(
            heading, justify="right" if heading == "seconds" else "left", no_wrap=heading != ""
        )
    for name, function, outcome, seconds in rows:
        table.add_row(name, function, outcome, f"{seconds:,.1f}")
    table.add_section()
    table.add_row("together", "", "", f"{sum(row[3] for row in rows):,.1f}")
    return table


def duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )
