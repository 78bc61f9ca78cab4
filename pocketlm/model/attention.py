"""What attention means: which keys the queries of a forward pass may see. How it is computed is the
business of kernels/.

Shapes: B batch, T tokens, S keys, H query heads, K kv heads, E head width
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pocketlm.model.kernels.choose import choose_kernel
from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel
from pocketlm.model.kernels.sdpa import MAX_MASKED_TOKENS, masked_attention, unmasked_attention
from pocketlm.model.kernels.varlen import cu_seqlens


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


class Heads(Protocol):
    """What a network's shape says of its attention."""

    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class AttentionContext:
    """Who sees whom in one forward pass, shared by all its layers: causal, in windows, in packed
    documents, on a cache.

    Whole rows without a cache go to the kernel that is chosen for each window. Queries on a cache
    (generation), the last token alone, and rows whose documents are no runs of tokens go through
    torch's own attention, under a mask from positions where one is needed.
    """

    def __init__(
        self,
        case: AttentionCase,
        positions: Tensor,
        cache: Cache | None,
        doc_ids: Tensor | None,
        plain: bool,
        windows: Iterable[int | None],
        kernel: str = "auto",
        sees: Tensor | None = None,
        documents: Documents | None = None,
    ) -> None:
        """case: of this pass, before windows and documents. plain: positions are 0..T-1 in one
        document. windows: those of the layers. kernel: as choose_kernel takes it. sees: bool
        [T, T], which tokens of this pass each of them may see at most. documents: of doc_ids, where
        they are known; else they are looked for, for which a GPU is waited for.
        """
        self.positions, self.cache, self.doc_ids, self.plain = positions, cache, doc_ids, plain
        self.sees = sees
        self.masks: dict[tuple[int | None, int], Tensor | None] = {}
        self.prepared: dict[int | None, tuple[Kernel, Any]] = {}
        if cache is not None:
            cache.begin(positions)
            return
        if documents is None and not plain:
            documents = find_documents(positions, doc_ids)
        if documents is None and not plain:
            _refuse_mask(case, kernel)
            return
        for window in windows:
            own_case = replace(case, window=window, packed=not plain)
            chosen = choose_kernel(kernel, own_case).kernel
            self.prepared[window] = (chosen, chosen.prepare(own_case, documents))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, window: int | None) -> Tensor:
        """Attention output [B, H, T, E] of q [B, H, T, E], all tokens or the last one, on k, v
        [B, K, T, E] and what a cache holds.
        """
        if self.cache is not None:
            k, v = self.cache.update(layer, k, v)
        T, S = q.shape[2], k.shape[2]
        if T == S and window in self.prepared:
            kernel, prepared = self.prepared[window]
            return kernel.attend(q, k, v, prepared)
        if self.plain:
            return unmasked_attention(q, k, v, window)
        mask = self.mask(layer, window, S)
        return masked_attention(q, k, v, None if mask is None else mask[:, :, -T:])

    def mask(self, layer: int, window: int | None, num_keys: int) -> Tensor | None:
        """True where a query may attend: [B, 1, T, S], from positions alone, so it holds in
        training and decoding.

        None where one token of each row may see all keys: attention without a mask takes less time.
        """
        if (window, num_keys) not in self.masks:
            keys = self.positions if self.cache is None else self.cache.key_positions(layer)
            gap = self.positions[:, :, None] - keys[:, None, :]  # [B, T, S]
            allowed = (gap >= 0) & (keys >= 0)[:, None, :]
            if window is not None:
                allowed &= gap < window
            if self.doc_ids is not None:
                allowed &= self.doc_ids[:, :, None] == self.doc_ids[:, None, :]
            if self.sees is not None:
                allowed[:, :, num_keys - len(self.sees) :] &= self.sees
            # padding sees anything: a row with no key at all would be NaN
            allowed |= (self.positions < 0)[:, :, None]
            unmasked = allowed.shape[1] == 1 and bool(allowed.all())
            self.masks[window, num_keys] = None if unmasked else allowed[:, None]
        return self.masks[window, num_keys]


def attention_case(
    config: Heads, rows: int, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> AttentionCase:
    """What a kernel for this network's global layers is chosen by."""
    return AttentionCase(
        device=device,
        dtype=dtype,
        rows=rows,
        num_tokens=num_tokens,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )


def _refuse_mask(case: AttentionCase, kernel: str) -> None:
    """Nothing where rows that are no runs of documents may have their mask of all pairs."""
    what = "rows with padding, or whose documents are no runs of tokens with rising positions"
    if kernel not in ("auto", "sdpa"):
        raise ValueError(f"attention={kernel} cannot serve {what}; take auto")
    if case.on == "cuda" and case.num_tokens > MAX_MASKED_TOKENS:
        raise ValueError(
            f"{what} need a mask of all pairs, which {case.num_tokens:,} tokens exceed on a GPU "
            f"(at most {MAX_MASKED_TOKENS:,}); lower seq_len"
        )


def find_documents(positions: Tensor, doc_ids: Tensor | None) -> Documents | None:
    """Where the documents of rows lie, where every document is one run of tokens; else None."""
    starts = document_starts(positions, doc_ids)
    return None if starts is None else Documents(starts, cu_seqlens(starts))


def document_starts(positions: Tensor, doc_ids: Tensor | None) -> Tensor | None:
    """[B, T]: the index at which each token's document begins, where every document is one run of
    tokens; else None.
    """
    if doc_ids is None or doc_ids.device.type not in ("cpu", "cuda"):
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
