"""A checkpoint that answers in our own network: prefill, decode, sample.

Shapes: B batch, T tokens, D hidden, V vocabulary
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.kv_cache import PAD_POSITION, KVCache
from pocketlm.inference.runtime import Memory
from pocketlm.inference.sampling import GREEDY, Sampling, sample
from pocketlm.inference.stop_strings import StopMatcher
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

PREFILL_TOKENS = 512  # of one pass over prompts: more do not stay near the processor


class LanguageModel:
    """A loaded checkpoint that answers the two questions every runtime here answers: `logits` and
    `generate`.

    int8_cache: keys and values in a quarter of the bytes, rounded (see KVCache).
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, int8_cache: bool = False
    ) -> None:
        self.model, self.tokenizer, self.int8_cache = model.eval(), tokenizer, int8_cache
        self.max_length = model.config.max_position_embeddings

    @classmethod
    def open(cls, folder: Path) -> "LanguageModel":
        return cls(*load_checkpoint(folder))

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(len(ids))
        return self.model(torch.tensor([list(ids)]))[0].numpy()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        stop_strings: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """New ids for each prompt, the stop id left out. Prompts of any lengths go together.

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

    def memory(self, length: int) -> Memory:
        """Bytes of the KV cache, and of what a token reads: not a table that is no head."""
        with torch.device("meta"):
            cache = KVCache(self.model.config, 1, length, int8=self.int8_cache)
        tied = self.model.lm_head is None
        unread = 0 if tied else self.model.model.embed_tokens.weight.nbytes
        weights = sum(weight.nbytes for weight in self.model.parameters()) - unread
        return Memory(kv_bytes=cache.num_bytes, step_bytes=weights + cache.num_bytes)

    def close(self) -> None:
        """Nothing to free; the exported files' runtimes hold processes and buffers."""

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens exceed max_position_embeddings {self.max_length}; shorten the "
                "text or extend the context first"
            )

    # not a `with` inside: that would stay on in the caller's code between two ids
    @torch.inference_mode()
    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs. Finished rows leave the batch."""
        if not prompts:
            return
        longest = max(len(p) for p in prompts)
        self._check(longest)
        # each row's own, whoever is beside it
        room = [min(max_new_tokens, self.max_length - len(p)) for p in prompts]
        generators = sampling.generators(len(prompts))
        texts = [list(prompt) for prompt in prompts]  # and what was made
        endings = (
            [StopMatcher(self.tokenizer, stop_strings) for _ in prompts] if stop_strings else []
        )
        cache = KVCache(self.model.config, len(prompts), longest + max(room), int8=self.int8_cache)
        hidden = self._prefill(prompts, cache) if max(room) else torch.empty(0)
        positions = torch.tensor([[len(prompt) - 1] for prompt in prompts])
        rows = torch.arange(len(prompts))
        for made in range(max(room)):
            left = rows.tolist()
            tokens = sample(
                self.model.head(hidden),
                sampling,
                [generators[r] for r in left],
                [texts[r] for r in left],
            )
            going_on = []
            for i, (row, token) in enumerate(zip(left, tokens.tolist(), strict=True)):
                if token in stop_ids or made >= room[row]:
                    continue
                texts[row].append(token)
                yield row, token
                if made + 1 < room[row] and not (endings and endings[row].reached(token)):
                    going_on.append(i)
            if not going_on:
                return
            if len(going_on) < len(rows):
                keep = torch.tensor(going_on)
                rows, tokens, positions = rows[keep], tokens[keep], positions[keep]
                cache.keep_rows(keep)
            positions = positions + 1
            hidden = self.model.hidden(tokens[:, None], positions, cache)[:, -1]

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Hidden states [B, D] of the prompts' last tokens, which then are the newest of the cache.

        Prompts go in groups of at most PREFILL_TOKENS, padded on the left: a long one waits for no
        other, and what a layer hands to the next stays near the processor.
        """
        longest, hidden, first = max(len(p) for p in prompts), [], 0
        while first < len(prompts):
            end = first + 1
            while (
                end < len(prompts)
                and (end + 1 - first) * max(map(len, prompts[first : end + 1])) <= PREFILL_TOKENS
            ):
                end += 1
            ids, positions = left_padded(prompts[first:end])
            # else positions are 0, 1, ...: attention needs no written-out mask
            padded = bool((positions < 0).any())
            whole = len(ids) == len(prompts)
            part = cache if whole else KVCache(self.model.config, *ids.shape, int8=self.int8_cache)
            hidden.append(
                self.model.hidden(ids, positions if padded else None, part, last=True)[:, -1]
            )
            if not whole:
                cache.take(part, first, longest)
            first = end
        return torch.cat(hidden)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, positions), both [B, T], of prompts padded on the left; padding has position -1 and id
    0.
    """
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.full_like(ids, PAD_POSITION)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError("an empty prompt: generation needs at least one token to start from")
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        positions[row, longest - len(prompt) :] = torch.arange(len(prompt))
    return ids, positions
