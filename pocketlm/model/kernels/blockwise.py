"""Attention for the CPU, a block of queries at a time over the keys that any of them sees.

Windows and packed documents need no mask of T x T, and short rows take less time than in torch's
own kernel. The backward pass recomputes the probabilities: nothing is kept but the inputs.

Shapes: B rows, T tokens, H query heads, K kv heads, G heads that share a kv head, E head width, N
queries of a block
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel, first_keys

QUERIES = 128  # of a block: 64 and 256 took 1 to 15 % longer at 512 to 2,048 tokens
# of a block, in how many rows are taken at once: larger ones leave the processor's cache
SCORES = 2**20


def attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
    return blockwise_attention(q, k, v, first)


@torch.library.custom_op("pocketlm::blockwise_attention", mutates_args=())
def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
    """Attention [B, H, T, E] in which query t sees the keys first[b, t]..t; first [B or 1, T] must
    never fall along T.

    Scores are float32, as in torch's own kernel, which takes 1.3 times as long for forward and
    backward; the other products are in the dtype of q. It is an operator of its own, so that
    torch.compile takes it as it is.
    """
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    for rows, queries, keys, p in _blocks(q, k, first):
        out[rows, :, queries] = torch.bmm(p, _flat(v, rows, keys)).view(out[rows, :, queries].shape)
    return out


@torch.library.custom_op("pocketlm::blockwise_attention_backward", mutates_args=())
def _backward(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; probabilities are recomputed."""
    grad_q = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )
    accurate = torch.promote_types(q.dtype, torch.float32)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=accurate, device=x.device) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    for rows, queries, keys, p in _blocks(q, k, first):
        grad_out = _grouped(grad_output, rows, queries, k.shape[1])
        grad_p = torch.bmm(grad_out, _flat(v, rows, keys).transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_q[rows, :, queries] = (
            torch.bmm(grad_scores, _flat(k, rows, keys))
            .mul_(scale)
            .view(grad_q[rows, :, queries].shape)
        )
        q_block = _grouped(q, rows, queries, k.shape[1])
        for gradient, part in (
            (grad_k, torch.bmm(grad_scores.transpose(1, 2), q_block)),
            (grad_v, torch.bmm(p.transpose(1, 2), grad_out)),
        ):
            gradient[rows, :, keys] += part.view(gradient[rows, :, keys].shape)
    return grad_q, grad_k.mul_(scale).to(k.dtype), grad_v.to(v.dtype)


def _blocks(q: Tensor, k: Tensor, first: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """(rows, queries, keys, probabilities [rows x K, G x N, keys] in q's dtype) of each block."""
    (B, H, T, E), K = q.shape, k.shape[1]
    accurate = torch.promote_types(q.dtype, torch.float32)
    rows_at_once = max(1, SCORES // (H * min(QUERIES, T) * T))
    place = torch.arange(T, device=q.device)
    for row in range(0, B, rows_at_once):
        rows = slice(row, min(row + rows_at_once, B))
        firsts = first[rows] if len(first) > 1 else first
        lows, highs = firsts.amin(0).tolist(), firsts.amax(0).tolist()
        keys_by_channel = k[rows].to(accurate).transpose(2, 3).flatten(0, 1)  # [rows x K, E, T]
        for start in range(0, T, QUERIES):
            queries = slice(start, min(start + QUERIES, T))
            keys = slice(lows[start], queries.stop)
            scaled = _grouped(q, rows, queries, K).to(accurate) * E**-0.5
            scores = torch.bmm(scaled, keys_by_channel[:, :, keys])
            # [rows, H, N, keys]
            by_head = scores.view(rows.stop - row, H, -1, queries.stop - keys.start)
            by_head[..., start - keys.start :].masked_fill_(
                place[queries] > place[queries, None], -math.inf
            )
            top = highs[queries.stop - 1] - keys.start
            if top > 0:  # not all see the first of these keys
                # [rows or 1, N, top]
                hidden = place[keys.start : keys.start + top] < firsts[:, queries, None]
                by_head[..., :top].masked_fill_(hidden[:, None], -math.inf)
            yield rows, queries, keys, torch.softmax(scores, -1, out=scores).to(q.dtype)


def _grouped(x: Tensor, rows: slice, queries: slice, num_kv_heads: int) -> Tensor:
    """x [B, H, T, E] of these rows and queries as [rows x K, G x N, E]: heads that share keys lie
    below each other.
    """
    return x[rows, :, queries].reshape(
        -1, x.shape[1] // num_kv_heads * (queries.stop - queries.start), x.shape[-1]
    )


def _flat(x: Tensor, rows: slice, keys: slice) -> Tensor:
    """x [B, K, S, E] of these rows and keys as [rows x K, keys, E]."""
    return x[rows, :, keys].flatten(0, 1)


@blockwise_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


@_backward.register_fake
def _(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )
    return grad_q, k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(grad_output, *ctx.saved_tensors), None


blockwise_attention.register_autograd(_gradients, setup_context=_save)


def prepare(case: AttentionCase, documents: Documents | None) -> Tensor:
    return first_keys(case, documents and documents.starts)


def is_faster(case: AttentionCase) -> bool:
    """Whether whole rows without a window take less time so than by sdpa.

    A step of 15M parameters (64 channels) takes 0.93 of the time at 512 tokens, on one thread 0.87,
    and 1.04 times at 1,024; heads of 32 channels take 1.3 to 1.7 times as long (docs/log.md).
    """
    return case.num_tokens <= 512 and case.head_dim >= 64


def refusal(case: AttentionCase) -> str | None:
    if case.on != "cpu":
        return f"is written for a CPU, not for {case.on}; take auto, varlen or flex"
    return None


def kept_bytes(case: AttentionCase) -> int:
    return 0


BLOCKWISE = Kernel(
    name="blockwise",
    refusal=refusal,
    prepare=prepare,
    attend=attend,
    kept_bytes=kept_bytes,
    keeps_result=False,
)
