"""Shares of sources: checked, compared, and kept from repeating a small source too often."""

from collections.abc import Iterable, Mapping

Shares = dict[str, float]


def shares_summary(shares: Mapping[str, float]) -> str:
    """The shares on one line, the largest first: "web 63.8 %, code 10.7 %"."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.2%}".replace("%", " %") for name, share in ordered)


def check_shares(
    shares: Mapping[str, float], known: Mapping[str, object] | list[str], where: str
) -> Shares:
    """The shares as a dict, when every source is known, none is negative, and they sum to 1 (to
    1e-3).
    """
    unknown = sorted(set(shares) - set(known))
    if unknown:
        raise ValueError(
            f"{where}: shares name unknown sources {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    negative = [f"{name} {share}" for name, share in shares.items() if not share >= 0]
    if negative:
        raise ValueError(f"{where}: shares must not be negative: {', '.join(negative)}")
    total = sum(shares.values())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"{where}: shares sum to {total:.4f}, not to 1")
    return {name: share / total for name, share in shares.items()}


def uniform_shares(tokens: Mapping[str, int]) -> Shares:
    """The same share for each source, whatever its size: the papers' baseline."""
    return {name: 1 / len(tokens) for name in tokens}


def proportional_shares(tokens: Mapping[str, int]) -> Shares:
    """Each source by its size: the baseline that uniform hides."""
    total = sum(tokens.values())
    return {name: count / total for name, count in tokens.items()}


# what a mix may depart from, by its name in a config
PRIORS = {"uniform": uniform_shares, "proportional": proportional_shares}


def check_weights(
    weights: Mapping[str, float], where: str, known: Iterable[str] | None = None
) -> None:
    """ValueError for a negative weight, only zeros, or a name that is not known; none at all are
    equal weights.
    """
    if weights and not (min(weights.values()) >= 0 and sum(weights.values()) > 0):
        raise ValueError(f"{where} {dict(weights)} must not be negative, nor all of them 0")
    if known is not None and (unknown := sorted(set(weights) - set(known))):
        raise ValueError(
            f"{where} names {', '.join(unknown)}; the corpus serves {', '.join(known)}"
        )


def cap_repetition(
    shares: Mapping[str, float], tokens: Mapping[str, int], budget: int, max_epochs: float
) -> Shares:
    """The shares with none above max_epochs passes over its source in `budget` tokens; what is cut
    goes to the rest.

    A repetition cap of about 4 is what mixing tools use (Olmix); the papers repeat up to 50 times
    and do not discuss it.
    """
    limits = {name: max_epochs * tokens[name] / budget for name in shares}
    if sum(limits.values()) < 1 - 1e-9:  # a budget that fits exactly may miss 1 by rounding
        raise ValueError(
            f"{budget} tokens ask for more than {max_epochs} passes over all sources together "
            f"({sum(tokens.values())} tokens); add text, raise max_epochs or train for less"
        )
    capped = {name: 0.0 for name, share in shares.items() if share == 0}
    free = {name: share for name, share in shares.items() if share > 0}
    while free:
        remaining = 1 - sum(capped.values())
        scale = remaining / sum(free.values())
        over = [name for name, share in free.items() if share * scale > limits[name]]
        if not over:
            return {name: capped[name] if name in capped else free[name] * scale for name in shares}
        for name in over:
            capped[name] = limits[name]
            del free[name]
    # every source that had a share is full: the rest spreads over the others' room
    remaining = 1 - sum(capped.values())
    room = {name: limits[name] - capped[name] for name in capped}
    total_room = sum(room.values()) or 1.0  # no room at all: nothing is left but rounding
    return {name: capped[name] + remaining * room[name] / total_room for name in shares}
