"""Folders for MLX and for vLLM (compressed-tensors): the trained integers and scales in their
layouts, rounded nowhere.

Both open a Hugging Face folder: config.json says how weights are packed, model.safetensors holds
them. The network must be one that they compute as we do, a `llama` or `qwen3` whose layers are all
global: MLX's qwen3 knows no windows, and vLLM's reads them but does not apply them
(vllm-project/vllm#39514).

Shapes: O outputs (rows), I inputs, G groups of a row, B = I / 32 blocks
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketlm.model.checkpoint import WEIGHTS, hugging_face_config, stored_tensors, write_files
from pocketlm.model.files import write_folder
from pocketlm.model.layouts import native_layout
from pocketlm.model.model_config import LOCAL, ModelConfig
from pocketlm.model.quant import (
    SCALE,
    FakeQuantized,
    FakeQuantLinear,
    Scheme,
    dequantize_weight,
    scheme_of,
)
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import read_safetensors

BLOCK = 32  # weights that share a scale in MLX's smallest group
SHIFTS = 4 * np.arange(8, dtype=np.uint32)  # both fill a 32-bit word from its lowest four bits

Tensors = dict[str, Tensor]


def write_repacked(model: Transformer, tokenizer: Tokenizer, path: Path, container: str) -> Path:
    """The path, now a folder of that container, "mlx" or "compressed-tensors", read back and equal
    to the grid to the bit.

    model: prepared for four bits, shared blocks unrolled. Activations are float in both: a finer
    rounding than the int8 that a model may have been trained with. ValueError where the container
    cannot hold the model.
    """
    pack, read, section = CONTAINERS[container]
    check_fits(model, container)
    layout = native_layout(model.config)
    with write_folder(path) as folder:
        config = hugging_face_config(model.config, tokenizer, None, layout)
        grids = dict(grid_layers(model))
        grid_names = {f"{name}.weight" for name in grids}
        tensors = {
            n: t
            for n, t in stored_tensors(model, layout).items()
            if n not in grid_names and not n.endswith(SCALE)
        }
        write_files(
            folder, config | {"dtype": "float16"} | section(model), pack(grids, tensors), tokenizer
        )
        written = read_safetensors(folder / WEIGHTS)
        for name, layer in grids.items():
            with torch.no_grad():
                if not torch.equal(read(written, name), layer.grid_weight()):
                    raise ValueError(
                        f"{container}: {name}.weight is not what was trained; nothing was written"
                    )
    return path


def refuse_unwritable(config: ModelConfig, scheme: Scheme | None, container: str) -> None:
    """Nothing, or a ValueError where no model of this shape and scheme fits the container."""
    if scheme is None:
        raise ValueError(
            f"{container} holds four-bit models; quantize this one first, or export it to hf"
        )
    if scheme.bits != 4:
        raise ValueError(f"{container} holds int4; this model was trained as {scheme.name}")
    if LOCAL in config.layer_types:
        raise ValueError(
            f"{container}: this model has sliding windows, which its runtime would leave out (MLX "
            "has none in qwen3, "
            "vLLM ignores them there); export it to gguf, pte or hf"
        )
    if config.qkv_bias:
        raise ValueError(
            f"{container}: this model has biases on q, k and v, which are not written there; "
            "export it to gguf, pte or hf"
        )
    if config.gemma_blocks:
        raise ValueError(
            f"{container}: this model has Gemma's blocks, which are not written there; export it "
            "to gguf, pte or hf"
        )
    if config.no_rope_layers:
        raise ValueError(
            f"{container}: this model has layers without RoPE, which are not written there; export "
            "it to gguf, pte or hf"
        )
    widths = {
        "q_proj": config.hidden_size,
        "o_proj": config.num_attention_heads * config.head_dim,
        "down_proj": config.intermediate_size,
    }
    for name, width in widths.items():
        _check_width(name, width, container)


def check_fits(model: Transformer, container: str) -> None:
    refuse_unwritable(model.config, scheme_of(model), container)
    for name, layer in grid_layers(model):
        _check_width(name, layer.weight.shape[1], container)


def _check_width(name: str, width: int, container: str) -> None:
    if width % BLOCK:
        raise ValueError(
            f"{container}: {name}.weight has rows of {width}, not a multiple of {BLOCK}"
        )


def grid_layers(model: Transformer) -> Iterator[tuple[str, FakeQuantized]]:
    return (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, FakeQuantized)
    )


def pack_nibbles(qweight: Tensor) -> np.ndarray:
    """uint32 [O, I / 8] of integers [O, I] in -8..7, each plus 8, the first of a word lowest."""
    levels = (
        (qweight.numpy().astype(np.int16) + 8).astype(np.uint32).reshape(qweight.shape[0], -1, 8)
    )
    return np.bitwise_or.reduce(levels << SHIFTS, axis=-1)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Levels 0..15, int64 [O, I], of words [O, I / 8]."""
    return ((packed.long()[..., None] >> torch.from_numpy(SHIFTS.astype(np.int64))) & 15).flatten(
        -2
    )


def exactly_float16(tensor: Tensor, name: str) -> Tensor:
    """The same values in float16: integers times bfloat16 scales have 11 bits. A ValueError where
    they do not fit.
    """
    half = tensor.to(torch.float16)
    if not torch.equal(half.float(), tensor.float()):
        raise ValueError(
            f"{name} holds values up to {float(tensor.abs().max()):g}, which float16 cannot hold "
            "exactly"
        )
    return half


# ---- MLX: weight = scale * level + bias, level 0..15, bias = -8 * scale; the table and the head
# too ----


def pack_mlx(grids: dict[str, FakeQuantized], tensors: Tensors) -> Tensors:
    """Scales and biases in float16, exact; norms are rounded to it: one float32 tensor makes MLX
    compute all in float32.
    """
    packed = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    for name, layer in grids.items():
        qweight, scale = layer.integers()
        # [O, B]
        blocks = scale.float().repeat_interleave(qweight.shape[1] // BLOCK // scale.shape[1], 1)
        packed[f"{name}.weight"] = torch.from_numpy(pack_nibbles(qweight))
        packed[f"{name}.scales"] = exactly_float16(blocks, f"{name}.scales")
        packed[f"{name}.biases"] = exactly_float16(-8 * blocks, f"{name}.biases")
    return packed


def read_mlx(tensors: Tensors, name: str) -> Tensor:
    """Float32 [O, I], as MLX's formula has it."""
    scale, bias = (
        tensors[f"{name}.{kind}"].float().repeat_interleave(BLOCK, 1)
        for kind in ("scales", "biases")
    )
    return unpack_nibbles(tensors[f"{name}.weight"]).float() * scale + bias


def mlx_section(model: Transformer) -> dict[str, Any]:
    how = {"group_size": BLOCK, "bits": 4}
    return {"quantization": how, "quantization_config": how}  # mlx-lm writes both


# ---- compressed-tensors, "pack-quantized": weight = scale * (level - 8); linear layers of the
# blocks only ----


def pack_compressed(grids: dict[str, FakeQuantized], tensors: Tensors) -> Tensors:
    """The table and the head stay values in float16, which holds the grid exactly: vLLM packs no
    embedding.
    """
    packed = dict(tensors)
    for name, layer in grids.items():
        if in_blocks(name, layer):
            qweight, scale = layer.integers()
            packed[f"{name}.weight_packed"] = torch.from_numpy(pack_nibbles(qweight).view(np.int32))
            packed[f"{name}.weight_scale"] = exactly_float16(scale, f"{name}.weight_scale")
            packed[f"{name}.weight_shape"] = torch.tensor(qweight.shape)
        else:
            packed[f"{name}.weight"] = exactly_float16(
                dequantize_weight(*layer.integers()), f"{name}.weight"
            )
    return packed


def in_blocks(name: str, layer: FakeQuantized) -> bool:
    return isinstance(layer, FakeQuantLinear) and name != "lm_head"


def read_compressed(tensors: Tensors, name: str) -> Tensor:
    """Float32 [O, I], as the package's formula has it."""
    if f"{name}.weight" in tensors:
        return tensors[f"{name}.weight"].float()
    levels = unpack_nibbles(tensors[f"{name}.weight_packed"]) - 8
    scale = tensors[f"{name}.weight_scale"].float()
    return levels.float() * scale.repeat_interleave(levels.shape[1] // scale.shape[1], 1)


def compressed_section(model: Transformer) -> dict[str, Any]:
    scheme = scheme_of(model)
    assert scheme is not None
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }
    }


Container = tuple[
    Callable[[dict[str, FakeQuantized], Tensors], Tensors],
    Callable[[Tensors, str], Tensor],
    Callable[[Transformer], dict[str, Any]],
]
CONTAINERS: dict[str, Container] = {
    "mlx": (pack_mlx, read_mlx, mlx_section),
    "compressed-tensors": (pack_compressed, read_compressed, compressed_section),
}
