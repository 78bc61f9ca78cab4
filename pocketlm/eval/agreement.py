"""Agreement of an exported file with its model: top tokens, KL and greedy answers on the same
tokens.

Shapes: T tokens, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pocketlm.inference.runtime import Runtime

GREEDY_TOKENS = 64
END = -1  # where an answer ends


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """top_token: the share of positions with the same likeliest token. kl: nats a token, KL(model
    || file), the mean.

    greedy: of the prompts' greedy answers, the share of tokens before the first that differs.
    tokens: positions compared.
    """

    top_token: float
    kl: float
    greedy: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Ids to read, of which the first `prompt` are given: agreement is measured on what follows
    them.
    """

    ids: list[int]
    prompt: int

    def __post_init__(self) -> None:
        if not 0 < self.prompt < len(self.ids):
            raise ValueError(
                f"a passage of {len(self.ids)} ids cannot begin with a prompt of {self.prompt}"
            )


def agreement(model: Runtime, other: Runtime, passages: Sequence[Passage]) -> Agreement:
    """How `other` agrees with `model`.

    Logits are compared where the ids after a passage's prompt are predicted; then both go on
    greedily from the prompt to the end of the answer, or for GREEDY_TOKENS tokens.
    """
    same = total = 0
    kl = greedy = 0.0
    for passage in passages:
        predicting = slice(passage.prompt - 1, len(passage.ids) - 1)
        expected, actual = (m.logits(passage.ids)[predicting] for m in (model, other))
        same += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        kl += float(_kl(expected, actual).sum())
        total += len(expected)
        greedy += _common_share(model, other, passage.ids[: passage.prompt])
    return Agreement(
        top_token=same / total, kl=kl / total, greedy=greedy / len(passages), tokens=total
    )


def _kl(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """KL(softmax(expected) || softmax(actual)) of each row, nats; the sum in float64."""
    p, q = (
        torch.from_numpy(logits).double().log_softmax(-1).numpy() for logits in (expected, actual)
    )
    return (np.exp(p) * (p - q)).sum(-1)


def _common_share(model: Runtime, other: Runtime, prompt: list[int]) -> float:
    room = min(model.max_length, other.max_length) - len(prompt)
    stop_ids = model.tokenizer.stop_ids
    answer, other_answer = (
        [*m.generate([prompt], max_new_tokens=min(GREEDY_TOKENS, room), stop_ids=stop_ids)[0], END]
        for m in (model, other)
    )
    common = next(
        i for i, (a, b) in enumerate(zip(answer, other_answer, strict=False)) if a != b or a == END
    )
    return 1.0 if answer == other_answer else common / len(answer)
