"""A matrix of numbers as a drawing: sources down, capabilities across, a colour for each sign."""

from collections.abc import Mapping, Set
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import significant

WIDTH = 320.0
NAMES, ROW, HEAD = 96.0, 24.0, 22.0  # of the sources' names, a row and the capabilities' names
CHARACTER = 6.2  # of the page's 11 pixels, about
FAINTEST, STRONGEST = 0.06, 0.8


def heat_map(
    label: str,
    values: Mapping[str, Mapping[str, float]],
    *,
    spread: Mapping[str, Mapping[str, float]] | None = None,
    clear: Set[tuple[str, str]] = frozenset(),
) -> Element:
    """values[row][column], blue above 0 and vermilion below, the stronger the further from it.

    spread: of each value, shown when pointed at. clear: (row, column) of values to print in bold.
    """
    rows, columns = list(values), list(dict.fromkeys(key for row in values.values() for key in row))
    largest = max((abs(value) for row in values.values() for value in row.values()), default=0) or 1
    wide = (WIDTH - NAMES) / max(1, len(columns))
    shapes = [
        node(
            "text",
            *_named(column, wide),
            x=NAMES + (place + 0.5) * wide,
            y=HEAD - 7,
            text_anchor="middle",
        )
        for place, column in enumerate(columns)
    ]
    for line, row in enumerate(rows):
        top = HEAD + line * ROW
        shapes.append(
            node("text", *_named(row, NAMES), x=NAMES - 5, y=top + 15.5, text_anchor="end")
        )
        for place, column in enumerate(columns):
            value = values[row].get(column)
            if value is None:
                continue
            around = spread[row][column] if spread else None
            words = f"{row}, {column}: {significant(value)}"
            words += "" if around is None else f" ± {significant(around)}"
            shapes.append(
                node(
                    "rect",
                    node("title", words),
                    x=NAMES + place * wide + 1,
                    y=top + 1,
                    width=wide - 2,
                    height=ROW - 2,
                    class_="c1" if value >= 0 else "c4",
                    opacity=FAINTEST + (STRONGEST - FAINTEST) * abs(value) / largest,
                )
            )
            bold = (row, column) in clear
            shapes.append(
                node(
                    "text",
                    significant(value),
                    x=NAMES + (place + 0.5) * wide,
                    y=top + 15.5,
                    text_anchor="middle",
                    class_="cell strong" if bold else "cell",
                )
            )
    height = HEAD + len(rows) * ROW + 2
    drawing = node(
        "svg", node("title", label), *shapes, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img"
    )
    drawing.set("aria-label", label)
    return drawing


def transposed(matrix: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """matrix[column][row] of a matrix[row][column]."""
    rows = dict.fromkeys(row for column in matrix.values() for row in column)
    return {
        row: {name: column[row] for name, column in matrix.items() if row in column} for row in rows
    }


def _named(name: str, space: float) -> list[Element | str]:
    """A name as long as there is space, whole when pointed at."""
    most = max(3, int(space / CHARACTER))
    if len(name) <= most:
        return [name]
    return [node("title", name), f"{name[: most - 1]}…"]
