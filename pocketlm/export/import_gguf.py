"""A .gguf file as a network of ours again: its weights in float32, for training on or for another
format.

Quantized blocks become the values they stand for (the `gguf` package's own arithmetic), so nothing
is lost in coming in; what a Q4_K or Q6_K file lost when it was made stays lost.
"""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from pocketlm.export.gguf import GEMMA_TENSORS, LAYER_TENSORS
from pocketlm.export.gguf_architecture import GEMMA_LOCAL_THETA, TURNED, smollm3_layers
from pocketlm.inference.gguf_file import GgufHeader
from pocketlm.inference.gguf_header import head_width, read_header, row_layout, windows_of
from pocketlm.inference.gguf_tokenizer import tokenizer_of
from pocketlm.model.checkpoint import load_tensors
from pocketlm.model.layouts import half_split
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

ROPE_DIVISORS = "rope_freqs.weight"
OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BIASED = (["attn_q"], ["attn_k"], ["attn_v"])  # in qwen2
BLOCK_TENSORS = {stored: ours for ours, stored in (LAYER_TENSORS | GEMMA_TENSORS).items()} | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def read_gguf(path: Path) -> tuple[Transformer, Tokenizer]:
    """(model in float32, tokenizer) of a .gguf file of one of ARCHITECTURES
    (inference/gguf_header.py).

    FileNotFoundError, or a ValueError that names what is damaged, missing, or not in this network.
    """
    header = read_header(path)
    _refuse(header)
    model = Transformer(config_of(header))
    load_tensors(
        model, {_our_name(header, name): values(header, name) for name in header.tensors}, str(path)
    )
    return model, tokenizer_of(header)


def stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(our name, values) of each tensor of a .gguf file that this network has a place for."""
    header = read_header(path)
    for name in header.tensors:
        if name != ROPE_DIVISORS:
            yield _our_name(header, name), values(header, name)


def values(header: GgufHeader, name: str) -> Tensor:
    """One tensor in float32, rows in our order: the RoPE of `llama` and `smollm3` turns
    neighbouring channels, ours does not.
    """
    tensor = read_tensor(header, name)
    if header["general.architecture"] in TURNED and name.endswith(
        ("attn_q.weight", "attn_k.weight")
    ):
        return half_split(tensor, head_width(header))
    return tensor


def config_of(header: GgufHeader) -> ModelConfig:
    """The shape that a header gives. A head equal to the table counts as tied: `step35` always
    stores both.
    """
    kind = header["general.architecture"]
    windows = windows_of(header)
    local = tuple(GLOBAL if window is None else LOCAL for window in windows)
    qk_norm = "blk.0.attn_q_norm.weight" in header.tensors
    tied = "output.weight" not in header.tensors or (kind == "step35" and _same_bytes(header))
    return ModelConfig(
        vocab_size=header.tensors["token_embd.weight"][0],
        hidden_size=header.integer("{arch}.embedding_length"),
        intermediate_size=header.integer("{arch}.feed_forward_length"),
        num_hidden_layers=len(windows),
        num_attention_heads=header.integer("{arch}.attention.head_count"),
        num_key_value_heads=header.integer("{arch}.attention.head_count_kv"),
        head_dim=head_width(header),
        max_position_embeddings=header.integer("{arch}.context_length"),
        rope_theta=_decimal(header.positive("{arch}.rope.freq_base", 10_000.0)),
        rms_norm_eps=_decimal(header.positive("{arch}.attention.layer_norm_rms_epsilon")),
        tie_word_embeddings=tied,
        use_qk_norm=qk_norm,
        qk_norm_weight=qk_norm,
        layer_types=local if LOCAL in local else (),
        sliding_window=next((window for window in windows if window is not None), None),
        qkv_bias=kind == "qwen2",
        no_rope_layers=smollm3_layers(len(windows)) if kind == "smollm3" else (),
        gemma_blocks=kind == "gemma3",
        rope_local_base_freq=_local_theta(header) if kind == "gemma3" and LOCAL in local else None,
    )


def read_tensor(header: GgufHeader, name: str) -> Tensor:
    """One tensor's values in float32, outputs first."""
    shape, (number, start) = header.tensors[name], header.places[name]
    rows, row_bytes = row_layout(header, name)
    kind = gguf.GGMLQuantizationType(number)
    file = header.file_of(name)
    if start + rows * row_bytes > file.stat().st_size:
        raise ValueError(
            f"{file}: {name} reaches beyond the end of the file; write or fetch the file again"
        )
    content = np.fromfile(file, dtype=np.uint8, count=rows * row_bytes, offset=start).reshape(
        rows, row_bytes
    )
    try:
        values = gguf.quants.dequantize(content, kind)
    except NotImplementedError:
        raise ValueError(
            f"{file}: {name} is {kind.name}, which the gguf package cannot read"
        ) from None
    return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape)


def _local_theta(header: GgufHeader) -> float:
    return _decimal(header.positive("{arch}.rope.freq_base_swa", GEMMA_LOCAL_THETA))


def _decimal(value: float) -> float:
    """The decimal number that was stored as a float32: 1e-05 and not 9.99999974e-06."""
    return float(f"{value:.7g}")


def _refuse(header: GgufHeader) -> None:
    scaling = header.text("{arch}.rope.scaling.type", "none")
    if scaling != "none" or ROPE_DIVISORS in header.tensors:
        raise ValueError(
            f"{header.path}: its RoPE is scaled, and a .gguf does not tell by which rule; import "
            "the model's Hugging Face "
            "folder instead"
        )
    if header.integer("{arch}.expert_count", 0, least=0):
        raise ValueError(f"{header.path}: a mixture of experts; only dense models are read")


def _our_name(header: GgufHeader, name: str) -> str:
    if name in OUTER_TENSORS:
        return OUTER_TENSORS[name]
    parts = name.split(".")
    biased = header["general.architecture"] == "qwen2" and parts[2:3] in BIASED
    kinds = ("weight", "bias") if biased else ("weight",)
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in BLOCK_TENSORS and parts[3] in kinds:
        return f"model.layers.{parts[1]}.{BLOCK_TENSORS[parts[2]]}.{parts[3]}"
    raise ValueError(f"{header.path}: this network has no place for the tensor {name}")


def _same_bytes(header: GgufHeader) -> bool:
    return bool(
        torch.equal(read_tensor(header, "output.weight"), read_tensor(header, "token_embd.weight"))
    )
