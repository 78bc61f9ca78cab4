"""Figures of a suite from its rows: means with standard errors, and the paired difference of two
models.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pocketlm.eval.answers_file import Row
from pocketlm.eval.code_scorer import verdict_counts
from pocketlm.eval.suites.suite import Problem, Suite

RESAMPLES = 2_000
LOW, HIGH = 2.5, 97.5  # percentiles: a 95 % interval


def figures_of(suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    """What a model reached on a suite.

    metric, value and standard_error of the suite's own figure; scores: {name: {value,
    standard_error}} of all; n: documents; prompts: a hash of all that was asked and how, equal
    where two models read the same texts; answers_cut, answers_empty, contexts_truncated: how many
    (where the kind has them); verdicts: of programs, how many had each. problems: {family: {solved,
    total}}, but for bits_per_byte.
    """
    counts_of = set(suite.weighted_by.values())
    names = [name for name in rows[0]["scores"] if name not in counts_of]
    scores = {name: _mean(suite, rows, name) for name in names}
    figures: dict[str, Any] = {
        "metric": suite.metric,
        **scores[suite.metric],
        "n": len(rows),
        "scores": scores,
        "prompts": prompts_hash(rows),
    }
    if suite.kind == "generation":
        figures["answers_cut"] = sum(row["cut"] for row in rows)
        figures["answers_empty"] = sum(row["empty"] for row in rows)
    if suite.runs_code:
        figures["verdicts"] = verdict_counts(rows)
    figures["contexts_truncated"] = sum(row["truncated"] for row in rows)
    if suite.kind != "bits_per_byte":
        counts: dict[str, dict[str, int]] = defaultdict(lambda: {"solved": 0, "total": 0})
        for row in rows:
            counts[row["family"]]["solved"] += row["correct"]
            counts[row["family"]]["total"] += 1
        figures["problems"] = dict(counts)
    return figures


def prompts_hash(rows: Sequence[Row]) -> str:
    """A hash of the keys of all requests, in order."""
    return hashlib.sha256("".join(row["request"] for row in rows).encode()).hexdigest()[:16]


def _mean(suite: Suite, rows: Sequence[Row], name: str) -> dict[str, float]:
    """A score's figure and its standard error over documents (of the ratio, to first order; with
    equal weights the sample's deviation over the root of n).
    """
    parts = _parts(suite, rows, name)
    pull = np.zeros(len(rows))  # how far each document pulls the figure
    for values, weights in parts:
        centers = np.full(len(rows), (weights * values).sum() / weights.sum())
        if suite.macro:  # families are not drawn, only their documents are
            families = np.array([row["family"] for row in rows])
            for family in set(families):
                centers[families == family] = values[families == family].mean()
        pull += weights * (values - centers) / weights.sum() / len(parts)
    error = math.sqrt((pull**2).sum() * len(rows) / max(1, len(rows) - 1))
    return {"value": _value(parts, np.arange(len(rows))), "standard_error": error}


Parts = list[tuple[np.ndarray, np.ndarray]]  # (values, weights) of all documents


def _parts(suite: Suite, rows: Sequence[Row], name: str) -> Parts:
    """What a score's figure is the mean of: itself alone, or the figures that it is made of."""
    names = suite.mean_of if suite.mean_of and name == suite.metric else (name,)
    return [(_scores(rows, part), _weights(suite, rows, part)) for part in names]


def _scores(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row["scores"][name] for row in rows], dtype=np.float64)


def _value(parts: Parts, drawn: np.ndarray) -> float:
    """The figure of these documents, by their numbers: the mean of the parts' weighted means."""
    means = [
        (weights[drawn] * values[drawn]).sum() / weights[drawn].sum() for values, weights in parts
    ]
    return float(sum(means) / len(means))


def _weights(suite: Suite, rows: Sequence[Row], name: str) -> np.ndarray:
    """Of each document: 1, the bytes of its answer, what a score counts in it, or its share of its
    family.
    """
    if name in suite.weighted_by:
        return _scores(rows, suite.weighted_by[name])
    if not suite.macro:
        return np.array([row.get("weight", 1) for row in rows], dtype=np.float64)
    sizes = Counter(row["family"] for row in rows)
    return np.array([1 / sizes[row["family"]] for row in rows])


def paired_difference(suite: Suite, rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """How much `rows` lies above `others`, answers of two models to the same documents.

    difference: of the suite's figure. low, high: a 95 % interval, by resampling documents, which
    both models keep in common. other_ids: documents that the two tokenizers write as other ids, or
    whose prompts differ: there not the models alone differ. better, worse: documents where the
    first scores more, or less. p_value: of McNemar's exact test, where every score is 0 or 1: how
    likely so uneven a split of better and worse is between equal models. ValueError: other
    documents.
    """
    if [row["id"] for row in rows] != [row["id"] for row in others]:
        raise ValueError(f"suite {suite.name}: two models answered other documents; no difference")
    scores, other_scores = (_scores(side, suite.metric) for side in (rows, others))
    gaps = scores - other_scores
    both = (_parts(suite, side, suite.metric) for side in (rows, others))
    parts = [(a - b, weights) for (a, weights), (b, _) in zip(*both, strict=True)]
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        means.append(_value(parts, rng.integers(len(rows), size=len(rows))))
    low, high = np.percentile(means, [LOW, HIGH])
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    comparison: dict[str, Any] = {
        "metric": suite.metric,
        "difference": _value(parts, np.arange(len(rows))),
        "low": float(low),
        "high": float(high),
        "n": len(rows),
        "other_ids": sum(a["ids"] != b["ids"] for a, b in zip(rows, others, strict=True)),
        "better": better,
        "worse": worse,
    }
    if set(np.unique([scores, other_scores])) <= {0.0, 1.0}:
        comparison["p_value"] = mcnemar(better, worse)
    return comparison


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test: of a fair coin thrown once for each document that tells
    the models apart.
    """
    total, fewer = better + worse, min(better, worse)
    logs = (
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * sum(math.exp(log - total * math.log(2)) for log in logs))


def best_constant_answer(problems: Iterable[Problem]) -> dict[str, float]:
    """For each family the share that one answer, given to every problem, would solve."""
    answers: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        answers[problem.family].append(problem.answer.strip())
    return {
        family: Counter(given).most_common(1)[0][1] / len(given)
        for family, given in answers.items()
    }


def chance(problems: Sequence[Problem]) -> float:
    """What guessing among the choices would score."""
    return sum(1 / len(problem.choices) for problem in problems) / len(problems)
