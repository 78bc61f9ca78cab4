"""Shares by utility, from one simulated run: the Scalable Data Mixer in spirit.

MobileLLM-Pro names its mixer, one offline simulated run and static shares, but no formula. This is
ours: at evenly spaced milestones of a run on the uniform mix, the gradient of fresh rows of each
source is compared with the gradient of each probe set, scaled as Adam scales (a diagonal of root
mean squares), and what a step on that source would lower the probe's loss by is summed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.data.mixing.problem import LossFn, Milestone, Mix, MixProblem
from pocketlm.data.mixture import cap_repetition, proportional_shares, uniform_shares
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer

PRIORS = {"uniform": uniform_shares, "proportional": proportional_shares}


@dataclass(frozen=True, kw_only=True)
class UtilityMix:
    """num_gradient_probes: milestones of the simulated run at which gradients are compared.
    temperature: how far utility moves shares from the prior; large keeps the prior. probe_weights:
    of each domain; empty means equal, as R1.
    """

    num_gradient_probes: int
    temperature: float
    prior: Literal["uniform", "proportional"] = "uniform"
    probe_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is unknown; known: {', '.join(PRIORS)}")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature {self.temperature} must be positive; large keeps the prior's shares"
            )
        if self.num_gradient_probes < 1:
            raise ValueError(f"num_gradient_probes {self.num_gradient_probes} must be at least 1")

    def summary(self) -> str:
        return (
            "from each source's utility in one simulated run, "
            f"{self.num_gradient_probes} gradient probes"
        )


def utility_mix(config: UtilityMix, problem: MixProblem) -> Mix:
    """Shares capped to max_epochs passes over a source; details: the utilities they come from.

    ValueError: a probe weight of a domain that no source serves.
    """
    by_milestone = problem.simulate(
        uniform_shares(problem.tokens), config.num_gradient_probes, measure_utilities
    )
    by_probe = {
        probe: {
            source: sum(utilities[probe][source] for utilities in by_milestone)
            for source in problem.tokens
        }
        for probe in by_milestone[0]
    }
    weights = config.probe_weights or dict.fromkeys(by_probe, 1.0)
    unknown = sorted(set(weights) - set(by_probe))
    if unknown:
        raise ValueError(
            f"{problem.where}.probe_weights names {', '.join(unknown)}; the corpus serves "
            f"{', '.join(by_probe)}"
        )
    utility = {
        source: sum(weights.get(probe, 0.0) * by_probe[probe][source] for probe in by_probe)
        for source in problem.tokens
    }
    prior = PRIORS[config.prior](problem.tokens)
    shares = shares_from_utility(utility, prior, config.temperature)
    shares = cap_repetition(shares, problem.tokens, problem.budget_tokens, problem.max_epochs)
    return Mix(shares=shares, details={"utility": utility, "utility_by_probe": by_probe})


def measure_utilities(milestone: Milestone) -> dict[str, dict[str, float]]:
    """utility[probe][source] at one milestone."""
    sources, probes = (
        {
            name: mean_gradient(milestone.model, batches, milestone.loss_fn)
            for name, batches in rows.items()
        }
        for rows in (milestone.source_rows, milestone.probe_rows)
    )
    return utilities(sources, probes, milestone.lr)


def mean_gradient(model: Transformer, batches: Sequence[Batch], loss_fn: LossFn) -> Tensor:
    """The gradient of the mean loss a label of the batches together, over all parameters: one flat
    vector. Parameters' own .grad stays untouched.
    """
    num_labels = sum(batch.num_labels for batch in batches)
    parameters = list(model.parameters())
    total: list[Tensor] | None = None
    for batch in batches:
        gradients = torch.autograd.grad(loss_fn(model, batch) / num_labels, parameters)
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else [*gradients]
    assert total is not None
    return torch.cat([gradient.flatten() for gradient in total])


def second_moment(gradients: Sequence[Tensor]) -> Tensor:
    """The root mean square of some flat gradients, element by element: Adam's denominator, whatever
    optimizer trains.
    """
    mean = torch.zeros_like(gradients[0])
    for gradient in gradients:
        mean.addcmul_(gradient, gradient, value=1 / len(gradients))
    return mean.sqrt_().add_(1e-8)


def utilities(
    source_gradients: Mapping[str, Tensor], probe_gradients: Mapping[str, Tensor], lr: float
) -> dict[str, dict[str, float]]:
    """utility[probe][source]: lr x <unit probe gradient, preconditioned source gradient of unit
    length>.

    Both are brought to length 1 after preconditioning, or sources with short, noisy documents would
    win by sheer norm.
    """
    root = second_moment([*source_gradients.values(), *probe_gradients.values()]).rsqrt_()
    sources, probes = (
        {name: F.normalize(gradient * root, dim=0) for name, gradient in gradients.items()}
        for gradients in (source_gradients, probe_gradients)
    )
    return {
        probe: {source: lr * float(direction @ unit) for source, unit in sources.items()}
        for probe, direction in probes.items()
    }


def shares_from_utility(
    utility: Mapping[str, float], prior: Mapping[str, float], temperature: float
) -> dict[str, float]:
    """argmax over shares p of <p, utility> - temperature x KL(p || prior), in closed form: p =
    prior x exp(utility / t).

    The utility is first brought to mean 0 and deviation 1 over sources, so `temperature` has no
    unit. The KL keeps the answer near the prior, for a gradient tells a direction and not how far
    it holds (our choice, after Olmix).
    """
    values = list(utility.values())
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) or 1.0
    highest = max(values)  # its exponent is 0, so a low temperature cannot overflow
    weights = {
        name: prior[name] * math.exp((utility[name] - highest) / deviation / temperature)
        for name in utility
    }
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
