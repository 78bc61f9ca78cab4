"""A swarm of proxies and a law: what is drawn, what is refused, and what is proposed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pocketlm.data.mixing.problem import MixProblem
from pocketlm.data.mixing.swarm import SwarmMix, swarm_mix
from pocketlm.data.mixture import Shares

TOKENS = {"code": 30_000, "maths": 20_000, "web": 100_000}
SWARM = SwarmMix(num_runs=16, kl=0.001)
EXPONENTS = {  # of the true law of each domain
    "code": {"code": -1.5, "maths": -0.5, "web": 0.5},
    "knowledge": {"code": 0.4, "maths": 0.0, "web": -0.6},
}


def true_bits(shares: Mapping[str, float]) -> dict[str, float]:
    return {
        domain: 1 + float(np.exp(sum(slopes[name] * shares[name] for name in shares)))
        for domain, slopes in EXPONENTS.items()
    }


class Trained:
    """A problem whose proxies have the losses of a known law, and what was trained for it."""

    def __init__(self, **changes: Any) -> None:
        self.mixes: dict[str, Shares] = {}
        self.calls: list[list[str]] = []
        values: dict[str, Any] = {
            "tokens": TOKENS,
            "capabilities": {domain: ("web",) for domain in EXPONENTS},
            "budget_tokens": 100_000,
            "max_epochs": 4.0,
            "where": "mix.methods.swarm",
            "simulate": self.no_simulation,
            "losses": self.losses,
            **changes,
        }
        self.problem = MixProblem(**values)

    def no_simulation(self, *arguments: Any) -> list[Any]:
        raise AssertionError("a swarm simulates no run")

    def losses(self, mixes: Mapping[str, Shares]) -> dict[str, dict[str, float]]:
        self.calls.append([*mixes])
        self.mixes |= mixes
        return {name: true_bits(shares) for name, shares in mixes.items()}


def mean_bits(shares: Mapping[str, float]) -> float:
    return sum(true_bits(shares).values()) / len(EXPONENTS)


def test_the_optimum_of_the_law_is_better_than_every_run_and_near_the_true_one():
    trained = Trained()
    mix = swarm_mix(replace(SWARM, law="log_linear"), trained.problem)
    assert sum(mix.shares.values()) == pytest.approx(1)
    assert mean_bits(mix.shares) < min(map(mean_bits, trained.mixes.values()))
    grid = [
        {"code": a / 100, "maths": b / 100, "web": 1 - (a + b) / 100}
        for a in range(101)
        for b in range(min(80, 100 - a) + 1)
    ]
    assert mean_bits(mix.shares) < min(map(mean_bits, grid)) + 0.003
    predicted = mix.details["predicted"]
    assert predicted == pytest.approx(true_bits(mix.shares), abs=0.02)
    assert mix.details["rank_correlation"] > 0.9 and not mix.warnings


def test_every_run_is_described_and_the_best_is_a_mix_to_compare():
    trained = Trained()
    mix = swarm_mix(SWARM, trained.problem)
    runs = {run["run"]: run for run in mix.details["swarm"]}
    assert [*runs] == trained.calls[0] == [f"run-{number:03d}" for number in range(1, 17)]
    for name, run in runs.items():
        assert run["shares"] == trained.mixes[name]
        assert run["bits_per_byte"] == true_bits(run["shares"])
    best = min(runs, key=lambda name: mean_bits(runs[name]["shares"]))
    assert mix.details["best_run"] == best and mix.beside == {"best": best}
    for law in mix.details["laws"].values():
        assert law["chosen"] in ("log_linear", "gaussian_process")
        errors = {name: law[name]["error"] for name in ("log_linear", "gaussian_process")}
        assert min(errors, key=lambda name: errors[name]) == law["chosen"]


def test_drawn_mixes_differ_obey_the_caps_and_span_scattered_to_near_the_prior():
    trained = Trained(max_epochs=1.5)  # code 0.45, maths 0.3, web 1.5: at most all
    mix = swarm_mix(replace(SWARM, num_runs=24), trained.problem)
    rows = np.array([[*shares.values()] for shares in trained.mixes.values()])
    assert rows.sum(axis=1) == pytest.approx(np.ones(24)) and rows.min() >= 0
    assert (rows <= np.array([0.45, 0.3, 1.0]) + 1e-9).all()
    apart = np.abs(rows[:, None] - rows[None]).max(axis=2) + np.eye(24)
    assert apart.min() >= SWARM.min_share
    assert not ((rows > 0) & (rows < SWARM.min_share)).any()
    assert (rows == 0).any() and ((rows > 0).sum(axis=1) == 3).any()
    assert mix.shares["code"] <= 0.45 + 1e-9 and mix.shares["maths"] <= 0.3 + 1e-9


def test_a_larger_swarm_begins_with_the_runs_of_the_smaller():
    small, large = Trained(), Trained()
    swarm_mix(SWARM, small.problem)
    swarm_mix(replace(SWARM, num_runs=20), large.problem)
    assert {name: large.mixes[name] for name in small.mixes} == small.mixes


def test_the_same_seed_gives_the_same_mix_and_another_gives_others():
    first, again, other = Trained(), Trained(), Trained()
    assert swarm_mix(SWARM, first.problem) == swarm_mix(SWARM, again.problem)
    swarm_mix(replace(SWARM, seed=1), other.problem)
    assert first.mixes == again.mixes and first.mixes != other.mixes


def test_a_second_round_is_drawn_around_the_first_optimum():
    trained = Trained()
    config = replace(SWARM, law="log_linear", refine_runs=6)
    mix = swarm_mix(config, trained.problem)
    assert [len(names) for names in trained.calls] == [16, 6]
    assert trained.calls[1][0] == "refined-001" and len(mix.details["swarm"]) == 22
    first = swarm_mix(replace(config, refine_runs=0), Trained().problem)

    def distance(name: str) -> float:
        return sum(abs(trained.mixes[name][s] - first.shares[s]) for s in TOKENS)

    near, far = (np.mean([distance(name) for name in names]) for names in reversed(trained.calls))
    assert near < far / 2
    assert config.num_measured_proxies == 22


def test_the_optimum_has_no_share_beyond_what_was_sampled():
    trained = Trained()
    mix = swarm_mix(replace(SWARM, strengths=(40.0, 60.0), temper=1.0), trained.problem)
    for source, share in mix.shares.items():
        assert share <= max(shares[source] for shares in trained.mixes.values()) + 1e-9
    assert "code" in mix.details["at_bound"]["sampled"]
    assert mix.details["at_bound"]["repetition"] == []


def test_a_source_that_no_mix_sampled_is_named_and_gets_nothing():
    tokens = {**TOKENS, "tiny": 1}
    trained = Trained(tokens=tokens)
    trained.problem = replace(
        trained.problem,
        losses=lambda mixes: {
            name: true_bits({source: shares[source] for source in TOKENS})
            for name, shares in mixes.items()
        },
    )
    mix = swarm_mix(replace(SWARM, strengths=(5.0, 9.0), temper=1.0), trained.problem)
    assert mix.details["never_sampled"] == ["tiny"] and mix.shares["tiny"] == 0


def test_weights_say_whose_loss_counts_and_a_large_kl_keeps_the_prior():
    def mixed(**changes: Any) -> Shares:
        return swarm_mix(replace(SWARM, law="log_linear", **changes), Trained().problem).shares

    coder = mixed(probe_weights={"code": 1.0})
    reader = mixed(probe_weights={"knowledge": 2.0})
    assert coder["code"] > 0.8 and reader["web"] > 0.8
    assert mixed(kl=50.0) == pytest.approx({"code": 0.2, "maths": 2 / 15, "web": 2 / 3}, abs=0.02)
    flat = mixed(kl=50.0, prior="uniform")
    assert flat == pytest.approx(dict.fromkeys(TOKENS, 1 / 3), abs=0.02)


def test_proxies_that_learnt_nothing_from_their_mix_are_reported():
    rng = np.random.default_rng(0)
    trained = Trained(
        losses=lambda mixes: {
            name: {domain: 3 + rng.normal(0, 0.01) for domain in EXPONENTS} for name in mixes
        }
    )
    mix = swarm_mix(SWARM, trained.problem)
    assert mix.details["rank_correlation"] < 0.5
    assert "proxies too small or too briefly trained" in mix.warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": "odd"}, "prior 'odd' is unknown; known: uniform, proportional"),
        ({"law": "line"}, "law 'line' is unknown; known: auto, log_linear, gaussian_process"),
        ({"strengths": (5.0, 0.1)}, "strengths .* must be positive, the least of strengths first"),
        ({"refine_strength": 0.0}, "refine_strength 0.0 must be positive"),
        ({"folds": 1}, "folds 1 must be 2 to num_runs 16"),
        ({"num_runs": 4}, "folds 5 must be 2 to num_runs 4"),
        ({"kl": -1.0}, "kl -1.0 must not be negative"),
        ({"temper": 1.5}, "temper 1.5 must be in 0 to 1"),
        ({"min_share": 0.5}, "min_share 0.5 must be"),
        ({"probe_weights": {"code": -1.0, "maths": 2.0}}, "must not be negative"),
        ({"probe_weights": {"code": 0.0}}, "nor all of them 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SWARM, **changes)


@pytest.mark.parametrize(
    ("changes", "problem", "message"),
    [
        (
            {"num_runs": 2, "folds": 2},
            {},
            r"swarm\.num_runs 2 is less than the 3 sources.*take 6 or more",
        ),
        ({"probe_weights": {"law": 1.0}}, {}, "probe_weights names law; the corpus serves code"),
        ({}, {"max_epochs": 0.5}, "ask for more than 0.5 passes"),
        ({}, {"max_epochs": 2 / 3}, "of 200 draws none is another mix than the 1 before"),
    ],
)
def test_a_swarm_that_cannot_be_fitted_is_refused(changes, problem, message):
    with pytest.raises(ValueError, match=message):
        swarm_mix(replace(SWARM, **changes), Trained(**problem).problem)
