"""LoRA (Hu et al. 2021, arXiv 2106.09685): small factors trained beside frozen weights, and merged
into them at the end.

Shapes: B rows, T tokens, I inputs, O outputs, R rank
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketlm.model.kernels.linear import linear
from pocketlm.model.layers import Linear
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.transformer import Transformer

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """rank: of the factors. alpha: a change counts alpha / rank. projections: the layers that get
    factors; all of them by default, which Schulman et al. 2025 ("LoRA without regret") find to be
    what makes it learn as full training does.
    """

    rank: int = 16
    alpha: float = 32.0
    projections: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"LoRA: rank {self.rank} and alpha {self.alpha} must be above 0")
        unknown = [name for name in self.projections if name not in PROJECTIONS]
        if unknown or not self.projections:
            raise ValueError(
                f"LoRA: projections {', '.join(unknown) or '(none)'}; known: "
                f"{', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRALinear(Linear):
    """A linear layer whose weight is frozen, with factors A [R, I] and B [O, R] beside it."""

    def __init__(self, layer: Linear, how: LoRA, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = how.scale
        self.lora_A = nn.Parameter(torch.empty(how.rank, layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, how.rank))
        # as peft begins: uniform within 1 / sqrt(I), and B at zero, so that nothing changes yet
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(self.lora_A, -bound, bound, generator=generator)

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        low = linear(input, self.lora_A, dtype)
        return super().forward(input, dtype) + self.scale * linear(low, self.lora_B, dtype)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The layer as one matrix: W + scale * B A, summed in float64."""
        layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        change = self.lora_B.double() @ self.lora_A.double()
        layer.weight = nn.Parameter((self.weight.double() + self.scale * change).float())
        layer.bias = self.bias
        return layer


def add_lora(model: Transformer, how: LoRA, *, seed: int) -> Transformer:
    """The model with its weights frozen and factors beside the chosen layers, in place. ValueError:
    a layer that is in four bits.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.model.layers:
        for part in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, layer in list(part.named_children()):
                if name not in how.projections:
                    continue
                if type(layer) is not Linear:
                    raise ValueError(
                        f"LoRA: {name} is no plain linear layer ({type(layer).__name__}); train a "
                        "model that is not in four bits yet"
                    )
                setattr(part, name, LoRALinear(layer, how, generator))
    return model


def merge_lora(model: Transformer) -> Transformer:
    """The model with its factors merged into its weights, in place."""
    for block in model.model.layers:
        for part in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, layer in list(part.named_children()):
                if isinstance(layer, LoRALinear):
                    setattr(part, name, layer.merged())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def num_lora_parameters(config: ModelConfig, how: LoRA) -> int:
    """Weights of all factors, each block's once."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    sizes = {
        "q_proj": hidden + q,
        "k_proj": hidden + kv,
        "v_proj": hidden + kv,
        "o_proj": q + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    return config.num_hidden_layers * how.rank * sum(sizes[name] for name in how.projections)
