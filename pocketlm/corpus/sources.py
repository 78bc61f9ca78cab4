"""Sources: where text comes from. A new kind is one more class and a row in KINDS.

`Source(kind="local", ...)` makes the class of that kind, as pathlib.Path does, for rows that come
as plain data.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, InitVar, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pocketlm.corpus.documents import Document, conversation, row_document
from pocketlm.corpus.filters import DEFAULT_FILTERS, FILTERS
from pocketlm.corpus.hub import HUB_FILE_BYTES, Dataset, count_files, hub_rows
from pocketlm.corpus.join import NOT_JOINED, Join, with_joined_text
from pocketlm.corpus.local import Slice, cut_file, list_files, read_files
from pocketlm.corpus.python_docs import (
    read_language_reference,
    read_stdlib_code,
    read_stdlib_docstrings,
)
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.recall_notes import generate_notes
from pocketlm.problems.generated import generate_problems

# the capabilities that MobileLLM-R1 probes (section 5.1.1)
DOMAINS = ("code", "maths", "knowledge")
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
        """A part's documents before any filter; `reading` counts the files of a local one."""
        raise NotImplementedError

    def filters_for(self, document: Document) -> tuple[str, ...]:
        """The filters this document passes through, in order."""
        if self.filters is not None:
            return self.filters
        return () if document.messages else DEFAULT_FILTERS[self.domain]

    def near_dedup_for(self, document: Document) -> bool:
        """Whether near duplicates of this document are searched."""
        return not document.messages if self.near_dedup is None else self.near_dedup


# ---- text that comes with every Python ----


@dataclass(frozen=True, kw_only=True)
class StdlibCodeSource(Source):
    """The standard library's modules, a document each."""

    kind: InitVar[str] = "stdlib_code"

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        return read_stdlib_code()


@dataclass(frozen=True, kw_only=True)
class StdlibDocstringsSource(Source):
    """The docstrings of each of its modules."""

    kind: InitVar[str] = "stdlib_docstrings"

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        return read_stdlib_docstrings()


@dataclass(frozen=True, kw_only=True)
class LanguageReferenceSource(Source):
    """The topics of Python's language reference."""

    kind: InitVar[str] = "language_reference"

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        return read_language_reference()


# ---- generated text ----


@dataclass(frozen=True, kw_only=True)
class ProblemSource(Source):
    """`count` worked problems of these families, as conversations."""

    kind: InitVar[str] = "problems"
    families: tuple[str, ...]
    count: int
    seed: int = 0

    def __post_init__(self, kind: str) -> None:
        super().__post_init__(kind)
        self._check_at_least_one("count", self.count)

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        for row in generate_problems(self.families, self.count, self.seed):
            yield _exchange(row, family=row["family"], answer=row["answer"])


@dataclass(frozen=True, kw_only=True)
class NoteSource(Source):
    """`count` texts of facts to recall, pairs_range[0] to pairs_range[1] facts each."""

    kind: InitVar[str] = "notes"
    count: int
    seed: int = 0
    pairs_range: tuple[int, int]

    def __post_init__(self, kind: str) -> None:
        super().__post_init__(kind)
        self._check_at_least_one("count", self.count)

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        for row in generate_notes(self.count, self.seed, self.pairs_range):
            yield Document(id=row["id"], text=row["text"])

    def filters_for(self, document: Document) -> tuple[str, ...]:
        return self.filters or ()

    def near_dedup_for(self, document: Document) -> bool:
        return bool(self.near_dedup)


@dataclass(frozen=True, kw_only=True)
class RecallSource(NoteSource):
    """The same facts and one question each, as conversations."""

    kind: InitVar[str] = "recall"

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        for row in generate_notes(self.count, self.seed, self.pairs_range):
            yield _exchange(row)


def _exchange(row: Mapping[str, str], **fields: str) -> Document:
    """A generated prompt and its response as a conversation."""
    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    return conversation(row["id"], turns, **fields)


# ---- rows and files ----


@dataclass(frozen=True, kw_only=True)
class RowSource(Source):
    """How a row is read: rows with "messages", or with "prompt" and "response", are conversations,
    others are their "text".

    text_field names another field of text; prompt_field and response_field, together, name the
    fields of a conversation's two turns, a dot going deeper ("responses.0.response").
    """

    text_field: str | None = None
    prompt_field: str | None = None
    response_field: str | None = None

    def __post_init__(self, kind: str) -> None:
        super().__post_init__(kind)
        if (self.prompt_field is None) != (self.response_field is None) or (
            self.prompt_field and self.text_field
        ):
            raise ValueError(
                f"{self.where}: give prompt_field and response_field together, or text_field "
                "alone, or none"
            )

    @property
    def pair(self) -> tuple[str, str] | None:
        """The fields of a prompt and its response, where the rows have names of their own for
        them.
        """
        if self.prompt_field and self.response_field:
            return self.prompt_field, self.response_field
        return None


@dataclass(frozen=True, kw_only=True)
class LocalSource(RowSource):
    """A file, or the files of a folder: .txt .text .md .rst .py (a document each), .jsonl .ndjson
    .json .parquet (a document a row), plain or compressed.
    """

    kind: InitVar[str] = "local"
    path: str

    @property
    def root(self) -> Path:
        return Path(self.path).expanduser()

    def parts(self, part_bytes: int, reading: Reading) -> list[Part]:
        folder, names = list_files(self.root, reading)
        whole = [Part([], 0)]
        for name in names:
            for piece, size in cut_file(folder, name, part_bytes):
                if whole[-1].size and whole[-1].size + size > part_bytes:
                    whole.append(Part([], 0))
                whole[-1].place.append(piece)
                whole[-1] = Part(whole[-1].place, whole[-1].size + size)
        return whole

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        slices = [Slice(*piece) for piece in part]
        return read_files(self.root, slices, self.text_field, self.pair, reading)


@dataclass(frozen=True, kw_only=True)
class HubSource(RowSource):
    """A Hugging Face dataset, streamed.

    joins: the sets that hold what its rows leave out; a row that none has is counted as not_joined.
    """

    kind: InitVar[str] = "hub"
    dataset: str
    config: str | None = None
    split: str
    revision: str | None = None
    joins: tuple[Join, ...] = ()

    @property
    def contents(self) -> str:
        return self.dataset

    @property
    def _call(self) -> Dataset:
        return self.dataset, self.config, self.split, self.revision

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        file, count = part or (0, 1)
        where = f"hub dataset {self.dataset!r}" + (f", file {file + 1}" if count > 1 else "")
        id = self.split if count == 1 else f"{self.split}:{file + 1}"
        for number, row in enumerate(hub_rows(where, self._call, file, count), start=1):
            place = f"{where}, row {number}"
            name, field = f"{id}:{number}", self.prompt_field or self.text_field
            if (whole := with_joined_text(row, field, self.joins)) is None:
                yield Document(id=name, text=str(row), dropped_by=NOT_JOINED)
            else:
                yield row_document(dict(whole), name, place, self.text_field, self.pair)

    def parts(self, part_bytes: int, reading: Reading) -> list[Part]:
        if self.max_bytes is not None:  # read from its beginning, in order
            return [Part(None, 0)]
        count = count_files(f"hub dataset {self.dataset!r}", self._call)
        return [Part([file, count], HUB_FILE_BYTES) for file in range(count)]


# ---- any of them ----


KINDS: dict[str, type[Source]] = {
    "stdlib_code": StdlibCodeSource,
    "stdlib_docstrings": StdlibDocstringsSource,
    "language_reference": LanguageReferenceSource,
    "problems": ProblemSource,
    "notes": NoteSource,
    "recall": RecallSource,
    "local": LocalSource,
    "hub": HubSource,
}


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
