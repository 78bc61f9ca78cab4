"""Goals: what a recipe promised beforehand, judged by the evaluation alone."""

import re
from dataclasses import dataclass
from typing import Any

MEASURES = re.compile(r"accuracy( \S+)?|needle \S+")
ROUNDING = 1e-9  # 0.98 - 1.0 is a little below -0.02


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`measure` of the evaluated model `model` is at least `at_least`, all as shares from 0 to 1.

    measure: "accuracy", the figure of the evaluation's first suite, "accuracy NAME", that of
    another one, or "needle 1024" for a context length of the evaluation. compared_to:
    another label; then the figure judged is the difference from it, and at_least -0.02 allows two
    points less. beside: labels whose figures are shown with it and not judged: the model before, or
    a plainer method. tried: what was done to reach it, shown where it is missed.
    """

    text: str
    model: str
    at_least: float
    measure: str = "accuracy"
    compared_to: str | None = None
    beside: tuple[str, ...] = ()
    tried: str = ""

    def __post_init__(self) -> None:
        if not MEASURES.fullmatch(self.measure):
            raise ValueError(
                f"goal {self.text!r}: measure {self.measure!r} is unknown; "
                'use "accuracy", "accuracy SUITE" or "needle LENGTH", as in "needle 1024"'
            )


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
    figure = _figure(goal, goal.model, models)
    met = None if figure is None else figure >= goal.at_least - ROUNDING
    return Verdict(
        goal, figure, met, {label: _figure(goal, label, models) for label in goal.beside}
    )


def measured(model: dict[str, Any], measure: str) -> float | None:
    """A share from one model's figures, or None if it was not measured."""
    kind, _, name = measure.partition(" ")
    if kind == "accuracy":
        suites = model["suites"]
        return suites.get(name or next(iter(suites)), {}).get("value")
    needle = model.get("needle", {}).get(name)
    return needle["found"] / needle["of"] if needle and needle["of"] else None


def _figure(goal: Goal, label: str, models: dict[str, Any]) -> float | None:
    figure = measured(models[label], goal.measure)
    if goal.compared_to is None or figure is None:
        return figure
    other = measured(models[goal.compared_to], goal.measure)
    return None if other is None else figure - other
