"""Keys and values of the tokens read so far, as float32 or int8, in rings for local layers.

Shapes: B batch, T tokens, S cached slots, K kv heads, E head width
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketlm.model.model_config import ModelConfig
from pocketlm.model.transformer import Transformer

PAD_POSITION = -1


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
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        int8: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        windows = [config.window(i // config.layer_repeats) for i in range(config.applications)]
        # slots of the local layers
        self.rings = [w if w is not None and w < capacity else None for w in windows]
        shapes = [
            (batch, config.num_key_value_heads, ring or capacity, config.head_dim)
            for ring in self.rings
        ]
        store = Int8Slots if int8 else FloatSlots
        self.keys = [store(shape, device) for shape in shapes]
        self.values = [store(shape, device) for shape in shapes]
        self.positions = torch.full((batch, capacity), PAD_POSITION, device=device)
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
        """Store k, v [B, K, T, E] of a layer; return what its queries may attend to, twice
        [B, K, S, E].
        """
        ring = self.rings[layer]
        return self._update(self.keys[layer], k, ring), self._update(self.values[layer], v, ring)

    def _update(self, slots: "FloatSlots", new: Tensor, ring: int | None) -> Tensor:
        # nothing was overwritten yet: slots are in the text's order
        if ring is None or self.end <= ring:
            slots.write(slice(self.start, self.end), new)
            return slots.read(self.end)
        if self.end - self.start == 1:
            slots.write(slice(self.start % ring, self.start % ring + 1), new)
            return slots.read(ring)
        newest = self._range(max(self.start, self.end - ring), self.end)
        # the first query's window, and on
        visible = torch.cat([slots.read(min(self.start, ring)), slots.rounded(new)], 2)
        slots.write(newest % ring, new[:, :, -len(newest) :])
        return visible

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
        """For each filled slot of a ring the newest of the first `end` tokens stored there: token t
        is in slot t mod ring.
        """
        slot = self._range(0, min(end, ring))
        return end - 1 - (end - 1 - slot) % ring

    def _range(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self.positions.device)

    def take(self, part: "KVCache", first_row: int, end: int) -> None:
        """Copy the tokens of a cache of fewer rows, so that its last token is number `end` - 1
        here; before is padding. Of more than `end` tokens the first, its padding, are left out.
        """
        rows = slice(first_row, first_row + len(part.positions))
        self.end, shift = end, end - part.end
        first = max(0, -shift)
        self.positions[rows, first + shift : end] = part.positions[:, first : part.end]
        for layer, (ring, part_ring) in enumerate(zip(self.rings, part.rings, strict=True)):
            tokens = self._range(max(first, part.end - (ring or part.end)), part.end)
            sources = tokens % part_ring if part_ring else tokens
            places = (tokens + shift) % ring if ring else tokens + shift
            self.keys[layer].take(rows, places, part.keys[layer], sources)
            self.values[layer].take(rows, places, part.values[layer], sources)

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these: finished answers cost nothing."""
        for slots in (*self.keys, *self.values):
            slots.keep_rows(rows)
        self.positions = self.positions[rows]


class FloatSlots:
    """A layer's keys or values [B, K, S, E] in float32."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.content = torch.zeros(shape, dtype=torch.float32, device=device)

    def write(self, places: Tensor | slice, new: Tensor) -> None:
        """Put new [B, K, T, E] into T slots."""
        self.content[:, :, places] = new

    def read(self, count: int) -> Tensor:
        """The first `count` slots."""
        return self.content[:, :, :count]

    def rounded(self, new: Tensor) -> Tensor:
        """What reading would give of these."""
        return new

    def take(self, rows: slice, places: Tensor, other: "FloatSlots", sources: Tensor) -> None:
        """Copy another's slots `held` into `places` of these rows."""
        self.content[rows, :, places] = other.content[:, :, sources]

    def keep_rows(self, rows: Tensor) -> None:
        self.content = self.content[rows]


class Int8Slots(FloatSlots):
    """The same as int8, with a scale and a zero point for each token, over all its heads."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.content = torch.zeros(shape, dtype=torch.int8, device=device)
        self.scale = torch.ones(shape[0], 1, shape[2], 1, dtype=torch.float32, device=device)
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

    def take(self, rows: slice, places: Tensor, other: FloatSlots, sources: Tensor) -> None:
        assert isinstance(other, Int8Slots)
        super().take(rows, places, other, sources)
        self.scale[rows, :, places], self.zero[rows, :, places] = (
            other.scale[:, :, sources],
            other.zero[:, :, sources],
        )

    def keep_rows(self, rows: Tensor) -> None:
        super().keep_rows(rows)
        self.scale, self.zero = self.scale[rows], self.zero[rows]


class SharedText:
    """Keys and values of a text that others go on from: each pass sees it, and adds nothing to it.

    All positions of every layer are kept, a local one's too. Attention takes it for a KVCache of
    one row.
    """

    def __init__(self, network: Transformer, ids: Sequence[int]) -> None:
        """The text [T] is read at once; none may be given, and then nothing is seen."""
        device = network.model.embed_tokens.weight.device
        self.keys: list[Tensor] = []  # of each layer [1, K, T, E]
        self.values: list[Tensor] = []
        self.length, self._read = len(ids), False
        self._positions = torch.arange(len(ids), device=device)[None]
        if ids:
            network.hidden(torch.tensor([list(ids)], device=device), None, self, last=True)
        self._read = True

    @property
    def empty(self) -> bool:
        return not self._read

    def begin(self, positions: Tensor) -> None:
        """What goes on is at these positions [1, T]."""
        self._new = positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, K, S, E]: the text's and these new ones, for their queries."""
        if not self._read:
            self.keys.append(k)
            self.values.append(v)
        elif self.length:
            return torch.cat([self.keys[layer], k], 2), torch.cat([self.values[layer], v], 2)
        return k, v

    def key_positions(self, layer: int) -> Tensor:
        """Positions [1, S] of the keys that `update` returned."""
        return torch.cat([self._positions, self._new], 1)

    def fill(self, cache: KVCache, lengths: Sequence[int]) -> None:
        """Put the first so many tokens into each row of an empty cache, which then goes on after
        as many slots as the text has tokens; before shorter beginnings is padding.
        """
        cache.end = self.length
        for row, length in enumerate(lengths):
            first = self.length - length
            cache.positions[row, first : self.length] = self._positions[0, :length]
            for layer, ring in enumerate(cache.rings):
                tokens = torch.arange(max(0, length - (ring or length)), length)
                places = (tokens + first) % ring if ring else tokens + first
                for slots, text in (
                    (cache.keys[layer], self.keys[layer]),
                    (cache.values[layer], self.values[layer]),
                ):
                    slots.content[row, :, places] = text[0, :, tokens]


def int8_levels(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 [B, K, T, E], scale and zero point [B, 1, T, 1]) of keys or values: one asymmetric
    range for each token.
    """
    low, high = x.amin((1, 3), keepdim=True).clamp(max=0), x.amax((1, 3), keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    return ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8), scale, zero
