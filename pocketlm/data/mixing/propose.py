"""From laws to shares: the least weighted loss that a law predicts, near a prior and under caps.

min over p of w . law(p) + kl x KL(p || prior), with p >= 0, sum p = 1 and p <= caps. Of convex laws
the exact minimum, as Olmix; of others the mean of the best of many draws, as RegMix.
"""

import numpy as np

from pocketlm.data.mixing.laws import Array, Law, LawByMetric, LogLinear

# Of the search: the strength of each round's draws, a source; RegMix has one round, and takes the
# mean of 128 of 100,000 draws
STRENGTHS = np.geomspace(0.5, 5000.0, 16)
DRAWS, BEST = 2_000, 32
MOST_STEPS = 200
GAP = 1e-13  # what the exact optimum may lose, or the part of it where it is above 1


def propose(
    law: LawByMetric, weights: Array, prior: Array, caps: Array, kl: float, seed: int
) -> Array:
    """Shares [S]. weights: of each metric. prior [S] sums to 1; a source without a share in it gets
    none. caps [S] sum to at least 1. kl: the loss that a nat of distance from the prior must save.
    """
    if set(law.chosen) == {"log_linear"}:
        fitted = law.laws["log_linear"]
        assert isinstance(fitted, LogLinear)
        return solve_log_linear(fitted, weights, prior, caps, kl)
    return search(law, weights, prior, caps, kl, seed)


def solve_log_linear(law: LogLinear, weights: Array, prior: Array, caps: Array, kl: float) -> Array:
    """The exact minimum of weights . law(p) + kl x KL(p || prior), for weights that are not
    negative: it is convex.
    """
    allowed = (prior > 0) & (caps > 0)
    shares = np.zeros_like(prior)
    shares[allowed] = _solve(
        law.exponents[:, allowed], weights, prior[allowed], np.minimum(caps[allowed], 1.0), kl
    )
    return shares


def _solve(exponents: Array, weights: Array, prior: Array, caps: Array, kl: float) -> Array:
    """A primal-dual interior-point method: Newton steps on the conditions of the optimum, with
    multipliers of both bounds that shrink together.
    """
    if caps.sum() <= 1 + 1e-9:
        return caps / caps.sum()
    sources = len(prior)
    shares = caps / caps.sum()  # strictly between the bounds
    room = caps - shares
    lower, upper, total = np.ones(sources), np.ones(sources), 0.0
    for _ in range(MOST_STEPS):
        gap = (lower @ shares + upper @ room) / (2 * sources)
        slopes = weights * np.exp(exponents @ shares)
        gradient = slopes @ exponents + kl * (np.log(shares / prior) + 1)
        # by convexity no mix is better than this one by more: gradient . (shares - mix), bounded
        # with sum mix = 1 and 0 <= mix <= caps
        excess = gradient + total + upper
        lost = np.where(excess > 0, excess * shares, -excess * caps).sum() + upper @ room
        if lost < GAP * max(1.0, slopes.sum()):
            return shares / shares.sum()
        target = 0.1 * gap
        hessian = (exponents.T * slopes) @ exponents
        hessian += np.diag(kl / shares + lower / shares + upper / room)
        system = np.block([[hessian, np.ones((sources, 1))], [np.ones((1, sources)), 0.0]])
        right = gradient + total - target / shares + target / room
        step = np.linalg.solve(system, -np.append(right, shares.sum() - 1))
        move = step[:-1]
        lower_move = target / shares - lower - lower / shares * move
        upper_move = target / room - upper + upper / room * move
        primal = _longest([(shares, move), (room, -move)])
        dual = _longest([(lower, lower_move), (upper, upper_move)])
        length = min(primal, dual)
        shares, room = shares + length * move, room - length * move
        total += length * float(step[-1])
        lower, upper = lower + length * lower_move, upper + length * upper_move
    raise ArithmeticError(
        "no optimum of the log-linear law was reached; its exponents are "
        f"{exponents.min():.3g} to {exponents.max():.3g}"
    )


def _longest(moves: list[tuple[Array, Array]]) -> float:
    """The longest step, at most 1, that keeps all values positive."""
    values, move = (np.concatenate(parts) for parts in zip(*moves, strict=True))
    shrinking = move < 0
    return min(1.0, 0.99 * float((-values[shrinking] / move[shrinking]).min(initial=np.inf)))


def search(law: Law, weights: Array, prior: Array, caps: Array, kl: float, seed: int) -> Array:
    """The mean of the best of many draws, each brought under the caps: it needs no derivative, and
    a mean of several is no accident of one.

    The first draws are of Dirichlet(prior x strength) and the prior itself; the next are around the
    mean of the best of the round before, and nearer to it each time.
    """
    rng, allowed = np.random.default_rng(seed), prior > 0
    centre = prior
    for strength in STRENGTHS * allowed.sum():
        around = 0.99 * centre + 0.01 * prior  # a source may come back
        draws = np.zeros((DRAWS, len(prior)))
        draws[:, allowed] = rng.dirichlet(around[allowed] * strength, DRAWS)
        draws[0] = centre
        draws = capped(draws, caps)
        values = law.predict(draws) @ weights + kl * divergence(draws, prior)
        centre = draws[np.argsort(values, kind="stable")[:BEST]].mean(axis=0)
    return centre


def divergence(shares: Array, prior: Array) -> Array:
    """KL(shares || prior) in nats, of each row."""
    held = shares > 0
    ratio = np.divide(shares, prior, out=np.ones_like(shares), where=held)
    return (shares * np.log(ratio)).sum(axis=-1)


def capped(shares: Array, caps: Array) -> Array:
    """Rows of shares with none above its cap; what is cut goes to the rest, in proportion to their
    shares, and where no share is free any more to the room under the caps. As cap_repetition.
    """
    result = np.minimum(shares, caps)
    for _ in range(shares.shape[-1]):
        missing = 1 - result.sum(axis=-1, keepdims=True)
        free = np.where(result < caps, result, 0.0)
        room = free.sum(axis=-1, keepdims=True)
        grown = result + np.where(room > 0, missing * free / np.where(room > 0, room, 1.0), 0.0)
        if (grown <= caps + 1e-12).all():
            result = np.minimum(grown, caps)
            break
        result = np.minimum(grown, caps)
    missing, room = 1 - result.sum(axis=-1, keepdims=True), caps - result
    filled = result + missing * room / np.maximum(room.sum(axis=-1, keepdims=True), 1e-300)
    return np.maximum(filled, 0.0)
