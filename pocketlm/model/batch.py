"""What one forward and backward pass reads: the word between data, which makes batches, and train, which uses them."""

from dataclasses import dataclass

from torch import Tensor

IGNORE_INDEX = -100  # a label that counts for nothing, as in torch and transformers


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens and what to predict after each.

    input_ids [B, T]; labels [B, T]: the next token, already shifted, or IGNORE_INDEX;
    positions [B, T] or None for 0..T-1; doc_ids [B, T] or None when a row attends to all of itself.
    rows: (source, number in it) of each row, for messages.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor | None = None
    doc_ids: Tensor | None = None
    rows: tuple[tuple[str, int], ...] = ()

    @property
    def num_labels(self) -> int:
        """How many labels count."""
        return int((self.labels != IGNORE_INDEX).sum())
