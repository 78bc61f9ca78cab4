"""Whether mixes that were trained with several seeds differ: the rule, stated once.

The deviations of all mixes are pooled, for few seeds of one mix say little of its spread. The
standard error of the difference of two means over n seeds is then deviation x sqrt(2 / n), and two
mixes differ where their means are further apart than ERRORS of them (our choice).
"""

import math
from collections.abc import Mapping, Sequence

ERRORS = 2.0


def least_difference(deviations: Sequence[float], num_seeds: int) -> float:
    """The difference of two means over num_seeds seeds beyond which two mixes differ."""
    pooled = math.sqrt(sum(value**2 for value in deviations) / len(deviations))
    return ERRORS * pooled * math.sqrt(2 / num_seeds)


def not_beaten(means: Mapping[str, float], least: float) -> list[str]:
    """The names that are not worse than the lowest beyond the spread, the lowest first."""
    ordered = sorted(means, key=lambda name: means[name])
    return [name for name in ordered if means[name] - means[ordered[0]] <= least]
