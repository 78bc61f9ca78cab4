"""JSON files with the shape that their reader counts on: what is otherwise is one ValueError with
file and field.

Every number, text and list of somebody's file goes through `JsonObject`, so that a size in quotes,
a list where an object belongs, NaN or a missing field never gets as far as a TypeError or KeyError.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

WHOLE, NUMBER, DECIMAL = "a whole number", "a number", "a decimal number"
FLAG, TEXT, OBJECT, LIST = "true or false", "text", "an object", "a list"
TEXTS, WHOLES = "a list of texts", "a list of whole numbers"
OR_NULL = " or null"  # added to one of them
LARGEST = 1e308  # beyond it a whole number has no float
LONGEST = 10**15  # beyond it a number is described by its digits
# lists and objects in each other; far beyond any file of a model, far below Python's own limit,
# which other libraries move
MOST_DEPTH = 200


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_decimal(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(kind(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


KINDS: dict[str, Callable[[Any], bool]] = {
    WHOLE: _is_whole,
    DECIMAL: _is_decimal,
    NUMBER: lambda value: _is_decimal(value) or (_is_whole(value) and abs(value) <= LARGEST),
    FLAG: lambda value: isinstance(value, bool),
    TEXT: _is_text,
    OBJECT: lambda value: isinstance(value, dict),
    LIST: lambda value: isinstance(value, list),
    TEXTS: _is_list_of(_is_text),
    WHOLES: _is_list_of(_is_whole),
}


class JsonObject(dict[str, Any]):
    """An object of a JSON file, which knows where it stands: the objects in it are JsonObjects too.

    where: the file, and the fields that lead here. A field that is missing or of another kind is a
    ValueError.
    """

    def __init__(
        self, content: dict[str, Any], file: Path | str, field: str = "", depth: int = 0
    ) -> None:
        self.file, self.field = file, field
        items = content.items()
        super().__init__({key: _placed(item, file, f"{field}{key}", depth) for key, item in items})

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.file}: field {self.field}{key} is missing")

    def wrong(self, key: str, problem: str) -> ValueError:
        """The error that says where the field is, and what is wrong with it."""
        return ValueError(f"{self.file}: field {self.field}{key} {problem}")

    def typed(
        self,
        key: str,
        kind: str,
        default: Any = ...,
        *,
        least: float | None = None,
        most: float | None = None,
    ) -> Any:
        """The field, of that kind and within [least, most]; `default` where there is none, else it
        must be there.
        """
        if key not in self and default is not ...:
            return default
        value = self[key]
        if not is_kind(value, kind):
            raise self.wrong(key, f"is {described(value)}, {kind} is needed")
        if value is not None and least is not None and value < least:
            raise self.wrong(key, f"is {described(value)}, at least {least} is needed")
        if value is not None and most is not None and value > most:
            raise self.wrong(key, f"is {described(value)}, more than the {most} that can be")
        return value

    def object(self, key: str, default: Any = ...) -> "JsonObject":
        """The object in that field; an empty one where `default` is None and the field is missing
        or null.
        """
        if default is None and self.get(key) is None:
            return JsonObject({}, self.file, f"{self.field}{key}.")
        return self.typed(key, OBJECT)


def _placed(item: Any, file: Path | str, field: str, depth: int = 0) -> Any:
    """The item with every object in it a JsonObject that knows its place. depth: of what it lies
    in; a ValueError beyond MOST_DEPTH.
    """
    if not isinstance(item, dict | list):
        return item
    if depth >= MOST_DEPTH:
        raise ValueError(f"{file}: not read, for its lists or objects lie too deep in each other")
    if isinstance(item, dict):
        return JsonObject(item, file, f"{field}." if field else "", depth + 1)
    return [
        _placed(inner, file, f"{field}[{number}]", depth + 1) for number, inner in enumerate(item)
    ]


def is_kind(value: Any, kind: str) -> bool:
    """Whether a JSON value is of one of KINDS; "... or null" takes null too."""
    if kind.endswith(OR_NULL):
        return value is None or KINDS[kind.removesuffix(OR_NULL)](value)
    return KINDS[kind](value)


def described(value: Any) -> str:
    """A JSON value in a few words: "the text '320'", "a list", "null"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value[:40]!a}"
    if isinstance(value, int) and abs(value) > LONGEST:
        return f"a number of {len(str(abs(value)))} digits"
    if isinstance(value, int | float):
        return str(value)
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"


def parse_json(text: str, where: str | Path) -> Any:
    """The content of a JSON text; a ValueError names the place and line where it is not JSON."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}:{error.lineno}: not JSON ({error.msg}); restore or delete the file"
        ) from None
    except RecursionError:
        raise ValueError(
            f"{where}: not read, for its lists or objects lie too deep in each other"
        ) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ValueError(f"{where}: not read ({error})") from None
    return _placed(content, where, "")


def read_object(path: Path) -> JsonObject:
    """The object that a JSON file holds; ValueError where it holds something else, or is no
    JSON.
    """
    content = read_any(path)
    if not isinstance(content, JsonObject):
        raise ValueError(f"{path}: expected an object, found {described(content)}")
    return content


def read_any(path: Path) -> Any:
    """The content of a JSON file, of whatever shape; a ValueError names the file and line when it
    is not JSON.

    Objects in it are JsonObjects: a field that is asked for and missing is a ValueError too.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {error.start}; restore or delete the file"
        ) from None
    return parse_json(text, path)
