"""A .gguf file of a checkpoint, for llama.cpp and all that is built on it.

Q4_0 blocks are packed straight from the trained integers and scales (`model/quant.py`), so the file
holds the very grid the model was trained on; `llama-quantize` would choose new scales and change
most blocks.

Shapes: O outputs (rows), I inputs, G = I / 32 blocks of a row, E head width
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from pocketlm.export.gguf_architecture import TURNED, architecture, rope_divisors
from pocketlm.export.gguf_vocab import vocabulary_of
from pocketlm.export.gguf_vocab_file import add_vocabulary
from pocketlm.model.model_config import LOCAL, ModelConfig
from pocketlm.model.quant import CPU, FakeQuantized, Scheme, quantize_weight
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

BLOCK = 32  # weights that share one scale, in Q4_0 and in Q8_0
# dtype -> llama.cpp's number for `general.file_type`
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}
LARGEST_FLOAT16 = 65504.0

LAYER_TENSORS = {  # ours -> llama.cpp's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_TENSORS = {"self_attn.out_norm": "post_attention_norm", "mlp.out_norm": "post_ffw_norm"}


def write_gguf(
    model: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    dtype: str,
    *,
    name: str | None = None,
    license: str | None = None,
) -> Path:
    """The path, now a .gguf file that stock llama.cpp loads; a file there is replaced once all is
    written.

    dtype: f32, f16, q8_0 (nearest) or q4_0 (exactly the grid of `quantize_weight`); norms are
    always float32. A model trained in four bits is written as its four-bit self in any dtype; f32,
    f16 hold the grid exactly. name, license: `general.name` and `general.license` (an SPDX name).
    ValueError where the format cannot hold the model, naming the tensor or the field.
    """
    if dtype not in FILE_TYPES:
        raise ValueError(f"unknown GGUF dtype {dtype!r}; known: {', '.join(FILE_TYPES)}")
    path = Path(path)
    entries = list(_entries(model))
    _check_rows(entries, dtype)
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    writer = gguf.GGUFWriter(None, architecture(model.config))
    writer.add_name(name or path.stem)
    if license:
        writer.add_license(license)
    writer.add_file_type(FILE_TYPES[dtype])
    # ggml's; Q4_0 and Q8_0 have looked like this since version 2
    writer.add_quantization_version(2)
    _add_shape(writer, model.config)
    add_vocabulary(writer, tokenizer, vocabulary)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        _write(writer, entries, temporary, dtype)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def refuse_unwritable(
    config: ModelConfig, tokenizer: Tokenizer, scheme: Scheme | None, dtype: str
) -> None:
    """Nothing, or a ValueError where no model of this shape, tokenizer and scheme fits a .gguf of
    this dtype.
    """
    if dtype not in FILE_TYPES:
        raise ValueError(f"unknown GGUF dtype {dtype!r}; known: {', '.join(FILE_TYPES)}")
    architecture(config)
    if config.rope_scaling is not None:
        rope_divisors(config)
    widths = {
        "token_embd.weight": config.hidden_size,
        "blk.0.attn_output.weight": config.num_attention_heads * config.head_dim,
        "blk.0.ffn_down.weight": config.intermediate_size,
    }
    for name, width in widths.items():
        _check_width(name, width, dtype)
    if dtype == "q4_0" and scheme is not None:
        _check_scheme(scheme, scheme.group_size)
    vocabulary_of(tokenizer, config.vocab_size)


def pack_q4_0(qweight: Tensor, scale: Tensor) -> np.ndarray:
    """Q4_0 blocks uint8 [O, G * 18] of integers [O, I] in -8..7 and their scales [O, G]; nothing is
    rounded.

    The value of a weight is scale * integer. A block is a float16 scale and 16 bytes: byte j holds
    weight j below and weight j + 16 above, each plus 8. (ggml, `block_q4_0`.) A scale that float16
    cannot hold exactly is a ValueError.
    """
    scale = scale.float()
    half = scale.to(torch.float16)
    if not torch.equal(half.float(), scale):
        low, high = float(scale.min()), float(scale.max())
        raise ValueError(
            f"scales from {low:g} to {high:g} do not all fit the float16 of Q4_0 exactly"
        )
    rows = qweight.shape[0]
    levels = (
        (qweight.numpy().astype(np.int16) + 8).astype(np.uint8).reshape(rows, -1, 2, BLOCK // 2)
    )
    nibbles = levels[:, :, 0] | (levels[:, :, 1] << 4)  # [O, G, 16]
    scales = half.numpy().astype("<f2")[..., None].view(np.uint8)  # [O, G, 2]
    return np.concatenate([scales, nibbles], axis=-1).reshape(rows, -1)


def rounded_q8_0(weight: Tensor) -> Tensor:
    """The values that Q8_0 blocks would hold of a weight [O, I]."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    )


class _Entry(NamedTuple):
    """One tensor of the file: its name, what it comes from, and the heads whose rows are
    re-ordered, or 0.
    """

    name: str
    source: nn.Module | Tensor
    heads: int = 0

    @property
    def weight(self) -> Tensor:
        tensor = self.source if isinstance(self.source, Tensor) else self.source.weight
        assert isinstance(tensor, Tensor)
        return tensor.detach()


def _entries(model: Transformer) -> Iterator[_Entry]:
    """All tensors of the file, in order; weightless QK-norms as ones."""
    config = model.config
    kind = architecture(config)
    turned = {}
    if kind in TURNED:
        turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    yield _Entry("token_embd.weight", model.model.embed_tokens)
    # a shared block is written once for each application: llama.cpp shares none
    for i in range(config.applications):
        block = model.model.layers[i // config.layer_repeats]
        names = LAYER_TENSORS | (GEMMA_TENSORS if config.gemma_blocks else {})
        for module_name, tensor_name in names.items():
            yield _Entry(
                f"blk.{i}.{tensor_name}.weight",
                block.get_submodule(module_name),
                turned.get(tensor_name, 0),
            )
        for which in ("q", "k", "v"):
            bias = block.get_submodule(f"self_attn.{which}_proj").bias
            if isinstance(bias, Tensor):
                yield _Entry(f"blk.{i}.attn_{which}.bias", bias)
        if config.use_qk_norm:
            for which in ("q", "k"):
                learned = getattr(block.self_attn, f"{which}_norm")
                norm = torch.ones(config.head_dim) if learned is None else learned
                yield _Entry(f"blk.{i}.attn_{which}_norm.weight", norm)
    if config.rope_scaling is not None:
        yield _Entry("rope_freqs.weight", rope_divisors(config))
    yield _Entry("output_norm.weight", model.model.norm)
    if model.lm_head is not None:
        yield _Entry("output.weight", model.lm_head)
    # has no tied head: the table is stored twice; decoding is no slower (measured)
    elif kind == "step35":
        yield _Entry("output.weight", model.model.embed_tokens)


def _check_rows(entries: list[_Entry], dtype: str) -> None:
    for entry in entries:
        if not bool(torch.isfinite(entry.weight).all()):
            raise ValueError(
                f"{entry.name} holds NaN or infinity: training diverged; use an earlier checkpoint"
            )
        if entry.weight.dim() == 2:
            _check_width(entry.name, entry.weight.shape[-1], dtype)


def _check_width(name: str, width: int, dtype: str) -> None:
    if dtype in ("q8_0", "q4_0") and width % BLOCK:
        raise ValueError(
            f"{name} has rows of {width} weights, {dtype} needs a multiple of {BLOCK}; choose f16"
        )


def _check_scheme(scheme: Scheme, group: int | None) -> None:
    """group: weights that share a scale, None for a whole row."""
    if scheme.bits != 4 or (group or BLOCK) % BLOCK:
        raise ValueError(
            f"Q4_0 is int4 in blocks of {BLOCK}; this model was trained as {scheme.name}"
        )


def _encode(entry: _Entry, dtype: str) -> np.ndarray:
    """The bytes of one tensor: float32 or float16 [O, I], or blocks uint8 [O, bytes]."""
    if entry.weight.dim() == 1:
        return entry.weight.float().numpy()
    trained = entry.source if isinstance(entry.source, FakeQuantized) else None
    if dtype == "q4_0":
        scheme, integers = (
            (trained.scheme, trained.integers())
            if trained is not None
            else (CPU, quantize_weight(entry.weight, CPU))
        )
        qweight, scale = (_interleave(x, entry.heads) for x in integers)
        blocks, groups = qweight.shape[1] // BLOCK, scale.shape[1]
        _check_scheme(scheme, qweight.shape[1] // groups)
        try:
            # a wider group's, in each block
            return pack_q4_0(qweight, scale.repeat_interleave(blocks // groups, 1))
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from None
    with torch.no_grad():
        weight = trained.grid_weight() if trained is not None else entry.weight
    values = _interleave(weight.float(), entry.heads).numpy()
    if dtype in ("f16", "q8_0") and np.abs(values).max() > LARGEST_FLOAT16:
        raise ValueError(f"{entry.name} holds {np.abs(values).max():g}, beyond float16; choose f32")
    return gguf.quants.quantize(
        np.ascontiguousarray(values), gguf.GGMLQuantizationType[dtype.upper()]
    )


def _interleave(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k [heads * E, ...] for a RoPE that turns channels 2i, 2i + 1; ours turns i, i +
    E/2.
    """
    if not heads:
        return rows
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write(writer: gguf.GGUFWriter, entries: list[_Entry], file: Path, dtype: str) -> None:
    """Header first, then one tensor after the other, so that no more than one is in memory
    twice.
    """
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for entry in entries:
        tensor_kind = kind if entry.weight.dim() == 2 else gguf.GGMLQuantizationType.F32
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[tensor_kind]
        num_bytes = entry.weight.numel() // per_block * block_bytes
        writer.add_tensor_info(
            entry.name, entry.weight.shape, np.dtype(np.float32), num_bytes, tensor_kind
        )
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(_encode(entry, dtype))
    writer.flush()
    assert writer.fout is not None
    os.fsync(writer.fout[0].fileno())
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    kind = architecture(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.applications)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if kind != "step35":
        writer.add_rope_dimension_count(config.head_dim)
    if kind == "gemma3" and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        local_theta = config.rope_local_base_freq or config.rope_theta
        writer.add_float32("gemma3.rope.freq_base_swa", local_theta)
    if kind != "step35":
        return
    assert config.sliding_window is not None
    # Step 3.5 turns half of these in global layers
    writer.add_rope_dimension_count(2 * config.head_dim)
    writer.add_uint32("step35.rope.dimension_count_swa", config.head_dim)
    writer.add_float32("step35.rope.freq_base_swa", config.rope_theta)
    writer.add_sliding_window(config.sliding_window)
    writer.add_array(
        "step35.attention.sliding_window_pattern",
        [t == LOCAL for t in config.layer_types for _ in range(config.layer_repeats)],
    )
    writer.add_expert_feed_forward_length(0)  # the key must exist; no expert count, no experts
