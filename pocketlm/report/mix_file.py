"""mix.json as its readers take it: of any version, and what its methods tell in a form that can be
drawn without knowing the method.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

# what mix.json of the first versions holds beside "shares", and how those mixes were found
OLD_MIXES = {"uniform": "the same share for each source", "proportional": "each source by its size"}
# what the stage itself writes of each mix; anything else is a detail of its method
WRITTEN_BY_STAGE = {"method", "shares", "cost", "objective", "warnings"}
MEASURED = "bits_per_byte"


@dataclass(frozen=True)
class Details:
    """What a method tells of its mix, by the place in mix.json ("law.intercept").

    matrices: {capability: {source: number}}. columns: {source: number}. tables: rows of the same
    figures, {row: {column: number or word}}, such as the candidates of a line search, with their
    shares. figures: single numbers and words. others: anything else.
    """

    matrices: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    columns: dict[str, dict[str, float]] = field(default_factory=dict)
    tables: dict[str, dict[str, dict[str, float | str]]] = field(default_factory=dict)
    figures: dict[str, float | str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


def compared_mixes(file: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """(the name of the selected mix, every mix by its name) of a mix.json of any version."""
    if "mixes" in file:
        return file["selected"], file["mixes"]
    bits = file["bits_per_byte"]
    selected = {
        "method": "from each source's utility in one simulated run",
        "shares": file["shares"],
        "bits_per_byte": bits["found"],
        **{key: file[key] for key in ("utility", "utility_by_probe") if key in file},
    }
    plain = {
        name: {"method": method, "shares": file[name], "bits_per_byte": bits[name]}
        for name, method in OLD_MIXES.items()
    }
    return "found", {"found": selected, **plain}


def details_of(mix: Mapping[str, Any]) -> Details:
    """What the method of one mix tells, sorted by its form."""
    sources = set(mix["shares"])
    details = Details()
    for key, value in mix.items():
        if key not in WRITTEN_BY_STAGE and not key.startswith(MEASURED):
            for place, leaf in _leaves(key, value, sources):
                _sort_in(details, place, leaf, sources)
    return details


def _leaves(place: str, value: Any, sources: Set[str]) -> Iterator[tuple[str, Any]]:
    """The value, or what it holds where it is an object of other things than figures of sources."""
    is_object = isinstance(value, dict) and value
    drawn = is_object and (_is_column(value, sources) or _is_matrix(value, sources))
    if not is_object or drawn or _table_of(value, sources):
        yield place, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{place}.{key}", inner, sources)


def _sort_in(details: Details, place: str, value: Any, sources: Set[str]) -> None:
    table = _table_of(value, sources)
    if _is_matrix(value, sources):
        details.matrices[place] = value
    elif _is_column(value, sources):
        details.columns[place] = value
    elif table:
        details.tables[place] = table
    elif isinstance(value, str) or _is_number(value):
        details.figures[place] = value
    elif value not in ({}, [], None):
        details.others[place] = value


def _is_matrix(value: Any, sources: Set[str]) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_column(column, sources) for column in value.values())
    )


def _table_of(value: Any, sources: Set[str]) -> dict[str, dict[str, float | str]]:
    """The rows of an object of objects that all have the same figures; empty where it is none, or
    holds a matrix.
    """
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        return {}
    if any(_is_matrix(part, sources) for row in value.values() for part in (row, *row.values())):
        return {}
    rows = {name: dict(_flat(row)) for name, row in value.items()}
    columns = [set(row) for row in rows.values()]
    figures = all(_is_figure(cell) for row in rows.values() for cell in row.values())
    alike = columns and all(row == columns[0] for row in columns)
    return rows if figures and alike and len(columns[0]) > 1 else {}


def _flat(value: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, figure) of an object's figures, however deep."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{place}{key}.")
        else:
            yield place + key, inner


def _is_figure(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


def _is_column(value: Any, sources: Set[str]) -> bool:
    """Whether it is a number for every source, or for some and nothing else."""
    return (
        isinstance(value, dict)
        and bool(value)
        and set(value) <= sources
        and all(_is_number(number) for number in value.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
