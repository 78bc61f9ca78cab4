"""Prefill, decode, sample: the only inference loop.

Shapes: B batch, T tokens, S cached slots, K kv heads, E head width, V vocabulary
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.sampling import GREEDY, Sampling, sample
from pocketlm.model.stop_strings import Ending
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer

PAD_POSITION = -1
PREFILL_TOKENS = 512  # of one pass over prompts: more do not stay near the processor


class KVCache:
    """Keys and values of all layers for up to `capacity` tokens a row, and the position of each.

    A global layer has a slot for each token. A local layer has a ring of `sliding_window` slots, in
    which a token takes the place of the one that left the window: its memory does not grow with the
    text.

    int8: keys and values as int8 with one range for each token (Pro, table 3: dynamic, asymmetric),
    a quarter of the bytes; attention then sees the rounded ones only, so that it does not matter in
    which pieces a text came.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, int8: bool = False
    ) -> None:
        windows = [config.window(i // config.layer_repeats) for i in range(config.applications)]
        # slots of the local layers
        self.rings = [w if w is not None and w < capacity else None for w in windows]
        shapes = [
            (batch, config.num_key_value_heads, ring or capacity, config.head_dim)
            for ring in self.rings
        ]
        store = Int8Slots if int8 else FloatSlots
        self.keys, self.values = (
            [store(shape) for shape in shapes],
            [store(shape) for shape in shapes],
        )
        self.positions = torch.full((batch, capacity), PAD_POSITION)
        self.start = self.end = 0

    @property
    def empty(self) -> bool:
        return self.end == 0

    @property
    def num_bytes(self) -> int:
        """Of keys and values; an int8 cache has 16 bytes a token and layer more, for their
        ranges.
        """
        return sum(
            slots.content.numel() * slots.content.element_size()
            for slots in (*self.keys, *self.values)
        )

    def begin(self, positions: Tensor) -> None:
        """Make room for tokens at these positions [B, T]; each layer's `update` then fills it."""
        self.start, self.end = self.end, self.end + positions.shape[1]
        if self.end > self.positions.shape[1]:
            raise ValueError(f"{self.end} tokens exceed the cache of {self.positions.shape[1]}")
        self.positions[:, self.start : self.end] = positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, K, T, E] of a layer; return what its queries may look at [B, K, S, E]."""
        return self._update(self.keys[layer], k, self.rings[layer]), self._update(
            self.values[layer], v, self.rings[layer]
        )

    def _update(self, slots: "FloatSlots", new: Tensor, ring: int | None) -> Tensor:
        # nothing was overwritten yet: slots are in the text's order
        if ring is None or self.end <= ring:
            slots.write(slice(self.start, self.end), new)
            return slots.read(self.end)
        if self.end - self.start == 1:
            slots.write(slice(self.start % ring, self.start % ring + 1), new)
            return slots.read(ring)
        newest = torch.arange(max(self.start, self.end - ring), self.end)
        # the first query's window, and on
        seen = torch.cat([slots.read(min(self.start, ring)), slots.rounded(new)], 2)
        slots.write(newest % ring, new[:, :, -len(newest) :])
        return seen

    def key_positions(self, layer: int) -> Tensor:
        """Positions [B, S] of the keys that `update` of this layer returned."""
        ring = self.rings[layer]
        if ring is None or self.end <= ring:
            return self.positions[:, : self.end]
        if self.end - self.start == 1:
            return self.positions[:, self._held(ring, self.end)]
        return torch.cat(
            [
                self.positions[:, self._held(ring, self.start)],
                self.positions[:, self.start : self.end],
            ],
            1,
        )

    def _held(self, ring: int, end: int) -> Tensor:
        """For each filled slot of a ring the newest of the first `end` tokens that lies there:
        token t is in slot t mod ring.
        """
        slot = torch.arange(min(end, ring))
        return end - 1 - (end - 1 - slot) % ring

    def take(self, part: "KVCache", first_row: int, end: int) -> None:
        """Copy all tokens of a cache of fewer rows, so that its last token is number `end` - 1
        here; before is padding.
        """
        rows = slice(first_row, first_row + len(part.positions))
        self.end, shift = end, end - part.end
        self.positions[rows, shift:end] = part.positions
        for layer, (ring, part_ring) in enumerate(zip(self.rings, part.rings, strict=True)):
            tokens = torch.arange(max(0, part.end - (ring or part.end)), part.end)
            held = tokens % part_ring if part_ring else tokens
            places = (tokens + shift) % ring if ring else tokens + shift
            self.keys[layer].take(rows, places, part.keys[layer], held)
            self.values[layer].take(rows, places, part.values[layer], held)

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these: finished answers cost nothing."""
        for slots in (*self.keys, *self.values):
            slots.keep_rows(rows)
        self.positions = self.positions[rows]


class FloatSlots:
    """A layer's keys or values [B, K, S, E] in float32."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.content = torch.zeros(shape)

    def write(self, places: Tensor | slice, new: Tensor) -> None:
        """Put new [B, K, T, E] into T slots."""
        self.content[:, :, places] = new

    def read(self, count: int) -> Tensor:
        """The first `count` slots."""
        return self.content[:, :, :count]

    def rounded(self, new: Tensor) -> Tensor:
        """What reading would give of these."""
        return new

    def take(self, rows: slice, places: Tensor, other: "FloatSlots", held: Tensor) -> None:
        """Copy another's slots `held` into `places` of these rows."""
        self.content[rows, :, places] = other.content[:, :, held]

    def keep_rows(self, rows: Tensor) -> None:
        self.content = self.content[rows]


class Int8Slots(FloatSlots):
    """The same as int8, with a scale and a zero point for each token, over all its heads."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.content = torch.zeros(shape, dtype=torch.int8)
        self.scale = torch.ones(shape[0], 1, shape[2], 1)
        self.zero = torch.zeros_like(self.scale)

    def write(self, places: Tensor | slice, new: Tensor) -> None:
        levels, scale, zero = int8_levels(new)
        self.content[:, :, places], self.scale[:, :, places], self.zero[:, :, places] = (
            levels,
            scale,
            zero,
        )

    def read(self, count: int) -> Tensor:
        scale, zero = self.scale[:, :, :count], self.zero[:, :, :count]
        return (self.content[:, :, :count].float() - zero) * scale

    def rounded(self, new: Tensor) -> Tensor:
        levels, scale, zero = int8_levels(new)
        return (levels.float() - zero) * scale

    def take(self, rows: slice, places: Tensor, other: FloatSlots, held: Tensor) -> None:
        assert isinstance(other, Int8Slots)
        super().take(rows, places, other, held)
        self.scale[rows, :, places], self.zero[rows, :, places] = (
            other.scale[:, :, held],
            other.zero[:, :, held],
        )

    def keep_rows(self, rows: Tensor) -> None:
        super().keep_rows(rows)
        self.scale, self.zero = self.scale[rows], self.zero[rows]


def int8_levels(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 [B, K, T, E], scale and zero point [B, 1, T, 1]) of keys or values: one asymmetric
    range for each token.
    """
    low, high = x.amin((1, 3), keepdim=True).clamp(max=0), x.amax((1, 3), keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    return ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8), scale, zero


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

    def kv_bytes(self, length: int) -> int:
        """Bytes that hold keys and values of one text of this length."""
        with torch.device("meta"):
            return KVCache(self.model.config, 1, length, int8=self.int8_cache).num_bytes

    def step_bytes(self, length: int) -> int:
        """Bytes that one more token must read after so many: every weight once, unless of a table
        that is no head; the cache.
        """
        tied = self.model.lm_head is None
        unread = 0 if tied else self.model.model.embed_tokens.weight.nbytes
        return (
            sum(weight.nbytes for weight in self.model.parameters())
            - unread
            + self.kv_bytes(length)
        )

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
        endings = [Ending(self.tokenizer, stop_strings) for _ in prompts] if stop_strings else []
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
