"""What sources of every kind have in common.

`Source(kind="local", ...)` makes the class of that kind, as pathlib.Path does, for rows that come
as plain data.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, InitVar, dataclass, fields
from typing import Any, NamedTuple

from pocketlm.corpus.documents import Document
from pocketlm.corpus.filters import DEFAULT_FILTERS, FILTERS
from pocketlm.corpus.reading import Reading

# the capabilities that MobileLLM-R1 probes (section 5.1.1); and, ours, recall: what a text itself
# tells and asks again
DOMAINS = ("code", "maths", "knowledge", "recall")
# the class of each kind: a new one enters itself by its field `kind`
KINDS: dict[str, type["Source"]] = {}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Part(NamedTuple):
    """What one task reads of a source: its place, as plain data, and about how many bytes it is."""

    place: Any
    size: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """What sources of all kinds have: a name (it becomes a folder) and the capability it serves.

    max_bytes caps the kept text (UTF-8): reading ends at the first document that does not fit.
    split_code makes every top-level definition of Python text its own document. filters: names in
    corpus/filters.py; None takes those of the domain for text, and none for conversations.
    near_dedup: None searches near duplicates among texts only. Problems from templates differ in a
    number or two: to MinHash and to repetition filters they all look alike, though each is a new
    problem. So conversations and notes are by default only kept from repeating exactly, and from
    repeating an evaluation.
    """

    kind: InitVar[str] = ""
    name: str
    domain: str
    max_bytes: int | None = None
    split_code: bool = False
    filters: tuple[str, ...] | None = None
    near_dedup: bool | None = None

    def __init_subclass__(cls) -> None:
        if (kind := vars(cls).get("kind")) is None:
            return
        if cls.documents is Source.documents:
            raise TypeError(f"{cls.__name__} has no documents(part, reading), which reads its text")
        KINDS[kind] = cls

    def __new__(cls, **given: Any) -> "Source":
        return object.__new__(_class_of(given) if cls is Source else cls)

    def __post_init__(self, kind: str) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.where}: a name is letters, digits, - and _ (it becomes a folder)"
            )
        if KINDS.get(kind) is not type(self):
            raise ValueError(
                f"{self.where}: kind {kind!r} is not that of a {type(self).__name__}; leave it out"
            )
        if self.domain not in DOMAINS:
            raise ValueError(
                f"{self.where}: domain {self.domain!r} is none of {', '.join(DOMAINS)}"
            )
        for name in self.filters or ():
            if name not in FILTERS:
                raise ValueError(f"{self.where}: filter {name!r} is none of {', '.join(FILTERS)}")
        self._check_at_least_one("max_bytes", self.max_bytes)

    def _check_at_least_one(self, field: str, value: int | None) -> None:
        if value is not None and value < 1:
            raise ValueError(f"{self.where}: {field} is {value}; it must be at least 1")

    @property
    def where(self) -> str:
        """The source, at the beginning of an error."""
        return f"source {self.name!r}"

    @property
    def contents(self) -> str:
        """What it reads, in a word."""
        return next(name for name, kind in KINDS.items() if kind is type(self))

    def parts(self, part_bytes: int, reading: Reading) -> list[Part]:
        """What tasks read, in order: by default all of it is one task's.

        A part is of about part_bytes where the source can be cut. `reading` counts what no task
        will read.
        """
        return [Part(None, 0)]

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        """A part's documents before any filter; `reading` counts the files of a local one. Every
        kind has its own.
        """
        ...

    def filters_for(self, document: Document) -> tuple[str, ...]:
        """The filters this document passes through, in order."""
        if self.filters is not None:
            return self.filters
        return () if document.messages else DEFAULT_FILTERS[self.domain]

    def near_dedup_for(self, document: Document) -> bool:
        """Whether near duplicates of this document are searched."""
        return not document.messages if self.near_dedup is None else self.near_dedup


def _class_of(given: Mapping[str, Any]) -> type[Source]:
    """The class of the kind that plain data name; ValueError for fields it needs or does not
    read.
    """
    where, name = f"source {given.get('name')!r}", given.get("kind")
    if name not in KINDS:
        raise ValueError(f"{where}: kind {name!r} is none of {', '.join(KINDS)}")
    read = {field.name: field for field in fields(KINDS[name])}
    for field in read.values():
        if field.default is MISSING and given.get(field.name) is None:
            raise ValueError(f"{where}: kind {name!r} needs the field {field.name}")
    for field in sorted(given.keys() - read - {"kind"}):
        raise ValueError(f"{where}: kind {name!r} does not read the field {field}; leave it out")
    return KINDS[name]
