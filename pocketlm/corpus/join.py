"""Rows that name a text of another set instead of holding it, joined with that set.

NVIDIA's OpenCodeReasoning sets do so: where the question would be stands "-", and the fields
dataset, split and index say in which set it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pocketlm.corpus.hub import hub_rows, open_hub

PLACEHOLDER = "-"
NOT_JOINED = "not_joined"


@dataclass(frozen=True, kw_only=True)
class Join:
    """A hub dataset that holds what rows with this name in their field "dataset" leave out.

    fields: of its row; those that hold text make the missing text, a blank line between them.
    """

    name: str
    dataset: str
    fields: tuple[str, ...]
    config: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError(f"join {self.name!r}: fields is empty; name the fields of the text")


def with_joined_text(
    row: Mapping[str, Any], field: str | None, joins: Sequence[Join]
) -> Mapping[str, Any] | None:
    """The row with its text in `field`; the row itself where it holds it already; None where no set
    has it.
    """
    if not joins or field is None or row.get(field) != PLACEHOLDER:
        return row
    join = next((join for join in joins if join.name == row.get("dataset")), None)
    index = str(row.get("index"))
    if join is None or not index.isdecimal():
        return None
    texts = _texts(join, str(row.get("split")))
    text = texts[int(index)] if int(index) < len(texts) else ""
    return {**row, field: text} if text else None


@lru_cache(maxsize=16)
def _texts(join: Join, split: str) -> list[str]:
    """The texts of one split by their place, read once a process: some tens of thousands."""
    call = join.dataset, join.config, split, join.revision
    rows = open_hub(*call)
    if hasattr(rows, "select_columns"):  # the others are most of what would be fetched
        rows = rows.select_columns(list(join.fields))
    where = f"hub dataset {join.dataset!r}, which is joined,"
    return [
        "\n\n".join(str(row[name]) for name in join.fields if row.get(name))
        for row in hub_rows(where, call, rows=rows)
    ]
