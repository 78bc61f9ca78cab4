"""What every attention kernel is: one way to compute attention of whole rows, as data and four
functions.

Whole rows: each query t of row b sees the keys first[b, t]..t. `first` is the start of its document
or of its window, whichever is later; so documents must be runs of tokens, and neither documents nor
windows need a mask of T x T.

Shapes: B rows, T tokens, H query heads, K kv heads, E head width
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """All that the choice and the cost of a kernel depend on, for the layers of one window.

    device: where it runs. dtype: of queries, keys and values. window: keys that a query sees,
    itself included; None for all. packed: documents of a row are kept apart.
    """

    device: torch.device
    dtype: torch.dtype
    rows: int
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    packed: bool = False

    @property
    def on(self) -> str:
        """The kind of device: "cpu", "cuda", "meta"."""
        return self.device.type

    @property
    def windowed(self) -> bool:
        """Whether the window hides anything."""
        return self.window is not None and self.window < self.num_tokens

    @property
    def logsumexp_bytes(self) -> int:
        """Of one float32 for each query and head, which fused kernels keep for their backward
        pass.
        """
        return 4 * self.rows * self.num_tokens * self.num_heads


class Documents(NamedTuple):
    """Where the documents of packed rows lie. Computed on the processor, where the rows are made:
    asking a GPU for their number would make it wait.

    starts [B, T]: at which token of its row each token's document begins. cu_seqlens: int32 [N +
    1], where each of N documents begins in all rows laid end to end, and the end of the last; empty
    ones follow, so that N is the same from step to step.
    """

    starts: Tensor
    cu_seqlens: Tensor


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to compute attention.

    refusal: why it cannot serve a case, and what to take instead; None where it can.
    prepare: (case, Documents or None for whole rows) -> what `attend` needs beside q, k and v, made
    once a forward pass and shared by all layers of a window.
    attend: (q [B, H, T, E], k, v [B, K, T, E], prepared) -> [B, H, T, E].
    kept_bytes: what a layer leaves for its backward pass beside q, k, v and its result.
    keeps_result: whether it keeps its result too, which is also the next product's input.
    """

    name: str
    refusal: Callable[[AttentionCase], str | None]
    prepare: Callable[[AttentionCase, Documents | None], Any]
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    kept_bytes: Callable[[AttentionCase], int]
    keeps_result: bool


def first_keys(case: AttentionCase, starts: Tensor | None) -> Tensor:
    """[B or 1, T]: the first key that each query sees. starts [B, T]: where in its row each token's
    document begins; None: at 0.
    """
    place = torch.arange(case.num_tokens, device=case.device)
    if starts is None:
        starts = torch.zeros_like(place)[None]
    return starts if case.window is None else torch.maximum(starts, place - (case.window - 1))
