"""torch's FlexAttention: a kernel compiled for our rule of visible keys, which skips the blocks of
128 x 128 that no query sees. For CUDA; in eager mode on a CPU it is its own reference (tests).

The blocks come from the first key of each query alone, in time and memory of (T / 128)^2: torch's
create_block_mask would make a mask of T x T on the way.

Shapes: B rows, T tokens, Q = ceil(T / 128) blocks of queries, and of keys
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel, first_keys

BLOCK = 128  # torch's own size
NARROWEST_HEAD = 16  # of its Triton kernels


def attend(q: Tensor, k: Tensor, v: Tensor, prepared: BlockMask) -> Tensor:
    # in a compiled block it is compiled with the rest
    by_itself = q.is_cuda and not torch.compiler.is_compiling()
    run = _compiled() if by_itself else flex_attention
    return run(q, k, v, block_mask=prepared, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def prepare(case: AttentionCase, documents: Documents | None) -> BlockMask:
    first = first_keys(case, documents and documents.starts)
    return block_mask(first.expand(case.rows, -1).int().contiguous())


def block_mask(first: Tensor) -> BlockMask:
    """Which blocks of keys each block of queries reads, and which of them without a mask.

    first [B, T], int32: the first key that each query sees; it never falls along T.
    """

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[row, query])

    T = first.shape[1]
    begins = torch.arange(0, T, BLOCK, device=first.device)
    number = torch.arange(len(begins), device=first.device)  # [Q]
    lowest = first[:, begins, None] // BLOCK  # [B, Q, 1]: the first block that any query sees
    # the first block all of whose keys every query sees, if it lies before its own
    whole = (first[:, (begins + BLOCK - 1).clamp(max=T - 1), None] + BLOCK - 1) // BLOCK
    read = (number >= lowest) & (number <= number[:, None])  # [B, Q, Q]
    unmasked = (number >= whole) & (number < number[:, None])
    return BlockMask.from_kv_blocks(
        *_listed(read & ~unmasked),
        *_listed(unmasked),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(T, T),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(how many, int32 [B, 1, Q]; which, first in each row of int32 [B, 1, Q, Q]) of blocks chosen
    in a bool [B, Q, Q].
    """
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def refusal(case: AttentionCase) -> str | None:
    if case.on != "cuda":
        return f"has no backward pass on {case.on}; take blockwise"
    if case.head_dim < NARROWEST_HEAD:
        return f"needs heads of {NARROWEST_HEAD} channels or more, not {case.head_dim}; take sdpa"
    return None


def kept_bytes(case: AttentionCase) -> int:
    """The lists of blocks are not counted: layers share them, and they take T^2 / 1,024 bytes."""
    return case.logsumexp_bytes


FLEX = Kernel(
    name="flex",
    refusal=refusal,
    prepare=prepare,
    attend=attend,
    kept_bytes=kept_bytes,
    keeps_result=True,
)
