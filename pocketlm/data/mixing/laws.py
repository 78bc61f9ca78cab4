"""Laws from shares to loss, fitted on a swarm of proxies: one law for each metric.

A metric is one number of a trained proxy, as its held-out bits per byte of one domain. Shares are
[runs, sources], losses [runs, metrics]. A mean of metrics is predicted as the mean of their
predictions and never fitted itself: a single exponential underfits a mean of several.

- LogLinear, y = exp(c) + exp(t . p) (Olmix): convex in p, extrapolates, needs few runs.
- GaussianProcess on sqrt(p), where the plain distance is Hellinger's: interpolates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pocketlm.data.rank_correlation import spearman

Array = NDArray[np.float64]

# Of the log-linear law, our choice but the form; the first two by RegMix's 1M runs that no fit saw,
# never by a larger model's (benchmarks/mix_replay.py). Residuals are in deviations of the metric
HUBER = 1.0  # where the error of a run begins to count linearly
RIDGE = 1e-3  # on exponents' distance from their mean: what the swarm hardly sampled has no effect
STARTS = np.linspace(0.05, 0.98, 8)  # of exp(c), as a part of the smallest loss
MOST_STEPS = 300
TOO_LARGE = 50.0  # an exponent beyond which exp is not taken
# Of the Gaussian process: grids of its two free parameters, narrowed three times around the best
LENGTHS = np.geomspace(0.1, 10, 16)
NOISES = np.geomspace(1e-6, 3, 24)  # variance of noise, relative to the signal's
REFINEMENTS = 3


class Law(Protocol):
    """predict: shares [K, sources] -> losses [K, metrics]."""

    def predict(self, shares: Array) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class LogLinear:
    """y = exp(offset) + exp(exponents . shares). offset: [metrics]; exponents: [metrics, S]."""

    offset: Array
    exponents: Array

    def predict(self, shares: Array) -> Array:
        return np.exp(self.offset) + np.exp(shares @ self.exponents.T)


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """A constant mean and a squared-exponential kernel on sqrt(shares), one length a metric.

    roots: sqrt of the sampled shares, [runs, S]. lengths, means: [metrics]. weights: [runs,
    metrics], so that the prediction is mean + kernel @ weights.
    """

    roots: Array
    lengths: Array
    means: Array
    weights: Array

    def predict(self, shares: Array) -> Array:
        distances = squared_distances(np.sqrt(shares), self.roots)
        columns = [
            np.exp(distances / (-2 * length**2)) @ weights
            for length, weights in zip(self.lengths, self.weights.T, strict=True)
        ]
        return self.means + np.stack(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class LawByMetric:
    """Of each metric the law that was chosen. chosen: [metrics], names."""

    laws: Mapping[str, Law]
    chosen: tuple[str, ...]

    def predict(self, shares: Array) -> Array:
        columns = {name: self.laws[name].predict(shares) for name in dict.fromkeys(self.chosen)}
        return np.stack([columns[name][:, i] for i, name in enumerate(self.chosen)], axis=1)


def fit_log_linear(shares: Array, losses: Array) -> LogLinear:
    """The fit with the least cost from several starts, for each metric: Huber loss of the residuals
    plus a small ridge, by Levenberg-Marquardt steps with analytic derivatives.

    All metrics and starts are stepped together. ValueError: a loss that is not positive.
    """
    if not (losses > 0).all():
        raise ValueError("a log-linear law is of positive losses; there are others")
    metrics, scales = losses.shape[1], deviations(losses)
    starts = np.concatenate(
        [_starts(shares, losses[:, i], scales[i]) for i in range(metrics)]
    )  # [metrics * starts, 1 + S]
    targets = np.repeat(losses.T, len(STARTS), axis=0)
    widths = np.repeat(scales, len(STARTS))[:, None]
    points, costs = _minimize(
        partial(_log_linear_cost, shares, targets, widths),
        partial(_log_linear_step, shares, targets, widths),
        starts,
    )
    best = np.argmin(costs.reshape(metrics, -1), axis=1) + np.arange(metrics) * len(STARTS)
    return LogLinear(offset=points[best, 0], exponents=points[best, 1:])


def _starts(shares: Array, losses: Array, scale: float) -> Array:
    """[starts, 1 + S]: for each value of exp(c) the ridge solution of log(y - exp(c)) = t . p."""
    sources = shares.shape[1]
    floors = STARTS * losses.min()
    logs = np.log(losses[:, None] - floors)  # [runs, starts]
    means = logs.mean(axis=0)  # shares sum to 1: the same exponent everywhere is a constant
    gram = shares.T @ shares + 1e-3 * len(losses) / sources * np.eye(sources)
    exponents = means + np.linalg.solve(gram, shares.T @ (logs - means))
    return np.concatenate([np.log(floors)[:, None], exponents.T], axis=1)


def _parts(shares: Array, points: Array) -> tuple[Array, Array]:
    """exp(c) [B, 1] and exp(t . p) [B, runs]."""
    return (
        np.exp(np.minimum(points[:, :1], TOO_LARGE)),
        np.exp(np.minimum(points[:, 1:] @ shares.T, TOO_LARGE)),
    )


def _log_linear_cost(shares: Array, targets: Array, scales: Array, points: Array) -> Array:
    """[B]: the mean Huber loss of residuals in deviations, and the ridge."""
    offset, slope = _parts(shares, points)
    size = np.abs(offset + slope - targets) / scales
    huber = np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
    centred = points[:, 1:] - points[:, 1:].mean(axis=1, keepdims=True)
    return huber.mean(axis=1) + RIDGE / 2 * (centred**2).mean(axis=1)


def _log_linear_step(
    shares: Array, targets: Array, scales: Array, points: Array
) -> tuple[Array, Array]:
    """(gradient [B, 1 + S], curvature [B, 1 + S, 1 + S] as Gauss-Newton takes it) of the cost."""
    offset, slope = _parts(shares, points)
    residuals = (offset + slope - targets) / scales
    weights = np.minimum(1, HUBER / np.maximum(np.abs(residuals), 1e-12)) / len(shares)
    jacobian = np.concatenate(
        [np.broadcast_to(offset, slope.shape)[..., None], slope[..., None] * shares], axis=2
    )
    jacobian /= scales[..., None]  # [B, runs, 1 + S]
    weighted = (jacobian * weights[..., None]).swapaxes(1, 2)
    gradient = (weighted @ residuals[..., None])[..., 0]
    curvature = weighted @ jacobian
    sources = shares.shape[1]
    centring = np.eye(sources) - 1 / sources
    gradient[:, 1:] += RIDGE / sources * points[:, 1:] @ centring
    curvature[:, 1:, 1:] += RIDGE / sources * centring
    return gradient, curvature


def _minimize(
    cost: Callable[[Array], Array],
    derivatives: Callable[[Array], tuple[Array, Array]],
    points: Array,
) -> tuple[Array, Array]:
    """(points [B, n], costs [B]) after Levenberg-Marquardt steps of each of B problems alone, until
    no cost falls by a part of 1e-12.
    """
    costs, damping = cost(points), np.full(len(points), 1e-2)
    for _ in range(MOST_STEPS):
        gradient, curvature = derivatives(points)
        diagonal = np.einsum("bii->bi", curvature)
        diagonal += damping[:, None] * (diagonal + 1e-9)  # a view: the curvature's own
        moved = points - np.linalg.solve(curvature, gradient[..., None])[..., 0]
        lower = cost(moved)
        better = lower < costs
        fell = np.where(better, costs - lower, 0) > 1e-12 * costs
        points = np.where(better[:, None], moved, points)
        costs = np.where(better, lower, costs)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        if not (fell | (~better & (damping < 1e6))).any():
            break
    return points, costs


def fit_gaussian_process(shares: Array, losses: Array) -> GaussianProcess:
    """Length and noise by the highest marginal likelihood of each metric, on a grid that is
    narrowed around the best; mean and variance in closed form.
    """
    roots, scales = np.sqrt(shares), deviations(losses)
    distances, targets = squared_distances(roots, roots), losses / scales
    metrics = losses.shape[1]
    lengths, means, weights = np.empty(metrics), np.empty(metrics), np.empty(losses.shape)
    decomposed: dict[float, tuple[Array, Array]] = {}
    for metric in range(metrics):
        length, noise = _most_likely(distances, targets[:, metric], decomposed)
        values, vectors = _decompose(distances, length, decomposed)
        mean, _, weight = _posterior(values, vectors, targets[:, metric], np.array([noise]))
        lengths[metric], means[metric] = length, mean[0]
        weights[:, metric] = vectors @ weight[:, 0]
    return GaussianProcess(
        roots=roots, lengths=lengths, means=means * scales, weights=weights * scales
    )


def _most_likely(
    distances: Array, target: Array, decomposed: dict[float, tuple[Array, Array]]
) -> tuple[float, float]:
    """(length, noise) of the highest marginal likelihood."""
    lengths, noises = LENGTHS, NOISES
    length = noise = 0.0
    for _ in range(1 + REFINEMENTS):
        likelihood = np.stack(
            [
                _posterior(*_decompose(distances, length, decomposed), target, noises)[1]
                for length in lengths
            ]
        )
        row, column = np.unravel_index(np.argmax(likelihood), likelihood.shape)
        length, noise = float(lengths[row]), float(noises[column])
        lengths, noises = _around(lengths, int(row), 5), _around(noises, int(column), 9)
    return length, noise


def _around(grid: Array, place: int, count: int) -> Array:
    return np.geomspace(grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)], count)


def _decompose(
    distances: Array, length: float, decomposed: dict[float, tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of the kernel, kept by length: metrics share them."""
    if length not in decomposed:
        values, vectors = np.linalg.eigh(np.exp(distances / (-2 * length**2)))
        decomposed[length] = np.maximum(values, 0), vectors
    return decomposed[length]


def _posterior(
    values: Array, vectors: Array, target: Array, noises: Array
) -> tuple[Array, Array, Array]:
    """(mean [G], log marginal likelihood [G] up to a constant, inverse kernel times the residual
    [runs, G] in the eigenvectors' coordinates) for each of G noises.
    """
    total = values[:, None] + noises + 1e-10  # [runs, G]
    ones, rotated = vectors.sum(axis=0)[:, None], (vectors.T @ target)[:, None]
    mean = (ones * rotated / total).sum(axis=0) / (ones**2 / total).sum(axis=0)
    residual = rotated - ones * mean
    variance = np.maximum((residual**2 / total).mean(axis=0), 1e-300)
    likelihood = -(len(target) * np.log(variance) + np.log(total).sum(axis=0)) / 2
    return mean, likelihood, residual / total


def squared_distances(a: Array, b: Array) -> Array:
    """[len(a), len(b)]"""
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(square, 0)


def deviations(losses: Array) -> Array:
    """[metrics]: of each metric over runs; 1 where all runs are alike."""
    spread = losses.std(axis=0)
    return np.where(spread > 1e-12 * np.abs(losses).max(axis=0), spread, 1.0)


FITS: dict[str, Callable[[Array, Array], Law]] = {
    "log_linear": fit_log_linear,
    "gaussian_process": fit_gaussian_process,
}


@dataclass(frozen=True, kw_only=True)
class LawChoice:
    """chosen: the law of each metric, fitted on all runs. predictions: by the name of a law, of
    each run [runs, metrics] from the fits that did not see it. errors: root mean square of those
    predictions' errors in deviations of the metric: 1 is as good as its mean. rank_correlations:
    Spearman's, of predictions and losses. Both are [metrics] by the name of a law.
    """

    chosen: LawByMetric
    predictions: Mapping[str, Array]
    errors: Mapping[str, Array]
    rank_correlations: Mapping[str, Array]

    @property
    def chosen_predictions(self) -> Array:
        """[runs, metrics]: cross-validated, of the law that was chosen for each metric."""
        columns = enumerate(self.chosen.chosen)
        return np.stack([self.predictions[name][:, metric] for metric, name in columns], axis=1)


def choose_law(
    shares: Array, losses: Array, names: tuple[str, ...], folds: int, seed: int
) -> LawChoice:
    """Of each metric the law of `names` with the least cross-validated error; of equals the first.

    By error and not by rank (our choice): what counts is a mean of several predictions, where their
    sizes matter, and a few runs tell errors apart sooner. Runs are dealt to `folds` parts by seed.
    """
    parts = np.random.default_rng(seed).permutation(len(shares)) % folds
    scales, predictions = deviations(losses), {}
    for name in names:
        predictions[name] = np.empty_like(losses)
        for part in range(folds):
            law = FITS[name](shares[parts != part], losses[parts != part])
            predictions[name][parts == part] = law.predict(shares[parts == part])
    errors = {
        name: np.sqrt((((predicted - losses) / scales) ** 2).mean(axis=0))
        for name, predicted in predictions.items()
    }
    ranks = {
        name: np.array([spearman(a, b) or 0.0 for a, b in zip(predicted.T, losses.T, strict=True)])
        for name, predicted in predictions.items()
    }
    best = np.argmin(np.stack([errors[name] for name in names]), axis=0)
    chosen = tuple(names[place] for place in best)
    laws = {name: FITS[name](shares, losses) for name in names if name in chosen}
    return LawChoice(
        chosen=LawByMetric(laws=laws, chosen=chosen),
        predictions=predictions,
        errors=errors,
        rank_correlations=ranks,
    )
