"""Shares of sources: checked at the door, and kept from repeating a small source too often."""

import numpy as np
import pytest

from pocketlm.data.mixture import cap_repetition, check_shares, proportional_shares, uniform_shares

KNOWN = ["code", "maths", "web"]


def test_good_shares_come_back_summing_to_1():
    assert check_shares({"code": 0.25, "web": 0.75}, KNOWN, "mix") == {"code": 0.25, "web": 0.75}
    # rounded in a config
    shares = check_shares({"code": 0.3334, "maths": 0.3334, "web": 0.3334}, KNOWN, "mix")
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            {"code": 0.5, "wab": 0.25, "poetry": 0.25},
            "mix: shares name unknown sources poetry, wab; known: code, maths",
        ),
        ({"code": 1.5, "web": -0.5}, "mix: shares must not be negative: web -0.5"),
        ({"code": float("nan"), "web": 1.0}, "mix: shares must not be negative: code nan"),
        ({"code": 0.5, "web": 0.4}, "mix: shares sum to 0.9000, not to 1"),
        ({"code": float("inf")}, "mix: shares sum to inf"),
        ({}, "mix: shares sum to 0.0000"),
    ],
)
def test_bad_shares_are_refused_with_the_names(shares, message):
    with pytest.raises(ValueError, match=message):
        check_shares(shares, KNOWN, "mix")


def test_the_two_plain_mixes():
    tokens = {"code": 100, "maths": 300, "web": 600}
    assert uniform_shares(tokens) == pytest.approx(dict.fromkeys(tokens, 1 / 3))
    assert proportional_shares(tokens) == pytest.approx({"code": 0.1, "maths": 0.3, "web": 0.6})


def drawn_mix(seed: int) -> tuple[dict[str, float], dict[str, int], int, float]:
    """Shares (some 0), source sizes over four decades, and a budget that the sources can just meet
    or meet easily.
    """
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 9))
    names = [f"s{i}" for i in range(count)]
    tokens = {name: int(10 ** draw.uniform(1, 5)) for name in names}
    weights = draw.exponential(size=count) * (draw.random(count) < 0.7)
    weights[int(draw.integers(count))] += 0.1
    shares = dict(zip(names, (weights / weights.sum()).tolist(), strict=True))
    epochs = float(draw.choice([1, 2, 4, 7.5]))
    most = epochs * sum(tokens.values())
    budget = max(1, int(most * draw.choice([1.0, 0.999, 0.7, 0.3, 0.01])))
    return shares, tokens, budget, epochs


def test_a_capped_mix_keeps_its_promises():
    for seed in range(400):
        check_promises(*drawn_mix(seed))


def check_promises(
    shares: dict[str, float], tokens: dict[str, int], budget: int, epochs: float
) -> None:
    capped = cap_repetition(shares, tokens, budget, epochs)
    assert list(capped) == list(shares)
    assert sum(capped.values()) == pytest.approx(1, abs=1e-9)
    limits = {name: epochs * tokens[name] / budget for name in shares}
    assert all(0 <= capped[name] <= limits[name] * (1 + 1e-9) for name in shares)
    free = [
        name for name in shares if shares[name] > 0 and capped[name] < limits[name] * (1 - 1e-9)
    ]
    ratios = [capped[name] / shares[name] for name in free]
    # uncapped sources keep their proportions
    assert all(ratio == pytest.approx(ratios[0]) for ratio in ratios)
    if ratios:
        assert ratios[0] >= 1 - 1e-9  # nobody uncapped gives anything up
        assert all(capped[name] == 0 for name in shares if shares[name] == 0)
        full = [name for name in shares if shares[name] > 0 and name not in free]
        assert all(limits[name] / shares[name] <= ratios[0] * (1 + 1e-9) for name in full)
    again = cap_repetition(capped, tokens, budget, epochs)
    assert again == pytest.approx(capped, abs=1e-9)


def test_shares_within_their_limits_stay_as_they_are():
    shares = {"code": 0.3, "web": 0.7}
    assert cap_repetition(shares, {"code": 1000, "web": 1000}, 1000, 1.0) == pytest.approx(shares)


def test_what_is_cut_goes_to_the_others_by_their_shares():
    shares = cap_repetition(
        {"a": 0.8, "b": 0.15, "c": 0.05}, {"a": 40, "b": 100, "c": 100}, 100, 1.0
    )
    assert shares == pytest.approx({"a": 0.4, "b": 0.45, "c": 0.15})


def test_a_budget_that_fits_to_the_last_token_is_met():
    """Ten tenths sum to a little less than 1 in floating point."""
    tokens = {f"s{i}": 100 for i in range(10)}
    assert cap_repetition(uniform_shares(tokens), tokens, 3000, 3.0) == pytest.approx(
        dict.fromkeys(tokens, 0.1)
    )
    uneven = {name: 100 + 7 * i for i, name in enumerate(tokens)}
    steep = {name: 2.0**-i / (2 - 2.0**-9) for i, name in enumerate(tokens)}
    shares = cap_repetition(steep, uneven, sum(uneven.values()), 1.0)
    assert shares == pytest.approx(proportional_shares(uneven))


def test_a_source_without_a_share_fills_in_only_when_all_others_are_full():
    tokens = {"a": 10, "b": 10, "c": 100}
    assert cap_repetition({"a": 0.5, "b": 0.5, "c": 0.0}, tokens, 20, 1.0)["c"] == 0
    shares = cap_repetition({"a": 0.5, "b": 0.5, "c": 0.0}, tokens, 40, 1.0)
    assert shares == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def test_a_budget_beyond_all_sources_says_what_to_change():
    with pytest.raises(
        ValueError, match=r"1000 tokens ask for more than 4 passes .* \(200 tokens\); add text"
    ):
        cap_repetition({"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}, 1000, 4)
