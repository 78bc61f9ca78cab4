"""Scores of held-out documents, each batch kept in a file, so that an interrupted stage scores none
of them twice, and ranks divide them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from pocketlm.data.shards import Shard
from pocketlm.model.tokenizer import Tokenizer

# of a source: few enough to list
MAX_FILES = 8192

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


class ScoreFiles:
    """The scores of some documents in `folder`: batches of like lengths, a group of them a file."""

    def __init__(
        self, folder: Path, documents: Documents, numbers: np.ndarray, batch_rows: int
    ) -> None:
        self.folder, self.documents, self.numbers = folder, documents, numbers
        order = np.argsort(documents.lengths(numbers), kind="stable")
        batches = [order[i : i + batch_rows] for i in range(0, len(order), batch_rows)]
        size = max(1, -(-len(batches) // MAX_FILES))
        self.groups = [batches[i : i + size] for i in range(0, len(batches), size)]

    def write(self, scorer: Scorer, part: slice, label: str, *, show: bool) -> None:
        """The groups of this part scored, but for those that are there. show: a progress bar."""
        self.folder.mkdir(parents=True, exist_ok=True)
        groups = range(len(self.groups))[part]
        for group in track(groups, label, console=Console(stderr=True), disable=not show):
            file = self._file(group)
            if file.is_file():
                continue
            results = [
                scorer(self.documents.texts(self.numbers[batch])) for batch in self.groups[group]
            ]
            scores, cut = (np.concatenate(column) for column in zip(*results, strict=True))
            partial = file.with_suffix(".partial.npy")
            np.save(partial, np.stack([scores, cut]).astype(np.float64), allow_pickle=False)
            partial.rename(file)

    def read(self) -> Scores:
        """The scores of the documents in the order of their numbers."""
        both = np.zeros((2, len(self.numbers)))
        for number, group in enumerate(self.groups):
            both[:, np.concatenate(group)] = np.load(self._file(number), allow_pickle=False)
        return both[0], both[1] > 0

    def _file(self, group: int) -> Path:
        return self.folder / f"{group}.npy"
