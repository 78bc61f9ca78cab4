"""The loop that makes tokens one after the other, for a runtime that gives logits step by step.

Shapes: B prompts, R rows that go on, V vocabulary
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pocketlm.inference.sampling import GREEDY, Sampling, sample
from pocketlm.inference.stop_strings import StopMatcher
from pocketlm.model.tokenizer import Tokenizer

# (the newest token of each row that goes on [R], their places among the rows of the step before,
# None where all go on) -> logits [R, V]
Step = Callable[[Tensor, Tensor | None], Tensor]


# not a `with` inside: that would stay on in the caller's code between two ids
@torch.inference_mode()
def decode(
    prompts: Sequence[Sequence[int]],
    prefill: Callable[[], Tensor],
    step: Step,
    *,
    room: Sequence[int],
    tokenizer: Tokenizer,
    stop_ids: set[int],
    stop_strings: Sequence[str],
    sampling: Sampling,
) -> Iterator[tuple[int, int]]:
    """(row, new id) pairs; a row that ends leaves the batch.

    prefill: logits [B, V] after the prompts; called once, and not at all where there is no room.
    room: the most new tokens of each prompt, whoever is beside it. An answer ends before one of
    stop_ids, and with the id that completes one of stop_strings.
    """
    if not prompts or max(room) < 1:
        return
    texts = [list(prompt) for prompt in prompts]  # and what was made
    matchers = [StopMatcher(tokenizer, stop_strings) for _ in prompts] if stop_strings else None
    rows = list(range(len(prompts)))
    logits = prefill()
    generators = sampling.generators(len(prompts), logits.device)
    for made in range(max(room)):
        tokens = sample(
            logits, sampling, [generators[row] for row in rows], [texts[row] for row in rows]
        )
        going_on = []
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if token in stop_ids or made >= room[row]:
                continue
            texts[row].append(token)
            yield row, token
            stopped = matchers is not None and matchers[row].reached(token)
            if made + 1 < room[row] and not stopped:
                going_on.append(place)
        if not going_on:
            return
        if len(going_on) == len(rows):
            logits = step(tokens, None)
        else:
            rows = [rows[place] for place in going_on]
            keep = torch.tensor(going_on, device=tokens.device)
            logits = step(tokens[keep], keep)


class RowDecoder(ABC):
    """`generate` and `stream` of a runtime whose `_decode` yields each new id with its row."""

    @abstractmethod
    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs, the stop id left out. Row n draws with seed + n."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        stop_strings: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """New ids for each prompt, the stop id left out. Lengths may differ.

        stop_strings: an answer ends with the id that completes one of them; `before_stop` of its
        text is before it.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for row, token in self._decode(prompts, max_new_tokens, stop_ids, sampling, stop_strings):
            answers[row].append(token)
        return answers

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]:
        """The same ids, one at a time, as they are made; `text_pieces` turns them into text and
        ends at stop strings.
        """
        for _, token in self._decode([prompt], max_new_tokens, stop_ids, sampling):
            yield token
