"""One source made clean: filtered, cut, kept from repeating itself, other sources and the
evaluations.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pocketlm.corpus.decontaminate import EvaluationIndex
from pocketlm.corpus.dedup import DuplicateIndex, content_hash
from pocketlm.corpus.documents import (
    SPLITS,
    Document,
    LowestPlaces,
    SplitRule,
    cut,
    document_json,
    read_documents_file,
)
from pocketlm.corpus.filters import Thresholds, make_filter
from pocketlm.corpus.reading import Reading, unread_words
from pocketlm.corpus.sources import LocalSource, Source, read_source

EXAMPLES = 3  # kept of each filter
EXAMPLE_CHARS = 200


@dataclass(kw_only=True)
class Report:
    """What one source gave so far: every document read is kept, or counted under what dropped it.

    shortened: documents that a filter cut something out of, and the bytes it cut. capped: max_bytes
    was reached, so the source was not read to its end.
    """

    read: dict[str, int] = field(default_factory=lambda: {"documents": 0, "bytes": 0})
    kept: dict[str, int] = field(default_factory=lambda: {"documents": 0, "bytes": 0})
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    shortened: dict[str, int] = field(default_factory=lambda: {"documents": 0, "bytes": 0})
    reading: Reading = field(default_factory=Reading)
    capped: bool = False

    def drop(self, name: str, text: str) -> None:
        self.read["documents"] += 1
        self.dropped[name] = self.dropped.get(name, 0) + 1
        examples = self.examples.setdefault(name, [])
        if len(examples) < EXAMPLES:
            examples.append(" ".join(text[: 4 * EXAMPLE_CHARS].split())[:EXAMPLE_CHARS])

    def keep(self, size: int) -> None:
        self.read["documents"] += 1
        self.kept["documents"] += 1
        self.kept["bytes"] += size


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """What every source is held against; `duplicates` grows with each text that is kept."""

    thresholds: Thresholds
    max_chars: int
    duplicates: DuplicateIndex
    evaluation: EvaluationIndex

    def clean(
        self, source: Source, report: Report, tell: Callable[[Report], None] = lambda report: None
    ) -> Iterator[Document]:
        """The documents of a source that are good, new, and in no evaluation, up to its max_bytes.

        ValueError where nothing was read, or nothing is left: it says which filter dropped how
        many.
        """
        filters = {}
        for document in read_source(source, report.reading):
            size_read = len(document.text.encode())
            report.read["bytes"] += size_read
            names = source.filters_for(document)
            if names not in filters:
                filters[names] = make_filter(names, self.thresholds)
            # a file is judged whole, for what marks it stands on top; its parts again, by length
            # alone
            pieces, dropped_by = self._filtered(document, filters[names], source.split_code)
            if dropped_by:
                report.drop(dropped_by, document.text)
            elif cut_out := size_read - sum(len(piece.text.encode()) for piece in pieces):
                report.shortened["documents"] += 1
                report.shortened["bytes"] += cut_out
            for piece in pieces:
                dropped_by, shown, signature = self._judge(piece, source, "length" in names)
                if dropped_by:
                    report.drop(dropped_by, shown)
                    continue
                size = len(piece.text.encode())
                if source.max_bytes is not None and report.kept["bytes"] + size > source.max_bytes:
                    report.capped = True
                    report.reading.end()
                    return _check_not_empty(source, report)
                report.keep(size)
                self.duplicates.add(piece.text, signature)
                yield piece
            tell(report)
        _check_not_empty(source, report)

    def remember(self, source: Source, documents: Iterator[Document]) -> None:
        """Put the documents of a source that was cleaned before among the known ones."""
        for document in documents:
            near = source.near_dedup_for(document)
            self.duplicates.add(
                document.text, self.duplicates.signature(document.text) if near else []
            )

    def _filtered(
        self, document: Document, keep: Callable[[str], tuple[str | None, str]], split_code: bool
    ) -> tuple[list[Document], str]:
        """(pieces of the filtered document, "") or ([], the filter that dropped it)."""
        text, dropped_by = keep(document.text)
        if text is None:
            return [], dropped_by
        if document.messages:  # its turns belong together: never shortened, never cut
            return ([document], "") if len(document.text) <= self.max_chars else ([], "length")
        origin = content_hash(document.text)
        extra = {"family": document.family, "answer": document.answer, "origin": origin}
        whole = Document(id=document.id, text=text, **extra)  # type: ignore[arg-type]
        return list(cut(whole, max_chars=self.max_chars, split_code=split_code)), ""

    def _judge(
        self, piece: Document, source: Source, check_length: bool
    ) -> tuple[str, str, list[bytes]]:
        """(what drops the piece or "", the text to show for it, its MinHash signature)."""
        if len(piece.text.strip()) < (self.thresholds.min_chars if check_length else 1):
            return "length", piece.text, []
        if self.duplicates.is_exact(piece.text):
            return "exact_duplicate", piece.text, []
        overlap = self.evaluation.match(piece.text, piece.prompts)
        if overlap is not None:
            return "contaminated", overlap, []
        signature = self.duplicates.signature(piece.text) if source.near_dedup_for(piece) else []
        if self.duplicates.is_near(signature):
            return "near_duplicate", piece.text, []
        return "", "", signature


def write_splits(
    documents: Iterator[Document], folder: Path, rule: SplitRule
) -> dict[str, dict[str, int]]:
    """{split: {"documents", "bytes"}} of what is now in <folder>/<split>.jsonl.

    Each document is written once, to its split; a split that got none is mended afterwards.
    """
    lowest, train_places = LowestPlaces(), array("d")
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(_lines_of(folder / f"{split}.jsonl", "w"))
            for split in SPLITS
        }
        for document in documents:
            place = rule.place(document)
            split = rule.split(place)
            lowest.add(split, place)
            if split == "train":
                train_places.append(place)
            files[split].write(document_json(document))
            _count(counts[split], document, 1)
    if moves := rule.moved(lowest.places):
        _move(folder, [moves.get(place, "train") for place in train_places], counts)
    return counts


def _move(folder: Path, splits: list[str], counts: dict[str, dict[str, int]]) -> None:
    """Put each document of train.jsonl in the file of its new split."""
    whole = (folder / "train.jsonl").rename(folder / "whole.jsonl")
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(_lines_of(folder / f"{split}.jsonl", "w"))
            for split in {"train", *splits}
        }
        for split, document in zip(splits, read_documents_file(whole), strict=True):
            files[split].write(document_json(document))
            _count(counts["train"], document, -1)
            _count(counts[split], document, 1)
    whole.unlink()


def _lines_of(path: Path, mode: str) -> IO[str]:
    return open(path, mode, encoding="utf-8", newline="\n")


def _count(counts: dict[str, int], document: Document, number: int) -> None:
    counts["documents"] += number
    counts["bytes"] += number * len(document.text.encode())


def _check_not_empty(source: Source, report: Report) -> None:
    where = f"{source.where} ({source.path})" if isinstance(source, LocalSource) else source.where
    if report.kept["documents"]:
        return
    if report.dropped:
        most = sorted(report.dropped.items(), key=lambda item: -item[1])
        reason = "dropped by " + ", ".join(f"{name} ({count})" for name, count in most)
        advice = "loosen these filters or their thresholds, or leave the source out"
    elif report.read["bytes"]:
        reason = f"the first is longer than max_bytes {source.max_bytes}"
        advice = "raise max_bytes, or set split_code for code"
    else:
        unread = (
            f" (files not read: {unread_words(report.reading.unread)})"
            if report.reading.unread
            else ""
        )
        raise ValueError(
            f"{where} is empty: nothing was read{unread}; check what it points at, or leave it out"
        )
    raise ValueError(f"{where}: no document is left: {reason}; {advice}")
