"""What rounding to int8 does to activations, and to keys and values, while training: gradients pass
as if nothing were rounded.

Shapes: B batch, T tokens, K kv heads, E head width, I inputs
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """A rounding [...] -> [...] that gradients pass as if it were not there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.dtype = x.dtype
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0].to(ctx.dtype), None


def fake_quantize_tokens(x: Tensor) -> Tensor:
    """Activations [..., I] on an int8 grid chosen for each token, asymmetric, zero kept exact
    (torchao's 8da4w).
    """
    return StraightThrough.apply(x, _rounded_tokens)  # type: ignore[return-value]


def fake_quantize_heads(x: Tensor) -> Tensor:
    """Keys or values [B, T, K, E] on an int8 grid chosen for each token over all its heads (Pro,
    table 3: dynamic, asymmetric), which is that of an int8 cache.

    Where in Pro's network it is rounded is not published: here after RoPE, as a cache stores it.
    """
    return fake_quantize_tokens(x.flatten(-2)).view(x.shape)


def _rounded_tokens(x: Tensor) -> Tensor:
    value = x.float()
    low, high = value.amin(-1, keepdim=True).clamp(max=0), value.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    levels = (value / scale).round_().add_(zero).clamp_(-128, 127)
    return levels.sub_(zero).mul_(scale).to(x.dtype)
