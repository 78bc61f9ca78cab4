"""All mixing methods: the function of each config. A new one is a file beside this and a row."""

from collections.abc import Callable
from typing import Any

from pocketlm.data.mixing.given import GivenMix, given_mix
from pocketlm.data.mixing.influence import InfluenceMix, influence_mix
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixing.proportional import ProportionalMix, proportional_mix
from pocketlm.data.mixing.uniform import UniformMix, uniform_mix
from pocketlm.data.mixing.utility import UtilityMix, utility_mix

MixMethod = UtilityMix | InfluenceMix | UniformMix | ProportionalMix | GivenMix
METHODS: dict[type[Any], Callable[[Any, MixProblem], Mix]] = {
    UtilityMix: utility_mix,
    InfluenceMix: influence_mix,
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
