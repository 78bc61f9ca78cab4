"""Agreement of two models on known logits and answers, computed by hand."""

import math
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import pytest

from pocketlm.eval.agreement import Passage, agreement
from tests.unit.silent_runtime import SilentRuntime


class Fixed(SilentRuntime):
    """A model of fixed logits and a fixed answer."""

    class Tokens:
        stop_ids = frozenset({0})

    def __init__(self, logits: list[list[float]], answer: list[int]) -> None:
        self.fixed, self.answer, self.tokenizer, self.max_length = (
            np.array(logits, np.float32),
            answer,
            self.Tokens(),
            9,
        )

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self.fixed[: len(ids)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Set[int],
        **options: Any,
    ) -> list[list[int]]:
        assert stop_ids == {0}
        return [self.answer[:max_new_tokens]]


FLAT, SURE = [0.0, 0.0, 0.0], [0.0, math.log(2.0), 0.0]  # probabilities 1/3 each; and 1/4, 1/2, 1/4
TEXT = Passage(ids=[1, 1, 2, 1], prompt=2)


def test_what_follows_the_prompt_is_compared() -> None:
    model, other = (
        Fixed([[9, 0, 0], SURE, SURE, FLAT], [1, 2]),
        Fixed([[0, 0, 9], SURE, FLAT, SURE], [1, 2]),
    )
    # rows 1 and 2 predict ids 2 and 3; row 0 and the last are no answers
    found = agreement(model, other, [TEXT])
    assert found.tokens == 2 and found.top_token == 0.5 and found.greedy == 1.0
    divergence = 0.25 * math.log(0.75) * 2 + 0.5 * math.log(1.5)
    assert found.kl == pytest.approx(divergence / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "share"),
    [
        ([1, 2, 1], [1, 2, 1], 1.0),
        ([], [], 1.0),
        ([1, 2, 1], [1, 1, 1], 1 / 4),  # the end counts as a token
        ([1, 2], [1, 2, 1], 2 / 3),
        ([1, 2, 1], [1, 2], 2 / 4),
        ([1], [2], 0.0),
    ],
)
def test_greedy_answers_agree_up_to_the_first_difference(
    ours: list[int], theirs: list[int], share: float
) -> None:
    rows = [FLAT] * 4
    assert agreement(Fixed(rows, ours), Fixed(rows, theirs), [TEXT]).greedy == pytest.approx(share)


def test_answers_stay_within_the_shorter_context() -> None:
    short = Fixed([FLAT] * 4, [1] * 20)
    short.max_length = 5
    assert agreement(Fixed([FLAT] * 4, [1] * 20), short, [TEXT]).greedy == 1.0


@pytest.mark.parametrize("prompt", [0, 4, 7])
def test_a_passage_needs_a_prompt_and_something_after_it(prompt: int) -> None:
    with pytest.raises(ValueError, match=f"cannot begin with a prompt of {prompt}"):
        Passage(ids=[1, 2, 3, 4], prompt=prompt)
