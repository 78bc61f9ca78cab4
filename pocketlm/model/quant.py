"""Four-bit schemes as data, and the one grid that training, checkpoints and every exported file share.

The scale is snapped to bfloat16 while training, so each runtime's own container (GGUF Q4_0 holds float16, XNNPACK bfloat16)
takes the same integers and scales without another rounding. A checkpoint keeps the latent float weights that were trained;
the integers follow from them by `quantize_weight`.

Shapes: O outputs (rows), I inputs, G groups of a row, T tokens
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlm.model.transformer import Embedding, Transformer, product

SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: a smaller scale would not survive in a Q4_0 block


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is quantized how. Weights: symmetric integers along the input; activations: dynamic int8 for each token."""

    name: str
    bits: int
    group_size: int
    embedding: bool
    int8_activations: bool

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1


SCHEMES = {
    # Pro, table 3, CPU: weights and embedding int4 in groups of 32, activations int8, asymmetric, for each token
    "int4_group32": Scheme(name="int4_group32", bits=4, group_size=32, embedding=True, int8_activations=True),
    # the same weights with float activations: what is lost to the weights alone
    "int4_group32_weight_only": Scheme(
        name="int4_group32_weight_only", bits=4, group_size=32, embedding=True, int8_activations=False
    ),
}


def scheme(name: str) -> Scheme:
    """The scheme of that name, or a ValueError that lists the known ones."""
    if name not in SCHEMES:
        raise ValueError(f"unknown quantization scheme {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def group_scales(weight: Tensor, scheme: Scheme) -> Tensor:
    """Scales [O, G], bfloat16 values, the smallest that clip nothing: max(-min/8, max/7), never below float16's range."""
    if weight.shape[-1] % scheme.group_size:
        raise ValueError(f"rows of {weight.shape[-1]} weights do not split into groups of {scheme.group_size}")
    groups = weight.detach().float().unflatten(-1, (-1, scheme.group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = torch.maximum(low / scheme.lowest, high / scheme.highest)
    return scale.clamp(min=SMALLEST_SCALE).to(torch.bfloat16)


def quantize_weight(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """(qweight int8 [O, I] within the scheme's levels, scale bfloat16 [O, G]) of a weight [O, I]."""
    scale = group_scales(weight, scheme)
    groups = weight.detach().float().unflatten(-1, (-1, scheme.group_size))
    levels = (groups / scale.float()[..., None]).round().clamp(scheme.lowest, scheme.highest)
    return levels.to(torch.int8).flatten(-2), scale


def dequantize_weight(qweight: Tensor, scale: Tensor) -> Tensor:
    """Float32 weight [O, I] from integers [O, I] and scales [O, G]."""
    groups = qweight.float().unflatten(-1, (scale.shape[-1], -1))
    return (groups * scale.float()[..., None]).flatten(-2)


def fake_quantize_weight(weight: Tensor, scheme: Scheme) -> Tensor:
    """The weight on its grid, float32 [O, I]; gradients pass straight through."""
    return weight + (dequantize_weight(*quantize_weight(weight, scheme)) - weight).detach()


def fake_quantize_tokens(x: Tensor) -> Tensor:
    """Activations [..., I] on an int8 grid chosen for each token, asymmetric, zero kept exact (torchao's 8da4w)."""
    value = x.detach().float()
    low, high = value.amin(-1, keepdim=True).clamp(max=0), value.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    levels = ((value / scale).round() + zero).clamp(-128, 127)
    return x + ((levels - zero) * scale - value).to(x.dtype)


class FakeQuantLinear(nn.Linear):
    """A linear layer that computes as its four-bit self; its stored weight stays the latent one."""

    scheme: Scheme
    _grid: tuple[tuple[int, int], Tensor] | None = None

    def grid_weight(self) -> Tensor:
        return _grid_weight(self)

    def forward(self, input: Tensor) -> Tensor:
        x = fake_quantize_tokens(input) if self.scheme.int8_activations else input
        return product(x, self.grid_weight())


class FakeQuantEmbedding(Embedding):
    """The token table, and the tied head, as their four-bit selves."""

    scheme: Scheme
    _grid: tuple[tuple[int, int], Tensor] | None = None

    def grid_weight(self) -> Tensor:
        return _grid_weight(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.grid_weight())

    def head(self, hidden: Tensor) -> Tensor:
        x = fake_quantize_tokens(hidden) if self.scheme.int8_activations else hidden
        return product(x, self.grid_weight())


def _grid_weight(layer: FakeQuantLinear | FakeQuantEmbedding) -> Tensor:
    """The layer's weight on its grid; without gradients it is worked out once for each version of the weight.

    A pass with gradients forgets the grid: torch's fused AdamW changes a weight and leaves its version as it was.
    """
    if torch.is_grad_enabled():
        layer._grid = None
        return fake_quantize_weight(layer.weight, layer.scheme)
    version = (layer.weight.data_ptr(), layer.weight._version)
    if layer._grid is None or layer._grid[0] != version:
        layer._grid = (version, fake_quantize_weight(layer.weight, layer.scheme))
    return layer._grid[1]


def prepare(model: Transformer, scheme: Scheme) -> Transformer:
    """The same model, computing in `scheme` from now on. Parameters, their names and the state dict stay as they are."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, Embedding) and scheme.embedding)
    }
    for name, module in layers.items():  # before any of them is changed
        if module.weight.shape[1] % scheme.group_size:
            raise ValueError(
                f"{name}.weight has rows of {module.weight.shape[1]}, not a multiple of {scheme.group_size}"
            )
    for module in layers.values():
        if isinstance(module, nn.Linear):
            module.__class__ = FakeQuantLinear
        else:
            module.__class__ = FakeQuantEmbedding
        module.scheme = scheme  # type: ignore[assignment]
    return model
