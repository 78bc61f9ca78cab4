"""HTML and SVG as a tree: what a document or a model says is text in it, never markup."""

import re
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

Child: TypeAlias = "Element | str | None"

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # what no HTML document may hold


def node(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. `class_` is class, an underscore elsewhere a hyphen; None leaves an attribute
    out.
    """
    element = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = printable(value) if isinstance(value, str) else short(value)
            element.set(name.rstrip("_").replace("_", "-"), text)
    for child in children:
        add(element, child)
    return element


def add(element: Element, child: Child) -> None:
    """Puts a child, or text, at the end of an element."""
    if isinstance(child, Element):
        element.append(child)
    elif child and len(element):
        element[-1].tail = (element[-1].tail or "") + printable(child)
    elif child:
        element.text = (element.text or "") + printable(child)


def to_html(root: Element) -> str:
    """The whole document as text, all its tags closed."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def printable(text: str) -> str:
    """The text without control characters and halves of surrogate pairs."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def short(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
