"""The texts that are continued side by side, as rows of one batch that texts join and leave.

Shapes: R rows, V vocabulary
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pocketlm.inference.executorch import PteModel
from pocketlm.inference.kv_cache import KVCache
from pocketlm.inference.torch_runtime import PREFILL_TOKENS, LanguageModel
from pocketlm.inference.transformers_runtime import TransformersModel


class Rows(Protocol):
    """slots: the most rows. Rows are numbered in the order they joined, without gaps."""

    slots: int

    def join(self, prompt: Sequence[int], max_new_tokens: int) -> Tensor:
        """Logits [1, V] after a prompt that becomes the last row."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits [R, V] after the newest token of each row."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        ...


class CheckpointRows:
    """Rows of a checkpoint: one pass of the network makes a token of each of them.

    All rows share one cache whose newest column is everybody's newest token, so a text that joins
    or is longer than the others moves them to a new cache: a copy, and no second reading. The
    cache has room for the longest text of its rows, so `slots` times the context at most.
    """

    def __init__(self, model: LanguageModel, slots: int) -> None:
        self.model, self.slots = model, slots
        self._cache: KVCache | None = None
        self._lengths: list[int] = []  # tokens of each row whose keys the cache has
        self._rooms: list[int] = []  # tokens each row may still add

    def join(self, prompt: Sequence[int], max_new_tokens: int) -> Tensor:
        count = len(self._lengths)
        # alone, its cache becomes everybody's, so it has the room already
        part = self._new_cache(1, len(prompt) + (0 if count else max_new_tokens))
        hidden = torch.empty(0)
        for start in range(0, len(prompt), PREFILL_TOKENS):
            ids = torch.tensor(
                [list(prompt[start : start + PREFILL_TOKENS])], device=self.model.device
            )
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
            hidden = self.model.model.hidden(ids, positions if start else None, part, last=True)
        self._lengths.append(len(prompt))
        self._rooms.append(max_new_tokens)
        if self._cache is None:
            self._cache = part
        else:
            end = max(self._lengths)
            whole = self._new_cache(count + 1, end + max(self._rooms))
            whole.take(self._cache, 0, end)
            whole.take(part, count, end)
            self._cache = whole
        return self.model.model.head(hidden[:, -1])

    def step(self, tokens: Sequence[int]) -> Tensor:
        device = self.model.device
        ids = torch.tensor(tokens, device=device)[:, None]
        positions = torch.tensor(self._lengths, device=device)[:, None]
        hidden = self.model.model.hidden(ids, positions, self._cache)
        self._lengths = [length + 1 for length in self._lengths]
        self._rooms = [room - 1 for room in self._rooms]
        return self.model.model.head(hidden[:, -1])

    def keep(self, rows: Sequence[int]) -> None:
        if not rows:
            self._cache = None
        elif self._cache is not None:
            self._cache.keep_rows(torch.tensor(rows, device=self.model.device))
        self._lengths = [self._lengths[row] for row in rows]
        self._rooms = [self._rooms[row] for row in rows]

    def _new_cache(self, rows: int, capacity: int) -> KVCache:
        return KVCache(
            self.model.model.config,
            rows,
            capacity,
            int8=self.model.int8_cache,
            device=self.model.device,
        )


class OneRow:
    """One text at a time, of a runtime whose cache holds no more: a .pte, or a folder in
    transformers.
    """

    slots = 1

    def __init__(self, model: PteModel | TransformersModel) -> None:
        self.model = model
        self._text: Any = None

    def join(self, prompt: Sequence[int], max_new_tokens: int) -> Tensor:
        logits, self._text = self.model.read(prompt)
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits, self._text = self.model.read(tokens, self._text)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        if not rows:
            self._text = None
