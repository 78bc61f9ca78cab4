"""Spearman's correlation against scipy's."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pocketlm.data.rank_correlation import ranked, spearman


@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_is_scipys_with_ties_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, 12).tolist(), rng.normal(size=12).tolist()
    expected, _ = spearmanr(first, second)
    assert spearman(first, second) == pytest.approx(expected)
    assert spearman(second, [-(value**3) for value in second]) == pytest.approx(-1)


def test_equal_values_share_the_mean_of_their_places() -> None:
    assert ranked([5.0, 1.0, 5.0, 9.0]).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_what_cannot_be_ranked_has_no_correlation() -> None:
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spearman([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        spearman([1.0, 2.0, 3.0], [1.0, 2.0])
