"""Scores of the samples of a source, in files: ranks divide them, and an interrupted stage scores
none of them twice.

Shapes: N samples, n samples of a batch, K scores of a sample
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

# of a source: few enough to list, and each soon written
MAX_FILES = 8192

Score = Callable[[np.ndarray], np.ndarray]  # the places of n samples -> float64 [n, K]


def like_lengths(lengths: np.ndarray, rows: int) -> list[np.ndarray]:
    """The places of samples of these lengths in batches of `rows`, the shortest first: such a batch
    is padded little.
    """
    order = np.argsort(lengths, kind="stable")
    return [order[first : first + rows] for first in range(0, len(order), rows)]


class ScoreFiles:
    """The scores of samples of these lengths [N] in `folder`: a group of batches has a file. The
    batches, and so the scores, do not depend on the number of ranks.
    """

    def __init__(self, folder: Path, lengths: np.ndarray, batch_rows: int) -> None:
        self.folder, self.num_samples = folder, len(lengths)
        batches = like_lengths(lengths, batch_rows)
        size = max(1, -(-len(batches) // MAX_FILES))
        self.groups = [batches[first : first + size] for first in range(0, len(batches), size)]

    def write(self, score: Score, part: slice, label: str, *, show: bool) -> None:
        """The groups of this part scored, but for those that are there. show: a progress bar."""
        self.folder.mkdir(parents=True, exist_ok=True)
        groups = range(len(self.groups))[part]
        for group in track(groups, label, console=Console(stderr=True), disable=not show):
            file = self._file(group)
            if file.is_file():
                continue
            scores = np.concatenate([score(places) for places in self.groups[group]])
            partial = file.with_suffix(".partial.npy")
            np.save(partial, scores, allow_pickle=False)
            partial.rename(file)

    def read(self, num_scores: int) -> np.ndarray:
        """All scores, float64 [N, K], once all groups are written."""
        scores = np.zeros((self.num_samples, num_scores))
        for number, group in enumerate(self.groups):
            scores[np.concatenate(group)] = np.load(self._file(number), allow_pickle=False)
        return scores

    def _file(self, group: int) -> Path:
        return self.folder / f"{group}.npy"
