"""What one forward and backward pass reads: data makes batches, train uses them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

IGNORE_INDEX = -100  # a label that counts for nothing, as in torch and transformers


@dataclass(frozen=True)
class Span:
    """Which document a part of a row is: tokens start..stop of row `row` are those from `offset`
    on of document `key`.
    """

    row: int
    start: int
    stop: int
    key: bytes
    offset: int


def document_key(ids: Sequence[int] | np.ndarray) -> bytes:
    """16 bytes that stand for a sequence of token ids, however it is stored, packed or cut into
    rows.
    """
    return hashlib.blake2b(np.asarray(ids, dtype="<u4").tobytes(), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens and what to predict after each.

    input_ids [B, T]; labels [B, T]: the next token, already shifted, or IGNORE_INDEX; positions [B,
    T] or None for 0..T-1; doc_ids [B, T] or None when a row attends to all of itself. weights:
    float32 [B, T], what the loss of each label counts, or None for 1. rows: (source, number in it)
    of each row, for messages. spans: where the tokens come from, if batches were made with them;
    padding is in none.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor | None = None
    doc_ids: Tensor | None = None
    weights: Tensor | None = None
    rows: tuple[tuple[str, int], ...] = ()
    spans: tuple[Span, ...] | None = None

    @property
    def num_labels(self) -> int:
        """How many labels count."""
        return int((self.labels != IGNORE_INDEX).sum())
