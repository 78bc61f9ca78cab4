"""All mixing methods: the function of each config. A new one is a file beside this and a row."""

from collections.abc import Callable
from typing import Any

from pocketlm.data.mixing.given import GivenMix, given_mix
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixing.proportional import ProportionalMix, proportional_mix
from pocketlm.data.mixing.swarm import SwarmMix, swarm_mix
from pocketlm.data.mixing.uniform import UniformMix, uniform_mix
from pocketlm.data.mixing.utility import UtilityMix, utility_mix

MixMethod = UtilityMix | SwarmMix | UniformMix | ProportionalMix | GivenMix
METHODS: dict[type[Any], Callable[[Any, MixProblem], Mix]] = {
    UtilityMix: utility_mix,
    SwarmMix: swarm_mix,
    UniformMix: uniform_mix,
    ProportionalMix: proportional_mix,
    GivenMix: given_mix,
}


def num_gradient_probes(method: MixMethod) -> int:
    """Milestones that the method computes gradients at in a simulated run of its own; 0: no run."""
    return method.num_gradient_probes if isinstance(method, UtilityMix) else 0


def num_own_proxies(method: MixMethod) -> int:
    """Proxies that the method trains to find its shares, beside the one that compares them."""
    return getattr(method, "num_own_proxies", 0)
