"""Sources: where text comes from. A new kind is one more class, here or in generated_sources.py."""

from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from pocketlm.corpus.documents import Document, row_document
from pocketlm.corpus.generated_sources import (
    FactSource,
    LanguageReferenceSource,
    NoteSource,
    ProblemSource,
    RecallSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.corpus.hub import HUB_FILE_BYTES, Dataset, count_files, hub_rows
from pocketlm.corpus.join import NOT_JOINED, Join, with_joined_text
from pocketlm.corpus.local import Slice, cut_file, list_files, read_files
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.source import DOMAINS, KINDS, Part, Source

__all__ = [
    "DOMAINS",
    "KINDS",
    "FactSource",
    "HubSource",
    "LanguageReferenceSource",
    "LocalSource",
    "NoteSource",
    "Part",
    "ProblemSource",
    "RecallSource",
    "RowSource",
    "Source",
    "StdlibCodeSource",
    "StdlibDocstringsSource",
]


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
