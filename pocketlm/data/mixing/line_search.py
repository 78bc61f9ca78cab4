"""A step from prior shares towards useful sources, as long as held-out losses say that it helps.

A utility is a slope: it tells a direction and not how far it holds. So proxies are trained on steps
of several sizes, the prior among them, and the best on text to choose by is taken. On that text the
method is never worse than its prior; other text decides about the mix (mix.json).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketlm.data.mixing.problem import MixProblem
from pocketlm.data.mixture import Shares, cap_repetition


@dataclass(frozen=True)
class Step:
    """The chosen step's size and shares. tried: by its size every candidate's {"shares",
    "bits_per_byte", "objective"}; empty where the prior was the only one.
    """

    size: float
    shares: Shares
    tried: dict[str, dict[str, Any]]
    warnings: tuple[str, ...] = ()


def best_step(
    utility: Mapping[str, float],
    prior: Mapping[str, float],
    sizes: Sequence[float],
    weights: Mapping[str, float],
    problem: MixProblem,
) -> Step:
    """The step with the least weighted mean of held-out bits per byte over domains; of equal ones
    the smallest. Repetition is capped in all, the prior too.

    Nothing is trained where no source is worth more than another. weights: of domains; equal where
    they name no domain that was measured. A name that was not measured is a warning.
    """
    candidates = {
        f"{size:g}": cap_repetition(
            step_from(prior, utility, size),
            problem.tokens,
            problem.budget_tokens,
            problem.max_epochs,
        )
        for size in sorted({0.0, *sizes})
    }
    if all(shares == candidates["0"] for shares in candidates.values()):
        line = f"{problem.where}: every step leaves the prior's shares as they are; it keeps them"
        return Step(0.0, candidates["0"], {}, (line,))
    losses = problem.losses({f"step-{size}": shares for size, shares in candidates.items()})
    tried = {
        size: {
            "shares": shares,
            "bits_per_byte": losses[f"step-{size}"],
            "objective": weighted_mean(losses[f"step-{size}"], weights),
        }
        for size, shares in candidates.items()
    }
    best = min(tried, key=lambda size: tried[size]["objective"])
    measured = losses["step-0"]
    unmeasured = [name for name, weight in weights.items() if weight and name not in measured]
    lines = (
        f"{problem.where}: the line search measures {', '.join(measured)}; the weight of "
        f"{', '.join(unmeasured)} counts in utility alone",
    )
    return Step(float(best), candidates[best], tried, lines if unmeasured else ())


def step_from(prior: Mapping[str, float], utility: Mapping[str, float], size: float) -> Shares:
    """argmax over shares p of size x <p, utility> - KL(p || prior), in closed form: p = prior x
    exp(size x utility).

    With repetition capped after it, what is cut going to the rest in proportion, this is still the
    best of all shares within the caps.
    """
    highest = max(utility.values())  # its exponent is 0, so a long step cannot overflow
    weights = {name: prior[name] * math.exp(size * (utility[name] - highest)) for name in utility}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def weighted_mean(bits: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The mean over domains by these weights; the plain mean where they name none."""
    total = sum(weights.get(domain, 0.0) for domain in bits)
    if not total:
        return sum(bits.values()) / len(bits)
    return sum(weights.get(domain, 0.0) * value for domain, value in bits.items()) / total
