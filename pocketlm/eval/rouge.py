"""ROUGE-L (Lin, 2004): the longest common subsequence of words.

As google-research/rouge computes it without stemming: words are runs of a-z and 0-9 in lower case;
F is the harmonic mean of precision and recall.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pocketlm.eval.scorers import AnswerKey

WORDS = re.compile(r"[a-z0-9]+")


def rouge_l(problem: AnswerKey, completion: str) -> dict[str, float]:
    """rouge_l: F of the completion against the right answer."""
    target, given = (WORDS.findall(text.lower()) for text in (problem.answer, completion))
    common = longest_common(target, given)
    if not common:
        return {"rouge_l": 0.0}
    precision, recall = common / len(given), common / len(target)
    return {"rouge_l": 2 * precision * recall / (precision + recall)}


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of their longest common subsequence, in time len(a) len(b)."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for place, other in enumerate(b, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
