"""The KV cache inside an ExecuTorch program: float32 or int8, in a ring for local layers.

Shapes: T tokens of this call, H query heads, K kv heads, E head width, R slots of a local layer's
        ring
"""

from typing import Any

import torch
from torch import Tensor, nn

Ring = tuple[Tensor, Tensor]  # (slots [1, T] the new keys go to, mask [T, R])


class FloatCache(nn.Module):
    """A layer's keys and values: of all positions if global, a ring of the newest if local.

    forward(q [1, T, H, E], k and v [1, T, K, E], ...) stores k and v, and is what the queries find
    [1, T, H, E].
    """

    keys: Tensor
    values: Tensor

    def __init__(self, slots: int, kv_heads: int, head_dim: int, *, local: bool) -> None:
        super().__init__()
        self.local = local
        self.register_buffer("keys", self.room(slots, kv_heads, head_dim))
        self.register_buffer("values", self.room(slots, kv_heads, head_dim))

    def room(self, slots: int, kv_heads: int, head_dim: int) -> Tensor:
        return torch.zeros(1, slots, kv_heads, head_dim)

    def store(self, new: Tensor, buffer: Tensor, start: Any, ring: Ring | None) -> None:
        if self.local and ring is not None:
            torch.ops.llama.update_cache_with_indices(new, buffer, start, ring[0])
        else:
            torch.ops.llama.update_cache(new, buffer, start)

    def seen(self, start: Any, ring: Ring | None) -> tuple[Any, Tensor | None, float, bool]:
        """Arguments of the attention operator, for the slots that a query sees: the ring's mask, or
        all positions up to its own.
        """
        return (
            (0, ring[1], 0.0, False)
            if self.local and ring is not None
            else (start, None, 0.0, True)
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Any, ring: Ring | None) -> Tensor:
        self.store(k, self.keys, start, ring)
        self.store(v, self.values, start, ring)
        return torch.ops.llama.custom_sdpa(q, self.keys, self.values, *self.seen(start, ring))


class Int8Cache(FloatCache):
    """The same in int8, with one asymmetric range for each token AND head: so ExecuTorch's operator
    reads them.

    `Int8Slots` of inference/kv_cache.py has one range for all heads of a token: this one is never
    coarser. The operator multiplies integers, so queries are rounded in the same way. It is for
    phones: ExecuTorch 1.5 has vector code for it on 64-bit ARM only. Decoding took 3 times and
    prefill 8 times as long as with floats on an x86 core, in a network of little but attention.
    """

    key_scale: Tensor
    key_zero: Tensor
    value_scale: Tensor
    value_zero: Tensor

    def __init__(self, slots: int, kv_heads: int, head_dim: int, *, local: bool) -> None:
        super().__init__(slots, kv_heads, head_dim, local=local)
        for name in ("key", "value"):
            self.register_buffer(f"{name}_scale", torch.zeros(1, slots, kv_heads, 1))
            self.register_buffer(
                f"{name}_zero", torch.zeros(1, slots, kv_heads, 1, dtype=torch.int8)
            )

    def room(self, slots: int, kv_heads: int, head_dim: int) -> Tensor:
        return torch.zeros(1, slots, kv_heads, head_dim, dtype=torch.int8)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Any, ring: Ring | None) -> Tensor:
        keys = (self.keys, self.key_zero, self.key_scale)
        values = (self.values, self.value_zero, self.value_scale)
        for new, buffers in ((k, keys), (v, values)):
            for part, buffer in zip(int8_tokens(new), buffers, strict=True):
                self.store(part, buffer, start, ring)
        levels, *query_range = int8_tokens(q)
        return torch.ops.llama.custom_quantized_sdpa(
            levels,
            self.keys,
            self.values,
            *self.seen(start, ring),
            None,
            *query_range,
            *keys[1:],
            *values[1:],
        )


def int8_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 levels, int8 zero point, float32 scale), one range for each token and head, of queries,
    keys or values.
    """
    ops = torch.ops.quantized_decomposed
    scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
    return (
        ops.quantize_per_token(x, scale, zero, -128, 127, torch.int8),
        zero.to(torch.int8),
        scale.float(),
    )
