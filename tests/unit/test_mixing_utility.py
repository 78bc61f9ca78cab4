"""What each source is worth to each probe, and the shares that follow from it."""

import math

import pytest
import torch
import torch.nn.functional as F
from shapes import small

from pocketlm.data.mixing.utility import (
    UtilityMix,
    mean_gradient,
    second_moment,
    shares_from_utility,
    utilities,
)
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.losses import next_token_loss

PRIOR = {"code": 0.2, "maths": 0.3, "web": 0.5}
UTILITY = {"code": 3.0, "maths": 1.0, "web": -1.0}


def drawn(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_mean_gradient_is_that_of_the_mean_loss_over_all_parameters():
    config = small(num_hidden_layers=1)
    model, reference = Transformer(config), Transformer(config)
    ids = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 1:].clone()
    labels[0, 5:] = IGNORE_INDEX
    rows = [Batch(input_ids=ids[i : i + 1, :-1], labels=labels[i : i + 1]) for i in range(3)]
    gradient = mean_gradient(model, rows, next_token_loss)
    F.cross_entropy(
        reference(ids[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
    ).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert gradient.shape == (sum(p.numel() for p in model.parameters()),)
    assert (gradient - expected).abs().max() <= 1e-7
    assert all(p.grad is None for p in model.parameters())


def test_the_second_moment_is_the_root_mean_square():
    moment = second_moment([torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0])])
    assert moment.tolist() == pytest.approx([math.sqrt(12.5), 1e-8])


def test_a_utility_is_the_cosine_of_preconditioned_gradients_times_lr():
    sources = {"code": drawn(100, 1) * 9, "web": drawn(100, 2) * 0.1}
    probes = {"a": drawn(100, 3), "b": drawn(100, 4)}
    utility = utilities(sources, probes, lr=0.5)
    every = torch.stack([*sources.values(), *probes.values()]).double()
    # Adam's denominator, half of it on each side of the inner product
    scale = every.square().mean(0).sqrt()
    for probe, towards in probes.items():
        for source, gradient in sources.items():
            x, y = gradient.double() / scale.sqrt(), towards.double() / scale.sqrt()
            assert utility[probe][source] == pytest.approx(
                0.5 * float(x @ y / x.norm() / y.norm()), rel=1e-4
            )


def test_a_source_with_the_probes_own_gradient_is_worth_most_and_its_opposite_least():
    probe = drawn(100, 1)
    sources = {"same": probe * 0.01, "other": drawn(100, 2) * 100, "opposite": -probe}
    utility = utilities(sources, {"probe": probe}, lr=1.0)["probe"]
    assert utility["same"] == pytest.approx(1, abs=1e-5) and utility["opposite"] == pytest.approx(
        -1, abs=1e-5
    )
    assert utility["opposite"] < utility["other"] < utility["same"]


def test_shares_solve_the_trade_of_utility_against_the_prior():
    """The closed form beats 2,000 random mixes at <p, u> - t KL(p || prior)."""
    values = torch.tensor(list(UTILITY.values()), dtype=torch.float64)
    z = (values - values.mean()) / values.std(correction=0)
    prior = torch.tensor(list(PRIOR.values()), dtype=torch.float64)

    def worth(p: torch.Tensor) -> torch.Tensor:
        return p @ z - 0.7 * (p * (p / prior).log()).sum(-1)

    shares = shares_from_utility(UTILITY, PRIOR, 0.7)
    best = worth(torch.tensor(list(shares.values()), dtype=torch.float64))
    others = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64))
    torch.manual_seed(0)
    assert best >= worth(others.sample((2000,))).max()
    assert sum(shares.values()) == pytest.approx(1)


def test_equal_utilities_keep_the_prior_and_so_does_a_high_temperature():
    assert shares_from_utility(dict.fromkeys(PRIOR, 0.1), PRIOR, 1.0) == pytest.approx(PRIOR)
    assert shares_from_utility(UTILITY, PRIOR, 1e6) == pytest.approx(PRIOR, abs=1e-5)


def test_a_low_temperature_gives_all_to_the_best_source_without_overflow():
    shares = shares_from_utility(UTILITY, PRIOR, 1e-4)
    assert shares == pytest.approx({"code": 1.0, "maths": 0.0, "web": 0.0})


def test_the_unit_and_the_offset_of_utility_do_not_matter():
    shares = shares_from_utility({name: 1e-9 * u + 5e-9 for name, u in UTILITY.items()}, PRIOR, 1.0)
    assert shares == pytest.approx(shares_from_utility(UTILITY, PRIOR, 1.0))
    assert shares["code"] > PRIOR["code"] and shares["web"] < PRIOR["web"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": "size"}, "prior 'size' is unknown; known: uniform, proportional"),
        ({"temperature": 0.0}, "temperature 0.0 must be positive"),
        ({"num_gradient_probes": 0}, "num_gradient_probes 0 must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UtilityMix(**{"num_gradient_probes": 2, "temperature": 1.0, **change})
