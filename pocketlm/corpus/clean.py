"""What of a document is good, whatever other documents say: filtered, cut, and in no evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pocketlm.corpus.decontaminate import EvaluationIndex
from pocketlm.corpus.dedup import content_hash
from pocketlm.corpus.documents import Document, cut
from pocketlm.corpus.filters import Thresholds, make_filter
from pocketlm.corpus.sources import Source

CONTAMINATED = "contaminated"


class Judged(NamedTuple):
    """One piece of a document, and what drops it: the name of a filter, or "" where nothing does.

    example: the text that shows why. cut_bytes: what filters cut out of the document, said once, at
    its first piece.
    """

    piece: Document
    dropped_by: str
    example: str
    cut_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """What every document is held against; duplicates are found afterwards (duplicates.py)."""

    thresholds: Thresholds
    max_chars: int
    evaluation: EvaluationIndex
    _filters: dict[tuple[str, ...], Callable[[str], tuple[str | None, str]]] = field(
        default_factory=dict
    )

    def judge(self, source: Source, document: Document) -> Iterator[Judged]:
        """The pieces of a document, or the document itself where a filter drops it whole."""
        if document.dropped_by:
            yield Judged(document, document.dropped_by, document.text, 0)
            return
        names = source.filters_for(document)
        if names not in self._filters:
            self._filters[names] = make_filter(names, self.thresholds)
        # a file is judged whole, for what marks it stands on top; its parts again, by length alone
        pieces, dropped_by = self._filtered(document, self._filters[names], source.split_code)
        if dropped_by:
            yield Judged(document, dropped_by, document.text, 0)
        cut_bytes = 0
        if pieces:
            cut_bytes = len(document.text.encode()) - sum(len(p.text.encode()) for p in pieces)
        for piece in pieces:
            dropped_by, example = self._piece_dropped_by(piece, "length" in names)
            yield Judged(piece, dropped_by, example, cut_bytes)
            cut_bytes = 0

    def _filtered(
        self, document: Document, keep: Callable[[str], tuple[str | None, str]], split_code: bool
    ) -> tuple[list[Document], str]:
        """(pieces of the filtered document, "") or ([], the filter that dropped it)."""
        text, dropped_by = keep(document.text)
        if text is None:
            return [], dropped_by
        if document.messages:  # its turns belong together: never shortened, never cut
            return ([document], "") if len(document.text) <= self.max_chars else ([], "length")
        whole = Document(
            id=document.id,
            text=text,
            family=document.family,
            answer=document.answer,
            origin=content_hash(document.text),
        )
        return list(cut(whole, max_chars=self.max_chars, split_code=split_code)), ""

    def _piece_dropped_by(self, piece: Document, check_length: bool) -> tuple[str, str]:
        """(what drops the piece or "", the text that shows why)."""
        if len(piece.text.strip()) < (self.thresholds.min_chars if check_length else 1):
            return "length", piece.text
        overlap = self.evaluation.match(piece.text, piece.prompts)
        return ("", "") if overlap is None else (CONTAMINATED, overlap)
