"""A quality score learned here from the user's labels: ridge regression over a text's words and its
layout. It stands where the classifier of 109M weights would cost too much, or judges another thing.

Labels are lines of {"text": ..., "label": number}. Shapes: N labelled texts, D features
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pocketlm.data.probe_building.embedding import Embedder
from pocketlm.data.probe_building.scores import Scores
from pocketlm.model.json_lines import json_lines
from pocketlm.model.json_shape import NUMBER, TEXT, JsonObject

FEWEST_LABELS = 10
# of which the least leave-one-out error chooses: of ridge regression, and how much a standard
# deviation of layout weighs beside all words, which are a vector of length 1
PENALTIES = 10.0 ** np.arange(-4, 3)
LAYOUT_SCALES = (0.1, 0.3, 1.0)
SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")


def read_labels(file: Path) -> tuple[list[str], np.ndarray]:
    """(texts, labels float64 [N]); ValueError names the line that is no label."""
    texts, labels = [], []
    for number, row in json_lines(file):
        where = f"{file}:{number}"
        if not isinstance(row, dict):
            raise ValueError(f'{where}: not an object with "text" and "label"')
        fields = JsonObject(row, where)
        texts.append(fields.typed("text", TEXT))
        labels.append(float(fields.typed("label", NUMBER)))
    values = np.asarray(labels)
    if len(values) < FEWEST_LABELS or (values == values[0]).all():
        raise ValueError(
            f"{file}: {len(values)} labels, {len(set(labels))} of them different; at least "
            f"{FEWEST_LABELS} are needed, and two that differ"
        )
    return texts, values


@dataclass(frozen=True)
class LightScorer:
    """score = weights . [words, layout_scale x standardized layout] + mean label.

    layout_mean, layout_deviation: by which layouts are standardized. penalty, layout_scale: chosen
    of PENALTIES and LAYOUT_SCALES. error: the root mean square error of a text's label by the
    others (leave-one-out), beside which `spread` is what the mean label alone would give.
    """

    embed: Embedder
    weights: np.ndarray
    layout_mean: np.ndarray
    layout_deviation: np.ndarray
    mean_label: float
    num_labels: int
    penalty: float
    layout_scale: float
    error: float
    spread: float

    def __call__(self, texts: Sequence[str]) -> Scores:
        """Scores on the scale of the labels; texts are read whole."""
        layouts = _standard(_layouts(texts), self.layout_mean, self.layout_deviation)
        features = np.hstack([self.embed(texts), self.layout_scale * layouts])
        return features @ self.weights + self.mean_label, np.zeros(len(texts), dtype=bool)


def train_light_scorer(texts: Sequence[str], labels: np.ndarray, embed: Embedder) -> LightScorer:
    """Ridge regression in its dual form, N x N, with what gives the least leave-one-out error.

    That error needs no second fit: with G = (K + penalty I)^-1 the residual of text i when it is
    left out is (G y)_i / G_ii. The labels' mean is not penalized, and is that of all texts.
    """
    layouts = _layouts(texts)
    mean, deviation = layouts.mean(0), np.maximum(layouts.std(0), 1e-3)
    words, standard = embed(texts).astype(np.float64), _standard(layouts, mean, deviation)
    centred = labels - labels.mean()
    by_words, by_layout = words @ words.T, standard @ standard.T
    best: tuple[float, float, float, np.ndarray] | None = None
    for scale in LAYOUT_SCALES:
        for penalty in PENALTIES:
            kernel = by_words + scale**2 * by_layout
            inverse = np.linalg.inv(kernel + penalty * np.eye(len(texts)))
            dual = inverse @ centred
            error = float(np.sqrt(np.mean((dual / np.diag(inverse)) ** 2)))
            if best is None or error < best[0]:
                best = error, float(penalty), scale, dual
    assert best is not None
    error, penalty, scale, dual = best
    return LightScorer(
        embed=embed,
        weights=np.concatenate([words.T @ dual, scale * standard.T @ dual]),
        layout_mean=mean,
        layout_deviation=deviation,
        mean_label=float(labels.mean()),
        num_labels=len(texts),
        penalty=penalty,
        layout_scale=scale,
        error=error,
        spread=float(labels.std()),
    )


def _layouts(texts: Sequence[str]) -> np.ndarray:
    return np.asarray([layout_of(text) for text in texts])


def _standard(layouts: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """In standard deviations of the labelled texts, at most 5."""
    return np.clip((layouts - mean) / deviation, -5, 5)


def layout_of(text: str) -> list[float]:
    """What a count of words does not see: how much of a text is letters, how long its lines are,
    and whether each goes on where the one before it stopped. Shuffled lines break that: a line
    begins with a capital in the middle of a sentence, or without one after its end.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = text.split()
    size = max(1, len(text))
    widths = np.asarray([len(line) for line in lines] or [0])
    joins = list(pairwise(lines))
    ended = [bool(SENTENCE_END.search(one)) for one, _ in joins]
    begins = [(end, other[0].isupper()) for end, (_, other) in zip(ended, joins, strict=True)]
    letters = [pair for pair, (_, other) in zip(begins, joins, strict=True) if other[0].isalpha()]
    broken = sum(end != capital for end, capital in letters)
    shares = [
        sum(map(str.isalpha, text)) / size,
        sum(map(str.isdigit, text)) / size,
        sum(map(str.isupper, text)) / size,
        sum(map(str.isspace, text)) / size,
        sum(len(line.split()) < 4 for line in lines) / max(1, len(lines)),
        len({word.lower() for word in words}) / max(1, len(words)),
        broken / max(1, len(letters)),
        sum(ended) / max(1, len(joins)),
    ]
    sizes = [np.log(size), np.log1p(widths.mean()), widths.std() / max(1.0, widths.mean())]
    return [*(share**0.5 for share in shares), *map(float, sizes)]
