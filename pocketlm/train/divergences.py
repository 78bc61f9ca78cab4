"""How far a model's distribution is from a teacher's, by what one block of words adds to it.

Shapes: N tokens, W words of a block
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, logaddexp


@dataclass(frozen=True)
class Divergence:
    """A distance of the model's distribution p from the teacher's q, by what one word adds to it.

    parts: (log p, log q), both [N, W] -> (the distance's part, slopes [N, W]); a slope is p times
    the distance's derivative by p. It may write over log q. slope_sum: of a token's slopes where it
    is always the same, else None. The gradient by a logit is slope - p x (sum of slopes).
    """

    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    slope_sum: float | None = None


def _forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    return log_q.sub_(log_p).mul_(q).sum(), q.neg_()


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    terms = log_p.exp().mul_(log_p - log_q)
    return terms.sum(), terms


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_m = logaddexp(log_p, log_q) - math.log(2)
    slopes = (0.5 * log_p.exp()).mul_(log_p - log_m)
    return slopes.sum() + (0.5 * log_q.exp()).mul_(log_q.sub_(log_m)).sum(), slopes


FORWARD_KL = Divergence(_forward_kl, slope_sum=-1.0)  # KL(q || p): both papers' distillation
REVERSE_KL = Divergence(_reverse_kl)  # KL(p || q)
JENSEN_SHANNON = Divergence(_jensen_shannon)  # of p and q to their mean, each by half
