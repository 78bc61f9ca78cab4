"""Sources: where text comes from. A source is one row; a new kind is one row in KINDS and its
function.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pocketlm.corpus.documents import Document, conversation, row_document
from pocketlm.corpus.filters import FILTERS
from pocketlm.corpus.local import read_local
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
ROW_FIELDS = ("text_field", "prompt_field", "response_field")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One row: a name (it becomes a folder), the capability it serves, a kind, and what that kind
    reads.

    kind        reads
    stdlib_code, stdlib_docstrings, language_reference     nothing
    problems    families, count, seed: worked problems, as conversations
    notes       count, seed, pairs_range: facts to recall, as plain text
    recall      the same: the facts and one question, as conversations
    local       path, and how a row is read: a file or folder of .txt .text .md .rst .py (a document
    each), .jsonl
                .ndjson .json .parquet (a document a row), plain or compressed
    hub         dataset, config, split, revision, and how a row is read: a Hugging Face dataset,
    streamed

    How a row is read: rows with "messages", or with "prompt" and "response", are conversations,
    others are their "text". text_field names another field of text; prompt_field and
    response_field, together, name the fields of a conversation's two turns, a dot going deeper
    ("responses.0.response").

    max_bytes caps the kept text (UTF-8): reading ends at the first document that does not fit.
    split_code makes every top-level definition of Python text its own document. filters: names in
    corpus/filters.py; None takes those of the domain for text, and none for conversations.
    near_dedup: None searches near duplicates among texts only. Problems from templates differ in a
    number or two: to MinHash and to repetition filters they all look alike, though each is a new
    problem. So conversations and notes are by default only kept from repeating exactly, and from
    repeating an evaluation.
    """

    name: str
    domain: str
    kind: str
    path: str | None = None
    text_field: str | None = None
    prompt_field: str | None = None
    response_field: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    families: tuple[str, ...] | None = None
    count: int | None = None
    seed: int | None = None
    pairs_range: tuple[int, int] | None = None
    max_bytes: int | None = None
    split_code: bool = False
    filters: tuple[str, ...] | None = None
    near_dedup: bool | None = None

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{where}: a name is letters, digits, - and _ (it becomes a folder)")
        if self.domain not in DOMAINS:
            raise ValueError(f"{where}: domain {self.domain!r} is none of {', '.join(DOMAINS)}")
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        kind = KINDS[self.kind]
        given = {field.name for field in fields(self) if getattr(self, field.name) is not None}
        for field in kind.needs:
            if field not in given:
                raise ValueError(f"{where}: kind {self.kind!r} needs the field {field}")
        foreign = given & {field for other in KINDS.values() for field in other.needs + other.takes}
        for field in sorted(foreign - set(kind.needs + kind.takes)):
            raise ValueError(
                f"{where}: kind {self.kind!r} does not read the field {field}; leave it out"
            )
        if (self.prompt_field is None) != (self.response_field is None) or (
            self.prompt_field and self.text_field
        ):
            raise ValueError(
                f"{where}: give prompt_field and response_field together, or text_field alone, or "
                "none"
            )
        for name in self.filters or ():
            if name not in FILTERS:
                raise ValueError(f"{where}: filter {name!r} is none of {', '.join(FILTERS)}")
        for field in ("max_bytes", "count"):
            if field in given and getattr(self, field) < 1:
                raise ValueError(
                    f"{where}: {field} is {getattr(self, field)}; it must be at least 1"
                )

    @property
    def pair(self) -> tuple[str, str] | None:
        """The fields of a prompt and its response, where the rows have names of their own for
        them.
        """
        return (
            (self.prompt_field, self.response_field)
            if self.prompt_field and self.response_field
            else None
        )

    def filters_for(self, document: Document) -> tuple[str, ...]:
        """The filters this document passes through, in order."""
        if self.filters is not None:
            return self.filters
        return () if document.messages or self.kind == "notes" else DEFAULT_FILTERS[self.domain]

    def near_dedup_for(self, document: Document) -> bool:
        """Whether near duplicates of this document are searched."""
        if self.near_dedup is not None:
            return self.near_dedup
        return not document.messages and self.kind != "notes"


DEFAULT_FILTERS = {
    "code": ("length", "script", "boilerplate", "repeated_lines"),
    "maths": ("length", "script", "boilerplate", "repetition"),
    "knowledge": ("length", "script", "boilerplate", "repetition"),
}


def read_source(source: Source, reading: Reading | None = None) -> Iterator[Document]:
    """The source's documents before any filter. Errors name the source, and the file and line, or
    the row.

    `reading` counts the files of a local source: read, or left out by reason.
    """
    try:
        yield from KINDS[source.kind].read(source, reading or Reading())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source {source.name!r}: {error}") from None
    except ValueError as error:
        raise ValueError(f"source {source.name!r}: {error}") from None


def check_source(source: Source) -> None:
    """FileNotFoundError for a local source that is not there: at once, before hours of work on the
    others.
    """
    if source.kind == "local" and not _local_path(source).exists():
        raise FileNotFoundError(f"source {source.name!r}: {source.path}: no such file or folder")


def _local_path(source: Source) -> Path:
    assert source.path is not None
    return Path(source.path).expanduser()


def _problems(source: Source, reading: Reading) -> Iterator[Document]:
    assert source.families is not None and source.count is not None
    for row in generate_problems(source.families, source.count, source.seed or 0):
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        yield conversation(row["id"], turns, family=row["family"], answer=row["answer"])


def _notes(source: Source, reading: Reading) -> Iterator[Document]:
    assert source.count is not None and source.pairs_range is not None
    for row in generate_notes(source.count, source.seed or 0, source.pairs_range):
        yield Document(id=row["id"], text=row["text"])


def _recall(source: Source, reading: Reading) -> Iterator[Document]:
    assert source.count is not None and source.pairs_range is not None
    for row in generate_notes(source.count, source.seed or 0, source.pairs_range):
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        yield conversation(row["id"], turns)


def _hub(source: Source, reading: Reading) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "reading the Hugging Face hub needs the datasets package: pip install datasets"
        ) from None
    where = f"hub dataset {source.dataset!r}"
    rows = _hub_rows(where, datasets.load_dataset, source)
    for number, row in enumerate(rows, start=1):
        yield row_document(
            row,
            f"{source.split}:{number}",
            f"{where}, row {number}",
            source.text_field,
            source.pair,
        )


def _hub_rows(
    where: str, load_dataset: Callable[..., Any], source: Source
) -> Iterator[Mapping[str, Any]]:
    number = 0
    try:
        rows = load_dataset(
            source.dataset,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        for row in rows:
            number += 1
            yield dict(row)
    except Exception as error:  # network, hub and file-format libraries each raise their own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{where} failed after row {number}: {reason}; run again, finished sources are kept"
        ) from error


@dataclass(frozen=True)
class Kind:
    """How a kind of source is read, the fields it needs, and those it takes."""

    read: Callable[[Source, Reading], Iterator[Document]]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


KINDS = {
    "stdlib_code": Kind(lambda source, reading: read_stdlib_code()),
    "stdlib_docstrings": Kind(lambda source, reading: read_stdlib_docstrings()),
    "language_reference": Kind(lambda source, reading: read_language_reference()),
    "problems": Kind(_problems, needs=("families", "count"), takes=("seed",)),
    "notes": Kind(_notes, needs=("count", "pairs_range"), takes=("seed",)),
    "recall": Kind(_recall, needs=("count", "pairs_range"), takes=("seed",)),
    "local": Kind(
        lambda source, reading: read_local(
            _local_path(source), source.text_field, source.pair, reading
        ),
        ("path",),
        ROW_FIELDS,
    ),
    "hub": Kind(_hub, needs=("dataset", "split"), takes=("config", "revision", *ROW_FIELDS)),
}
