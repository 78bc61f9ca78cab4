"""What the next step of an optimizer does with a part of its gradient, to first order.

A step of AdamW or Muon is not linear in its gradient, but it is once the step's own scale is fixed:
Adam's denominator, or the matrix that orthogonalises Muon's momentum. Parts of the gradient, one
from each source of text, then add up to the step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketlm.train.metrics import read_metrics
from pocketlm.train.muon import MOMENTUM, orthogonaliser
from pocketlm.train.optim import OptimConfig, lr_at

Gradients = Sequence[Tensor]  # one for each parameter of a model, in its order
Linear = Callable[[Tensor], Tensor]


def linear_step(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    steps_done: int,
    clip: float,
    whole: Gradients,
) -> Callable[[Gradients], list[Tensor]]:
    """The map from a part of the next step's gradient to the part of the step that it causes, at
    learning rate 1 and downhill; it gives the step itself for `whole`, which is all of its
    gradient.

    Momentum is left out: over a run each gradient still moves the weights once, some steps later.
    clip: what gradient clipping multiplies the gradient by, at most 1. Weight decay is no part of
    it (`decays`).
    """
    gradients = {
        id(p): gradient * clip for p, gradient in zip(model.parameters(), whole, strict=True)
    }
    maps: dict[int, Linear] = {}
    for optimizer in optimizers:
        linear = _muon if isinstance(optimizer, torch.optim.Muon) else _adamw
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                maps[id(p)] = linear(gradients[id(p)], group, state, steps_done)
    ordered = [maps[id(p)] for p in model.parameters()]
    return lambda part: [one(g * clip) for one, g in zip(ordered, part, strict=True)]


def _adamw(gradient: Tensor, group: dict[str, Any], state: Any, steps_done: int) -> Linear:
    """Division by the root of the bias-corrected second moment, with this gradient in it."""
    beta2, step = group["betas"][1], int(state.get("step", 0)) + 1
    before = state.get("exp_avg_sq", torch.zeros_like(gradient))
    moment = before.lerp(gradient.square(), 1 - beta2) / (1 - beta2**step)
    denominator = moment.sqrt_().add_(group["eps"]).div_(group.get("lr_share", 1.0))
    return lambda part: part / denominator


def _muon(gradient: Tensor, group: dict[str, Any], state: Any, steps_done: int) -> Linear:
    """The product with the matrix that orthogonalises the momentum, with this gradient in it.

    Muon's momentum has no bias correction: its gradients' weights sum to `weight`, which
    orthogonalising undoes, so that the product takes it back.
    """
    momentum = state.get("momentum_buffer", torch.zeros_like(gradient)).lerp(gradient, 1 - MOMENTUM)
    root = orthogonaliser(gradient.lerp(momentum, MOMENTUM))
    weight = 1 - MOMENTUM ** (steps_done + 2)
    size = weight * 0.2 * max(gradient.shape) ** 0.5
    tall = gradient.shape[0] > gradient.shape[1]
    return lambda part: (part @ root if tall else root @ part) * size


def decays(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[float]:
    """Of every parameter of the model, in order: the share of it that weight decay takes in a step
    at learning rate 1.
    """
    shares = {
        id(p): group["weight_decay"] * group.get("lr_share", 1.0)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    return [shares[id(p)] for p in model.parameters()]


def rates_at(config: OptimConfig, steps: Sequence[int]) -> list[float]:
    """The learning rates of a whole training, divided among points of it: `steps` are the steps
    done at each, from 0 to the end. A step between two points counts at both, most at the nearer.

    The sum of rate x value over the points is then what the sum over all steps is, where the value
    is linear between points.
    """
    rates = [0.0] * len(steps)
    for place, (begin, end) in enumerate(pairwise(steps)):
        for step in range(begin, end):
            passed = (step - begin) / (end - begin)
            rates[place] += lr_at(config, step) * (1 - passed)
            rates[place + 1] += lr_at(config, step) * passed
    return rates


def mean_clip(out: Path, config: OptimConfig, begin: int, end: int) -> float:
    """What gradient clipping multiplied the gradients of steps begin..end by, on average, by the
    metrics of the training in `out`.
    """
    norms = [row["grad_norm"] for row in read_metrics(out, end) if row["step"] >= begin]
    clips = [min(1.0, config.grad_clip / (norm + 1e-6)) for norm in norms if norm is not None]
    return sum(clips) / len(clips) if clips else 1.0
