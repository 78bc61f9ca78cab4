"""Tables of a run for the terminal: its stages and their state."""

import textwrap
from dataclasses import fields
from typing import Any

from rich.text import Text

from pocketlm.runner.dry_run import DryRun

STATE_COLOURS = {"done": "green", "unfinished": "yellow", "changed": "red", "to do": ""}
GAP = 2  # columns between two cells
LEAST_FIGURES = 12  # columns; a narrower column of key figures is left out


def stages_table(dry: DryRun, width: int) -> Text:
    """The stages, a line each: name, function, state on disk, and as many words of key figures as
    `width` columns hold.

    The inputs that are missing follow, a line for each stage that needs them.
    """
    rows = [
        (f"{number}", call.name, call.record["stage"], "needs input" if call.missing() else state)
        for number, call in enumerate(dry.calls, start=1)
        for state in [call.state()]
    ]
    headings = ("", "stage", "function", "state")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = width - sum(widths) - GAP * len(widths)
    table = Text(f"{len(dry.calls)} stages in {dry.run_dir}\n", overflow="ignore", no_wrap=True)
    figures = [key_figures(call.config) for call in dry.calls]
    colours = ["bold", *(STATE_COLOURS.get(row[3], "yellow") for row in rows)]
    for row, last, colour in zip([headings, *rows], ["config", *figures], colours, strict=True):
        cells = [cell.ljust(columns + GAP) for cell, columns in zip(row, widths, strict=True)]
        words = textwrap.shorten(last, room, placeholder=" …", break_on_hyphens=False)
        table.append("".join(cells[:3])).append(cells[3].rstrip(), colour)
        if room >= LEAST_FIGURES:
            table.append(" " * (len(cells[3]) - len(cells[3].rstrip())) + words)
        table.append("\n")
    for call in dry.calls:
        if call.missing():
            table.append(f"{call.name} needs {', '.join(call.missing())}\n")
    table.rstrip()
    return table


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


def duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )
