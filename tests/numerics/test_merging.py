"""Merging: weighted sums of state dicts, and the grid of weights that is searched."""

from dataclasses import replace
from math import comb

import pytest
import torch
from shapes import small

from pocketlm.model.batch import Batch
from pocketlm.model.merging import average, check_mergeable, descend, weight_grid
from pocketlm.model.transformer import Transformer
from pocketlm.stages.merge import domain_losses, mean_shares

CONFIG = small()


@pytest.mark.parametrize(
    "weights",
    [
        (0.5, 0.5),
        (1.0, 0.0),
        (0.1, 0.9),
        (0.3, 0.7),
        (1 / 3, 1 / 3, 1 / 3),
        (0.1,) * 10,
        (0.2, 0.3, 0.1, 0.4),
    ],
)
def test_merging_a_model_with_itself_gives_the_same_bits(weights):
    state = Transformer(CONFIG).state_dict()
    merged = average([state] * len(weights), weights)
    assert list(merged) == list(state)
    for name, tensor in merged.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.view(torch.int32), state[name].view(torch.int32)), name


def test_every_weight_of_the_search_keeps_a_model_merged_with_itself():
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(
        -20, 5
    ).repeat(40)
    for weights in weight_grid(3, 10):
        assert torch.equal(average([{"w": weight}] * 3, weights)["w"], weight)


def test_the_average_of_two_is_the_one_worked_out_by_hand():
    first, second = (
        {"w": torch.tensor([[1.0, 2.0], [-3.0, 0.5]])},
        {"w": torch.tensor([[3.0, -2.0], [1.0, 0.0]])},
    )
    assert average([first, second], (0.5, 0.5))["w"].tolist() == [[2.0, 0.0], [-1.0, 0.25]]
    assert average([first, second], (0.25, 0.75))["w"].tolist() == [[2.5, -1.0], [0.0, 0.125]]


def test_a_merge_of_networks_is_the_sum_in_float64_rounded_once():
    states = [Transformer(CONFIG, seed=seed).state_dict() for seed in range(3)]
    merged = average(states, (0.2, 0.5, 0.3))
    for name, tensor in merged.items():
        expected = (
            0.2 * states[0][name].double()
            + 0.5 * states[1][name].double()
            + 0.3 * states[2][name].double()
        )
        assert torch.equal(tensor, expected.float())
    Transformer(CONFIG).load_state_dict(merged)


def test_all_weight_on_one_branch_is_that_branch():
    states = [Transformer(CONFIG, seed=seed).state_dict() for seed in range(2)]
    for name, tensor in average(states, (0.0, 1.0)).items():
        assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize(("branches", "resolution"), [(2, 1), (2, 10), (3, 4), (4, 5), (5, 3)])
def test_the_grid_holds_every_split_of_the_parts_once_and_each_sums_to_1(branches, resolution):
    grid = weight_grid(branches, resolution)
    assert len(grid) == len(set(grid)) == comb(resolution + branches - 1, branches - 1)
    for weights in grid:
        assert len(weights) == branches and sum(weights) == pytest.approx(1) and min(weights) >= 0
        assert all(w * resolution == pytest.approx(round(w * resolution)) for w in weights)
    for one in range(branches):
        assert tuple(float(i == one) for i in range(branches)) in grid  # each specialist alone


def test_a_grid_too_large_to_search_is_refused():
    with pytest.raises(
        ValueError, match="6 branches at resolution 20 are 53130 merges to try; lower resolution"
    ):
        weight_grid(6, 20)


def test_only_branches_of_one_shape_are_merged():
    one, other = Transformer(CONFIG), Transformer(replace(CONFIG, intermediate_size=96))
    with pytest.raises(ValueError, match="at least two"):
        check_mergeable([one], ["maths"])
    with pytest.raises(
        ValueError, match=r"maths and code have different shapes \(intermediate_size 64 and 96\)"
    ):
        check_mergeable([one, other], ["maths", "code"])


def test_domain_weights_weigh_the_mean_and_must_be_known():
    ids = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(0))
    rows = [Batch(input_ids=ids[i : i + 1, :-1], labels=ids[i : i + 1, 1:]) for i in range(2)]
    losses = domain_losses(Transformer(CONFIG), {"code": [rows[0]], "maths": rows})
    assert losses.keys() == {"code", "maths"}
    alone = domain_losses(Transformer(CONFIG), {"code": [rows[0]], "maths": [rows[1]]})
    assert losses["maths"] == pytest.approx((alone["code"] + alone["maths"]) / 2)
    assert mean_shares(["code", "maths"], None) == {"code": 0.5, "maths": 0.5}
    assert mean_shares(["code", "maths"], {"code": 3.0}) == {"code": 1.0, "maths": 0.0}
    with pytest.raises(ValueError, match="domain_weights names poetry; the corpus has code, maths"):
        mean_shares(["code", "maths"], {"poetry": 1.0})


@pytest.mark.parametrize("branches", [2, 3, 6])
@pytest.mark.parametrize("place", ["inside", "corner"])
def test_the_descent_finds_the_lowest_point_of_a_bowl_on_the_simplex(branches, place):
    """Against the closed form: a quadratic whose lowest point is known."""
    lowest = torch.arange(1, branches + 1, dtype=torch.float64)
    lowest = lowest / lowest.sum() if place == "inside" else torch.eye(branches).double()[0]
    curvature = torch.diag(torch.linspace(1, 4, branches, dtype=torch.float64))

    def measure(weights: tuple[float, ...]) -> tuple[float, list[float]]:
        off = torch.tensor(weights, dtype=torch.float64) - lowest
        return float(off @ curvature @ off), (2 * curvature @ off).tolist()

    tried = descend(measure, branches, 30)
    assert len(tried) <= 30 and tried[0][0] == pytest.approx((1 / branches,) * branches)
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w, _ in tried)
    best, loss = min(tried, key=lambda point: point[1])
    assert best == pytest.approx(lowest.tolist(), abs=0.02) and loss <= 1e-3 * tried[0][1]


def test_the_descent_ends_where_all_branches_are_alike():
    assert descend(lambda weights: (1.0, [2.0, 2.0]), 2, 30) == [((0.5, 0.5), 1.0)]
