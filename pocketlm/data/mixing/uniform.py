"""The uniform mix: the papers' baseline, and a weak one where sources differ much in size."""

from dataclasses import dataclass

from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixture import uniform_shares


@dataclass(frozen=True, kw_only=True)
class UniformMix:
    """The same share for each source, however often a small one repeats."""

    def summary(self) -> str:
        return "the same share for each source"


def uniform_mix(config: UniformMix, problem: MixProblem) -> Mix:
    return Mix(shares=uniform_shares(problem.tokens))
