"""Sources that need no file: text that comes with every Python, and generated text."""

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from typing import Any

from pocketlm.corpus.documents import Document, conversation
from pocketlm.corpus.python_docs import (
    read_language_reference,
    read_stdlib_code,
    read_stdlib_docstrings,
)
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.recall_notes import generate_notes
from pocketlm.corpus.source import Source
from pocketlm.problems.generated import generate_problems
from pocketlm.problems.look_up_facts import generate_facts

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


@dataclass(frozen=True, kw_only=True)
class FactSource(Source):
    """`count` documents of about `chars` characters: facts_range[0] to facts_range[1] facts, told
    and told again with up to gap_words words of the standard library's docstrings before each
    (problems/look_up_facts.py).

    gap_words: each document draws one of them. num_names: only the first so many names.
    """

    kind: InitVar[str] = "facts"
    count: int
    seed: int = 0
    facts_range: tuple[int, int]
    gap_words: tuple[int, ...]
    chars: int
    num_names: int | None = None

    def __post_init__(self, kind: str) -> None:
        super().__post_init__(kind)
        for field in ("count", "chars", "num_names"):
            self._check_at_least_one(field, getattr(self, field))

    def documents(self, part: Any, reading: Reading) -> Iterator[Document]:
        words = [word for text in read_stdlib_docstrings() for word in text.text.split()]
        drawn = (self.count, self.seed, self.facts_range, self.gap_words, self.chars, words)
        for row in generate_facts(*drawn, self.num_names):
            yield Document(id=row["id"], text=row["text"])

    def filters_for(self, document: Document) -> tuple[str, ...]:
        return self.filters or ()

    def near_dedup_for(self, document: Document) -> bool:
        return bool(self.near_dedup)


def _exchange(row: Mapping[str, str], **fields: str) -> Document:
    """A generated prompt and its response as a conversation."""
    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    return conversation(row["id"], turns, **fields)
