"""What one forward and backward pass reads: data makes batches, train uses them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from pocketlm.model.attention import find_documents
from pocketlm.model.kernels.kernel import Documents

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

    units: what the loop divides the loss by counts this much of the batch; None: its labels, so the
    loss is a mean over tokens. Preferences count pairs, rewarded answers may count answers.

    label_places: int64 [N], where labels that count lie in the rows laid end to end. documents: of
    doc_ids. Both follow from the rest, and are there once `laid_out` made them.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor | None = None
    doc_ids: Tensor | None = None
    weights: Tensor | None = None
    rows: tuple[tuple[str, int], ...] = ()
    spans: tuple[Span, ...] | None = None
    units: float | None = None
    label_places: Tensor | None = None
    documents: Documents | None = None

    @property
    def num_labels(self) -> int:
        """How many labels count."""
        if self.label_places is not None:
            return len(self.label_places)
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def divisor(self) -> float:
        """What the batch adds to the number by which the loop divides the loss."""
        return self.num_labels if self.units is None else self.units


def laid_out(batch: Batch) -> Batch:
    """The batch with label_places and documents: what only its values tell, so that a GPU to which
    it goes next need not be waited for.
    """
    if batch.label_places is not None:
        return batch
    places = (batch.labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
    if batch.doc_ids is None:
        return replace(batch, label_places=places)
    positions = batch.positions
    if positions is None:
        positions = torch.arange(batch.doc_ids.shape[1], device=batch.doc_ids.device)
        positions = positions.expand(batch.doc_ids.shape)
    return replace(batch, label_places=places, documents=find_documents(positions, batch.doc_ids))


def moved(batch: Batch, move: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with each of its tensors as `move` gives it back."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: move(x) for name, x in values.items() if isinstance(x, Tensor)}
    documents = batch.documents and Documents(*map(move, batch.documents))
    return replace(batch, **tensors, documents=documents)
