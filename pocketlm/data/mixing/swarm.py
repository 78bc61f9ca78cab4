"""Shares by a swarm of proxies and a law: the control that cheaper methods are held against.

Many mixes are drawn around a prior (RegMix, Olmix), a proxy is trained on each, a law from shares
to loss is fitted for each domain (laws.py), and the mix is the one of the least weighted loss that
the laws predict, near the prior, under repetition caps and within what was sampled (propose.py). A
second round may draw more mixes around that optimum (CLIMB).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from pocketlm.data.mixing.laws import FITS, Array, LawChoice, choose_law
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixing.propose import capped, divergence, propose
from pocketlm.data.mixture import PRIORS, Shares, cap_repetition, check_weights
from pocketlm.data.rank_correlation import spearman

LAWS = ("auto", *FITS)
MOST_DRAWS = 200  # for one mix that differs from the earlier ones
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, cover (0, 1) evenly however many are taken
PRIOR_PART = 0.1  # of the centre of the second round, so that a source may come back
TRUSTED = 0.5  # a cross-validated rank correlation below it is reported as a warning


@dataclass(frozen=True, kw_only=True)
class SwarmMix:
    """num_runs: proxies of the swarm; at least one for each source, better two. refine_runs:
    further ones, drawn around the first optimum. prior: what mixes are drawn around and the optimum
    stays near. temper: the exponent of the prior that is drawn around; below 1 small sources are
    sampled more often (RegMix takes 0.5). strengths: the least and the most of Dirichlet(prior x
    strength): low is scattered, high is near the prior. refine_strength: of the second round.
    min_share: shares below it are drawn as 0. law: the one of every domain, or auto: for each
    domain the one with the least error in `folds`-fold cross-validation. kl: bits per byte that one
    nat of distance from the prior must save (Olmix). probe_weights: of each domain's loss; empty
    means equal. seed: of draws and folds.
    """

    num_runs: int
    refine_runs: int = 0
    prior: Literal["uniform", "proportional"] = "proportional"
    temper: float = 0.5
    strengths: tuple[float, float] = (0.1, 5.0)
    refine_strength: float = 20.0
    min_share: float = 2e-3
    law: Literal["auto", "log_linear", "gaussian_process"] = "auto"
    folds: int = 5
    kl: float = 0.05
    probe_weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is unknown; known: {', '.join(PRIORS)}")
        if self.law not in LAWS:
            raise ValueError(f"law {self.law!r} is unknown; known: {', '.join(LAWS)}")
        least, most = self.strengths
        if not 0 < least <= most or not self.refine_strength > 0:
            raise ValueError(
                f"strengths {self.strengths} and refine_strength {self.refine_strength} must be "
                "positive, the least of strengths first"
            )
        if not 2 <= self.folds <= self.num_runs:
            raise ValueError(f"folds {self.folds} must be 2 to num_runs {self.num_runs}")
        if self.refine_runs < 0 or self.kl < 0 or not 0 <= self.temper <= 1:
            raise ValueError(
                f"refine_runs {self.refine_runs} and kl {self.kl} must not be negative, and temper "
                f"{self.temper} must be in 0 to 1"
            )
        if not 0 <= self.min_share < 0.5:
            raise ValueError(f"min_share {self.min_share} must be at least 0 and below 0.5")
        check_weights(self.probe_weights, "probe_weights")

    num_beside: ClassVar[int] = 1  # the best run of the swarm

    @property
    def num_measured_proxies(self) -> int:
        return self.num_runs + self.refine_runs

    def summary(self) -> str:
        law = "the better of two laws" if self.law == "auto" else f"a {self.law} law"
        count = self.num_measured_proxies
        return f"the optimum of {law} that was fitted on {count} proxies of drawn mixes"


@dataclass(frozen=True)
class Swarm:
    """names, shares [runs, S] and losses [runs, domains] of the proxies so far."""

    sources: list[str]
    domains: list[str]
    names: list[str]
    shares: Array
    losses: Array

    def row(self, shares: Array) -> Shares:
        return dict(zip(self.sources, shares.tolist(), strict=True))

    def bits(self, losses: Array) -> dict[str, float]:
        return dict(zip(self.domains, losses.tolist(), strict=True))


def swarm_mix(config: SwarmMix, problem: MixProblem) -> Mix:
    """The optimum, and as a run of its own the best mix of the swarm by the same weights.

    details: every run's shares and bits per byte, what the laws predict of the optimum, how well
    they predicted runs that they were not fitted on, and what bounds the optimum.
    ValueError: fewer runs than sources, weights of a domain that no source serves, caps that leave
    no room for different mixes.
    """
    sources = list(problem.tokens)
    if config.num_runs < len(sources):
        raise ValueError(
            f"{problem.where}.num_runs {config.num_runs} is less than the {len(sources)} sources, "
            f"and a law of so many shares cannot be fitted; take {2 * len(sources)} or more"
        )
    prior = np.array([PRIORS[config.prior](problem.tokens)[name] for name in sources])
    caps = _caps(problem, prior)
    tempered = prior**config.temper * (prior > 0)
    strengths = _strengths(config)
    drawn, redrawn = draw_mixes(tempered, strengths, caps, config, problem.where)
    swarm = _trained(problem, "run", np.array(drawn), None)
    weights = _weights(config, problem, swarm.domains)
    shares, choice = _optimum(config, swarm, weights, prior, caps)
    if config.refine_runs:
        # rounded, so that whoever computes it next draws the same mixes from it
        centre = np.round((1 - PRIOR_PART) * shares + PRIOR_PART * prior, 6)
        around = [config.refine_strength] * config.refine_runs
        again = replace(config, seed=config.seed + 1)
        more, count = draw_mixes(centre, around, caps, again, problem.where, drawn)
        redrawn += count
        swarm = _trained(problem, "refined", np.array(more), swarm)
        shares, choice = _optimum(config, swarm, weights, prior, caps)
    best = int(np.argmin(swarm.losses @ weights))
    figures = _figures(swarm, choice, weights)
    warnings = []
    if figures["rank_correlation"] < TRUSTED:
        warnings.append(
            "the laws order runs that they were not fitted on with a rank correlation of only "
            f"{figures['rank_correlation']:.2f}: proxies too small or too briefly trained to learn "
            "from their mix, or too few of them"
        )
    return Mix(
        shares=swarm.row(shares),
        details={
            **figures,
            **_bounds(swarm, shares, prior, caps, choice),
            "best_run": swarm.names[best],
            "redrawn": redrawn,
        },
        beside={"best": swarm.names[best]},
        warnings=tuple(warnings),
    )


def _caps(problem: MixProblem, prior: Array) -> Array:
    """The largest share of each source, at most 1. ValueError: the budget passes over all sources
    more often than the cap allows.
    """
    cap_repetition(
        dict(zip(problem.tokens, prior.tolist(), strict=True)),
        problem.tokens,
        problem.budget_tokens,
        problem.max_epochs,
    )
    tokens = np.array([*problem.tokens.values()], dtype=np.float64)
    return np.minimum(problem.max_epochs * tokens / problem.budget_tokens, 1.0)


def _weights(config: SwarmMix, problem: MixProblem, domains: Sequence[str]) -> Array:
    """[domains], summing to 1."""
    check_weights(config.probe_weights, f"{problem.where}.probe_weights", domains)
    given = config.probe_weights or dict.fromkeys(domains, 1.0)
    weights = np.array([given.get(domain, 0.0) for domain in domains])
    return weights / weights.sum()


def _strengths(config: SwarmMix) -> list[float]:
    """Of each run: evenly spread in their logarithm. The first ones stay when num_runs is raised,
    so that the proxies of a smaller swarm are runs of the larger one.
    """
    least, most = config.strengths
    return [least * (most / least) ** (run * GOLDEN % 1) for run in range(config.num_runs)]


def draw_mixes(
    centre: Array,
    strengths: Sequence[float],
    caps: Array,
    config: SwarmMix,
    where: str,
    earlier: Sequence[Array] = (),
) -> tuple[list[Array], int]:
    """(a mix for each strength, how often one was drawn again): Dirichlet(centre x strength),
    shares below min_share set to 0, then brought under the caps.

    A mix that has no share `min_share` away from that of an earlier one is drawn again: a proxy
    trained on it would say nothing new.
    """
    mixes: list[Array] = []
    redrawn = 0
    held = centre > 0
    alphas = centre[held] / centre.sum()
    apart = max(config.min_share, 1e-3)
    for run, strength in enumerate(strengths):
        rng = np.random.default_rng([config.seed, run])
        for _ in range(MOST_DRAWS):
            mix = np.zeros_like(centre)
            mix[held] = rng.dirichlet(alphas * strength)
            mix = np.where(mix < config.min_share, 0.0, mix)
            if mix.sum() > 0:
                mix = capped(mix / mix.sum(), caps)
                if all(np.abs(mix - other).max() >= apart for other in [*earlier, *mixes]):
                    break
            redrawn += 1
        else:
            raise ValueError(
                f"{where}: of {MOST_DRAWS} draws none is another mix than the {run} before; raise "
                "max_epochs or strengths, or take fewer runs"
            )
        mixes.append(mix)
    return mixes, redrawn


def _trained(problem: MixProblem, label: str, shares: Array, swarm: Swarm | None) -> Swarm:
    """The swarm with proxies of these shares [runs, S] added."""
    sources = list(problem.tokens)
    names = [f"{label}-{number:03d}" for number in range(1, len(shares) + 1)]
    mixes = {
        name: dict(zip(sources, row.tolist(), strict=True))
        for name, row in zip(names, shares, strict=True)
    }
    measured = problem.losses(mixes)
    domains = list(measured[names[0]])
    losses = np.array([[measured[name][domain] for domain in domains] for name in names])
    if swarm is None:
        return Swarm(sources, domains, names, shares, losses)
    return replace(
        swarm,
        names=swarm.names + names,
        shares=np.concatenate([swarm.shares, shares]),
        losses=np.concatenate([swarm.losses, losses]),
    )


def _optimum(
    config: SwarmMix, swarm: Swarm, weights: Array, prior: Array, caps: Array
) -> tuple[Array, LawChoice]:
    """(shares [S], the laws). No share exceeds the largest that was sampled: a law is not trusted
    outside.
    """
    names = tuple(FITS) if config.law == "auto" else (config.law,)
    choice = choose_law(swarm.shares, swarm.losses, names, config.folds, config.seed)
    bounds = np.minimum(caps, swarm.shares.max(axis=0))
    shares = propose(choice.chosen, weights, prior, bounds, config.kl, config.seed)
    return shares, choice


def _figures(swarm: Swarm, choice: LawChoice, weights: Array) -> dict[str, Any]:
    """Every run, and how well the laws predicted runs that they were not fitted on."""
    runs = zip(swarm.names, swarm.shares, swarm.losses, strict=True)
    measured = swarm.losses @ weights
    return {
        "swarm": [
            {"run": name, "shares": swarm.row(shares), "bits_per_byte": swarm.bits(losses)}
            for name, shares, losses in runs
        ],
        "laws": {
            domain: {
                "chosen": choice.chosen.chosen[place],
                **{
                    name: {
                        "rank_correlation": float(choice.rank_correlations[name][place]),
                        "error": float(choice.errors[name][place]),
                    }
                    for name in choice.errors
                },
            }
            for place, domain in enumerate(swarm.domains)
        },
        "rank_correlation": spearman(choice.chosen_predictions @ weights, measured) or 0.0,
    }


def _bounds(
    swarm: Swarm, shares: Array, prior: Array, caps: Array, choice: LawChoice
) -> dict[str, Any]:
    """What is predicted of the optimum, how far it is from the prior, and what holds it."""
    sampled = swarm.shares.max(axis=0)
    at = {
        "repetition": shares >= np.minimum(caps, 1) * (1 - 1e-6),
        "sampled": (shares >= sampled * (1 - 1e-6)) & (sampled > 0),
    }
    return {
        "predicted": swarm.bits(choice.chosen.predict(shares[None])[0]),
        "nats_from_prior": float(divergence(shares, prior)),
        "at_bound": {
            bound: [name for name, held in zip(swarm.sources, places, strict=True) if held]
            for bound, places in at.items()
        },
        "never_sampled": [
            name for name, most in zip(swarm.sources, sampled, strict=True) if most == 0
        ],
    }
