"""Goals: what a recipe promised beforehand, judged by the evaluation alone."""

import re
from dataclasses import dataclass
from statistics import fmean
from typing import Any

MEASURES = re.compile(r"accuracy( \S+)?|needle \S+|bits \S+|rank_me|tokens_per_second")
ROUNDING = 1e-9  # 0.98 - 1.0 is a little below -0.02


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`measure` of the evaluated model `model` is at least `at_least`, or at most `at_most`.

    measure, a share from 0 to 1: "accuracy", the figure of the evaluation's first suite, "accuracy
    NAME", that of another one, or "needle 1024" for a context length of the evaluation. Or "bits
    maths", bits per byte of a domain's held-out text ("bits mean": of all domains alike; "bits
    answers": of right answers, the mean of the suites that measure them), "rank_me" of the last
    hidden states, or "tokens_per_second". compared_to: another label; then the figure
    judged is the difference from it, and at_least -0.02 allows two points less. beside: labels
    whose figures are shown with it and not judged: the model before, or a plainer method. tried:
    what was done to reach it, shown where it is missed.
    """

    text: str
    model: str
    at_least: float | None = None
    at_most: float | None = None
    measure: str = "accuracy"
    compared_to: str | None = None
    beside: tuple[str, ...] = ()
    tried: str = ""

    def __post_init__(self) -> None:
        if not MEASURES.fullmatch(self.measure):
            raise ValueError(
                f"goal {self.text!r}: measure {self.measure!r} is unknown; "
                'use "accuracy", "accuracy SUITE", "needle LENGTH" as in "needle 1024", "bits '
                'DOMAIN", "bits mean", "bits answers", "rank_me" or "tokens_per_second"'
            )
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"goal {self.text!r}: give at_least or at_most, one of the two")

    def margin(self, figure: float) -> float:
        """How far the figure is beyond what is asked for; below 0 it falls short."""
        if self.at_least is not None:
            return figure - self.at_least
        assert self.at_most is not None
        return self.at_most - figure


@dataclass(frozen=True)
class Verdict:
    """figure and met are None where the evaluation did not measure what the goal asks for."""

    goal: Goal
    figure: float | None
    met: bool | None
    beside: dict[str, float | None]


def judge(goal: Goal, models: dict[str, Any]) -> Verdict:
    """Whether the goal is met. ValueError for a label that was not evaluated."""
    for label in (goal.model, goal.compared_to, *goal.beside):
        if label is not None and label not in models:
            raise ValueError(
                f"goal {goal.text!r} names {label!r}, which was not evaluated; known: "
                f"{', '.join(models)}"
            )
    figure = figure_of(goal, models)
    met = None if figure is None else goal.margin(figure) >= -ROUNDING
    return Verdict(
        goal, figure, met, {label: figure_of(goal, models, label) for label in goal.beside}
    )


def measured(model: dict[str, Any], measure: str) -> float | None:
    """One model's figure, or None if it was not measured."""
    kind, _, name = measure.partition(" ")
    if kind == "accuracy":
        suites = model["suites"]
        return suites.get(name or next(iter(suites)), {}).get("value")
    if measure == "bits answers":
        values = [
            figures["value"]
            for figures in model["suites"].values()
            if figures["metric"] == "bits_per_byte"
        ]
        return fmean(values) if values else None
    if kind == "bits":
        bits = model.get("bits_per_byte", {})
        return fmean(bits.values()) if name == "mean" and bits else bits.get(name)
    if kind in ("rank_me", "tokens_per_second"):
        return model.get(kind)
    needle = model.get("needle", {}).get(name)
    return needle["found"] / needle["of"] if needle and needle["of"] else None


def figure_of(goal: Goal, models: dict[str, Any], label: str | None = None) -> float | None:
    """What the goal measures of its model, or of another label; None if it was not measured."""
    figure = measured(models[label or goal.model], goal.measure)
    if goal.compared_to is None or figure is None:
        return figure
    other = measured(models[goal.compared_to], goal.measure)
    return None if other is None else figure - other
