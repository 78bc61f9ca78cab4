"""A claim judged over seeds: what was measured in each run, and whether the difference is beyond
what another seed would change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from pocketlm.report.goals import ROUNDING, Goal, figure_of

Outcome = Literal["shown", "refuted", "unclear"]
MOST_SEEDS = 100  # beyond them nobody repeats a training to know
# Student's t, one side, 95 %, by the number of seeds; more than twelve seeds take the last
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796)


@dataclass(frozen=True)
class Judged:
    """A goal over the runs of several seeds. figures: of each. low, high: above and below which
    the mean lies, each with 95 % confidence; None of a single seed.
    """

    goal: Goal
    figures: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    outcome: Outcome

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would decide, were mean and deviation to stay; None of a single seed, or
        beyond MOST_SEEDS.
        """
        if self.low is None:
            return None
        deviation, distance = stdev(self.figures), abs(self.goal.margin(self.mean))
        counts = range(2, MOST_SEEDS + 1)
        return next((n for n in counts if half_width(deviation, n) <= distance), None)

    def as_data(self) -> dict[str, Any]:
        goal = self.goal
        return {
            "text": goal.text,
            "model": goal.model,
            "compared_to": goal.compared_to,
            "measure": goal.measure,
            "at_least": goal.at_least,
            "at_most": goal.at_most,
            "figures": list(self.figures),
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "outcome": self.outcome,
            "seeds_needed": self.seeds_needed if self.outcome == "unclear" else None,
        }


def half_width(deviation: float, num_seeds: int) -> float:
    """Of the interval of a mean over seeds that deviate so much, to each side."""
    return T_95[min(num_seeds, len(T_95) + 1) - 2] * deviation / num_seeds**0.5


def judge_over_seeds(goal: Goal, runs: Sequence[dict[str, Any]]) -> Judged:
    """The goal in the evaluations of several seeds: shown where the whole interval of the mean
    meets it, refuted where none of it does, else unclear.

    The interval is Student's, one-sided 95 % at each end, so of 90 % (our choice): with three seeds
    it is 1.7 standard deviations wide on each side. One seed shows nothing. ValueError: a run that
    did not measure it.
    """
    figures = []
    for number, models in enumerate(runs, start=1):
        for label in (goal.model, goal.compared_to):
            if label is not None and label not in models:
                raise ValueError(
                    f"{goal.text!r} names {label!r}, which evaluation {number} does not have; "
                    f"it has {', '.join(models)}"
                )
        figure = figure_of(goal, models)
        if figure is None:
            raise ValueError(f"{goal.text!r}: evaluation {number} did not measure {goal.measure!r}")
        figures.append(figure)
    mean, count = fmean(figures), len(figures)
    if count == 1:
        return Judged(goal, tuple(figures), mean, None, None, "unclear")
    half = half_width(stdev(figures), count)
    low, high = mean - half, mean + half
    margins = goal.margin(low), goal.margin(high)
    outcome: Outcome = "unclear"
    if min(margins) >= -ROUNDING:
        outcome = "shown"
    elif max(margins) < -ROUNDING:
        outcome = "refuted"
    return Judged(goal, tuple(figures), mean, low, high, outcome)


def outcome_of(parts: Sequence[Judged]) -> Outcome:
    """A claim is shown when each of its parts is, and refuted when one is."""
    outcomes = [part.outcome for part in parts]
    if "refuted" in outcomes:
        return "refuted"
    return "shown" if set(outcomes) == {"shown"} else "unclear"
