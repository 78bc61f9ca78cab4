"""Four-bit schemes as data, and the one grid that training, checkpoints and every exported file
share.

The scale is rounded to bfloat16 while training, so each runtime's own container (GGUF Q4_0 holds
float16, XNNPACK bfloat16) takes the same integers and scales without another rounding. A checkpoint
keeps the latent float weights that were trained, and the scales where they were learned; the
integers follow from them by `quantize_weight`.

Shapes: O outputs (rows), I inputs, G groups of a row, T tokens
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlm.model.int8_rounding import StraightThrough, fake_quantize_heads, fake_quantize_tokens
from pocketlm.model.layers import Embedding, Linear
from pocketlm.model.transformer import Attention, Transformer

# float16's smallest normal number: a smaller scale would not survive in a Q4_0 block
SMALLEST_SCALE = 2.0**-14
# weights put on the grid at a time: what is worked on stays in the processor's cache; a GPU wants
# few kernels (our choice, not tuned)
CACHED = {"cpu": 2**18, "cuda": 2**26}
# of a layer with a learned range, float32 [O, G]: torchao's name and shape
SCALE = "weight_fake_quantizer.scale"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is quantized how. Weights: symmetric integers along the input; activations: dynamic int8
    for each token.

    group_size: neighbours that share a scale; None for a whole row, which is an output channel.
    int8_cache: keys and values are on the grid of inference's int8 cache (inference/kv_cache.py).
    learned_ranges: scales are parameters, trained by their gradients; else they follow from the
    weights at each step.
    """

    name: str
    bits: int
    group_size: int | None
    embedding: bool
    int8_activations: bool
    int8_cache: bool = False
    learned_ranges: bool = False

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1


CPU = Scheme(name="int4_group32", bits=4, group_size=32, embedding=True, int8_activations=True)
ACCELERATOR = Scheme(
    name="int4_channel",
    bits=4,
    group_size=None,
    embedding=True,
    int8_activations=False,
    learned_ranges=True,
)
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        # Pro, table 3, CPU: weights and embedding int4 in groups of 32, activations int8 by token
        CPU,
        # and the cache of keys and values int8 by token: all that the table says of the CPU
        replace(CPU, name="int4_group32_int8_cache", int8_cache=True),
        # the same weights with float activations: what is lost to the weights alone
        replace(CPU, name="int4_group32_weight_only", int8_activations=False),
        # Pro, table 3, accelerator: int4 for each output channel, ranges learned, activations kept.
        # Its table and head are stored apart; if trained so is not found: one of both here if tied
        ACCELERATOR,
        # the range of the weights at each step, which Pro's table 15 compares with the learned one
        replace(ACCELERATOR, name="int4_channel_minmax", learned_ranges=False),
        # both at three bits, for comparisons: no container of export holds them
        replace(ACCELERATOR, name="int3_channel", bits=3),
        replace(ACCELERATOR, name="int3_channel_minmax", bits=3, learned_ranges=False),
    )
}


def scheme(name: str) -> Scheme:
    """The scheme of that name, or a ValueError that lists the known ones."""
    if name not in SCHEMES:
        raise ValueError(f"unknown quantization scheme {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def round_scale_to_bfloat16(scale: Tensor) -> Tensor:
    """The bfloat16 scale that the grid has: the nearest, and never below float16's normal range."""
    return scale.detach().float().clamp(min=SMALLEST_SCALE).to(torch.bfloat16)


def group_scales(weight: Tensor, scheme: Scheme) -> Tensor:
    """Scales [O, G], bfloat16 values, the smallest that clip nothing: max(-min/8, max/7), never
    below float16's range.
    """
    group = scheme.group_size or weight.shape[-1]
    if weight.shape[-1] % group:
        raise ValueError(f"rows of {weight.shape[-1]} weights do not split into groups of {group}")
    groups = weight.detach().float().unflatten(-1, (-1, group))
    low, high = groups.amin(-1), groups.amax(-1)
    return round_scale_to_bfloat16(torch.maximum(low / scheme.lowest, high / scheme.highest))


def quantize_weight(
    weight: Tensor, scheme: Scheme, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(qweight int8 [O, I] within the scheme's levels, scale bfloat16 [O, G]) of a weight [O, I].

    scale: the learned one, [O, G]; None takes the range of the weights.
    """
    rounded = group_scales(weight, scheme) if scale is None else round_scale_to_bfloat16(scale)
    levels = _ratio(weight.detach(), rounded, learned=scale is not None).round_()
    return levels.clamp_(scheme.lowest, scheme.highest).to(torch.int8).flatten(-2), rounded


def _ratio(weight: Tensor, rounded: Tensor, *, learned: bool) -> Tensor:
    """Weight / scale [O, G, I / G]; where the scale is learned, by its reciprocal as in torchao:
    ties of bfloat16 fall alike.
    """
    groups = weight.float().unflatten(-1, (rounded.shape[-1], -1))
    scale = rounded.float()[..., None]
    return groups * (1.0 / scale) if learned else groups / scale


def dequantize_weight(qweight: Tensor, scale: Tensor) -> Tensor:
    """Float32 weight [O, I] from integers [O, I] and scales [O, G]."""
    groups = qweight.float().unflatten(-1, (scale.shape[-1], -1))
    return (groups * scale.float()[..., None]).flatten(-2)


def fake_quantize_weight(
    weight: Tensor, scheme: Scheme, scale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weight on its grid, [O, I] in `dtype`; gradients pass straight through, or as
    _LearnedRange says with a scale.

    Float32 holds the grid's values exactly. Bfloat16, for products of training that run in it,
    rounds them.
    """
    if scale is not None:
        return _LearnedRange.apply(weight, scale, scheme, dtype)  # type: ignore[return-value]
    return StraightThrough.apply(weight, lambda w: _on_grid(w, scheme, None, dtype))  # type: ignore[return-value]


def _on_grid(weight: Tensor, scheme: Scheme, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What quantize and dequantize give, a few rows at a time and in place; adding 0 makes -0 the 0
    that an integer is.
    """
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows, out_rows, *scales in _row_chunks(weight, out, *([] if scale is None else [scale])):
        rounded = round_scale_to_bfloat16(scales[0]) if scales else group_scales(rows, scheme)
        levels = _ratio(rows, rounded, learned=bool(scales)).round_()
        levels.clamp_(scheme.lowest, scheme.highest).add_(0.0)
        out_rows.copy_(levels.mul_(rounded.float()[..., None]).flatten(-2))
    return out


def _row_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, as many at a time as stay in the processor's cache."""
    size = max(1, CACHED.get(tensors[0].device.type, CACHED["cpu"]) // tensors[0].shape[-1])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


class _LearnedRange(torch.autograd.Function):
    """A weight on the grid of a learned scale, with LSQ's gradients, which are those of torchao's
    range learning.

    Within the levels a weight's gradient passes and the scale's is level - weight / scale; beyond
    them a weight has none, and the scale's is the end level. Snapping passes all of it. LSQ's
    factor 1 / sqrt(I x 7) is left out, as torchao leaves it out: AdamW divides by the gradient's
    size.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, scheme: Scheme, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, round_scale_to_bfloat16(scale).float())
        ctx.scheme = scheme
        return _on_grid(weight, scheme, scale, dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        grad_weight, grad_scale = torch.empty_like(weight), torch.empty_like(scale)
        for rows, row_scales, grad_out, to_weight, to_scale in _row_chunks(
            weight, scale, upstream[0], grad_weight, grad_scale
        ):
            ratio = _ratio(rows, row_scales, learned=True)
            gradient = grad_out.float().view(ratio.shape)
            level = ratio.round()
            clamped = level.clamp(ctx.scheme.lowest, ctx.scheme.highest)
            within = level == clamped
            torch.mul(gradient, within, out=to_weight.view(ratio.shape))
            to_scale.copy_(clamped.sub_(ratio.mul_(within)).mul_(gradient).sum(-1))
        return grad_weight, grad_scale, None, None


class LearnedRange(nn.Module):
    """The learned scales of a layer; at first the range of its weights (our choice)."""

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.scale = nn.Parameter(group_scales(weight, scheme).float())


class FakeQuantized(nn.Module):
    """What a prepared layer has beside its latent weight: the four-bit one."""

    weight: Tensor
    scheme: Scheme
    weight_fake_quantizer: LearnedRange  # only where the scheme learns ranges
    _grid: tuple[Any, Tensor] | None = None

    def take(self, weight: Tensor, scheme: Scheme) -> None:
        """Make the very weight of a plain layer this layer's own."""
        self.weight, self.scheme = weight, scheme
        if scheme.learned_ranges:
            self.weight_fake_quantizer = LearnedRange(weight, scheme)

    def learned_scale(self) -> Tensor | None:
        return self.weight_fake_quantizer.scale if self.scheme.learned_ranges else None

    def integers(self) -> tuple[Tensor, Tensor]:
        """(qweight int8 [O, I], scale bfloat16 [O, G]): what every container holds."""
        return quantize_weight(self.weight, self.scheme, self.learned_scale())

    def grid_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight on its grid, in the dtype of the products or float32; without gradients once
        for each version of weight and scale.

        A pass with gradients forgets the grid: torch's fused AdamW changes a weight and leaves its
        version as it was.
        """
        scale, dtype = self.learned_scale(), dtype or torch.float32
        if torch.is_grad_enabled():
            self._grid = None
            return fake_quantize_weight(self.weight, self.scheme, scale, dtype)
        version = [
            dtype,
            *((x.data_ptr(), x._version) for x in (self.weight, scale) if x is not None),
        ]
        if self._grid is None or self._grid[0] != version:
            self._grid = (version, fake_quantize_weight(self.weight, self.scheme, scale, dtype))
        return self._grid[1]

    def operands(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(x [..., I], rounded if the scheme says so, grid [O, I]) whose product the layer is."""
        x = fake_quantize_tokens(x) if self.scheme.int8_activations else x
        return x, self.grid_weight(dtype)


class FakeQuantLinear(FakeQuantized, Linear):
    """A linear layer that computes with its four-bit weight and stores the latent one."""

    def __init__(self, layer: Linear, scheme: Scheme) -> None:
        # on the meta device, so that no weight is drawn only to be replaced
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.take(layer.weight, scheme)
        self.bias = layer.bias  # stays as it is


class FakeQuantEmbedding(FakeQuantized, Embedding):
    """The token table, and the tied head, in four bits: one weight, and so one range."""

    def __init__(self, layer: Embedding, scheme: Scheme) -> None:
        super().__init__(layer.num_embeddings, layer.embedding_dim, device="meta")
        self.take(layer.weight, scheme)

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """In training only the rows looked up are put on the grid: the table may have a hundred
        times as many.
        """
        if not torch.is_grad_enabled():
            return F.embedding(input, self.grid_weight(dtype)).to(self.weight.dtype)
        self._grid = None  # as in grid_weight
        learned = self.learned_scale()
        ids = input.flatten()
        scale = None if learned is None else F.embedding(ids, learned)
        rows = F.embedding(ids, self.weight)
        rows = fake_quantize_weight(rows, self.scheme, scale, dtype or torch.float32)
        return rows.view(*input.shape, -1).to(self.weight.dtype)


def prepare(model: Transformer, scheme: Scheme) -> Transformer:
    """The same model, computing in `scheme` from now on: its layers are replaced by others that
    hold the same weights. Names and the state dict stay as they are.

    Learned ranges come in as parameters of their own, named as torchao names them:
    <layer>.weight_fake_quantizer.scale.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) or (isinstance(module, Embedding) and scheme.embedding)
    }
    for name, module in layers.items():  # before any of them is changed
        if module.weight.shape[1] % (scheme.group_size or 1):
            raise ValueError(
                f"{name}.weight has rows of {module.weight.shape[1]}, not a multiple of "
                f"{scheme.group_size}"
            )
    for name, layer in layers.items():
        if isinstance(layer, Linear):
            prepared = FakeQuantLinear(layer, scheme)
        else:
            prepared = FakeQuantEmbedding(layer, scheme)
        model.set_submodule(name, prepared.train(layer.training))
    for module in model.modules() if scheme.int8_cache else ():
        if isinstance(module, Attention):
            module.as_cached = fake_quantize_heads
    return model


def scheme_of(model: Transformer) -> Scheme | None:
    """The scheme a model computes in, or None for full precision."""
    layers = (module for module in model.modules() if isinstance(module, FakeQuantized))
    return next((layer.scheme for layer in layers), None)
