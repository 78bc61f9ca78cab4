"""Shares by utility, from one simulated run: the Scalable Data Mixer in spirit.

MobileLLM-Pro names its mixer, one offline simulated run and static shares, but no formula. This is
ours. Along a run on the prior's shares, at its start and at evenly spaced milestones, the gradient
of fresh rows of each source passes through the optimizer's own next step, and its product with the
gradient of each probe set, times the learning rates, is summed: what the source lowers that probe's
loss by in a run of nothing else, to first order, in nats. Share x utility, summed over the sources,
is the fall of the run itself (docs/numerics.md says how near).

The shares follow in a step from the prior, as far as proxies trained on steps of several sizes show
it to help on held-out text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pocketlm.data.datainf import AllReduce
from pocketlm.data.mixing.line_search import best_step
from pocketlm.data.mixing.problem import Gradients, LossFn, Milestone, Mix, MixProblem
from pocketlm.data.mixture import PRIORS, Shares, check_weights
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer

NOISE = 2  # standard errors that a probe's loss must fall by, or the proxy learnt nothing of it
Table = dict[str, dict[str, float]]  # [probe][source]


@dataclass(frozen=True, kw_only=True)
class UtilityMix:
    """num_gradient_probes: milestones of the simulated run at which gradients are compared, beside
    its start. prior: the shares of that run, from which the step is taken. step_sizes: of the line
    search, a proxy each beside the prior's own: a source worth twice what the prior's mix is gets e
    to that power times the share that it would get if it were worth the same. probe_weights: of
    each capability in utility, and of each domain in the loss that chooses; empty means equal, as
    R1.
    """

    num_gradient_probes: int
    prior: Literal["uniform", "proportional"] = "proportional"
    step_sizes: tuple[float, ...] = (0.5, 1.0, 2.0)
    probe_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is unknown; known: {', '.join(PRIORS)}")
        if self.num_gradient_probes < 1:
            raise ValueError(f"num_gradient_probes {self.num_gradient_probes} must be at least 1")
        if not self.step_sizes or not all(size > 0 for size in self.step_sizes):
            raise ValueError(
                f"step_sizes {self.step_sizes} must be positive, and at least one; the prior, a "
                "step of 0, is always tried"
            )
        if len(set(self.step_sizes)) < len(self.step_sizes):
            raise ValueError(f"step_sizes {self.step_sizes} names one size twice")
        check_weights(self.probe_weights, "probe_weights")

    @property
    def num_measured_proxies(self) -> int:
        """The line search: its prior is the simulated run."""
        return len(self.step_sizes)

    def summary(self) -> str:
        sizes = ", ".join(f"{size:g}" for size in self.step_sizes)
        return (
            "from each source's utility in one simulated run, "
            f"{self.num_gradient_probes} gradient probes; a step from {self.prior} of size 0, "
            f"{sizes}"
        )


def utility_mix(config: UtilityMix, problem: MixProblem) -> Mix:
    """Shares capped to max_epochs passes over a source; details: the utilities in nats, how far
    they explain the fall of the probes' losses, and the line search.

    ValueError: a probe weight of a capability that no source serves.
    """
    check_weights(config.probe_weights, f"{problem.where}.probe_weights", problem.capabilities)
    weights = config.probe_weights or dict.fromkeys(problem.capabilities, 1.0)
    prior = PRIORS[config.prior](problem.tokens)
    measured = problem.simulate(
        prior, config.num_gradient_probes, partial(measure_utilities, prior), first_order=True
    )
    by_probe, decay = summed(measured, "gains"), summed(measured, "decay")
    worths = {
        probe: sum(prior[source] * utility for source, utility in by_source.items())
        for probe, by_source in by_probe.items()
    }
    falls = {
        probe: {
            "measured": fall_of(measured, probe)[0],
            "noise": fall_of(measured, probe)[1],
            "predicted": worth + decay[probe]["all"],
            "weight_decay": decay[probe]["all"],
        }
        for probe, worth in worths.items()
    }
    learnt = {
        probe: worth
        for probe, worth in worths.items()
        if worth > 0 and falls[probe]["measured"] > NOISE * falls[probe]["noise"]
    }
    utility = weighed(by_probe, learnt, weights)
    warnings = warnings_of(problem.where, falls, learnt, weights)
    step = best_step(utility, prior, config.step_sizes, weights, problem)
    details = {
        "utility": utility,
        "utility_by_probe": by_probe,
        "falls": falls,
        "step_size": step.size,
        "line_search": step.tried,
    }
    return Mix(shares=step.shares, details=details, warnings=(*warnings, *step.warnings))


# ---- measured at one milestone ----


def measure_utilities(shares: Shares, milestone: Milestone) -> dict[str, Any]:
    """The milestone's part of the utilities: {"gains": [probe][source], "decay": [probe]["all"],
    "losses": [probe], those of each batch of the rows that stay the same}, in nats.

    shares: of the run, by which the sources' gradients make the gradient of its next step.
    """
    model, loss_fn, first_order = milestone.model, milestone.loss_fn, milestone.first_order
    assert first_order is not None
    shared = {"part": milestone.part, "all_reduce": milestone.all_reduce}
    sources, probes = (
        {name: mean_gradient(model, batches, loss_fn, **shared) for name, batches in rows.items()}
        for rows in (milestone.source_rows, milestone.probe_rows)
    )
    whole = [
        torch.stack([shares[name] * g for name, g in zip(sources, parts, strict=True)]).sum(0)
        for parts in zip(*sources.values(), strict=True)
    ]
    step_of, rate = first_order.linear_step(whole), first_order.rate
    moves = {name: step_of(gradients) for name, gradients in sources.items()}
    weights = zip(first_order.weight_decay, model.parameters(), strict=True)
    shrunk = [decay * weight.detach() for decay, weight in weights]
    return {
        "gains": {
            probe: {source: rate * inner(gradients, move) for source, move in moves.items()}
            for probe, gradients in probes.items()
        },
        "decay": {probe: {"all": rate * inner(gs, shrunk)} for probe, gs in probes.items()},
        "losses": {
            probe: mean_losses(model, batches, loss_fn, **shared)
            for probe, batches in first_order.loss_rows.items()
        },
    }


def mean_gradient(
    model: Transformer,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    *,
    part: slice = slice(None),
    all_reduce: AllReduce | None = None,
) -> list[Tensor]:
    """The gradient of the mean loss a label of the batches together, of every parameter, in order.
    Parameters' own .grad stays untouched. part, all_reduce: as a milestone has them.
    """
    num_labels = sum(batch.num_labels for batch in batches)
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches[part]:
        gradients = torch.autograd.grad(loss_fn(model, batch) / num_labels, parameters)
        total = [a.add_(b) for a, b in zip(total, gradients, strict=True)]
    if all_reduce is None:
        return total
    whole = torch.cat([gradient.flatten() for gradient in total])
    all_reduce(whole)
    parts = whole.split([parameter.numel() for parameter in parameters])
    return [p.view_as(parameter) for p, parameter in zip(parts, parameters, strict=True)]


@torch.no_grad()
def mean_losses(
    model: Transformer,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    *,
    part: slice = slice(None),
    all_reduce: AllReduce | None = None,
) -> list[float]:
    """The mean loss a label of each batch."""
    losses = torch.zeros(len(batches), dtype=torch.float64)
    for place in range(len(batches))[part]:
        batch = batches[place]
        losses[place] = float(loss_fn(model, batch)) / max(1, batch.num_labels)
    if all_reduce is not None and len(batches):
        all_reduce(losses)
    return losses.tolist()


def inner(a: Gradients, b: Gradients) -> float:
    """The inner product over all parameters."""
    return sum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))


# ---- over the whole run ----


def summed(measured: Sequence[Mapping[str, Any]], key: str) -> Table:
    """The sum over milestones of one of their tables."""
    first: Table = measured[0][key]
    return {
        probe: {name: sum(one[key][probe][name] for one in measured) for name in by_name}
        for probe, by_name in first.items()
    }


def fall_of(measured: Sequence[Mapping[str, Any]], probe: str) -> tuple[float, float]:
    """(how far a probe's loss fell from the first milestone to the last, in nats; the standard
    error of that mean over its batches, which are the same at both).
    """
    begin, end = (torch.tensor(measured[i]["losses"][probe], dtype=torch.float64) for i in (0, -1))
    falls = begin - end
    return float(falls.mean()), float(falls.std() / len(falls) ** 0.5)


def weighed(
    by_probe: Table, worths: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, float]:
    """The utility of each source: over the probes of `worths` the weighted mean of its utility, in
    parts of what the prior's mix is worth to that probe; 0 where no such probe has a weight. The
    mean over sources by the prior is then 1.

    A probe whose loss falls by much would otherwise count for more than its weight. Where steps are
    too large for the first order, utilities are many times the measured fall, so that they are not
    divided by that: their proportions are what is left of them.
    """
    total = sum(weights.get(probe, 0.0) for probe in worths) or 1.0
    return {
        source: sum(
            weights.get(probe, 0.0) / total * by_probe[probe][source] / worth
            for probe, worth in worths.items()
        )
        for source in next(iter(by_probe.values()))
    }


def warnings_of(
    where: str,
    falls: Mapping[str, Mapping[str, float]],
    learnt: Mapping[str, float],
    weights: Mapping[str, float],
) -> list[str]:
    """A line for each probe of some weight that is left out of utility."""
    lines = []
    for probe, fall in falls.items():
        if probe in learnt or not weights.get(probe, 0.0) > 0:
            continue
        fell = (
            f"{where}: the loss on probe {probe!r} fell by {fall['measured']:.3g} nats along the "
        )
        if fall["measured"] > NOISE * fall["noise"]:
            lines.append(
                f"{fell}simulated run, and utilities predict {fall['predicted']:.3g}: it is left "
                "out of utility. Steps are too large for them; lower optim.lr"
            )
        else:
            lines.append(
                f"{fell}simulated run, no more than {NOISE} standard errors of "
                f"{fall['noise']:.3g}: it is left out of utility. The proxy is too small or trains "
                "too briefly to learn it; raise optim.num_steps, optim.lr or the proxy's size"
            )
    return lines
