"""The layouts that checkpoints of this network lie in on disk: which config.json, which tensor
names, which row order.

    llama         Llama, SmolLM2, Llama 3.2, MobileLLM 2024's own code       no QK-norm, every layer
    global
    qwen2         Qwen2 and 2.5                                               biases on q, k and v
    smollm3       SmolLM3                                                    layers without RoPE
    qwen3         Qwen3; ours for MobileLLM-R1 and for QK-norm with windows   QK-norm (weightless:
    weights of one)
    cwm           ours for windows without QK-norm                           Meta's dense
    local-global class
    llama4_text   MobileLLM-R1 and R1.5 as Meta publishes them               weightless QK-norm,
    interleaved RoPE
    mobilellm     MobileLLM 2024 as published on the hub, LS with sharing    as llama
    mobilellm-pro MobileLLM-Pro as Meta publishes it, from its fields alone  windows, interleaved
    RoPE

Stock transformers opens all but the last two, which need code from the hub. Whatever the layout,
the network and its names are those of `model/transformer.py`; here is all that knows about others.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pocketlm.model.config_reading import (
    read_cwm,
    read_llama,
    read_llama4_text,
    read_mobilellm,
    read_pro,
    read_qwen2,
    read_qwen3,
    read_smollm3,
)
from pocketlm.model.json_shape import OR_NULL, TEXTS, JsonObject, described
from pocketlm.model.transformer import GLOBAL, LOCAL, ModelConfig

Raw = dict[str, Any]  # config.json
PRO_ARCHITECTURE = "MobileLLMP1ForCausalLM"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """read: the ModelConfig of a config.json. write: what that config.json says beside the common
    fields. biases, nope: whether it holds those of q, k and v, and layers without RoPE.
    interleaved: RoPE turns channels 2i and 2i + 1 of a head, where ours turns i and i +
    E/2. mlp: the feed-forward's name in tensors.
    """

    name: str
    architecture: str
    read: Callable[[JsonObject], ModelConfig]
    write: Callable[[ModelConfig], Raw]
    biases: bool = False
    nope: bool = False
    interleaved: bool = False
    mlp: str = "mlp"

    def config_fields(self, config: ModelConfig) -> Raw:
        """What its config.json says beside the common fields; ValueError where it cannot hold this
        network.
        """
        biases = "its queries, keys and values have biases"
        _cannot(self.name, holds=self.biases or not config.qkv_bias, what=biases)
        rope = "it has layers without RoPE"
        _cannot(self.name, holds=self.nope or not config.no_rope_layers, what=rope)
        return self.write(config)

    def name_in(self, name: str) -> str:
        """Our name of one of its tensors."""
        return name.replace(f".{self.mlp}.", ".mlp.")

    def name_out(self, name: str) -> str:
        """Its name of one of our tensors."""
        return name.replace(".mlp.", f".{self.mlp}.")

    def rows_in(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Its tensor with rows in our order."""
        return (
            half_split(tensor, config.head_dim) if self.interleaved and _is_turned(name) else tensor
        )

    def rows_out(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Our tensor with rows in its order."""
        return (
            interleaved(tensor, config.head_dim)
            if self.interleaved and _is_turned(name)
            else tensor
        )


def _is_turned(name: str) -> bool:
    return (
        re.search(r"self_attn\.[qk]_proj\.(weight|weight_fake_quantizer\.scale)$", name) is not None
    )


def half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows [heads * E, ...] for a RoPE that turns channels i and i + E/2, from those for one that
    turns 2i and 2i + 1.

    Whole rows move, so groups of quantized weights, which run along a row, stay together.
    """
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of `half_split`."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def layout_of(raw: JsonObject) -> Layout:
    """The layout of a config.json; ValueError for one that is not read here."""
    if PRO_ARCHITECTURE in (raw.typed("architectures", TEXTS + OR_NULL, None) or ()):
        return LAYOUTS["mobilellm-pro"]
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        model_type = (
            ascii(kind[:40]) if isinstance(kind, str) else kind if kind is None else described(kind)
        )
        nested = (
            "; its text_config is one level down, a model of more than text"
            if raw.get("text_config")
            else ""
        )
        raise ValueError(
            f"{raw.file}: model_type {model_type} is not read here; known: "
            f"{', '.join(LAYOUTS)}{nested}"
        )
    return LAYOUTS[kind]


def native_layout(config: ModelConfig) -> Layout:
    """The layout our own folders have: the one that stock transformers computes exactly, where
    there is one.
    """
    if config.layer_repeats > 1:
        return LAYOUTS["mobilellm"]
    if config.use_qk_norm:
        return LAYOUTS["qwen3"]
    if config.qkv_bias:
        return LAYOUTS["qwen2"]
    if config.no_rope_layers:
        return LAYOUTS["smollm3"]
    return LAYOUTS["cwm" if LOCAL in config.layer_types else "llama"]


def _cannot(layout: str, *, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the layout {layout} cannot hold this network: {what}")


def _write_llama(config: ModelConfig) -> Raw:
    _cannot("llama", holds=not config.use_qk_norm, what="it has QK-norm")
    _cannot("llama", holds=LOCAL not in config.layer_types, what="it has local layers")
    _cannot("llama", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {"model_type": "llama"}


def _write_mobilellm(config: ModelConfig) -> Raw:
    _write_llama(replace(config, layer_repeats=1))
    _cannot(
        "mobilellm",
        holds=config.layer_repeats <= 2,
        what=f"it applies blocks {config.layer_repeats} times, not 2",
    )
    return {
        "model_type": "mobilellm",
        "share_embedding": config.tie_word_embeddings,
        "layer_sharing": config.layer_repeats == 2,
    }


def _write_qwen2(config: ModelConfig) -> Raw:
    _cannot("qwen2", holds=config.qkv_bias, what="its queries, keys and values have no biases")
    return {"model_type": "qwen2", **_qwen_windows(config)}


def _write_smollm3(config: ModelConfig) -> Raw:
    _cannot("smollm3", holds=not config.use_qk_norm, what="it has QK-norm")
    _cannot("smollm3", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "smollm3",
        "no_rope_layers": list(config.no_rope_layers) or [1] * config.num_hidden_layers,
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        "sliding_window": config.sliding_window,
        "use_sliding_window": bool(config.sliding_window),
        "pad_token_id": None,  # its class's own, 128,004, is beyond smaller vocabularies
    }


def _write_qwen3(config: ModelConfig) -> Raw:
    _cannot("qwen3", holds=config.use_qk_norm, what="it has no QK-norm")
    _cannot("qwen3", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {"model_type": "qwen3", **_qwen_windows(config)}


def _qwen_windows(config: ModelConfig) -> Raw:
    return {
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        "sliding_window": config.sliding_window,
        "use_sliding_window": bool(config.sliding_window),
        "max_window_layers": config.num_hidden_layers,
    }


def _write_cwm(config: ModelConfig) -> Raw:
    _cannot("cwm", holds=not config.use_qk_norm, what="it has QK-norm")
    _cannot("cwm", holds=LOCAL in config.layer_types, what="it has no local layers")
    _cannot("cwm", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "cwm",
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
    }


def _write_llama4_text(config: ModelConfig) -> Raw:
    _cannot("llama4_text", holds=not config.qk_norm_weight, what="its QK-norm has weights")
    _cannot("llama4_text", holds=LOCAL not in config.layer_types, what="it has local layers")
    _cannot("llama4_text", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "llama4_text",
        "intermediate_size_mlp": config.intermediate_size,
        "use_qk_norm": config.use_qk_norm,
        "no_rope_layers": [1] * config.num_hidden_layers,  # 1 means: this layer has RoPE
        "layer_types": [GLOBAL] * config.num_hidden_layers,
        # transformers refuses null, even where nothing is chunked
        "attention_chunk_size": config.max_position_embeddings,
        "attn_temperature_tuning": False,
        "moe_layers": [],
        "num_local_experts": 0,
    }


def _write_pro(config: ModelConfig) -> Raw:
    """The fields that `read_pro` asks for. Meta's own class, code on the hub, has not been tried on
    them.
    """
    _cannot("mobilellm-pro", holds=not config.qk_norm_weight, what="its QK-norm has weights")
    _cannot("mobilellm-pro", holds=LOCAL in config.layer_types, what="it has no local layers")
    _cannot(
        "mobilellm-pro", holds=config.layer_repeats == 1, what="it applies blocks more than once"
    )
    return {
        "model_type": "mobilellm_p1_text",
        "intermediate_size_mlp": config.intermediate_size,
        "use_qk_norm": config.use_qk_norm,
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "no_rope_layers": [1] * config.num_hidden_layers,
        "moe_layers": [],
    }


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(name="llama", architecture="LlamaForCausalLM", read=read_llama, write=_write_llama),
        Layout(
            name="qwen2",
            architecture="Qwen2ForCausalLM",
            read=read_qwen2,
            write=_write_qwen2,
            biases=True,
        ),
        Layout(
            name="smollm3",
            architecture="SmolLM3ForCausalLM",
            read=read_smollm3,
            write=_write_smollm3,
            nope=True,
        ),
        Layout(name="qwen3", architecture="Qwen3ForCausalLM", read=read_qwen3, write=_write_qwen3),
        Layout(name="cwm", architecture="CwmForCausalLM", read=read_cwm, write=_write_cwm),
        Layout(
            name="llama4_text",
            architecture="Llama4ForCausalLM",
            read=read_llama4_text,
            write=_write_llama4_text,
            interleaved=True,
            mlp="feed_forward",
        ),
        Layout(
            name="mobilellm",
            architecture="MobileLLMForCausalLM",
            read=read_mobilellm,
            write=_write_mobilellm,
        ),
        Layout(
            name="mobilellm-pro",
            architecture=PRO_ARCHITECTURE,
            read=read_pro,
            write=_write_pro,
            interleaved=True,
            mlp="feed_forward",
        ),
    )
}
