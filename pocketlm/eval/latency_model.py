"""How long a shape takes on one device, learned from shapes that were measured there.

An additive part (every layer costs what its products and its attention cost, never less than
nothing) and a Gaussian process on what that leaves, as in MobileLLM-Flash (arXiv 2603.15954), whose
code is not published: features, kernel and fit are our choice.

Shapes: N shapes measured, P parts of a cost, C coordinates of a shape
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.model.costs import attention_pairs, block_matrices, flops_of, head_parameters
from pocketlm.model.model_config import ModelConfig

PASSES = 20_000  # of the fit of the additive part; some hundred are usual
LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the kernel, in standard deviations of a coordinate
NOISES = (0.005, 0.01, 0.02, 0.05, 0.1)  # of a measurement, as a share of it
SCALES = (0.01, 0.03, 0.1, 0.3)  # of what the additive part leaves, as a share


def parts_of(config: ModelConfig, prompt_tokens: int) -> np.ndarray:
    """[P] what a prompt of so many tokens costs: a constant, layers, products of attention and of
    feed-forward, pairs of attention, head (of the last token alone).
    """
    layers, width = config.applications, config.hidden_size
    feed_forward = 3 * width * config.intermediate_size
    attention = block_matrices(config) - feed_forward
    windows = [config.window(i // config.layer_repeats) for i in range(layers)]
    pairs = sum(attention_pairs(window, prompt_tokens) for window in windows)
    return np.array(
        [
            1.0,
            layers,
            layers * prompt_tokens * attention,
            layers * prompt_tokens * feed_forward,
            pairs * config.num_attention_heads * config.head_dim,
            head_parameters(config),
        ]
    )


def coordinates_of(config: ModelConfig) -> np.ndarray:
    """[C] where a shape lies among others: logarithms of its sizes, and its share of local
    layers.
    """
    sizes = (
        config.hidden_size,
        config.intermediate_size,
        config.applications,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    windows = [config.window(i) for i in range(config.num_hidden_layers)]
    local = sum(window is not None for window in windows) / len(windows)
    return np.array([*map(math.log, sizes), local])


@dataclass(frozen=True)
class LatencyModel:
    """costs [P]: seconds of each part, at least 0. The rest is the Gaussian process of the ratio of
    a measured time to the additive one: middle, width [C] of the coordinates, points [N, C],
    weights [N], inverse [N, N] of the kernel, its length, scale and noise.
    """

    prompt_tokens: int
    costs: np.ndarray
    middle: np.ndarray
    width: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    inverse: np.ndarray
    length: float
    scale: float
    noise: float

    def additive(self, config: ModelConfig) -> float:
        """Seconds by the additive part alone."""
        return float(parts_of(config, self.prompt_tokens) @ self.costs)

    def predict(self, config: ModelConfig) -> tuple[float, float]:
        """(seconds to the first token, their standard deviation)."""
        point = (coordinates_of(config) - self.middle) / self.width
        near = _kernel(point[None], self.points, self.length, self.scale)[0]
        ratio = near @ self.weights
        variance = self.scale**2 + self.noise**2 - near @ self.inverse @ near
        seconds = self.additive(config) * math.exp(ratio)
        return seconds, seconds * math.sqrt(max(variance, 0.0))


def fit_latency(
    shapes: Sequence[ModelConfig], seconds: Sequence[float], prompt_tokens: int
) -> LatencyModel:
    """The model of these measurements. ValueError of fewer than two shapes, or of no time.

    Relative errors are fitted, so that small shapes count as much as large ones. Length, scale and
    noise of the process are those of the grid that make the measurements likeliest.
    """
    if len(shapes) != len(seconds) or len(shapes) < 2:
        raise ValueError(f"{len(shapes)} shapes and {len(seconds)} times: at least two are needed")
    times = np.asarray(seconds, dtype=np.float64)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("a time is not above 0 seconds; measure it again")
    parts = np.stack([parts_of(shape, prompt_tokens) for shape in shapes])  # [N, P]
    costs = non_negative_fit(parts / times[:, None], np.ones(len(times)))
    rest = np.log(times / (parts @ costs))
    places = np.stack([coordinates_of(shape) for shape in shapes])
    middle, width = places.mean(0), places.std(0)
    width[width == 0] = 1.0
    points = (places - middle) / width
    grid = [(length, scale, noise) for length in LENGTHS for scale in SCALES for noise in NOISES]
    length, scale, noise = max(grid, key=lambda fields: _likelihood(points, rest, *fields))
    kernel = _kernel(points, points, length, scale) + noise**2 * np.eye(len(points))
    inverse = np.linalg.inv(kernel)
    return LatencyModel(
        prompt_tokens=prompt_tokens,
        costs=costs,
        middle=middle,
        width=width,
        points=points,
        weights=inverse @ rest,
        inverse=inverse,
        length=length,
        scale=scale,
        noise=noise,
    )


def non_negative_fit(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[P] the x >= 0 for which the squares of matrix [N, P] @ x - target [N] sum to least: one
    coordinate after the other, until none moves.
    """
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1.0
    scaled = matrix / norms
    gram, right = scaled.T @ scaled, scaled.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(PASSES):
        before = x.copy()
        for i in range(len(x)):
            if gram[i, i] > 0:
                x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() <= 1e-13 * max(1.0, np.abs(x).max()):
            break
    return x / norms


def _kernel(first: np.ndarray, second: np.ndarray, length: float, scale: float) -> np.ndarray:
    distances = ((first[:, None] - second[None]) ** 2).sum(-1)
    return scale**2 * np.exp(-distances / (2 * length**2))


def _likelihood(
    points: np.ndarray, rest: np.ndarray, length: float, scale: float, noise: float
) -> float:
    """The logarithm of how likely the rests are, but for a constant."""
    kernel = _kernel(points, points, length, scale) + noise**2 * np.eye(len(points))
    sign, log_determinant = np.linalg.slogdet(kernel)
    if sign <= 0:
        return -math.inf
    return float(-0.5 * rest @ np.linalg.solve(kernel, rest) - 0.5 * log_determinant)


def held_out(
    shapes: Sequence[ModelConfig], seconds: Sequence[float], prompt_tokens: int, *, folds: int = 5
) -> np.ndarray:
    """[N] seconds predicted for each shape by a model that never saw it: every `folds`-th shape is
    held out in turn. ValueError of fewer shapes than folds.
    """
    if len(shapes) < folds:
        raise ValueError(f"{len(shapes)} shapes cannot be held out in {folds} turns")
    predicted = np.zeros(len(shapes))
    for fold in range(folds):
        rest = [i for i in range(len(shapes)) if i % folds != fold]
        model = fit_latency([shapes[i] for i in rest], [seconds[i] for i in rest], prompt_tokens)
        for i in range(fold, len(shapes), folds):
            predicted[i] = model.predict(shapes[i])[0]
    return predicted


def explained(predicted: Sequence[float], seconds: Sequence[float]) -> float:
    """R^2: the share of the variance of the seconds that a prediction explains; below 0 where it is
    worse than their mean.
    """
    times, guesses = np.asarray(seconds), np.asarray(predicted)
    return float(1 - ((times - guesses) ** 2).sum() / ((times - times.mean()) ** 2).sum())


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b: of all pairs, how many more are ordered alike than not, ties aside. 0 where
    one of the two is constant.
    """
    one, other = (np.sign(np.subtract.outer(v, v)) for v in map(np.asarray, (first, second)))
    pairs = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / pairs if pairs else 0.0


def forward_flops(config: ModelConfig, prompt_tokens: int) -> int:
    """Of a prompt, with the head of its last token alone: what is often taken for latency."""
    flops = flops_of(config, 1, prompt_tokens)
    return flops.products + flops.attention + flops.head // prompt_tokens
