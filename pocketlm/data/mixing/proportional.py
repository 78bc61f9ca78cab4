"""The mix proportional to size: every token is read equally often. The baseline to beat
(docs/log.md).
"""

from dataclasses import dataclass

from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixture import proportional_shares


@dataclass(frozen=True, kw_only=True)
class ProportionalMix:
    """Each source by its number of training tokens."""

    def summary(self) -> str:
        return "each source by its size"


def proportional_mix(config: ProportionalMix, problem: MixProblem) -> Mix:
    return Mix(shares=proportional_shares(problem.tokens))
