"""Spearman's rank correlation: whether two figures order the same things alike."""

from collections.abc import Sequence

import numpy as np


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The correlation of the ranks, ties at the mean of their places; None where one is constant or
    there are fewer than two values.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    one, other = ranked(first), ranked(second)
    if len(first) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def ranked(values: Sequence[float]) -> np.ndarray:
    """The rank of each value from 0, equal ones at the mean of their places."""
    array = np.asarray(values, dtype=np.float64)
    below = (array[:, None] > array[None, :]).sum(1)
    equal = (array[:, None] == array[None, :]).sum(1)
    return below + (equal - 1) / 2
