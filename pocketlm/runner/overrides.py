"""`--set stage.field=value`: one field of one stage's config, changed from the command line."""

import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
Settings = dict[str, dict[str, str]]  # stage -> dotted field -> the text after "="


def parse_settings(texts: Iterable[str]) -> Settings:
    """{"pretrain": {"num_steps": "20"}} from ["pretrain.num_steps=20"]; ValueError for any other
    shape.
    """
    settings: Settings = {}
    for text in texts:
        place, equals, value = text.partition("=")
        stage, dot, field = place.strip().partition(".")
        if not (equals and dot and stage and field):
            raise ValueError(
                f"--set {text}: write stage.field=value, for example --set pretrain.num_steps=20"
            )
        settings.setdefault(stage, {})[field] = value.strip()
    return settings


def check_stages(settings: Settings, names: Iterable[str]) -> None:
    """Nothing, or a ValueError for a setting whose stage the recipe does not have."""
    names = list(names)
    for stage in settings:
        if stage not in names:
            raise ValueError(
                f"--set {stage}.…: the recipe has no stage {stage!r}{nearest(stage, names)}"
            )


def apply_settings(config: Any, settings: Mapping[str, str]) -> Any:
    """The config with its dotted fields replaced, so its own checks run again. ValueError names the
    field.
    """
    for field, text in settings.items():
        config = _replaced(
            config, type(config), field.split("."), text, f"--set {config.name}.{field}={text}"
        )
    return config


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message: what may have been meant, else all there is."""
    names = list(names)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(names)}" if names else ""


def _replaced(value: Any, annotation: Any, path: list[str], text: str, where: str) -> Any:
    """`value` with the place at `path` below it set to `text`, read as the type annotated there."""
    if not path:
        return _parsed(text, annotation, where)
    key, rest = path[0], path[1:]
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value) if f.init]
        if key not in names:
            raise ValueError(
                f"{where}: {type(value).__name__} has no field {key!r}{nearest(key, names)}"
            )
        if key == "name":
            raise ValueError(f"{where}: a name is fixed by the recipe, because it names the folder")
        inner = get_type_hints(type(value))[key]
        return replace(value, **{key: _replaced(getattr(value, key), inner, rest, text, where)})
    if isinstance(value, Mapping):
        if key not in value:
            raise ValueError(
                f"{where}: there is no {key!r}{nearest(key, [str(name) for name in value])}"
            )
        return {
            **value,
            key: _replaced(value[key], _item_type(annotation, value[key]), rest, text, where),
        }
    if isinstance(value, (list, tuple)):
        if not key.isdecimal() or int(key) >= len(value):
            raise ValueError(
                f"{where}: {key!r} is not a position in a row of {len(value)} (0 to "
                f"{len(value) - 1})"
            )
        items = list(value)
        items[int(key)] = _replaced(
            items[int(key)], _item_type(annotation, items[int(key)]), rest, text, where
        )
        return type(value)(items)
    raise ValueError(f"{where}: there is nothing called {key!r} below a {type(value).__name__}")


def _item_type(annotation: Any, item: Any) -> Any:
    """What a dict or a row holds, by annotation, or by the item that is there."""
    for option in _options(annotation):
        arguments = [item for item in get_args(option) if item is not Ellipsis]
        if arguments and get_origin(option) is not Literal:
            return arguments[-1]
    return type(item)


def _options(annotation: Any) -> list[Any]:
    """The members of a union; anything else alone."""
    return (
        list(get_args(annotation))
        if get_origin(annotation) in (Union, types.UnionType)
        else [annotation]
    )


def _parsed(text: str, annotation: Any, where: str) -> Any:
    """The text as the first of the annotated types that takes it."""
    for option in sorted(_options(annotation), key=lambda option: option is str):
        try:
            return _as(text, option, where)
        except (ValueError, TypeError):
            continue
    kinds = " or ".join(_type_in_words(option) for option in _options(annotation))
    raise ValueError(f"{where}: {text!r} is not {kinds}")


def _as(text: str, kind: Any, where: str) -> Any:
    """The text as one plain type; ValueError where it is not."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is type(None) and text.lower() in ("none", "null"):
        return None
    if kind is bool and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if kind is int:
        return int(text) if not any(mark in text for mark in ".eE") else _whole(float(text))
    if kind in (float, str, Path):
        return kind(text)
    if origin is Literal and text in map(str, arguments):
        return next(choice for choice in arguments if str(choice) == text)
    if origin in (list, tuple):
        words = [word.strip() for word in text.strip("[]()").split(",") if word.strip()]
        if origin is tuple and Ellipsis not in arguments and len(words) != len(arguments):
            raise ValueError(f"{text!r} has {len(words)} items, not {len(arguments)}")
        return origin(_parsed(word, arguments[0] if arguments else str, where) for word in words)
    if origin in (dict, Mapping):
        return dict(json.loads(text))
    raise ValueError(f"{text!r} is not {_type_in_words(kind)}")


def _whole(number: float) -> int:
    """1e6 as 1000000; ValueError for 1.5."""
    if not number.is_integer():
        raise ValueError(f"{number} is not whole")
    return int(number)


def _type_in_words(kind: Any) -> str:
    """A type in words a reader of the message knows."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    known = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return known.get(kind) or getattr(kind, "__name__", str(kind))
