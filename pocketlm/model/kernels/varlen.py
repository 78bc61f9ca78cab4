"""torch's varlen_attn: FlashAttention over documents of any length, laid end to end. For CUDA.

Neither a mask nor padding: `cu_seqlens` says where each document begins. Its length is a power of
two, documents of no tokens at its end, so that a compiled block meets few lengths of it.

Shapes: B rows, T tokens, N documents of all rows, H query heads, K kv heads, E head width
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from pocketlm.model.kernels.kernel import AttentionCase, Kernel

LEAST_DOCUMENTS = 64  # that cu_seqlens has room for
DTYPES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256  # of FlashAttention 2


class _Prepared(NamedTuple):
    cu_seqlens: Tensor  # int32 [N + 1]: where each document begins in all rows, end to end
    max_seqlen: int
    window: int | None


def attend(q: Tensor, k: Tensor, v: Tensor, prepared: _Prepared) -> Tensor:
    (B, H, T, _), K = q.shape, k.shape[1]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B x T, heads, E]
    # keys before a query: -1 for all
    before = -1 if prepared.window is None else prepared.window - 1
    out = varlen_attn(
        q,
        k,
        v,
        prepared.cu_seqlens,
        prepared.cu_seqlens,
        prepared.max_seqlen,
        prepared.max_seqlen,
        window_size=(before, 0),
        enable_gqa=H != K,
    )
    assert isinstance(out, Tensor)  # no logsumexp was requested
    return out.unflatten(0, (B, T)).transpose(1, 2)


def prepare(case: AttentionCase, starts: Tensor | None) -> _Prepared:
    if starts is None:
        # rows are the documents; made on the host, as nothing on the device is needed for it
        ends = torch.arange(case.rows + 1, dtype=torch.int32) * case.num_tokens
        return _Prepared(ends.to(case.device), case.num_tokens, case.window)
    return _Prepared(cu_seqlens(starts), case.num_tokens, case.window)


def cu_seqlens(starts: Tensor) -> Tensor:
    """int32 [N + 1]: where each document of all rows begins, then their end, repeated to the next
    power of two documents. starts [B, T]: where in its row each token's document begins.
    """
    B, T = starts.shape
    begins = (starts == torch.arange(T, device=starts.device)).flatten().nonzero()[:, 0]
    room = LEAST_DOCUMENTS
    while room < len(begins):
        room *= 2
    ends = begins.new_full((room + 1,), B * T, dtype=torch.int32)
    ends[: len(begins)] = begins
    return ends


def refusal(case: AttentionCase) -> str | None:
    if case.on not in ("cuda", "meta"):
        return f"runs on CUDA alone, not on {case.on}; take blockwise"
    if case.dtype not in DTYPES:
        return (
            f"multiplies bfloat16 or float16, not {str(case.dtype).removeprefix('torch.')}; set "
            "compute_dtype=bfloat16 or take flex"
        )
    if case.head_dim % 8 or case.head_dim > WIDEST_HEAD:
        return (
            f"needs heads of a multiple of 8 channels up to {WIDEST_HEAD}, not {case.head_dim}; "
            "take flex"
        )
    if (
        case.on == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() < (8, 0)
    ):
        return "needs a GPU of compute capability 8.0 (Ampere) or later; take flex"
    return None


def kept_bytes(case: AttentionCase) -> int:
    return case.logsumexp_bytes


VARLEN = Kernel(
    name="varlen",
    refusal=refusal,
    prepare=prepare,
    attend=attend,
    kept_bytes=kept_bytes,
    keeps_result=True,
)
