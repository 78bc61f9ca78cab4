"""Plain values as text between processes, rebuilt as exact built-in types.

What a worker sends was perhaps written by a model: a value comes back as None, bool, int, float,
complex, str, bytes, a container of them or one of REBUILT, never as an object with a behaviour of
its own. What is none of these stays where it was made and is named by a number (a handle). Only the
standard library: a worker runs this file's text in an interpreter that sees no package.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

MAX_DEPTH = 100  # containers in one another
JSON_INT = 2**53  # larger ones as hexadecimal text, whose length Python does not limit
VIEWS = ("dict_keys", "dict_values", "dict_items")
# "module.type" of the standard library -> (its parts, their types, what makes one of them); types
# of a program's own that are derived from one come back as that one
REBUILT: dict[str, tuple[Callable[[Any], list[Any]], tuple[tuple[type, ...], ...], str]] = {
    "fractions.Fraction": (lambda v: [v.numerator, v.denominator], ((int,), (int,)), "Fraction"),
    "decimal.Decimal": (lambda v: [str(v)], ((str,),), "Decimal"),
    "collections.deque": (lambda v: [list(v), v.maxlen], ((list,), (int, type(None))), "deque"),
    "collections.Counter": (lambda v: [dict(v)], ((dict,),), "Counter"),
    "collections.OrderedDict": (lambda v: [list(v.items())], ((list,),), "OrderedDict"),
    "datetime.datetime": (lambda v: [v.isoformat()], ((str,),), "datetime.fromisoformat"),
    "datetime.date": (lambda v: [v.isoformat()], ((str,),), "date.fromisoformat"),
    "datetime.time": (lambda v: [v.isoformat()], ((str,),), "time.fromisoformat"),
    "datetime.timedelta": (
        lambda v: [v.days, v.seconds, v.microseconds],
        ((int,), (int,), (int,)),
        "timedelta",
    ),
    "array.array": (lambda v: [v.typecode, v.tolist()], ((str,), (list,)), "array"),
}


def encode(value: Any, handle: Callable[[Any], Any]) -> bytes:
    """The value as JSON. handle(object): the tree, often ["h", number, type name], of what is no
    plain value, or an exception.

    ValueError: containers deeper than MAX_DEPTH.
    """
    return json.dumps(tree_of(value, handle)).encode()


def decode(payload: bytes, of_handle: Callable[[int | str, str], Any]) -> Any:
    """What `encode` wrote. of_handle(number or name, type name): stands for an object on the other
    side.

    ValueError: it is nothing that `encode` writes.
    """
    try:
        return _value(json.loads(payload), of_handle, 0)
    except (ValueError, TypeError, LookupError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"no plain value: {type(error).__name__}") from None


def tree_of(value: Any, handle: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value as JSON's own types."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a value nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | float):
        return str(value) if isinstance(value, str) else float(value)
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < JSON_INT else ["i", hex(number)]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "B", bytes(value).hex()]
    if isinstance(value, range):
        return ["r", *_trees((value.start, value.stop, value.step), handle, depth)]
    if (name := _rebuilt_name(value)) is not None:
        return ["x", name, _trees(REBUILT[name][0](value), handle, depth)]
    if isinstance(value, dict):
        return ["d", [_trees(pair, handle, depth) for pair in value.items()]]
    for tag, kind in (("l", list), ("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return [tag, _trees(value, handle, depth)]
    if type(value).__name__ in VIEWS:
        return [type(value).__name__, _trees(value, handle, depth)]
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return ["type", value.__name__]
    return handle(value)


def _rebuilt_name(value: Any) -> str | None:
    """The first of its classes that REBUILT knows."""
    names = (f"{base.__module__}.{base.__name__}" for base in type(value).__mro__)
    return next((name for name in names if name in REBUILT), None)


def _trees(values: Iterable[Any], handle: Callable[[Any], Any], depth: int) -> list[Any]:
    return [tree_of(value, handle, depth + 1) for value in values]


def _value(tree: Any, of_handle: Callable[[int | str, str], Any], depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deep")
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    tag, content = tree[0], tree[1]
    if tag == "h":
        if type(content) not in (int, str) or type(tree[2]) is not str:
            raise ValueError("no handle")
        return of_handle(content, tree[2])
    if tag in ("i", "b", "B", "type"):
        return _of_text(tag, content)
    if tag == "c":
        return complex(content, tree[2])
    if tag == "r":
        return range(*(_value(part, of_handle, depth + 1) for part in tree[1:4]))
    if tag == "x":
        return _rebuilt(content, [_value(part, of_handle, depth + 1) for part in tree[2]])
    if type(content) is not list:
        raise ValueError("no items")
    return _container(tag, [_value(item, of_handle, depth + 1) for item in _items(tag, content)])


def _of_text(tag: str, text: Any) -> Any:
    if type(text) is not str:
        raise ValueError("no text")
    if tag == "i":
        return int(text, 16)
    if tag == "type":
        kind = vars(builtins)[text]
        if not isinstance(kind, type):
            raise ValueError("no type")
        return kind
    return bytes.fromhex(text) if tag == "b" else bytearray.fromhex(text)


def _rebuilt(name: str, parts: list[Any]) -> Any:
    """The object of REBUILT. ValueError: parts of other types."""
    _, kinds, maker = REBUILT[name]
    if not all(type(part) in kind for part, kind in zip(parts, kinds, strict=True)):
        raise ValueError(f"no parts of a {name}")
    make: Any = import_module(name.partition(".")[0])
    for attribute in maker.split("."):
        make = getattr(make, attribute)
    return make(*parts)


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
