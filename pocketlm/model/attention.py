"""Who looks at whom, and the attention that follows: causal, in windows, in packed documents, on a
cache.

In training on the processor windows and packed documents go piece by piece, over the keys that a
piece's queries may see, so that neither needs a mask of T x T, and short rows do because it is
faster; the rest goes through torch's own attention.

Shapes: B batch, T tokens, S keys, H query heads, K kv heads, G heads that share a kv head, E head
width, N queries of a piece
"""

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 128  # queries at a time: 64 and 256 took 1 to 15 % longer at 512 to 2,048 tokens
SCORES = 2**20  # of a piece, in how many rows go together: larger ones leave the processor's cache


class Cache(Protocol):
    """What attention needs of a KV cache: hand in the new keys and values of a layer, get back all
    it may look at.

    `layer` counts applications of blocks: a block applied twice has two.
    """

    @property
    def empty(self) -> bool: ...
    def begin(self, positions: Tensor) -> None: ...
    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...
    def key_positions(self, layer: int) -> Tensor: ...


class AttentionContext:
    """Who may look at whom, worked out once a forward pass and shared by all layers of the same
    window.
    """

    def __init__(
        self,
        positions: Tensor,
        cache: Cache | None,
        doc_ids: Tensor | None,
        plain: bool,
        windows: Iterable[int | None],
    ) -> None:
        """plain: positions are 0..T-1 in one document. windows: those that layers will ask for."""
        self.positions, self.cache, self.doc_ids, self.plain = positions, cache, doc_ids, plain
        if cache is not None:
            cache.begin(positions)
        self.masks: dict[tuple[int | None, int], Tensor | None] = {}
        begins = None
        if cache is None and positions.is_cpu:
            begins = (
                torch.zeros_like(positions[:1]) if plain else document_begins(positions, doc_ids)
            )
        # [B or 1, T] for each window: the first key that a query sees; the last is its own
        self.first = (
            {} if begins is None else {window: first_keys(begins, window) for window in windows}
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, window: int | None) -> Tensor:
        """Attention output [B, H, T, E] of q [B, H, T, E], all tokens or the last one, on k, v [B,
        K, S, E].
        """
        if self.cache is not None:
            k, v = self.cache.update(layer, k, v)
        T, S = q.shape[2], k.shape[2]
        if T == S and self.first and goes_in_pieces(window, T, q.shape[3], self.plain):
            return attention_in_pieces(q, k, v, self.first[window])
        grouped = q.shape[1] != k.shape[1]
        if not self.plain:
            mask = self.allowed(layer, window, S)
            mask = None if mask is None else mask[:, :, -T:]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        if window is not None and window < S:
            return sliding_attention(q, k, v, window)
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=grouped)

    def allowed(self, layer: int, window: int | None, num_keys: int) -> Tensor | None:
        """True where a query may attend: [B, 1, T, S], from positions alone, so it holds in
        training and decoding.

        None where one token of each row may look at all keys: attention without a mask takes less
        time.
        """
        if (window, num_keys) not in self.masks:
            keys = self.positions if self.cache is None else self.cache.key_positions(layer)
            gap = self.positions[:, :, None] - keys[:, None, :]  # [B, T, S]
            allowed = (gap >= 0) & (keys >= 0)[:, None, :]
            if window is not None:
                allowed &= gap < window
            if self.doc_ids is not None:
                allowed &= self.doc_ids[:, :, None] == self.doc_ids[:, None, :]
            # padding looks anywhere: a row with no key at all would be NaN
            allowed |= (self.positions < 0)[:, :, None]
            unmasked = allowed.shape[1] == 1 and bool(allowed.all())
            self.masks[window, num_keys] = None if unmasked else allowed[:, None]
        return self.masks[window, num_keys]


def goes_in_pieces(window: int | None, num_tokens: int, head_dim: int, plain: bool) -> bool:
    """Whether attention of whole rows on the processor does, rather than through torch's own.

    Plain rows go the faster way. A step of 15M parameters (64 channels) takes 0.93 of the time in
    pieces at 512 tokens, on one thread 0.87, and 1.04 times at 1,024; heads of 32 channels take 1.3
    to 1.7 times as long (docs/log.md).
    """
    return (
        not plain
        or (window is not None and window < num_tokens)
        or (num_tokens <= 512 and head_dim >= 64)
    )


def document_begins(positions: Tensor, doc_ids: Tensor | None) -> Tensor | None:
    """[B, T]: the index at which each token's document begins, where every document is one run of
    tokens; else None.
    """
    if doc_ids is None:
        return None
    place = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand(doc_ids.shape)
    new = doc_ids[:, 1:] != doc_ids[:, :-1]
    begins = torch.zeros_like(place)
    begins[:, 1:] = torch.where(new, place[:, 1:], 0).cummax(1).values
    of_begin = positions.gather(1, begins)
    ordered = doc_ids.sort(1).values
    # no document comes again
    whole = torch.equal(new.sum(1), (ordered[:, 1:] != ordered[:, :-1]).sum(1))
    rising = bool((positions - of_begin == place - begins).all()) and bool((of_begin >= 0).all())
    return begins if whole and rising else None


def first_keys(begins: Tensor, window: int | None) -> Tensor:
    if window is None:
        return begins
    return torch.maximum(begins, torch.arange(begins.shape[1], device=begins.device) - (window - 1))


@torch.library.custom_op("pocketlm::attention_in_pieces", mutates_args=())
def attention_in_pieces(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
    """Attention [B, H, T, E] in which query t sees the keys first[b, t]..t; first [B or 1, T] must
    never fall along T.

    Scores are float32, as in torch's own kernel, which takes 1.3 times as long for forward and
    back; the other products are in the dtype of q. An operator of its own, so that torch.compile
    takes it as it is.
    """
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    for rows, queries, keys, p in _pieces(q, k, first):
        out[rows, :, queries] = torch.bmm(p, _flat(v, rows, keys)).view(out[rows, :, queries].shape)
    return out


@torch.library.custom_op("pocketlm::attention_in_pieces_backward", mutates_args=())
def _backward(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; probabilities are worked out once more."""
    of_q = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )
    exact = torch.promote_types(q.dtype, torch.float32)
    of_k, of_v = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    for rows, queries, keys, p in _pieces(q, k, first):
        above = _grouped(upstream, rows, queries, k.shape[1])
        of_p = torch.bmm(above, _flat(v, rows, keys).transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_p, p, -1, p.dtype)
        of_q[rows, :, queries] = (
            torch.bmm(of_scores, _flat(k, rows, keys))
            .mul_(scale)
            .view(of_q[rows, :, queries].shape)
        )
        asking = _grouped(q, rows, queries, k.shape[1])
        for gradient, part in (
            (of_k, torch.bmm(of_scores.transpose(1, 2), asking)),
            (of_v, torch.bmm(p.transpose(1, 2), above)),
        ):
            gradient[rows, :, keys] += part.view(gradient[rows, :, keys].shape)
    return of_q, of_k.mul_(scale).to(k.dtype), of_v.to(v.dtype)


def _pieces(q: Tensor, k: Tensor, first: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """(rows, queries, keys, probabilities [rows x K, G x N, keys] in q's dtype) of each piece."""
    (B, H, T, E), K = q.shape, k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    together = max(1, SCORES // (H * min(PIECE, T) * T))
    place = torch.arange(T, device=q.device)
    for row in range(0, B, together):
        rows = slice(row, min(row + together, B))
        seen = first[rows] if len(first) > 1 else first
        lows, highs = seen.amin(0).tolist(), seen.amax(0).tolist()
        wide = k[rows].to(exact).transpose(2, 3).flatten(0, 1)  # [rows x K, E, T]
        for start in range(0, T, PIECE):
            queries = slice(start, min(start + PIECE, T))
            keys = slice(lows[start], queries.stop)
            asking = _grouped(q, rows, queries, K).to(exact) * E**-0.5
            scores = torch.bmm(asking, wide[:, :, keys])
            # [rows, H, N, keys]
            each = scores.view(rows.stop - row, H, -1, queries.stop - keys.start)
            each[..., start - keys.start :].masked_fill_(
                place[queries] > place[queries, None], -math.inf
            )
            top = highs[queries.stop - 1] - keys.start
            if top > 0:  # not all see the first of these keys
                # [rows or 1, N, top]
                hidden = place[keys.start : keys.start + top] < seen[:, queries, None]
                each[..., :top].masked_fill_(hidden[:, None], -math.inf)
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


@attention_in_pieces.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


@_backward.register_fake
def _(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_q = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )
    return of_q, k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(upstream, *ctx.saved_tensors), None


attention_in_pieces.register_autograd(_gradients, setup_context=_save)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int, piece: int = 128) -> Tensor:
    """Attention [B, H, T, E] of the last T of S tokens, each on `window` keys: `piece` queries at a
    time on what they see.

    How prompts are read into a cache, and windows in training on a GPU.
    """
    ahead, before = k.shape[2] - q.shape[2], window - 1
    gap = (
        torch.arange(piece, device=q.device)[:, None]
        + before
        - torch.arange(before + piece, device=q.device)
    )
    mask = torch.zeros(gap.shape, dtype=q.dtype, device=q.device).masked_fill(
        (gap < 0) | (gap > before), -math.inf
    )
    out = []
    for some in q.split(piece, 2):
        count, seen = some.shape[2], min(ahead, before)  # keys before the first of these queries
        keys, band = (
            slice(ahead - seen, ahead + count),
            mask[:count, before - seen : before + count],
        )
        grouped = q.shape[1] != k.shape[1]
        out.append(
            F.scaled_dot_product_attention(
                some, k[:, :, keys], v[:, :, keys], attn_mask=band, enable_gqa=grouped
            )
        )
        ahead += count
    return torch.cat(out, 2)
