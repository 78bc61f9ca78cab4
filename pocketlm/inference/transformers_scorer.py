"""Log-likelihoods of continuations in a network of transformers': the texts of a tree are rows of a
batch, which go on from a cache of what all have in common.

Shapes: R rows, T ids of a row, N queried nodes, V vocabulary
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pocketlm.inference.continuations import Scorer, Tree, tree_scorer

ROW_LOGITS_BYTES = 2**28  # of the rows that are read together

# (ids [R, T], cache, whether the last logits are enough) -> (logits [R, T, V], the cache after)
Run = Callable[..., tuple[Tensor, Any]]


def transformers_scorer(
    run: Run, device: torch.device, vocab_size: int, keys_and_values: bool
) -> Scorer:
    """keys_and_values: whether a cache is nothing else; padding would enter a recurrent state, so
    that without it every text is read alone and from its beginning.
    """
    kept: dict[tuple[int, ...], Any] = {}

    def read(ids: Sequence[int], cache: Any) -> Any:
        """The cache after these too, without change to the one that is given."""
        if not ids:
            return copy.deepcopy(cache)
        row = torch.tensor([list(ids)], device=device)
        return run(row, cache=copy.deepcopy(cache), last=True)[1]

    def evaluated(shared: Sequence[int], trees: Sequence[Tree]) -> Iterator[Tensor]:
        if not keys_and_values:
            for tree in trees:
                yield alone(shared, tree)
            return
        key = tuple(shared)
        if key not in kept:
            kept.clear()
            kept[key] = read(shared, None)
        for tree in trees:
            rows = tree.rows()
            # what a row asks for is read in the row, where its logits are kept
            common = min(tree.depths[node] for node in tree.queried)
            common = next((i for i in range(common) if len({row[i] for row in rows}) > 1), common)
            cache = read([tree.ids[node] for node in rows[0][:common]], kept[key])
            yield batched(tree, [row[common:] for row in rows], cache)

    def batched(tree: Tree, rows: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """Rows padded on the right, which no id sees."""
        logits = torch.empty(len(tree.queried), vocab_size, device=device)
        longest = max(map(len, rows))
        together = max(1, ROW_LOGITS_BYTES // (4 * vocab_size * longest))
        for first in range(0, len(rows), together):
            part = rows[first : first + together]
            ids = torch.zeros(len(part), longest, dtype=torch.long, device=device)
            for number, row in enumerate(part):
                ids[number, : len(row)] = torch.tensor([tree.ids[node] for node in row])
            again = copy.deepcopy(cache) if first + together < len(rows) else cache
            if again is not None and len(part) > 1:
                again.reorder_cache(torch.zeros(len(part), dtype=torch.long, device=device))
            after, _ = run(ids, cache=again)
            for number, row in enumerate(part):
                take(tree, row, after[number], logits)
        return logits

    def alone(shared: Sequence[int], tree: Tree) -> Tensor:
        logits = torch.empty(len(tree.queried), vocab_size, device=device)
        for row in tree.rows():
            ids = [*shared, *(tree.ids[node] for node in row)]
            after, _ = run(torch.tensor([ids], device=device))
            take(tree, row, after[0, len(shared) :], logits)
        return logits

    return tree_scorer(evaluated)


def take(tree: Tree, row: Sequence[int], after: Tensor, logits: Tensor) -> None:
    """Put the logits [T, V] after a row's nodes into those [N, V] of the queried nodes."""
    places = {node: number for number, node in enumerate(tree.queried)}
    at = [(depth, places[node]) for depth, node in enumerate(row) if node in places]
    depth, place = torch.tensor(at, device=logits.device).T
    logits[place] = after[depth].float()
