"""The page and what it is built of: sections, tables that scroll in their own box, rows of small
charts.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree.ElementTree import Element

from pocketlm.report.markup import Child, node, to_html
from pocketlm.report.number_format import MISSING
from pocketlm.report.style import CSS

# text, a td of its own or what goes into one, nothing measured
Cell: TypeAlias = "str | Element | None"


def page(title: str, sections: Iterable[Element | None], footer: str) -> str:
    """One HTML file that needs no other: text and tables, inline SVG, its own style, no script."""
    present = [section for section in sections if section is not None]
    links = [
        node("li", node("a", heading_of(part), href=f"#{part.get('id')}")) for part in present[1:]
    ]
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", title),
        node("style", CSS),
    )
    contents = node("nav", node("ul", *links), aria_label="Contents") if links else None
    header = node("header", node("h1", title))
    body = node(
        "body",
        node("main", header, present[0], contents, *present[1:]),
        node("footer", node("p", footer)),
    )
    return to_html(node("html", head, body, lang="en"))


def section(name: str, heading: str, *children: Child) -> Element:
    """A part of the page; `name` is its place in a link."""
    return node("section", node("h2", heading, id=f"{name}-heading"), *children, id=name)


def heading_of(part: Element) -> str:
    return next(part.iter("h2")).text or ""


def table(
    label: str, headings: Sequence[Cell], rows: Iterable[Sequence[Cell]], **attributes: str
) -> Element:
    """A table in a box that scrolls sideways by itself. The first cell of a row is the row's
    heading.

    A column's heading stands to the right where its column holds numbers.
    """
    body = [[_cell(cell, first=not place) for place, cell in enumerate(row)] for row in rows]
    head = node("tr")
    for place, heading in enumerate(headings):
        numeric = any(
            row[place].get("class", "").startswith("n") for row in body if len(row) > place
        )
        if isinstance(heading, Element) and heading.tag == "th":
            head.append(heading)
        else:
            head.append(node("th", heading, scope="col", class_="n" if numeric else None))
    lines = [node("tr", *row) for row in body]
    drawn = node("table", node("thead", head), node("tbody", *lines), **attributes)
    return node("div", drawn, class_="scroll", role="region", aria_label=label, tabindex="0")


def number(
    text: str, *, strong: bool = False, heat: float | None = None, note: str | None = None
) -> Element:
    """A cell with a number, set to the right; `heat` from 0 to 1 tints it, `note` shows when
    pointed at.
    """
    style = None if heat is None else f"--heat:{100 * max(0.0, min(1.0, heat)):.0f}%"
    kind = "n" if heat is None else "n heat"
    return node(
        "td", node("strong", text) if strong else text, class_=kind, style=style, title=note
    )


def paragraph(*children: Child, quiet: bool = False) -> Element:
    return node("p", *children, class_="quiet" if quiet else None)


def figure(chart: Element, *caption: Child) -> Element:
    """A chart and what it says in words."""
    return node("figure", chart, node("figcaption", *caption))


def multiples(figures: Iterable[Element]) -> Element:
    """Small charts beside each other, as many in a row as fit."""
    return node("div", *figures, class_="multiples")


def legend(entries: Iterable[tuple[str, str]]) -> Element:
    """(colour class, words) of what is drawn."""
    items = [node("li", swatch(colour), words) for colour, words in entries]
    return node("ul", *items, class_="legend")


def swatch(colour: str) -> Element:
    return node("span", class_=f"swatch {colour}", aria_hidden="true")


def fold(summary: str, *children: Child) -> Element:
    """What only some readers open."""
    return node("details", node("summary", summary), *children)


def _cell(cell: Cell, *, first: bool) -> Element:
    if cell is None:
        return number(MISSING)
    if isinstance(cell, Element) and cell.tag in ("td", "th"):
        return cell
    return node("th", cell, scope="row") if first else node("td", cell)
