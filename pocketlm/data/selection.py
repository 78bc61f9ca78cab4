"""What a selection keeps of scored samples, in which shares the next training reads it, and whether
there is enough left for a round to be worth it (R1, section 6).

Shapes: N samples of a source, C capabilities
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pocketlm.data.mixture import Shares, cap_repetition
from pocketlm.model.json_shape import OR_NULL, TEXT, read_object

SELECTION = "selection.json"
Filter = Literal["joint", "per_capability", "random"]
SharesBy = Literal["density", "kept"]
StopOn = Literal["mass", "samples"]
CHOICES: dict[str, tuple[str, ...]] = {
    "filter": ("joint", "per_capability", "random"),
    "shares_by": ("density", "kept"),
    "stop_on": ("mass", "samples"),
}


class SelectionRules(Protocol):
    """What a config says of them: `SelectConfig` of the select stage has the words."""

    @property
    def name(self) -> str: ...
    @property
    def filter(self) -> Filter: ...
    @property
    def shares_by(self) -> SharesBy: ...
    @property
    def seed(self) -> int: ...
    @property
    def budget_tokens(self) -> int: ...
    @property
    def max_epochs(self) -> float: ...
    @property
    def stop_below(self) -> float: ...
    @property
    def stop_on(self) -> StopOn: ...


@dataclass(frozen=True)
class Scored:
    """The samples of one source. scores float64 [N, C]: the influence of each on each capability;
    tokens [N].
    """

    scores: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Selection:
    """influence [N] of each source's samples: above 0 is kept. content: of selection.json, plain
    data.
    """

    influence: dict[str, np.ndarray]
    content: dict[str, Any]


def choose(
    rules: SelectionRules,
    sources: Mapping[str, Scored],
    capabilities: Mapping[str, tuple[str, ...]],
) -> Selection:
    """The samples that are kept, and shares, densities and figures by capability.

    capabilities: in the order of the scores, the sources that serve each. ValueError where nothing
    is positive and the rules do not say that a round stops then, or, by the filter per capability,
    for a source that serves none.
    """
    influence = {
        name: filter_influence(rules, name, scored, capabilities)
        for name, scored in sources.items()
    }
    kept = {name: values > 0 for name, values in influence.items()}
    tokens = {name: int(scored.tokens[kept[name]].sum()) for name, scored in sources.items()}
    density = {
        name: float((influence[name] * scored.tokens)[kept[name]].sum()) / max(1, tokens[name])
        for name, scored in sources.items()
    }
    positive = positive_part(influence, sources)
    stopped = stop_reason(rules, positive)
    content = {
        "shares": {} if stopped else selection_shares(rules, density, tokens),
        "kept": {
            name: {"documents": int(chosen.sum()), "of": len(chosen), "tokens": tokens[name]}
            for name, chosen in kept.items()
        },
        "density": density,
        "positive": positive,
        "capabilities": {
            name: capability_figures(place, serving, sources, kept)
            for place, (name, serving) in enumerate(capabilities.items())
        },
        "stopped": stopped,
    }
    return Selection(influence, content)


def filter_influence(
    rules: SelectionRules, name: str, scored: Scored, capabilities: Mapping[str, tuple[str, ...]]
) -> np.ndarray:
    """[N]: what decides whether a sample is kept. "joint": its mean over capabilities;
    "per_capability": the highest of those that its source serves; "random": the joint influence of
    another sample, so that as many are kept, but any.
    """
    joint = scored.scores.mean(1)
    if rules.filter == "joint":
        return joint
    if rules.filter == "random":
        return np.random.default_rng((rules.seed, sum(name.encode()))).permutation(joint)
    served = [place for place, serving in enumerate(capabilities.values()) if name in serving]
    if not served:
        raise ValueError(
            f"{rules.name}: source {name} serves none of the capabilities "
            f'{", ".join(capabilities)}; name it in a probe set, or take filter "joint"'
        )
    return scored.scores[:, served].max(1)


def positive_part(
    influence: Mapping[str, np.ndarray], sources: Mapping[str, Scored]
) -> dict[str, float]:
    """Before the filter, of all sources together: "mass", positive influence over the absolute
    value of all, by tokens; "samples", those of positive influence over all.
    """
    values = np.concatenate([*influence.values()])
    tokens = np.concatenate([scored.tokens for scored in sources.values()])
    return {
        "mass": positive_share(values, tokens),
        "samples": float((values > 0).mean()) if len(values) else 0.0,
    }


def positive_share(scores: np.ndarray, tokens: np.ndarray) -> float:
    """Positive influence over the absolute value of all, by tokens; 0 where nothing has any."""
    mass = scores * tokens
    total = float(np.abs(mass).sum())
    return float(mass[mass > 0].sum()) / total if total else 0.0


def capability_figures(
    place: int,
    serving: tuple[str, ...],
    sources: Mapping[str, Scored],
    kept: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """What the filter drops of one capability: samples and tokens of the sources that serve it, and
    of the positive influence on its probe set, of all sources, what is there before and after.
    """
    there = [name for name in serving if name in sources]
    mass = {name: (scored.scores[:, place] * scored.tokens) for name, scored in sources.items()}
    before = {name: np.clip(values, 0, None) for name, values in mass.items()}
    return {
        "sources": there,
        "documents": {
            "kept": sum(int(kept[name].sum()) for name in there),
            "of": sum(len(kept[name]) for name in there),
        },
        "tokens": {
            "kept": sum(int(sources[name].tokens[kept[name]].sum()) for name in there),
            "of": sum(int(sources[name].tokens.sum()) for name in there),
        },
        "positive_mass": {
            "before": sum(float(values.sum()) for values in before.values()),
            "after": sum(float(values[kept[name]].sum()) for name, values in before.items()),
        },
    }


def selection_shares(
    rules: SelectionRules, density: Mapping[str, float], tokens: Mapping[str, int]
) -> Shares:
    """Shares in proportion to density, or to the tokens kept; none beyond max_epochs passes over
    what was kept.
    """
    total = sum(density.values())
    if total == 0:
        raise ValueError(
            f"{rules.name}: no sample of any source has positive influence; nothing is left to "
            "train on (R1 stops here; with stop_below the rounds after this pass the model through)"
        )
    usable = {name: count for name, count in tokens.items() if count}
    weights = density if rules.shares_by == "density" else usable
    total = sum(weights[name] for name in usable)
    shares = cap_repetition(
        {name: weights[name] / total for name in usable},
        usable,
        rules.budget_tokens,
        rules.max_epochs,
    )
    return {name: shares.get(name, 0.0) for name in tokens}


def stop_reason(rules: SelectionRules, positive: Mapping[str, float]) -> str | None:
    """Why no further round is worth it, in words; None where one is."""
    share = positive[rules.stop_on]
    if share >= rules.stop_below:
        return None
    what = "influence is" if rules.stop_on == "mass" else "samples are"
    limit = f"{rules.stop_below:.1%}"
    return f"{rules.name}: {share:.1%} of the {what} positive, below stop_below {limit}"


def stopped(selection: Path) -> str | None:
    """Why a selection's round is not trained, or None. Selections of earlier versions never
    stop.
    """
    content = read_object(selection / SELECTION)
    return content.typed("stopped", TEXT + OR_NULL) if "stopped" in content else None
