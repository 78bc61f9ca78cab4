"""A mix that is known: a paper's published shares, to compare or to train on."""

from dataclasses import dataclass

from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixture import Shares, check_shares


@dataclass(frozen=True, kw_only=True)
class GivenMix:
    """shares: of each source, summing to 1; a source that is not named gets none."""

    shares: Shares

    def summary(self) -> str:
        return "shares given by the recipe"


def given_mix(config: GivenMix, problem: MixProblem) -> Mix:
    """ValueError for shares of sources that the corpus does not have."""
    shares = check_shares(config.shares, problem.tokens, f"{problem.where}.shares")
    return Mix(shares={name: shares.get(name, 0.0) for name in problem.tokens})
