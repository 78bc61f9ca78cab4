"""Shares by influence density: MobileLLM-R1's section 5.2, equations 2 to 6.

For each capability a domain model is trained on the sources that serve it, in equal shares. At T
milestones of its training every representative row of every source is scored on that capability's
probe set: self influence for the capability's own sources, cross influence for the others. A row's
joint influence is the sum over capabilities and milestones with weights that grow with the
milestone's number t and are equal over capabilities (equation 4 in the paper's last version). A
source's density is the mean of its rows' joint influence, by tokens, and shares are in proportion
to it.

Ours: rows of which DataInf's Hessian is made are all representative rows, of all sources; a source
of negative density gets nothing, or is refused. Where the paper says nothing on repetition, shares
are capped as those of the other methods.

Shapes: R rows of a source, T milestones
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pocketlm.data.datainf import DAMPING, SCORES, Score, score_directions
from pocketlm.data.influence import influence
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixture import Shares, cap_repetition
from pocketlm.data.moved_batches import Joined
from pocketlm.data.rank_correlation import spearman
from pocketlm.data.selection import positive_share
from pocketlm.model.batch import IGNORE_INDEX, Batch

ByCapability = dict[str, dict[str, np.ndarray]]  # capability, source: scores [R]
NEGATIVE = ("clip", "refuse")


@dataclass(frozen=True, kw_only=True)
class InfluenceMix:
    """num_gradient_probes: T, milestones of each domain model at which rows are scored.
    representative_rows: of each source and of each probe set; the same at every milestone, no row
    twice (R1: about 10,000 documents of each source). score: "datainf", R1's, or "adam", gradients
    scaled by root mean squares of the probes'. Both are computed and compared. damping: of DataInf,
    times the mean square of the gradients. negative_density: "clip" gives such a source no share,
    "refuse" ends with an error. min_fall: nats a token by which a domain model's loss on its probe
    set must lie, at the end, below that of words drawn alike; one that learned less can say little
    of a source, and is named (our choice).
    """

    num_gradient_probes: int = 10
    representative_rows: int = 256
    score: Score = "datainf"
    damping: float = DAMPING
    negative_density: Literal["clip", "refuse"] = "clip"
    min_fall: float = 0.5

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score {self.score!r} is unknown; known: {', '.join(SCORES)}")
        if self.negative_density not in NEGATIVE:
            raise ValueError(
                f"negative_density {self.negative_density!r} is unknown; known: "
                f"{', '.join(NEGATIVE)}"
            )
        if self.num_gradient_probes < 1 or self.representative_rows < 1:
            raise ValueError(
                f"num_gradient_probes {self.num_gradient_probes} and representative_rows "
                f"{self.representative_rows} must be at least 1"
            )
        if not self.damping > 0:
            raise ValueError(f"damping {self.damping} must be positive; the papers' is 0.1")

    def summary(self) -> str:
        return (
            f"from influence density by {self.score}, a domain model for each capability and "
            f"{self.num_gradient_probes} milestones of each, up to {self.representative_rows:,} "
            "rows of a source"
        )


def influence_mix(config: InfluenceMix, problem: MixProblem) -> Mix:
    """Shares capped to max_epochs passes over a source; details: densities and masses by
    capability, and how far the ranks of both scores agree.

    ValueError: no source of positive density, one of negative density where they are refused, or a
    capability none of whose sources the corpus has.
    """
    measured = {
        capability: problem.simulate(
            domain_shares(capability, problem),
            config.num_gradient_probes,
            partial(measure_influence, capability=capability, damping=config.damping),
            fixed_rows=config.representative_rows,
        )
        for capability in problem.capabilities
    }
    first = next(iter(measured.values()))[0]
    tokens = {source: np.asarray(counts) for source, counts in first["tokens"].items()}
    scores = {score: weighted(measured, score) for score in SCORES}
    joint = {score: joint_influence(by_capability) for score, by_capability in scores.items()}
    densities = {score: density(rows, tokens) for score, rows in joint.items()}
    shares, clipped = density_shares(config, densities[config.score], problem.where)
    chosen = scores[config.score]
    learned = {  # files of earlier versions do not say it
        capability: milestones[-1]["learned"]
        for capability, milestones in measured.items()
        if "learned" in milestones[-1]
    }
    details = {
        "score": config.score,
        "density": densities[config.score],
        "density_by_capability": {name: density(rows, tokens) for name, rows in chosen.items()},
        "capabilities": {name: list(sources) for name, sources in problem.capabilities.items()},
        "positive_mass": positive_mass(joint[config.score], tokens),
        "positive_mass_by_capability": {
            name: positive_mass(rows, tokens) for name, rows in chosen.items()
        },
        "clipped": clipped,
        "learned": learned,
        "rows": {source: len(counts) for source, counts in tokens.items()},
        "density_by_score": densities,
        "rank_correlation": {
            "sources": spearman(*(list(values.values()) for values in densities.values())),
            "rows": spearman(*(np.concatenate([*rows.values()]) for rows in joint.values())),
        },
    }
    # what the caps cut goes to the other sources that help, never to those that do not
    usable = {name: problem.tokens[name] for name, share in shares.items() if share > 0}
    capped = cap_repetition(
        {name: shares[name] for name in usable}, usable, problem.budget_tokens, problem.max_epochs
    )
    shares = {name: capped.get(name, 0.0) for name in problem.tokens}
    warnings = [
        f"{name} lowers no probe's loss: no share, for its density is negative" for name in clipped
    ]
    warnings += [
        f"{problem.where}: the domain model of {name} did not learn: at its end its probe loss is "
        f"{nats:.3g} nats a token below that of words drawn alike (min_fall {config.min_fall:g}); "
        "train it longer, or take a larger proxy, before you believe its influence"
        for name, nats in learned.items()
        if not nats >= config.min_fall
    ]
    return Mix(shares=shares, details={"influence": details}, warnings=tuple(warnings))


def domain_shares(capability: str, problem: MixProblem) -> Shares:
    """The sources that serve a capability in equal shares; 0 for all others."""
    serving = [name for name in problem.capabilities[capability] if name in problem.tokens]
    if not serving:
        raise ValueError(
            f"{problem.where}: none of the sources of capability {capability!r} "
            f"({', '.join(problem.capabilities[capability])}) is in the corpus, so it has no "
            "domain model"
        )
    return {name: (name in serving) / len(serving) for name in problem.tokens}


def measure_influence(milestone: Milestone, capability: str, damping: float) -> dict[str, Any]:
    """Of every row of every source its influence on one capability's probe set, by both scores, and
    its number of labels: {"datainf": {source: [R]}, "adam": {source: [R]}, "tokens": {source:
    [R]}}; and what the model learned of that set, "learned".
    """
    model = milestone.model.eval().requires_grad_(False)
    samples = Joined([*milestone.source_rows.values()])
    tokens = [(batch.labels != IGNORE_INDEX).sum(1) for batch in samples]
    part, all_reduce = milestone.part, milestone.all_reduce
    measured: dict[str, Any] = {
        "tokens": _by_source(milestone, tokens),
        "learned": learned_of(milestone, milestone.probe_rows[capability]),
    }
    for score in SCORES:
        # the cheap score divides by root mean squares over the rows of all probe sets
        probes = milestone.probe_rows
        if score == "datainf":
            probes = {capability: probes[capability]}
        directions = score_directions(
            score, model, probes, samples, damping=damping, part=part, all_reduce=all_reduce
        )
        direction = directions[list(probes).index(capability)][None]
        values = [torch.zeros(len(count), dtype=torch.float64) for count in tokens]
        for place in range(len(samples))[part]:
            values[place] = influence(model, samples[place], direction)[:, 0].double().cpu()
        if all_reduce is not None:
            whole = torch.cat(values)
            all_reduce(whole)
            values = whole.split([len(value) for value in values])
        measured[score] = _by_source(milestone, values)
    return measured


@torch.no_grad()
def learned_of(milestone: Milestone, batches: Sequence[Batch]) -> float:
    """How far the model's mean loss on these rows is below that of words drawn alike, ln V, in nats
    a token.
    """
    total = torch.zeros(1, dtype=torch.float64)
    for batch in batches[milestone.part]:
        total += float(milestone.loss_fn(milestone.model, batch))
    if milestone.all_reduce is not None:
        milestone.all_reduce(total)
    num_labels = sum(batch.num_labels for batch in batches)
    return math.log(milestone.model.config.vocab_size) - total.item() / max(1, num_labels)


def _by_source(milestone: Milestone, values: Sequence[Tensor]) -> dict[str, list[Any]]:
    """Figures of each row of the sources' batches, in their order, by source."""
    remaining = iter(values)
    return {
        source: [value for _ in range(len(batches)) for value in next(remaining).tolist()]
        for source, batches in milestone.source_rows.items()
    }


def weighted(measured: Mapping[str, Sequence[dict[str, Any]]], score: str) -> ByCapability:
    """[capability][source]: of each row the sum over milestones of its influence, weighted by t and
    1 over the number of capabilities; all weights of all capabilities sum to 1.
    """
    result: ByCapability = {}
    for capability, milestones in measured.items():
        weights = np.arange(1, len(milestones) + 1) / len(measured)
        weights = weights / np.arange(1, len(milestones) + 1).sum()
        result[capability] = {
            source: weights @ np.asarray([milestone[score][source] for milestone in milestones])
            for source in milestones[0][score]
        }
    return result


def joint_influence(by_capability: ByCapability) -> dict[str, np.ndarray]:
    """Of each row the sum over capabilities."""
    sources = next(iter(by_capability.values()))
    return {
        source: np.sum([rows[source] for rows in by_capability.values()], axis=0)
        for source in sources
    }


def density(rows: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean influence of each source's rows, by tokens (equation 5)."""
    return {name: float(rows[name] @ tokens[name] / max(1, tokens[name].sum())) for name in rows}


def positive_mass(
    rows: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Of each source: the positive influence of its rows, by tokens, over the absolute value of
    all.
    """
    return {name: positive_share(rows[name], tokens[name]) for name in rows}


def density_shares(
    config: InfluenceMix, densities: Mapping[str, float], where: str
) -> tuple[Shares, list[str]]:
    """(shares in proportion to density, the sources whose density is negative)."""
    negative = [name for name, value in densities.items() if value < 0]
    if negative and config.negative_density == "refuse":
        raise ValueError(
            f"{where}: {', '.join(negative)} would raise the probes' loss (negative influence "
            'density); leave them out of the corpus or set negative_density to "clip"'
        )
    total = sum(max(0.0, value) for value in densities.values())
    if total == 0:
        raise ValueError(
            f"{where}: no source has positive influence density; train the proxy longer, give more "
            "rows, or choose another method"
        )
    return {name: max(0.0, value) / total for name, value in densities.items()}, negative
