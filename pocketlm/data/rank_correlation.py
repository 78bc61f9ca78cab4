"""Spearman's rank correlation: whether two figures order the same things alike."""

from collections.abc import Sequence

import numpy as np

Values = Sequence[float] | np.ndarray


def spearman(first: Values, second: Values) -> float | None:
    """The correlation of the ranks, ties at the mean of their places; None where one is constant or
    there are fewer than two values.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    one, other = ranked(first), ranked(second)
    if len(first) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def ranked(values: Values) -> np.ndarray:
    """The rank of each value from 0, equal ones at the mean of their places."""
    _, places, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    return (np.cumsum(counts) - (counts + 1) / 2)[places]
