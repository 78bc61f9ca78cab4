"""Cut from a micro-batch the padding that none of its rows needs."""

from collections.abc import Callable
from dataclasses import fields, replace

from torch import Tensor

from pocketlm.model.batch import Batch

# Lengths are multiples of it (our choice): every length is a shape of its own to a compiler
MULTIPLE = 64


def trim_padding(batch: Batch) -> Batch:
    """The batch up to its longest row, by doc_ids, which are negative where a row is padding.

    Shapes: [B, T] to [B, T'], T' the next multiple of MULTIPLE. A batch without doc_ids is one
    whose rows are full.
    """
    if batch.doc_ids is None:
        return batch
    used = (batch.doc_ids >= 0).any(0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    length = min(batch.doc_ids.shape[1], -(-length // MULTIPLE) * MULTIPLE)
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    cut = {name: value[:, :length] for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(batch, **cut)


def trimmed(batches: Callable[[int], list[Batch]]) -> Callable[[int], list[Batch]]:
    """The same batches, each without needless padding."""
    return lambda step: [trim_padding(batch) for batch in batches(step)]
