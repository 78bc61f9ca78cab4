"""All mixing methods: the function of each config. A new one is a file beside this and a row."""

from collections.abc import Callable, Sequence
from typing import Any

from pocketlm.data.mixing.given import GivenMix, given_mix
from pocketlm.data.mixing.influence import InfluenceMix, influence_mix
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixing.proportional import ProportionalMix, proportional_mix
from pocketlm.data.mixing.swarm import SwarmMix, swarm_mix
from pocketlm.data.mixing.uniform import UniformMix, uniform_mix
from pocketlm.data.mixing.utility import UtilityMix, utility_mix

MixMethod = UtilityMix | InfluenceMix | SwarmMix | UniformMix | ProportionalMix | GivenMix
METHODS: dict[type[Any], Callable[[Any, MixProblem], Mix]] = {
    UtilityMix: utility_mix,
    InfluenceMix: influence_mix,
    SwarmMix: swarm_mix,
    UniformMix: uniform_mix,
    ProportionalMix: proportional_mix,
    GivenMix: given_mix,
}


def num_gradient_probes(method: MixMethod) -> int:
    """Milestones that the method computes gradients at in each simulated run; 0: no run."""
    return getattr(method, "num_gradient_probes", 0)


def num_simulated_runs(method: MixMethod, num_capabilities: int) -> int:
    """Proxies that the method trains to compute gradients at their milestones."""
    if isinstance(method, InfluenceMix):
        return num_capabilities
    return int(num_gradient_probes(method) > 0)


def num_own_proxies(method: MixMethod, num_capabilities: int) -> int:
    """Proxies that the method trains to find its shares, beside the one that compares them."""
    return num_simulated_runs(method, num_capabilities) + getattr(method, "num_measured_proxies", 0)


def num_trained_before(methods: Sequence[MixMethod]) -> int:
    """Mixes of these whose proxy is one that a method trained to find its own: the step that a line
    search chose, and a plain mix that is its prior. Where a cap on repetition changes a prior, the
    last are as many fewer.
    """
    searches = [method for method in methods if isinstance(method, UtilityMix)]
    plain = {"uniform": UniformMix, "proportional": ProportionalMix}
    priors = tuple({plain[method.prior] for method in searches})
    return len(searches) + sum(isinstance(method, priors) for method in methods)


def gradient_rows(
    method: MixMethod, rows_per_step: int, num_sources: int, num_capabilities: int
) -> int:
    """Rows that the method passes forward and backward at the milestones of its runs; at most."""
    milestones = num_gradient_probes(method)
    if isinstance(method, InfluenceMix):
        # DataInf passes over the rows of the sources three times and one probe set's once; the
        # cheap score once, and over all probe sets; one more for what was learned of the set
        passes = (3 + 1) * num_sources + 2 + num_capabilities
        return method.representative_rows * milestones * num_capabilities * passes
    looks = milestones + 1 if milestones else 0  # a run's start is one more
    return rows_per_step * looks * (num_sources + num_capabilities)
