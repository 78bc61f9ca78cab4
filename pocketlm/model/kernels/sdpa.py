"""torch's scaled_dot_product_attention: causal without a mask, in windows a few queries at a time,
and under a mask of all pairs for the rest.

Shapes: B rows, T queries, S keys, H query heads, K kv heads, E head width
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel, first_keys

QUERIES = 128  # of a window at a time
# Tokens of a row for which a mask of all pairs is still made on a GPU: 16 MiB a row and layer in
# bfloat16 (our choice)
MAX_MASKED_TOKENS = 4096


class _Prepared(NamedTuple):
    mask: Tensor | None  # bool [B, 1, T, T], True where a query sees a key
    window: int | None


def attend(q: Tensor, k: Tensor, v: Tensor, prepared: _Prepared) -> Tensor:
    if prepared.mask is not None:
        return masked_attention(q, k, v, prepared.mask)
    return unmasked_attention(q, k, v, prepared.window)


def unmasked_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attention [B, H, T, E] of the last T of S tokens of one document, causal and in a window."""
    if window is not None and window < k.shape[2]:
        return sliding_attention(q, k, v, window)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
    )


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [B, H, T, E] under a mask, bool [B, 1, T, S] or numbers [T, S] to add to the
    scores; None where all may see all.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask is not None and grouped and q.is_cuda:
        # with a mask, groups of heads leave nothing but the kernel that stores all scores
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def sliding_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, num_queries: int = QUERIES
) -> Tensor:
    """Attention [B, H, T, E] of the last T of S tokens, each on `window` keys: `num_queries` at a
    time on what they see. How prompts are read into a cache.
    """
    ahead, before = k.shape[2] - q.shape[2], window - 1
    gap = (
        torch.arange(num_queries, device=q.device)[:, None]
        + before
        - torch.arange(before + num_queries, device=q.device)
    )
    mask = torch.zeros(gap.shape, dtype=q.dtype, device=q.device).masked_fill(
        (gap < 0) | (gap > before), -math.inf
    )
    parts = []
    for queries in q.split(num_queries, 2):
        count, earlier = queries.shape[2], min(ahead, before)  # keys before the first query
        keys = slice(ahead - earlier, ahead + count)
        band = mask[:count, before - earlier : before + count]
        parts.append(masked_attention(queries, k[:, :, keys], v[:, :, keys], band))
        ahead += count
    return torch.cat(parts, 2)


def refusal(case: AttentionCase) -> str | None:
    if case.packed and case.on == "cuda" and case.num_tokens > MAX_MASKED_TOKENS:
        return (
            f"keeps documents apart by a mask of all pairs, which rows of {case.num_tokens:,} "
            f"tokens exceed (at most {MAX_MASKED_TOKENS:,}); take varlen or flex"
        )
    return None


def prepare(case: AttentionCase, documents: Documents | None) -> _Prepared:
    if documents is None:
        return _Prepared(None, case.window)
    place = torch.arange(case.num_tokens, device=case.device)
    first = first_keys(case, documents.starts)
    mask = (place >= first[:, :, None]) & (place <= place[:, None])
    return _Prepared(mask[:, None], case.window)


def kept_bytes(case: AttentionCase) -> int:
    kept = case.logsumexp_bytes
    each_head = case.rows * case.num_tokens * case.head_dim * case.dtype.itemsize
    if case.packed:  # the mask, in numbers to add
        kept += case.rows * case.num_tokens**2 * case.dtype.itemsize
        if case.on == "cuda" and case.num_heads != case.num_kv_heads:
            kept += 2 * each_head * case.num_heads  # keys and values of every head
    elif case.window is not None and case.windowed:
        # results before they are put together, and the mask of one block of queries
        kept += each_head * case.num_heads
        kept += QUERIES * (case.window - 1 + QUERIES) * case.dtype.itemsize
    return kept


SDPA = Kernel(
    name="sdpa",
    refusal=refusal,
    prepare=prepare,
    attend=attend,
    kept_bytes=kept_bytes,
    keeps_result=True,
)
