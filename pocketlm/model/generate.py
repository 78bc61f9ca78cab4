"""Prefill, decode, sample: the only inference loop.

Shapes: B batch, T tokens, S cached slots, K kv heads, E head width, V vocabulary
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer

PAD_POSITION = -1


class KVCache:
    """Keys and values of all layers for `capacity` tokens a row, and the position each slot holds (-1: nothing)."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int) -> None:
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.applications)]
        self.values = [torch.zeros(shape) for _ in range(config.applications)]
        self.positions = torch.full((batch, capacity), PAD_POSITION)
        self.start = self.end = 0

    def begin(self, positions: Tensor) -> None:
        """Make room for tokens at these positions [B, T]; each layer's `update` then fills it."""
        self.start, self.end = self.end, self.end + positions.shape[1]
        if self.end > self.positions.shape[1]:
            raise ValueError(f"{self.end} tokens exceed the cache of {self.positions.shape[1]}")
        self.positions[:, self.start : self.end] = positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, K, T, E] of a layer; return all it holds so far [B, K, S, E]."""
        self.keys[layer][:, :, self.start : self.end] = k
        self.values[layer][:, :, self.start : self.end] = v
        return self.keys[layer][:, :, : self.end], self.values[layer][:, :, : self.end]

    def key_positions(self, layer: int) -> Tensor:
        return self.positions[:, : self.end]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these: finished answers cost nothing."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.positions = self.positions[rows]


class LanguageModel:
    """A loaded checkpoint that answers the two questions every runtime here answers: `logits` and `generate`."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
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
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """New ids for each prompt, the stop id left out. Temperature 0 is greedy. Prompts of any lengths go together."""
        answers: list[list[int]] = [[] for _ in prompts]
        for row, token in self._decode(prompts, max_new_tokens, stop_ids, temperature, top_p, seed):
            answers[row].append(token)
        return answers

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The same ids, one at a time, as they are made."""
        for _, token in self._decode([prompt], max_new_tokens, stop_ids, temperature, top_p, seed):
            yield token

    def close(self) -> None:
        """Nothing to free; the exported files' runtimes hold processes and buffers."""

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens exceed max_position_embeddings {self.max_length}; shorten the text or extend the context first"
            )

    @torch.inference_mode()  # not a `with` inside: that would stay on in the caller's code between two ids
    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        temperature: float,
        top_p: float,
        seed: int,
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs. Prompts are padded on the left; finished rows leave the batch."""
        if not prompts:
            return
        longest = max(len(p) for p in prompts)
        self._check(longest)
        room = [min(max_new_tokens, self.max_length - len(p)) for p in prompts]  # each row's own, whoever is beside it
        generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
        ids, positions = left_padded(prompts)
        cache = KVCache(self.model.config, len(prompts), longest + max(room))
        rows = torch.arange(len(prompts))
        for made in range(max(room)):
            hidden = self.model.hidden(ids, positions, cache)[:, -1]
            tokens = sample(self.model.head(hidden), temperature, top_p, [generators[r] for r in rows.tolist()])
            going_on = [
                i for i, token in enumerate(tokens.tolist()) if token not in stop_ids and made < room[int(rows[i])]
            ]
            for i in going_on:
                yield int(rows[i]), int(tokens[i])
            if not going_on:
                return
            if len(going_on) < len(rows):
                keep = torch.tensor(going_on)
                rows, tokens, positions = rows[keep], tokens[keep], positions[keep]
                cache.keep_rows(keep)
            ids, positions = tokens[:, None], positions[:, -1:] + 1


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, positions), both [B, T], of prompts padded on the left; padding has position -1 and id 0."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.full_like(ids, PAD_POSITION)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError("an empty prompt: generation needs at least one token to start from")
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        positions[row, longest - len(prompt) :] = torch.arange(len(prompt))
    return ids, positions


def sample(logits: Tensor, temperature: float, top_p: float, generators: list[torch.Generator]) -> Tensor:
    """Next ids [B] from logits [B, V]: the best at temperature 0, else drawn from the top_p mass of softmax(logits/T)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, -1)
    ordered, order = probabilities.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(ordered, generators, strict=True)]
    return order.gather(-1, torch.stack(drawn))[:, 0]
