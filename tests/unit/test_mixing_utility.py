"""What each source is worth to each probe, and the shares that follow from it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.mixing.line_search import best_step, step_from, weighted_mean
from pocketlm.data.mixing.problem import FirstOrder, Milestone, MixProblem
from pocketlm.data.mixing.utility import (
    UtilityMix,
    mean_gradient,
    measure_utilities,
    utility_mix,
    weighed,
)
from pocketlm.data.mixture import cap_repetition
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.stages.find_mix import MixConfig
from pocketlm.stages.proxies import Proxies
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig

PRIOR = {"code": 0.2, "maths": 0.3, "web": 0.5}
UTILITY = {"code": 3.0, "maths": 1.0, "web": -1.0}
METHOD = UtilityMix(num_gradient_probes=20)
SMALL_STEPS = OptimConfig(
    lr=2e-3, num_steps=60, warmup_steps=4, final_lr_share=0.1, compute_dtype="float32", beta1=0.0
)
CONFIG = MixConfig(
    name="mix",
    methods={"found": METHOD},
    selected="found",
    proxy=small(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=1,
        max_position_embeddings=32,
        initializer_range=0.1,
    ),
    optim=SMALL_STEPS,
    seq_len=24,
    rows_per_step=8,
    micro_batch_size=8,
    budget_tokens=2000,
    max_epochs=4.0,
    seed=3,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("utility") / "corpus", documents=100)


def problem_of(
    simulate: Any = None, losses: Any = None, tokens: Mapping[str, int] | None = None
) -> MixProblem:
    return MixProblem(
        tokens=tokens or dict.fromkeys(PRIOR, 1000),
        capabilities={"logic": ("code", "maths"), "text": ("web",), "odd": ("web",)},
        budget_tokens=1000,
        max_epochs=4.0,
        where="mix.methods.found",
        simulate=simulate,
        losses=losses,
    )


# ---- utilities ----


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
    for ours, p in zip(gradient, reference.parameters(), strict=True):
        assert p.grad is not None and (ours - p.grad).abs().max() <= 1e-7
    assert all(p.grad is None for p in model.parameters())


def test_a_utility_is_what_a_small_step_on_that_source_lowers_the_probes_loss_by():
    """Beside the losses before and after a real small step, of a rule that scales each weight."""
    model = Transformer(small(num_hidden_layers=1, initializer_range=0.1)).double()
    batches = {}
    for seed, name in enumerate(("code", "web", "probe")):
        ids = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(seed))
        batches[name] = [Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])]
    shares, seen = {"code": 0.25, "web": 0.75}, []

    def linear_step(whole):
        seen.append(whole)
        return lambda part: [
            g * (1 + whole_g.abs()) for g, whole_g in zip(part, whole, strict=True)
        ]

    rate = 1e-4
    milestone = Milestone(
        model=model,
        lr=1.0,
        loss_fn=next_token_loss,
        source_rows={name: batches[name] for name in shares},
        probe_rows={"p": batches["probe"]},
        first_order=FirstOrder(
            rate=rate,
            linear_step=linear_step,
            weight_decay=[0.5] * len(list(model.parameters())),
            loss_rows={"p": batches["probe"]},
        ),
    )
    measured = measure_utilities(shares, milestone)

    def fall(moves: list[torch.Tensor]) -> float:
        moved = Transformer(model.config).double()
        moved.load_state_dict(model.state_dict())
        with torch.no_grad():
            for p, move in zip(moved.parameters(), moves, strict=True):
                p -= rate * move
            before, after = (next_token_loss(m, batches["probe"][0]) for m in (model, moved))
        return float(before - after) / 32

    (whole,) = seen
    gradients = {name: mean_gradient(model, batches[name], next_token_loss) for name in shares}
    for ours, code, web in zip(whole, gradients["code"], gradients["web"], strict=True):
        assert torch.allclose(ours, 0.25 * code + 0.75 * web)
    for name, gradient in gradients.items():
        moves = [g * (1 + w.abs()) for g, w in zip(gradient, whole, strict=True)]
        assert measured["gains"]["p"][name] == pytest.approx(fall(moves), rel=1e-3)
    decay = [0.5 * p.detach() for p in model.parameters()]
    assert measured["decay"]["p"]["all"] == pytest.approx(fall(decay), rel=1e-2)
    loss = float(next_token_loss(model, batches["probe"][0]).detach()) / 32
    assert measured["losses"] == {"p": [pytest.approx(loss)]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"beta1": 0.9, "weight_decay": 1.0, "num_steps": 120, "lr": 1e-3},
        {"optimizer": "muon", "num_steps": 120, "lr": 1.5e-3},
        {"grad_clip": 0.2},
    ],
    ids=["no momentum", "momentum and decay", "muon", "clipped"],
)
def test_share_times_utility_sums_to_the_fall_of_each_probes_loss(change, corpus, tmp_path):
    """Within 20 %, over a run of small steps; measured: 0.89 to 1.12 (docs/numerics.md)."""
    config = replace(CONFIG, optim=replace(SMALL_STEPS, **change))
    proxies = Proxies(config, tmp_path, corpus)
    problem = MixProblem(
        tokens=proxies.tokens,
        capabilities=proxies.capabilities,
        budget_tokens=2000,
        max_epochs=4.0,
        where="mix.methods.found",
        simulate=partial(proxies.simulate, proxies.simulated_names("found")),
        losses=lambda mixes: {name: {"code": 1.0} for name in mixes},
    )
    details = utility_mix(METHOD, problem).details
    total = sum(proxies.tokens.values())
    for probe, fall in details["falls"].items():
        by_source = details["utility_by_probe"][probe]
        summed = sum(proxies.tokens[s] / total * u for s, u in by_source.items())
        assert fall["predicted"] == pytest.approx(summed + fall["weight_decay"])
        assert fall["measured"] > 5 * fall["noise"] > 0
        assert fall["predicted"] == pytest.approx(fall["measured"], rel=0.2), probe
        # every source's text is of its own words
        assert (
            max(by_source, key=by_source.__getitem__) == {v: k for k, v in DOMAINS.items()}[probe]
        )


# ---- from utilities to shares ----


def test_each_probe_counts_by_its_weight_however_far_its_loss_fell():
    by_probe = {"easy": {"a": 4.0, "b": 0.0}, "hard": {"a": 0.0, "b": 0.02}}
    utility = weighed(by_probe, {"easy": 2.0, "hard": 0.01}, {"easy": 1.0, "hard": 3.0})
    assert utility == pytest.approx({"a": 0.25 * 2, "b": 0.75 * 2})
    # a probe that was not learnt is left out, and the rest have its weight
    assert weighed(by_probe, {"hard": 0.01}, {"easy": 1.0, "hard": 3.0})["b"] == pytest.approx(2)
    assert set(weighed(by_probe, {}, {"easy": 1.0}).values()) == {0.0}


@pytest.mark.parametrize("max_epochs", [4.0, 1.1])
def test_a_step_solves_the_trade_of_utility_against_the_prior_within_the_caps(max_epochs):
    """It beats 20,000 other mixes within them at size x <p, u> - KL(p || prior)."""
    tokens = {"code": 300, "maths": 400, "web": 400}
    step = cap_repetition(step_from(PRIOR, UTILITY, 0.7), tokens, 1000, max_epochs)
    limits = torch.tensor([max_epochs * n / 1000 for n in tokens.values()], dtype=torch.float64)
    values, prior = (
        torch.tensor(list(table.values()), dtype=torch.float64) for table in (UTILITY, PRIOR)
    )

    def worth(p: torch.Tensor) -> torch.Tensor:
        return 0.7 * (p @ values) - (p * (p / prior).log()).sum(-1)

    ours = torch.tensor(list(step.values()), dtype=torch.float64)
    torch.manual_seed(0)
    near = torch.distributions.Dirichlet(ours * 200).sample((10_000,))
    far = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((10_000,))
    others = torch.cat([near, far])
    others = others[(others <= limits).all(-1)]
    assert len(others) > 100 and (ours <= limits + 1e-9).all()
    assert worth(ours) >= worth(others).max() - 1e-9
    assert sum(step.values()) == pytest.approx(1)
    assert max_epochs > 2 or step["code"] == pytest.approx(0.33)  # at its cap


def test_equal_utilities_or_no_step_keep_the_prior_and_a_long_step_does_not_overflow():
    assert step_from(PRIOR, dict.fromkeys(PRIOR, 0.1), 5.0) == pytest.approx(PRIOR)
    assert step_from(PRIOR, UTILITY, 0.0) == pytest.approx(PRIOR)
    assert step_from(PRIOR, UTILITY, 1e5) == pytest.approx({"code": 1.0, "maths": 0.0, "web": 0.0})


@pytest.mark.parametrize(("optimum", "chosen"), [(0.27, 0.0), (0.5, 0.5), (0.9, 2.0)])
def test_the_step_that_held_out_losses_choose_is_taken_the_prior_among_them(optimum, chosen):
    def losses(mixes):
        return {
            name: {"logic": abs(shares["code"] - optimum), "text": 100 * shares["code"]}
            for name, shares in mixes.items()
        }

    prior = {"code": 0.25, "maths": 0.25, "web": 0.5}
    step = best_step(UTILITY, prior, (0.5, 2.0), {"logic": 1.0}, problem_of(losses=losses))
    assert step.size == chosen and list(step.tried) == ["0", "0.5", "2"]
    assert step.shares == pytest.approx(step_from(prior, UTILITY, chosen))
    best = min(tried["objective"] for tried in step.tried.values())
    assert step.tried[f"{chosen:g}"]["objective"] == best
    assert step.tried["0"]["bits_per_byte"]["text"] == pytest.approx(25) and not step.warnings
    other = best_step(UTILITY, prior, (0.5,), {"poems": 1.0}, problem_of(losses=losses))
    assert other.size == 0.0  # by the plain mean, in which "text" counts most
    (line,) = other.warnings
    assert line.endswith("measures logic, text; the weight of poems counts in utility alone")


def test_a_mean_of_losses_is_weighed_by_domain_and_plain_where_no_weight_names_one():
    bits = {"code": 1.0, "maths": 3.0}
    assert weighted_mean(bits, {"code": 3.0, "maths": 1.0, "poems": 5.0}) == pytest.approx(1.5)
    assert weighted_mean(bits, {"poems": 5.0}) == pytest.approx(2.0)


def test_a_proxy_that_learns_nothing_is_named_and_the_prior_stays():
    """Its losses do not fall by more than the noise of their batches."""
    table = {
        "logic": dict.fromkeys(PRIOR, 0.5),
        "text": {"code": 9.0, "maths": 0.0, "web": 0.0},
        "odd": {"code": 1.0, "maths": 0.0, "web": -2.0},
    }
    still = {"logic": [2.0, 2.1, 1.9, 2.0], "text": [3.0, 3.3, 3.6, 3.0], "odd": [3.0, 3.1]}
    end = {"logic": [1.0, 1.1, 0.9, 1.0], "text": [3.2, 3.0, 3.4, 3.1], "odd": [2.0, 2.1]}

    def simulate(shares, count, measure, *, first_order=False):
        assert first_order and shares == dict.fromkeys(PRIOR, 1 / 3)
        decay = {probe: {"all": 0.0} for probe in table}
        return [{"gains": table, "decay": decay, "losses": losses} for losses in (still, end)]

    def losses(mixes):
        raise AssertionError("nothing is to be tried")

    mix = utility_mix(METHOD, problem_of(simulate, losses))
    assert mix.shares == pytest.approx(dict.fromkeys(PRIOR, 1 / 3))
    # of "logic" alone: two milestones of 0.5 nats, in parts of the mix's own 1
    assert mix.details["utility"] == pytest.approx(dict.fromkeys(PRIOR, 1.0))
    assert mix.details["falls"]["text"]["measured"] == pytest.approx(0.05)
    first, overshot, second = mix.warnings
    assert "'odd' fell by 1 nats" in overshot and "predict -0.667: it is left out" in overshot
    assert first.startswith("mix.methods.found: the loss on probe 'text' fell by 0.05 nats")
    assert "too small or trains too briefly" in first
    assert (
        second
        == "mix.methods.found: every step leaves the prior's shares as they are; it keeps them"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": "size"}, "prior 'size' is unknown; known: uniform, proportional"),
        ({"step_sizes": ()}, r"step_sizes \(\) must be positive, and at least one"),
        ({"step_sizes": (1.0, 0.0)}, r"step_sizes \(1.0, 0.0\) must be positive"),
        ({"step_sizes": (1.0, 1.0)}, "names one size twice"),
        ({"num_gradient_probes": 0}, "num_gradient_probes 0 must be at least 1"),
        (
            {"probe_weights": {"code": -1.0, "maths": 2.0}},
            "must not be negative, nor all of them 0",
        ),
        ({"probe_weights": {"code": 0.0}}, "must not be negative, nor all of them 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UtilityMix(**{"num_gradient_probes": 2, **change})
