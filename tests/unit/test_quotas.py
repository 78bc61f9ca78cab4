"""How many rows of each source a block has: exact shares in the long run, and any block without
those before it.
"""

import numpy as np
import pytest

from pocketlm.data.batches import BLOCK, block_quotas, block_totals, draw_source


@pytest.mark.parametrize(
    "shares", [[0.5, 0.3, 0.2], [1.0], [1 / 3] * 3, [0.9, 0.07, 0.02, 0.01], [1.0] * 7]
)
def test_rows_are_drawn_as_the_quotas_say_and_numbered_without_counting(shares):
    seen = [0] * len(shares)
    for block in range(3):
        quotas = block_quotas(shares, block)
        assert sum(quotas) == BLOCK
        before = list(seen)
        for number in range(block * BLOCK, (block + 1) * BLOCK):
            which, count = draw_source(number, tuple(shares), seed=1)
            assert count == seen[which]
            seen[which] += 1
        assert [now - then for now, then in zip(seen, before, strict=True)] == quotas


MIXES = {
    "halves": [0.5, 0.5],
    "thirds": [1 / 3] * 3,
    "below one row in a block": [0.6, 0.39997, 2.1e-5, 9e-6],
    "one row in a billion": [0.5, 0.5 - 1e-9, 1e-9],
    "many rare ones": [0.7, 0.299, *[0.001 / 40] * 40],
}


@pytest.mark.parametrize("shares", MIXES.values(), ids=MIXES)
def test_however_long_a_training_every_source_has_had_its_share_to_the_row(shares):
    exact = np.asarray(shares) / sum(shares)
    rare = exact * BLOCK < 1
    for blocks in [*range(60), 1000, 250_000, 10**7]:
        totals, following = block_totals(shares, blocks), block_totals(shares, blocks + 1)
        assert totals.sum() == blocks * BLOCK and (following >= totals).all()
        off = np.abs(totals - exact * blocks * BLOCK)
        assert (off[rare] < 1 + 1e-6).all()
        # what rare ones round together, the largest evens out
        assert off[~rare].max() < 1 + 1e-6 + 0.5 * rare.sum()
        if rare.sum() < 3:
            assert (off < 1 + 1e-5).all()


@pytest.mark.parametrize("share", [1e-6, 3.3e-6, 2.1e-5, 1e-4])
def test_a_share_of_a_millionth_is_met_to_a_hundredth_over_half_a_million_steps(share):
    """Of R1's 2,048 rows: beside twenty sources of usual shares, and counted by the very rows."""
    shares = [share, *[(1 - share) / 20] * 20]
    blocks = 500_000 * 2048 // BLOCK
    drawn = int(block_totals(shares, blocks)[0])
    assert drawn == pytest.approx(500_000 * 2048 * share, rel=0.01)
    last = [draw_source(blocks * BLOCK - 1 - row, tuple(shares), seed=1) for row in range(BLOCK)]
    assert all(count < drawn for which, count in last if which == 0)


def test_a_source_of_less_than_one_row_in_a_block_is_read_once_in_so_many_blocks():
    shares = (1 - 2.1e-5, 2.1e-5)
    quotas = [block_quotas(shares, block)[1] for block in range(200)]
    assert set(quotas) == {0, 1} and sum(quotas) == round(200 * BLOCK * 2.1e-5) == 17


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.2], [0.9, 0.0995, 0.0005], [1 / 7] * 7])
def test_the_first_block_is_the_largest_remainder_of_its_rows(shares):
    """So the rows that a training of up to BLOCK rows drew before the quotas went over blocks stay
    the same.
    """
    exact = np.asarray(shares) / sum(shares) * BLOCK
    expected = np.floor(exact).astype(int)
    for which in np.argsort(expected - exact, kind="stable")[: BLOCK - expected.sum()]:
        expected[which] += 1
    assert block_quotas(shares) == expected.tolist()


def test_more_rare_sources_than_the_quotas_can_even_out_are_refused():
    # every share is below one row: rounding moves thousands of rows at once
    shares = [1.0] * 200 + [0.9] * 9000
    with pytest.raises(
        ValueError, match="9200 sources are too many, with shares below one row in 4096"
    ):
        [block_quotas(shares, block) for block in range(4)]


def test_the_order_of_sources_differs_from_block_to_block():
    blocks = [
        [draw_source(b * BLOCK + i, (0.5, 0.5), seed=1)[0] for i in range(BLOCK)] for b in range(2)
    ]
    assert blocks[0] != blocks[1]
