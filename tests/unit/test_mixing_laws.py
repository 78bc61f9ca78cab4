"""Laws from shares to loss: fitted, compared with independent references, and chosen."""

import numpy as np
import pytest
from scipy.optimize import minimize

from pocketlm.data.mixing import laws
from pocketlm.data.mixing.laws import choose_law, fit_gaussian_process, fit_log_linear

OFFSET = np.array([1.2, 0.8])
EXPONENTS = np.array([[-1.0, 0.3, 0.6, -0.2, 0.4], [0.5, -1.5, 0.1, 0.0, -0.3]])


def drawn(runs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(5, 0.7), runs)


def truth(shares: np.ndarray) -> np.ndarray:
    return OFFSET + np.exp(shares @ EXPONENTS.T)


def test_a_log_linear_law_is_recovered_for_each_metric_though_a_run_failed():
    shares = drawn(40)
    losses = truth(shares)
    losses[7] += 3.0  # an outlier, which a plain square would follow
    law = fit_log_linear(shares, losses)
    assert np.abs(law.predict(drawn(200, 1)) - truth(drawn(200, 1))).max() < 0.1
    plain = np.linalg.lstsq(shares, losses, rcond=None)[0]
    assert np.abs(drawn(200, 1) @ plain - truth(drawn(200, 1))).max() > 0.3


def test_the_fit_costs_no_more_than_a_general_minimizer_finds():
    shares = drawn(24)
    losses = truth(shares) + np.random.default_rng(2).normal(0, 0.05, (24, 2))
    law = fit_log_linear(shares, losses)
    for metric in range(2):
        y, scale = losses[:, metric], losses[:, metric].std()

        def cost(point: np.ndarray, y: np.ndarray = y, scale: float = scale) -> float:
            size = np.abs(np.exp(point[0]) + np.exp(shares @ point[1:]) - y) / scale
            huber = np.where(size < laws.HUBER, size**2 / 2, laws.HUBER * (size - laws.HUBER / 2))
            return float(huber.mean() + laws.RIDGE / 2 * point[1:].var())

        starts = [np.full(6, value) for value in (-1.0, -0.3, 0.0, 0.3)]
        best = min(minimize(cost, start, method="BFGS").fun for start in starts)
        fitted = cost(np.array([law.offset[metric], *law.exponents[metric]]))
        assert fitted <= best * (1 + 1e-6)


def test_the_gradient_is_that_of_the_cost():
    shares, rng = drawn(12), np.random.default_rng(3)
    targets, scales = truth(shares).T.copy(), np.array([[0.3], [0.2]])
    points = rng.normal(0, 0.3, (2, 6))
    gradient, curvature = laws._log_linear_step(shares, targets, scales, points)
    for place in range(6):
        nudge = np.zeros(6)
        nudge[place] = 1e-6
        higher, lower = (
            laws._log_linear_cost(shares, targets, scales, points + sign * nudge)
            for sign in (1, -1)
        )
        assert gradient[:, place] == pytest.approx((higher - lower) / 2e-6, rel=1e-5, abs=1e-8)
    assert np.linalg.eigvalsh(curvature).min() > -1e-12


def test_a_loss_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive losses"):
        fit_log_linear(drawn(8), np.full((8, 1), -1.0))


def test_metrics_are_fitted_each_alone():
    shares = drawn(20)
    losses = truth(shares) + np.random.default_rng(4).normal(0, 0.02, (20, 2))
    for fit in laws.FITS.values():
        both, one = fit(shares, losses), fit(shares, losses[:, 1:])
        assert both.predict(shares)[:, 1] == pytest.approx(one.predict(shares)[:, 0], abs=1e-5)


def test_a_gaussian_process_passes_near_its_runs_and_predicts_others():
    shares = drawn(60)
    law = fit_gaussian_process(shares, truth(shares))
    assert np.abs(law.predict(shares) - truth(shares)).max() < 0.01
    others = drawn(100, 1)
    assert np.abs(law.predict(others) - truth(others)).max() < 0.15


def test_the_process_has_the_posterior_mean_and_the_likelihood_of_the_textbook():
    shares = drawn(15)
    losses = truth(shares)[:, :1] + np.random.default_rng(5).normal(0, 0.05, (15, 1))
    y = losses[:, 0] / losses.std()
    distances = ((np.sqrt(shares)[:, None] - np.sqrt(shares)[None]) ** 2).sum(axis=2)

    def covariance(length: float, noise: float) -> np.ndarray:
        return np.exp(-distances / (2 * length**2)) + (noise + 1e-10) * np.eye(15)

    def likelihood(point: np.ndarray) -> tuple[float, float]:
        """(log density at the best mean and variance, that mean)"""
        kernel = covariance(*np.exp(point))
        inverse, ones = np.linalg.inv(kernel), np.ones(15)
        mean = float(ones @ inverse @ y / (ones @ inverse @ ones))
        variance = float((y - mean) @ inverse @ (y - mean) / 15)
        _, log_determinant = np.linalg.slogdet(2 * np.pi * variance * kernel)
        return -(log_determinant + 15) / 2, mean

    grid = {}
    values, vectors = np.linalg.eigh(np.exp(-distances / (2 * 0.7**2)))
    means, levels, _ = laws._posterior(np.maximum(values, 0), vectors, y, np.array([0.01, 0.1]))
    for place, noise in enumerate((0.01, 0.1)):
        grid[noise], mean = likelihood(np.log([0.7, noise]))
        assert means[place] == pytest.approx(mean)
    assert levels[1] - levels[0] == pytest.approx(grid[0.1] - grid[0.01])

    length, noise = laws._most_likely(distances, y, {})
    best = max(
        -minimize(lambda p: -likelihood(p)[0], np.log(start), method="Nelder-Mead").fun
        for start in ([0.5, 0.1], [2.0, 0.01], [1.0, 0.001])
    )
    assert likelihood(np.log([length, noise]))[0] > best - 0.01

    law = fit_gaussian_process(shares, losses)
    mean = likelihood(np.log([length, noise]))[1]
    new = drawn(4, 9)
    cross = np.exp(
        -((np.sqrt(new)[:, None] - np.sqrt(shares)[None]) ** 2).sum(axis=2) / (2 * length**2)
    )
    expected = mean + cross @ np.linalg.solve(covariance(length, noise), y - mean)
    assert law.predict(new)[:, 0] == pytest.approx(expected * losses.std(), rel=1e-5)


def test_metrics_that_do_not_vary_are_predicted_as_they_are():
    shares, losses = drawn(10), np.full((10, 1), 2.5)
    for fit in laws.FITS.values():
        assert fit(shares, losses).predict(drawn(5, 1)) == pytest.approx(np.full((5, 1), 2.5), 1e-3)


def test_of_each_metric_the_law_is_chosen_that_predicts_runs_it_did_not_see():
    shares = drawn(40)
    losses = truth(shares) + np.random.default_rng(6).normal(0, 0.002, (40, 2))
    losses[:, 1] = 2 + np.sin(6 * np.sqrt(shares[:, 0]))  # no exponential of a sum
    choice = choose_law(shares, losses, tuple(laws.FITS), folds=5, seed=0)
    assert choice.chosen.chosen == ("log_linear", "gaussian_process")
    assert choice.errors["log_linear"][0] < choice.errors["gaussian_process"][0] < 1
    assert choice.rank_correlations["gaussian_process"][1] > 0.7
    predicted = choice.chosen.predict(shares)
    for metric, name in enumerate(choice.chosen.chosen):
        alone = laws.FITS[name](shares, losses).predict(shares)
        assert predicted[:, metric] == pytest.approx(alone[:, metric])


def test_a_run_has_no_part_in_its_cross_validated_prediction():
    shares = drawn(20)
    losses = truth(shares)
    changed = losses.copy()
    changed[3] *= 3
    before, after = (
        choose_law(shares, values, ("gaussian_process",), folds=4, seed=1).chosen_predictions
        for values in (losses, changed)
    )
    assert after[3] == pytest.approx(before[3])
    assert np.abs(after - before).max() > 0.01


def test_noise_is_not_predicted():
    losses = np.random.default_rng(7).normal(3, 0.1, (40, 1))
    choice = choose_law(drawn(40), losses, tuple(laws.FITS), folds=5, seed=0)
    assert all(errors[0] > 0.9 for errors in choice.errors.values())
