"""The shares that a law proposes: the exact optimum, and the search where there is none."""

import numpy as np
import pytest
from scipy.optimize import minimize

from pocketlm.data.mixing.laws import LawByMetric, LogLinear, fit_gaussian_process
from pocketlm.data.mixing.propose import capped, divergence, propose, search, solve_log_linear
from pocketlm.data.mixture import cap_repetition


def problem(seed: int, sources: int = 8, metrics: int = 5):
    rng = np.random.default_rng(seed)
    law = LogLinear(offset=np.zeros(metrics), exponents=rng.normal(0, 2, (metrics, sources)))
    weights = rng.dirichlet(np.ones(metrics))
    return law, weights, rng.dirichlet(np.ones(sources)), rng.uniform(0.13, 0.6, sources)


def objective(law: LogLinear, weights: np.ndarray, prior: np.ndarray, kl: float, p: np.ndarray):
    return float(law.predict(p[None])[0] @ weights + kl * divergence(p, prior))


@pytest.mark.parametrize("kl", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_that_of_a_general_solver(seed, kl):
    law, weights, prior, caps = problem(seed)
    shares = solve_log_linear(law, weights, prior, caps, kl)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert (shares >= 0).all() and (shares <= caps + 1e-9).all()
    reference = minimize(
        lambda p: objective(law, weights, prior, kl, np.maximum(p, 1e-15)),
        capped(prior, caps),
        bounds=[(0, cap) for cap in caps],
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    best = objective(law, weights, prior, kl, np.maximum(reference.x, 1e-15))
    assert objective(law, weights, prior, kl, shares) <= best + 1e-8
    if kl:  # strictly convex: one optimum
        assert shares == pytest.approx(reference.x, abs=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_between_its_bounds_the_optimum_meets_the_condition_of_a_stationary_point(seed):
    law, weights, prior, caps = problem(seed)
    shares, kl = solve_log_linear(law, weights, prior, caps, 0.05), 0.05
    slopes = (weights * np.exp(law.exponents @ shares)) @ law.exponents
    slopes += kl * (np.log(shares / prior) + 1)
    free = (shares < caps - 1e-6) & (shares > 1e-4)
    assert free.sum() > 1 and np.ptp(slopes[free]) < 1e-8
    assert (slopes[shares >= caps - 1e-6] <= slopes[free].mean() + 1e-8).all()


def test_a_law_that_shares_do_not_move_gives_the_prior():
    prior = np.array([0.2, 0.3, 0.5])
    law = LogLinear(offset=np.zeros(1), exponents=np.ones((1, 3)))
    shares = solve_log_linear(law, np.ones(1), prior, np.ones(3), 0.1)
    assert shares == pytest.approx(prior, abs=1e-8)


def test_small_exponents_give_the_closed_form_of_a_linear_loss():
    """exp(t . p) is 1 + t . p then, and the optimum prior x exp(-t / kl)."""
    prior, small = np.array([0.2, 0.3, 0.5]), 1e-6 * np.array([1.0, -2.0, 0.5])
    law = LogLinear(offset=np.zeros(1), exponents=small[None])
    shares = solve_log_linear(law, np.ones(1), prior, np.ones(3), 1e-6)
    expected = prior * np.exp(-small / 1e-6)
    assert shares == pytest.approx(expected / expected.sum(), abs=1e-5)


def test_without_a_prior_one_metric_wants_its_best_source_alone_as_far_as_its_cap():
    law = LogLinear(offset=np.zeros(1), exponents=np.array([[0.5, -1.0, 0.0]]))
    third = np.full(3, 1 / 3)
    shares = solve_log_linear(law, np.ones(1), third, np.ones(3), 0.0)
    assert shares == pytest.approx([0, 1, 0], abs=1e-8)
    shares = solve_log_linear(law, np.ones(1), third, np.array([1.0, 0.6, 1.0]), 0.0)
    assert shares == pytest.approx([0, 0.6, 0.4], abs=1e-8)


def test_caps_that_leave_one_mix_give_it_and_an_empty_source_gets_nothing():
    law = LogLinear(offset=np.zeros(1), exponents=np.array([[1.0, -1.0, 0.0]]))
    caps = np.array([0.5, 0.2, 0.3])
    assert solve_log_linear(law, np.ones(1), caps, caps, 0.1) == pytest.approx(caps)
    prior = np.array([0.5, 0.0, 0.5])
    assert solve_log_linear(law, np.ones(1), prior, np.ones(3), 0.1)[1] == 0


@pytest.mark.parametrize("sources", [6, 16])
def test_the_search_comes_near_the_optimum_of_a_law_that_has_an_exact_one(sources):
    law, weights, prior, caps = problem(0, sources)
    exact = solve_log_linear(law, weights, prior, caps, 0.05)
    shares = search(law, weights, prior, caps, 0.05, seed=0)
    assert (shares <= caps + 1e-9).all() and shares.sum() == pytest.approx(1)
    best, reached, start = (
        objective(law, weights, prior, 0.05, p) for p in (exact, shares, capped(prior, caps))
    )
    assert best <= reached < best + 0.05 * (start - best)


def test_laws_of_several_kinds_are_searched_and_a_strong_prior_is_kept():
    rng = np.random.default_rng(0)
    sampled = rng.dirichlet(np.ones(3), 30)
    losses = 1 + (sampled[:, :1] - 0.4) ** 2  # best at 0.4 of the first
    fitted = fit_gaussian_process(sampled, np.repeat(losses, 2, axis=1))
    linear = LogLinear(offset=np.zeros(2), exponents=np.zeros((2, 3)))
    law = LawByMetric(
        laws={"log_linear": linear, "gaussian_process": fitted},
        chosen=("log_linear", "gaussian_process"),
    )
    prior = np.array([0.1, 0.6, 0.3])
    shares = propose(law, np.full(2, 0.5), prior, np.ones(3), 1e-4, seed=0)
    assert shares[0] == pytest.approx(0.4, abs=0.05)
    kept = propose(law, np.full(2, 0.5), prior, np.ones(3), 10.0, seed=0)
    assert kept == pytest.approx(prior, abs=0.01)


def test_shares_are_capped_as_repetition_is():
    rng = np.random.default_rng(1)
    rows = rng.dirichlet(np.full(6, 0.3), 200)
    rows[0] = [1, 0, 0, 0, 0, 0]  # all that has a share is full: the rest goes to the room
    caps = rng.uniform(0.18, 0.4, 6)
    names = [f"source {place}" for place in range(6)]
    tokens = {name: round(cap * 10**12) for name, cap in zip(names, caps, strict=True)}
    for row, result in zip(rows, capped(rows, caps), strict=True):
        expected = cap_repetition(dict(zip(names, row.tolist(), strict=True)), tokens, 10**12, 1.0)
        assert result == pytest.approx([*expected.values()], abs=1e-9)


def test_divergence_counts_what_has_a_share():
    prior = np.array([0.5, 0.25, 0.25])
    assert divergence(prior, prior) == 0
    assert divergence(np.array([1.0, 0, 0]), prior) == pytest.approx(np.log(2))
