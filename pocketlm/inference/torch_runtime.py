"""A checkpoint that answers in our own network: prefill, decode, sample.

Shapes: B batch, T tokens, D hidden, V vocabulary
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.continuations import Scorer, common_beginning, network_scorer
from pocketlm.inference.decode import RowDecoder, decode
from pocketlm.inference.kv_cache import PAD_POSITION, KVCache, SharedText
from pocketlm.inference.runtime import Memory, check_ids, log_probs_from
from pocketlm.inference.sampling import Sampling
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

PREFILL_TOKENS = 512  # of one pass over prompts: more do not stay near the processor
LOGITS_BYTES = 2**26  # of logits that `log_probs` holds at once
SHARED_IDS = 32  # that all prompts of a batch begin with, from which on they are read once


class LanguageModel(RowDecoder):
    """A checkpoint's network as a Runtime, on whatever device its weights are.

    int8_cache: keys and values in a quarter of the bytes, rounded (see KVCache). Threads: every
    call has a cache of its own, and calls run side by side.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, int8_cache: bool = False
    ) -> None:
        self.model, self.tokenizer, self.int8_cache = model.eval(), tokenizer, int8_cache
        self.max_length = model.config.max_position_embeddings

    @classmethod
    def open(cls, folder: Path, device: torch.device | None = None) -> "LanguageModel":
        """The checkpoint in `folder`, on the processor where no device is given."""
        network, tokenizer = load_checkpoint(folder)
        return cls(network.to(device or "cpu"), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are; ids, positions, caches and the choice of tokens follow them."""
        return self.model.model.embed_tokens.weight.device

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(ids)
        return self.model(self._ids([ids]))[0].cpu().numpy()

    @torch.inference_mode()
    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probability [T - 1] of each id but the first; one pass, its logits in chunks."""
        self._check(ids)
        hidden = self.model.hidden(self._ids([ids]), None)[0]  # [T, D]
        chunk_tokens = max(1, LOGITS_BYTES // (4 * self.model.config.vocab_size))
        return log_probs_from((self.model.head(part) for part in hidden.split(chunk_tokens)), ids)

    def scorer(self) -> Scorer:
        """Trees of ids under a mask, after what they share (continuations.py)."""
        return network_scorer(self.model)

    def memory(self, length: int) -> Memory:
        """Bytes of the KV cache, and of what a token reads: not a table that is no head."""
        cache = KVCache(self.model.config, 1, length, int8=self.int8_cache, device="meta")
        tied = self.model.lm_head is None
        unread = 0 if tied else self.model.model.embed_tokens.weight.nbytes
        weights = sum(weight.nbytes for weight in self.model.parameters()) - unread
        return Memory(kv_bytes=cache.num_bytes, step_bytes=weights + cache.num_bytes)

    def close(self) -> None:
        """Nothing to free; the exported files' runtimes hold processes and buffers."""

    def _check(self, ids: Sequence[int]) -> None:
        check_ids(
            ids,
            vocab_size=self.model.config.vocab_size,
            max_length=self.max_length,
            limit=f"max_position_embeddings {self.max_length}",
            advice="extend the context first",
        )

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], device=self.device)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs."""
        for prompt in prompts:
            self._check(prompt)
        room = [min(max_new_tokens, self.max_length - len(p)) for p in prompts]
        longest = max(map(len, prompts), default=0)
        cache = self._cache(len(prompts), longest + max(room, default=0))
        positions = self._ids([[len(prompt) - 1] for prompt in prompts])

        def step(tokens: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal positions
            if keep is not None:
                positions = positions[keep]
                cache.keep_rows(keep)
            positions = positions + 1
            return self.model.head(self.model.hidden(tokens[:, None], positions, cache)[:, -1])

        return decode(
            prompts,
            lambda: self.model.head(self._prefill(prompts, cache)),
            step,
            room=room,
            tokenizer=self.tokenizer,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            sampling=sampling,
        )

    def _cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(self.model.config, batch, capacity, int8=self.int8_cache, device=self.device)

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Hidden states [B, D] of the prompts' last tokens, which then are the newest of the cache.

        Prompts go in groups of at most PREFILL_TOKENS, padded on the left: a long one waits for no
        other, and what a layer hands to the next stays near the processor. What all begin with is
        read once; of a group's shorter prompts its end again, in place of padding.
        """
        longest, hidden, first = max(len(p) for p in prompts), [], 0
        shared = self._shared(prompts)
        while first < len(prompts):
            end = first + 1
            while (
                end < len(prompts)
                and (end + 1 - first) * (max(map(len, prompts[first : end + 1])) - shared.length)
                <= PREFILL_TOKENS
            ):
                end += 1
            group = prompts[first:end]
            tail = max(map(len, group)) - shared.length
            ids, positions = left_padded([p[-tail:] for p in group], self.device)
            whole = len(group) == len(prompts)
            part = cache if whole else self._cache(len(group), shared.length + tail)
            # without padding positions are 0, 1, ...: attention needs no written-out mask
            plain = not shared.length and len(set(map(len, group))) == 1
            if shared.length:
                before = [max(0, len(p) - tail) for p in group]
                shared.fill(part, before)
                shifts = torch.tensor(before, device=self.device)[:, None]
                positions = torch.where(positions < 0, positions, positions + shifts)
            hidden.append(
                self.model.hidden(ids, None if plain else positions, part, last=True)[:, -1]
            )
            if not whole:
                cache.take(part, first, longest)
            first = end
        return torch.cat(hidden)

    def _shared(self, prompts: Sequence[Sequence[int]]) -> SharedText:
        """What all prompts begin with; nothing where it is short, or where a cache rounds it."""
        length = common_beginning(prompts) if len(prompts) > 1 and not self.int8_cache else 0
        return SharedText(self.model, prompts[0][: length if length >= SHARED_IDS else 0])


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(ids, positions), both [B, T], of prompts padded on the left; padding has position -1 and id
    0.
    """
    longest = max(len(p) for p in prompts)
    gaps = [longest - len(p) for p in prompts]
    ids = [[0] * gap + list(p) for gap, p in zip(gaps, prompts, strict=True)]
    positions = [
        [PAD_POSITION] * gap + list(range(len(p))) for gap, p in zip(gaps, prompts, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(positions, device=device)
