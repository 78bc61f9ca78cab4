"""What a network that stock transformers computes holds and costs, from its config.json alone: the
library builds it without memory, on the meta device.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketlm.inference.transformers_runtime import longest_text, quiet
from pocketlm.model.checkpoint import raw_config
from pocketlm.model.costs import StockShape

# one of which names the width in every config.json that gives sizes; without, the library would
# take those of the family's default
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def stock_shape(folder: Path) -> StockShape:
    """The shape of a folder's network. ValueError where transformers knows no such family, or
    config.json names no sizes. Weights are not needed.
    """
    raw = raw_config(Path(folder))
    text = raw.get("text_config") or raw
    if not any(name in text for name in WIDTHS):
        raise ValueError(f"{folder}: config.json names no width ({', '.join(WIDTHS)})")
    return _shape(Path(folder), (Path(folder) / "config.json").read_text())


@functools.lru_cache(maxsize=8)
def _shape(folder: Path, content: str) -> StockShape:
    """content: of config.json, so that another one is read again."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            network: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its parsers meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: transformers cannot open it: {reason}") from None
    head = network.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        kind = type(network).__name__
        raise ValueError(f"{folder}: transformers' {kind} has no output head, so no logits")
    return shape_of_network(network, head)


def shape_of_network(network: Any, head: nn.Module) -> StockShape:
    """Parameters are counted; heads and widths are the config's, which FLOPs and activations are
    estimated by. Feed-forward: as wide as the counted weights that a token reads ask for.
    """
    config = network.config.get_text_config()
    blocks, weight = list(blocks_of(network)), head.weight
    assert isinstance(weight, torch.Tensor)
    V, D = weight.shape
    layers = _whole_number(config, "num_hidden_layers") or max(1, len(blocks))
    heads = _whole_number(config, "num_attention_heads") or 1
    kv_heads = _whole_number(config, "num_key_value_heads") or heads
    head_dim = _whole_number(config, "head_dim") or math.ceil(D / heads)
    head_dim += head_dim % 2  # a network of ours would need pairs
    kv_heads = kv_heads if heads % kv_heads == 0 else heads
    experts = next((n for name in EXPERTS if (n := _whole_number(config, name))), 1)
    chosen = min(experts, _whole_number(config, "num_experts_per_tok") or experts)
    parameters = sum(p.numel() for p in network.parameters())
    in_blocks = [sum(p.numel() for p in block.parameters()) for block in blocks]
    in_experts = sum(
        p.numel() for name, p in network.named_parameters() if ".experts." in name and experts > 1
    )
    read = sum(in_blocks) - in_experts * (experts - chosen) // experts
    attention = 2 * (heads + kv_heads) * head_dim
    table = network.get_input_embeddings().weight
    return StockShape(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=max(1, (read // layers // D - attention) // 3),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest_text(network.config),
        rope_theta=1e4,  # costs nothing
        use_qk_norm=False,
        tie_word_embeddings=weight is table,
        parameters=parameters,
        largest_block=max(in_blocks, default=0),
        outside_blocks=parameters - sum(in_blocks),
        experts=experts,
        local_masks=local_masks(config),
    )


def local_masks(config: Any) -> int:
    """Kinds of layers that do not attend to all tokens before."""
    if kinds := set(getattr(config, "layer_types", None) or ()):
        return sum("sliding" in kind or "chunked" in kind for kind in kinds)
    return int(any(getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")))


def blocks_of(network: Any) -> Iterator[nn.Module]:
    """The layers of a library's network: the modules that it says must not be split."""
    names: set[str] = set(network._no_split_modules or ())
    for module in network.children():
        yield from _blocks_in(module, names)


def _blocks_in(module: nn.Module, names: set[str]) -> Iterator[nn.Module]:
    if type(module).__name__ in names:
        yield module
        return
    for child in module.children():
        yield from _blocks_in(child, names)


def _whole_number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None
