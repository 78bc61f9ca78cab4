"""Averages of models that grew from one trunk: whether they can be averaged, and which weights to
try.

Shapes: S branches
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
from torch import Tensor

from pocketlm.model.same_tokens import (
    pipeline_differences,
    role_differences,
    vocabulary_differences,
)
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

MAX_GRID = 2000
Weights = tuple[float, ...]  # of each branch, summing to 1
# the loss at some weights, and its slope along each branch's weight
Measure = Callable[[Weights], tuple[float, Sequence[float]]]


def check_mergeable(networks: list[Transformer], names: list[str]) -> None:
    """Nothing, or a ValueError where there are too few models, or two of different shapes: with the
    fields that differ.
    """
    if len(networks) < 2:
        raise ValueError("merge needs at least two models")
    first = asdict(networks[0].config)
    for network, name in zip(networks, names, strict=True):
        other = asdict(network.config)
        differing = [
            f"{field} {first[field]} and {other[field]}"
            for field in first
            if first[field] != other[field]
        ]
        if differing:
            raise ValueError(
                f"{names[0]} and {name} have different shapes ({'; '.join(differing)}); only "
                "branches of one trunk can be merged"
            )


def check_same_words(tokenizers: list[Tokenizer], names: list[str]) -> None:
    """Nothing, or a ValueError that says what two models do not mean alike by their ids: words, the
    way text is cut into them, special tokens.
    """
    for tokenizer, name in zip(tokenizers, names, strict=True):
        for what, compared in (
            ("words", vocabulary_differences),
            ("ways to cut text into words", pipeline_differences),
            ("special tokens", role_differences),
        ):
            differences = compared(tokenizers[0], tokenizer)
            if differences:
                raise ValueError(
                    f"{names[0]} and {name} have different {what}: {'; '.join(differences)}; their "
                    "weights mean other things by the same ids, so an average would mean nothing"
                )


def average(states: list[dict[str, Tensor]], weights: Weights) -> dict[str, Tensor]:
    """The weighted sum of state dicts, tensor by tensor, summed in float64 so that merging a model
    with itself is exact.
    """
    return {
        name: sum(
            w * state[name].double() for w, state in zip(weights, states, strict=True)
        ).float()  # type: ignore[union-attr]
        for name in states[0]
    }


# ---- which weights to try ----


def weight_grid(branches: int, resolution: int) -> list[Weights]:
    """Every way to share `resolution` parts among the branches, as weights that sum to 1."""
    bars = list(combinations(range(resolution + branches - 1), branches - 1))
    if len(bars) > MAX_GRID:
        raise ValueError(
            f"{branches} branches at resolution {resolution} are {len(bars)} merges to try; lower "
            "resolution, or set search=slopes"
        )
    grid = []
    for places in bars:
        edges = [-1, *places, resolution + branches - 1]
        grid.append(tuple((edges[i + 1] - edges[i] - 1) / resolution for i in range(branches)))
    return grid


def single_weights(branches: int) -> list[Weights]:
    """Each branch alone."""
    return [tuple(float(i == j) for j in range(branches)) for i in range(branches)]


def descend(measure: Measure, branches: int, num_steps: int) -> list[tuple[Weights, float]]:
    """The (weights, loss) of `num_steps` steps down the slopes, from the uniform average on.

    Exponentiated gradient: weights are multiplied by exp(-stride x slope) and sum to 1 again, so
    they never leave the simplex and no projection is needed. A step that raises the loss is not
    taken and the stride is divided by 3, else it grows by half; the first changes a weight by a
    factor of e at most (our choices).
    """
    weights = np.full(branches, 1 / branches)
    loss, slopes = measure(tuple(weights.tolist()))
    tried = [(tuple(weights.tolist()), loss)]
    stride = None
    for _ in range(num_steps - 1):
        excess = np.asarray(slopes) - weights @ np.asarray(slopes)
        steepest = float(np.abs(excess).max())
        if steepest == 0:
            break  # branches that are alike
        stride = 1 / steepest if stride is None else min(stride, 3 / steepest)
        moved = weights * np.exp(-stride * excess)
        moved /= moved.sum()
        new_loss, new_slopes = measure(tuple(moved.tolist()))
        tried.append((tuple(moved.tolist()), new_loss))
        if new_loss < loss:
            weights, loss, slopes, stride = moved, new_loss, new_slopes, 1.5 * stride
        else:
            stride /= 3
    return tried
