"""Log-likelihoods of continuations in our network: what several rows begin with is evaluated once.

A row is a context and a continuation. The tokens that all choices of a problem begin with, or all
problems of a suite (its shots), go through the network once, into a KV cache; the rows then go on
from copies of it.

Shapes: B prefixes, R rows, T tokens, D hidden, V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from pocketlm.inference.kv_cache import PAD_POSITION, KVCache
from pocketlm.model.transformer import Transformer

Pair = tuple[list[int], list[int]]  # context ids, continuation ids: neither is empty
LOGITS_BYTES = 2**27  # of one product with the head


class ContinuationScorer:
    """Scores rows, and keeps the cache of the shared beginning it saw last.

    Not for several threads: a caller that has many makes a scorer each.
    """

    def __init__(self, network: Transformer) -> None:
        self.network = network
        self._shared: tuple[tuple[int, ...], KVCache] | None = None

    @torch.inference_mode()
    def score(self, problems: Sequence[Sequence[Pair]], shared: Sequence[int]) -> list[list[float]]:
        """For each pair of each problem the sum of its continuation's natural log-probabilities.

        shared: ids that every context begins with, evaluated once for all calls that give the
        same; with none, each problem's own common beginning is.
        """
        if shared:
            prefixes = [list(shared)] * len(problems)
        else:
            prefixes = [_common_beginning(pairs) for pairs in problems]
        # the last id of a row predicts nothing that is asked
        inputs = [
            [(context + ids)[len(prefix) : -1] for context, ids in pairs]
            for prefix, pairs in zip(prefixes, problems, strict=True)
        ]
        rows = list(
            dict.fromkeys((i, tuple(row)) for i, group in enumerate(inputs) for row in group)
        )
        place = {row: number for number, row in enumerate(rows)}
        if shared:
            cache, lengths = self._shared_cache(tuple(shared), len(rows)), [len(shared)] * len(rows)
        else:
            cache = _prefilled(self.network, prefixes)
            cache.keep_rows(torch.tensor([i for i, _ in rows]))
            lengths = [len(prefixes[i]) for i, _ in rows]
        hidden = self._continued(cache, lengths, [row for _, row in rows])
        # of each pair: its row, and where in it the continuation's first id is predicted
        pairs = [
            (place[i, tuple(row)], len(row) - len(ids), ids)
            for i, (group, rest) in enumerate(zip(inputs, problems, strict=True))
            for row, (_, ids) in zip(group, rest, strict=True)
        ]
        sums = iter(self._sums(hidden, pairs))
        return [[next(sums) for _ in rest] for rest in problems]

    def _shared_cache(self, shared: tuple[int, ...], rows: int) -> KVCache:
        if self._shared is None or self._shared[0] != shared:
            self._shared = shared, _prefilled(self.network, [list(shared)])
        cache = copy.deepcopy(self._shared[1])
        cache.keep_rows(torch.zeros(rows, dtype=torch.long))
        return cache

    def _continued(
        self, part: KVCache, lengths: Sequence[int], rows: Sequence[Sequence[int]]
    ) -> Tensor:
        """Hidden states [R, T, D] of rows that go on from a cache, each after `lengths` tokens;
        padded on the right, where nothing looks.
        """
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        positions = torch.full_like(ids, PAD_POSITION)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[number, : len(row)] = torch.tensor(row)
            positions[number, : len(row)] = torch.arange(length, length + len(row))
        cache = KVCache(self.network.config, len(rows), part.end + longest)
        cache.take(part, 0, part.end)
        return self.network.hidden(ids, positions, cache)

    def _sums(self, hidden: Tensor, pairs: Sequence[tuple[int, int, list[int]]]) -> list[float]:
        """For each (row, place, ids) the sum over `ids`, the first predicted at `place` of the row
        and each next one place on. The head sees each state once, and many together.
        """
        states: dict[tuple[int, int], int] = {}
        tokens = [
            (states.setdefault((row, place + n), len(states)), token)
            for row, place, ids in pairs
            for n, token in enumerate(ids)
        ]
        number, target = torch.tensor(tokens).T  # of each token: its state, its id
        picked = torch.tensor(list(states))
        flat = hidden[picked[:, 0], picked[:, 1]]  # [N, D]
        log_probs = torch.empty(len(tokens), dtype=torch.float64)
        step = max(1, LOGITS_BYTES // (4 * self.network.config.vocab_size))
        for first in range(0, len(flat), step):
            logits = self.network.head(flat[first : first + step])  # [N, V]
            here = ((number >= first) & (number < first + step)).nonzero()[:, 0]
            at = number[here] - first
            log_probs[here] = (logits[at, target[here]] - logits.logsumexp(1)[at]).double()
        return [part.sum().item() for part in log_probs.split([len(ids) for _, _, ids in pairs])]


def _common_beginning(pairs: Sequence[Pair]) -> list[int]:
    """The ids that all contexts begin with, without any context's last: that one predicts the
    continuation's first.
    """
    first = pairs[0][0]
    length = min(len(context) for context, _ in pairs) - 1
    for context, _ in pairs[1:]:
        length = next((i for i in range(length) if context[i] != first[i]), length)
    return first[:length]


def _prefilled(network: Transformer, prefixes: Sequence[list[int]]) -> KVCache:
    """A cache of these beginnings, padded on the left: in a ring of a local layer padding then
    displaces nothing. An empty one is padding alone.
    """
    longest = max(1, max(map(len, prefixes)))
    ids = torch.zeros(len(prefixes), longest, dtype=torch.long)
    positions = torch.full_like(ids, PAD_POSITION)
    for row, prefix in enumerate(prefixes):
        ids[row, longest - len(prefix) :] = torch.tensor(prefix, dtype=torch.long)
        positions[row, longest - len(prefix) :] = torch.arange(len(prefix))
    cache = KVCache(network.config, len(prefixes), longest)
    padded = bool((positions < 0).any())
    network.hidden(ids, positions if padded else None, cache, last=True)
    return cache
