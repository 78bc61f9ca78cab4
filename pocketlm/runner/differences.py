"""On which fields two records of a stage call differ, as lines for a person."""

import json
from collections.abc import Container, Iterator
from typing import Any

ABSENT = "(not there)"


def differences(
    old: dict[str, Any], new: dict[str, Any], defaults: Container[str] = ()
) -> list[str]:
    """One line `field: old -> new` for every field on which two records disagree; none for the same
    call.

    defaults: dotted places below "config" where the new record has a field's default; there the old
    one may lack the field.
    """
    before = {"stage": old["stage"], "config": old["config"], "inputs": fingerprints(old["inputs"])}
    after = {"stage": new["stage"], "config": new["config"], "inputs": fingerprints(new["inputs"])}
    return [
        _line(where, one, other, old, new)
        for where, one, other in _leaves("", before, after)
        if not (one == ABSENT and where in defaults)
    ]


def fingerprints(inputs: dict[str, Any]) -> dict[str, Any]:
    """The fingerprints of a record's inputs, without their paths."""
    return {
        name: [entry["fingerprint"] for entry in value]
        if isinstance(value, list)
        else value and value["fingerprint"]
        for name, value in inputs.items()
    }


def _leaves(where: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two JSON values that differ: (dotted place, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{where}.{key}" if where else key
            if key not in old or key not in new:
                yield place, old.get(key, ABSENT), new.get(key, ABSENT)
            else:
                yield from _leaves(place, old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if (before := _classes(old)) != (after := _classes(new)):
            # one line: their fields would say the same once more
            yield where, ", ".join(sorted(set(before))), ", ".join(sorted(set(after)))
            return
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(f"{where}.{i}", before, after)
    elif old != new or type(old) is not type(new):
        yield where, old, new


def _classes(items: list[Any]) -> list[str]:
    """The classes of a list's dataclasses, in order."""
    return [item["class"] for item in items if isinstance(item, dict) and "class" in item]


def _line(where: str, before: Any, after: Any, old: dict[str, Any], new: dict[str, Any]) -> str:
    """A difference as a line to read; an input is shown with its path."""
    first, _, rest = where.partition(".")
    if first != "inputs":
        return f"{where.removeprefix('config.')}: {_short(before)} -> {_short(after)}"
    return f"input {rest}: {_input(old, rest, before)} -> {_input(new, rest, after)}"


def _input(record: dict[str, Any], where: str, fingerprint: Any) -> str:
    """An input of a record as `path (fingerprint)`."""
    name, _, position = where.partition(".")
    entry = record["inputs"].get(name)
    if position and isinstance(entry, list):
        entry = entry[int(position)]
    if isinstance(entry, list):
        return ", ".join(f"{item['path']} ({item['fingerprint']})" for item in entry) or "(none)"
    return f"{entry['path']} ({entry['fingerprint']})" if entry else _short(fingerprint)


def _short(value: Any, limit: int = 160) -> str:
    """A JSON value on one line, cut where it would fill the screen."""
    if value == ABSENT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
