"""Log-likelihoods of continuations in llama.cpp: the texts of a tree are sequences of one cache,
and an id belongs to those of all texts that hold it.

Shapes: N ids of one call or queried nodes, V vocabulary
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.continuations import PAIRS, Scorer, Tree, tree_scorer
from pocketlm.inference.libllama import Context, LoadedModel


class TreeContext(Context):
    """Keys and values of texts that have ids in common, PAIRS of them at most."""

    def __init__(
        self, model: LoadedModel, *, length: int, batch: int, threads: int, cache_type: str
    ) -> None:
        super().__init__(
            model,
            slots=PAIRS,
            length=length,
            batch=batch,
            threads=threads,
            cache_type=cache_type,
            in_common=True,
        )
        self.held: list[int] | None = None  # the ids that all sequences begin with

    def read(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[Sequence[int]],
        wanted: np.ndarray,
    ) -> Iterator[np.ndarray]:
        """The logits after the wanted ids, in pieces [up to `batch`, V] that are valid until the
        next.
        """
        for first in range(0, len(ids), self.batch):
            piece = slice(first, first + self.batch)
            of_ids = sequences[piece]
            # for each id a pointer to its sequences, and how many they are
            flat = np.array([number for of_id in of_ids for number in of_id], np.int32)
            counts = np.array([len(of_id) for of_id in of_ids], np.int32)
            starts = (np.cumsum(counts) - counts).astype(np.uintp)
            self.one[: len(counts)] = counts
            self.slot_pointers[: len(counts)] = flat.ctypes.data + 4 * starts
            logits = self.run(list(ids[piece]), list(positions[piece]), 0, wanted[piece])
            if len(logits):
                yield logits

    def rewind(self, length: int) -> None:
        """Forget all ids from position `length` on."""
        for slot in range(self.slots):
            self.lib.llama_memory_seq_rm(self.memory, slot, length, -1)


def gguf_scorer(new_context: Callable[[int, TreeContext | None], TreeContext]) -> Scorer:
    """new_context(ids it has room for, the one that it takes the place of)."""
    context: TreeContext | None = None

    def evaluated(shared: Sequence[int], trees: Sequence[Tree]) -> Iterator[Tensor]:
        nonlocal context
        room = len(shared) + sum(len(tree.ids) for tree in trees)
        if context is None or context.length < room:
            context = new_context(room, context)
        if context.held != list(shared):
            context.held = None  # should the run be interrupted
            context.rewind(0)
            everyone = [range(PAIRS)] * len(shared)
            unwanted = np.zeros(len(shared), bool)
            list(context.read(shared, range(len(shared)), everyone, unwanted))
            context.held = list(shared)
        yield from map(torch.from_numpy, forest(context, len(shared), trees))

    def forest(context: TreeContext, start: int, trees: Sequence[Tree]) -> Iterator[np.ndarray]:
        ids = [i for tree in trees for i in tree.ids]
        positions = [start + depth for tree in trees for depth in tree.depths]
        sequences: list[list[int]] = []
        number = 0
        for tree in trees:
            of_nodes: list[list[int]] = [[] for _ in tree.ids]
            for row in tree.rows():
                for node in row:
                    of_nodes[node].append(number)
                number += 1
            sequences += of_nodes
        wanted = np.concatenate([np.isin(np.arange(len(t.ids)), t.queried) for t in trees])
        context.rewind(start)
        yield from context.read(ids, positions, sequences, wanted)

    return tree_scorer(evaluated)
