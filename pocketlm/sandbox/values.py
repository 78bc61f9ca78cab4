"""Plain values as text between processes, rebuilt as exact built-in types.

What a worker sends was perhaps written by a model: a value comes back as None, bool, int, float,
complex, str, bytes or a container of them, never as an object with a behaviour of its own. What is
none of these stays where it was made and is named by a number (a handle). Only the standard
library: a worker runs this file's text in an interpreter that sees no package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import GeneratorType
from typing import Any

MAX_DEPTH = 100  # containers in one another
MAX_ITEMS = 200_000  # taken from an iterator
JSON_INT = 2**53  # larger ones as hexadecimal text, whose length Python does not limit
VIEWS = ("dict_keys", "dict_values", "dict_items")
ITERATORS = (map, filter, zip, enumerate, reversed, GeneratorType, type(iter([])), type(iter(())))


def encode(value: Any, handle: Callable[[Any], list[Any]]) -> bytes:
    """The value as JSON. handle(object): ["h", number] of what is no plain value, or TypeError.

    ValueError: containers deeper than MAX_DEPTH, or an iterator that does not end.
    """
    return json.dumps(_tree(value, handle, 0)).encode()


def decode(payload: bytes, of_handle: Callable[[int, str], Any]) -> Any:
    """What `encode` wrote. of_handle(number, type name): stands for an object on the other side.

    ValueError: it is nothing that `encode` writes.
    """
    try:
        return _value(json.loads(payload), of_handle, 0)
    except (ValueError, TypeError, IndexError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"no plain value: {type(error).__name__}") from None


def _tree(value: Any, handle: Callable[[Any], list[Any]], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"a value nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | str | float):
        return value if value is None or isinstance(value, bool) else _scalar(value)
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < JSON_INT else ["i", hex(number)]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "B", bytes(value).hex()]
    if isinstance(value, dict):
        return ["d", [_trees(pair, handle, depth) for pair in value.items()]]
    if isinstance(value, range):
        return [
            "r",
            *(_tree(part, handle, depth) for part in (value.start, value.stop, value.step)),
        ]
    for tag, kind in (("l", list), ("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return [tag, _trees(value, handle, depth)]
    if type(value).__name__ in VIEWS:
        return [type(value).__name__, _trees(value, handle, depth)]
    if isinstance(value, ITERATORS):
        return ["iterator", _trees(value, handle, depth)]
    return handle(value)


def _scalar(value: str | float) -> str | float:
    return str(value) if isinstance(value, str) else float(value)


def _trees(values: Any, handle: Callable[[Any], list[Any]], depth: int) -> list[Any]:
    trees = []
    for value in values:
        if len(trees) == MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS:,} items")
        trees.append(_tree(value, handle, depth + 1))
    return trees


def _value(tree: Any, of_handle: Callable[[int, str], Any], depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deep")
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    tag, content = tree[0], tree[1]
    if tag == "h":
        if type(content) is not int or type(tree[2]) is not str:
            raise ValueError("no handle")
        return of_handle(content, tree[2])
    if tag in ("i", "b", "B"):
        if type(content) is not str:
            raise ValueError("no text")
        return {"i": lambda: int(content, 16), "b": lambda: bytes.fromhex(content)}.get(
            tag, lambda: bytearray.fromhex(content)
        )()
    if tag == "c":
        return complex(content, tree[2])
    if tag == "r":
        return range(*(_value(part, of_handle, depth + 1) for part in tree[1:4]))
    if type(content) is not list:
        raise ValueError("no items")
    return _container(tag, [_value(item, of_handle, depth + 1) for item in _items(tag, content)])


def _items(tag: str, content: list[Any]) -> list[Any]:
    """The pairs of a dict as tuples' trees."""
    return [["t", pair] for pair in content] if tag == "d" else content


def _container(tag: str, items: list[Any]) -> Any:
    if tag == "d":
        return dict(items)
    kinds: dict[str, Callable[[list[Any]], Any]] = {
        "l": list,
        "t": tuple,
        "s": set,
        "f": frozenset,
        "iterator": iter,
        "dict_keys": lambda keys: dict.fromkeys(keys).keys(),
        "dict_values": lambda values: dict(enumerate(values)).values(),
        "dict_items": lambda pairs: dict(pairs).items(),
    }
    return kinds[tag](items)
