"""Held-out documents of a source, and what a function must be that scores them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.data.shards import Shard
from pocketlm.model.tokenizer import Tokenizer

Scores = tuple[np.ndarray, np.ndarray]  # float64 [N], and bool [N]: whether a text was cut
Scorer = Callable[[Sequence[str]], Scores]


@dataclass(frozen=True)
class Documents:
    """The held-out documents of one source, by number."""

    source: str
    shard: Shard
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.shard)

    def texts(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        start = len(self.tokenizer.document_start)
        return [
            self.tokenizer.decode(self.shard.document(int(n))[start:].tolist()) for n in numbers
        ]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.asarray(self.shard.offsets)[numbers + 1] - np.asarray(self.shard.offsets)[numbers]
