"""The layouts that checkpoints of this network lie in on disk: which config.json, which tensor names, which row order.

    llama         Llama, SmolLM2, Llama 3.2, MobileLLM 2024's own code       no QK-norm, every layer global
    qwen3         Qwen3; ours for MobileLLM-R1 and for QK-norm with windows   QK-norm (weightless: weights of one)
    cwm           ours for windows without QK-norm                           Meta's dense local-global class
    llama4_text   MobileLLM-R1 and R1.5 as Meta publishes them               weightless QK-norm, interleaved RoPE
    mobilellm     MobileLLM 2024 as published on the hub, LS with sharing    as llama
    mobilellm-pro MobileLLM-Pro as Meta publishes it, from its fields alone  windows, interleaved RoPE

Stock transformers opens all but the last two, which need code from the hub. Whatever the layout, the network and its
names are those of `model/transformer.py`; here is all that knows about others.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pocketlm.model.transformer import GLOBAL, LOCAL, ModelConfig, RopeScaling

Raw = dict[str, Any]  # config.json
PRO_ARCHITECTURE = "MobileLLMP1ForCausalLM"
CHUNKED = "chunked_attention"  # Llama 4's local layers


@dataclass(frozen=True, kw_only=True)
class Layout:
    """read: the ModelConfig of a config.json. write: what that config.json says beside the common fields.
    interleaved: RoPE turns channels 2i and 2i + 1 of a head, where ours turns i and i + E/2.
    mlp: the feed-forward's name in tensors.
    """

    name: str
    architecture: str
    read: Callable[[Raw, Path], ModelConfig]
    write: Callable[[ModelConfig], Raw]
    interleaved: bool = False
    mlp: str = "mlp"

    def name_in(self, name: str) -> str:
        """Our name of one of its tensors."""
        return name.replace(f".{self.mlp}.", ".mlp.")

    def name_out(self, name: str) -> str:
        """Its name of one of our tensors."""
        return name.replace(".mlp.", f".{self.mlp}.")

    def rows_in(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Its tensor with rows in our order."""
        return half_split(tensor, config.head_dim) if self.interleaved and _is_turned(name) else tensor

    def rows_out(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Our tensor with rows in its order."""
        return interleaved(tensor, config.head_dim) if self.interleaved and _is_turned(name) else tensor


def _is_turned(name: str) -> bool:
    return re.search(r"self_attn\.[qk]_proj\.(weight|weight_fake_quantizer\.scale)$", name) is not None


def half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows [heads * E, ...] for a RoPE that turns channels i and i + E/2, from those for one that turns 2i and 2i + 1.

    Whole rows move, so groups of quantized weights, which run along a row, stay together.
    """
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of `half_split`."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def layout_of(raw: Raw, file: Path) -> Layout:
    """The layout of a config.json; ValueError for one that is not read here."""
    if PRO_ARCHITECTURE in (raw.get("architectures") or ()):
        return LAYOUTS["mobilellm-pro"]
    found = LAYOUTS.get(str(raw.get("model_type")))
    if found is None:
        raise ValueError(f"{file}: model_type {raw.get('model_type')!r} is not read here; known: {', '.join(LAYOUTS)}")
    return found


def native_layout(config: ModelConfig) -> Layout:
    """The layout our own folders have: the one that stock transformers computes exactly, where there is one."""
    if config.layer_repeats > 1:
        return LAYOUTS["mobilellm"]
    if config.use_qk_norm:
        return LAYOUTS["qwen3"]
    return LAYOUTS["cwm" if LOCAL in config.layer_types else "llama"]


# ---- reading ----


def _read_llama(raw: Raw, file: Path) -> ModelConfig:
    _refuse_window(raw, file)
    return _shape(raw, file, use_qk_norm=False)


def _read_mobilellm(raw: Raw, file: Path) -> ModelConfig:
    config = _read_llama(raw, file)
    tied = config.tie_word_embeddings or raw.get("share_embedding", False)
    return replace(config, tie_word_embeddings=tied, layer_repeats=2 if raw.get("layer_sharing", False) else 1)


def _read_qwen3(raw: Raw, file: Path) -> ModelConfig:
    own = raw.get("pocketlm", {})
    layer_types = raw.get("layer_types")
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    if layer_types is None and window is not None:
        first = raw.get("max_window_layers", 28)
        layer_types = [LOCAL if i >= first else GLOBAL for i in range(raw.get("num_hidden_layers", 0))]
    return _shape(
        {"head_dim": 128, **raw},
        file,
        use_qk_norm=True,
        qk_norm_weight=own.get("qk_norm_weight", True),
        layer_types=layer_types,
        sliding_window=window,
    )


def _read_cwm(raw: Raw, file: Path) -> ModelConfig:
    for field in ("layer_types", "rope_parameters"):  # its own defaults are those of a 32B model
        if not raw.get(field):
            raise ValueError(f"{file}: field {field} is missing")
    return _shape(
        raw, file, use_qk_norm=False, layer_types=raw["layer_types"], sliding_window=raw.get("sliding_window", 8192)
    )


def _read_llama4_text(raw: Raw, file: Path) -> ModelConfig:
    """Every layer dense, global and with RoPE, as MobileLLM-R1; Llama 4's own mixtures and NoPE layers are refused.

    `intermediate_size` is the experts' width; a dense layer has `intermediate_size_mlp`.
    """
    _refuse_experts(raw, file)
    _refuse_nope(raw, file, default_is_rope=False)
    positions, chunk = raw.get("max_position_embeddings", 0), raw.get("attention_chunk_size", 8192)
    kinds = raw.get("layer_types") or [CHUNKED]
    if CHUNKED in kinds and chunk is not None and chunk < positions:
        raise ValueError(
            f"{file}: attention_chunk_size {chunk} is below max_position_embeddings {positions}; chunked attention is "
            "not in this network (set max_position_embeddings to the chunk to use the model that far)"
        )
    return _shape(
        _dense_width(raw, file),
        file,
        use_qk_norm=raw.get("use_qk_norm", True),
        layer_types=[GLOBAL if kind == CHUNKED else kind for kind in kinds] if raw.get("layer_types") else None,
        theta=500_000.0,
    )


def _read_pro(raw: Raw, file: Path) -> ModelConfig:
    """MobileLLM-Pro: Llama 4's fields, with windows. Nothing that changes the numbers is guessed: it must be there."""
    _refuse_experts(raw, file, dense=True)
    _refuse_nope(raw, file, default_is_rope=True)
    for field in ("layer_types", "sliding_window", "use_qk_norm"):
        if raw.get(field) is None:
            raise ValueError(
                f"{file}: field {field} is missing, and the report does not tell it; add it to config.json"
            )
    if not (raw.get("rope_theta") or _rope(raw).get("rope_theta")):
        raise ValueError(f"{file}: field rope_theta is missing, and the report does not tell it; add it to config.json")
    return _shape(
        _dense_width(raw, file),
        file,
        use_qk_norm=raw["use_qk_norm"],
        layer_types=raw["layer_types"],
        sliding_window=raw["sliding_window"],
    )


def _dense_width(raw: Raw, file: Path) -> Raw:
    if "intermediate_size_mlp" not in raw:
        raise ValueError(f"{file}: field intermediate_size_mlp is missing")
    return {**raw, "intermediate_size": raw["intermediate_size_mlp"]}


def _refuse_experts(raw: Raw, file: Path, dense: bool = False) -> None:
    layers, experts = raw.get("moe_layers"), raw.get("num_local_experts")
    if not (layers == [] or experts == 0 or (dense and not layers and not experts)):
        raise ValueError(
            f"{file}: a mixture of experts (moe_layers {layers}, num_local_experts {experts}); only dense models are read"
        )


def _refuse_nope(raw: Raw, file: Path, default_is_rope: bool) -> None:
    turned = (raw.get("no_rope_layers") or [])[: raw.get("num_hidden_layers", 0)]
    if (not turned and not default_is_rope) or not all(turned):
        raise ValueError(
            f"{file}: no_rope_layers leaves layers without RoPE (0 means none); this network has RoPE in all"
        )


def _refuse_window(raw: Raw, file: Path) -> None:
    if LOCAL in (raw.get("layer_types") or ()) or raw.get("use_sliding_window", False):
        raise ValueError(f"{file}: model_type {raw['model_type']} has no local layers, but config.json asks for some")


def _rope(raw: Raw) -> Raw:
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_scaling(raw: Raw, file: Path) -> RopeScaling | None:
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind != "llama3":
        raise ValueError(f"{file}: rope type {kind!r} cannot be honoured here; known: default, llama3")
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(
                rope.get("original_max_position_embeddings") or raw["max_position_embeddings"]
            ),
        )
    except KeyError as error:
        raise ValueError(f"{file}: rope type llama3 lacks {error.args[0]}") from None


def _shape(
    raw: Raw,
    file: Path,
    *,
    use_qk_norm: bool,
    qk_norm_weight: bool = False,
    layer_types: list[str] | None = None,
    sliding_window: int | None = None,
    theta: float = 10_000.0,
) -> ModelConfig:
    """The fields all layouts share. `theta`: what the layout's class takes where config.json names none."""
    rope = _rope(raw)
    refused = {
        "attention_bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "partial_rotary_factor": rope.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantization_config": raw.get("quantization_config") is not None,
    }
    if any(refused.values()):
        fields = ", ".join(name for name, is_set in refused.items() if is_set)
        raise ValueError(f"{file}: this network cannot honour {fields} as set there")
    windowed = LOCAL in (layer_types or ())
    try:
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=raw["num_attention_heads"],
            num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            max_position_embeddings=raw["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or theta),
            rms_norm_eps=raw["rms_norm_eps"],
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            use_qk_norm=use_qk_norm,
            qk_norm_weight=qk_norm_weight,
            layer_types=tuple(layer_types or ()) if windowed else (),
            sliding_window=sliding_window if windowed else None,
            initializer_range=raw.get("initializer_range", 0.02),
            rope_scaling=_rope_scaling(raw, file),
        )
    except KeyError as error:
        raise ValueError(f"{file}: field {error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


# ---- writing ----


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
    _cannot("mobilellm", holds=config.layer_repeats <= 2, what=f"it applies blocks {config.layer_repeats} times, not 2")
    return {
        "model_type": "mobilellm",
        "share_embedding": config.tie_word_embeddings,
        "layer_sharing": config.layer_repeats == 2,
    }


def _write_qwen3(config: ModelConfig) -> Raw:
    _cannot("qwen3", holds=config.use_qk_norm, what="it has no QK-norm")
    _cannot("qwen3", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "qwen3",
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        "sliding_window": config.sliding_window,
        "use_sliding_window": bool(config.sliding_window),
        "max_window_layers": config.num_hidden_layers,
    }


def _write_cwm(config: ModelConfig) -> Raw:
    _cannot("cwm", holds=not config.use_qk_norm, what="it has QK-norm")
    _cannot("cwm", holds=LOCAL in config.layer_types, what="it has no local layers")
    _cannot("cwm", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {"model_type": "cwm", "layer_types": list(config.layer_types), "sliding_window": config.sliding_window}


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
        "attention_chunk_size": config.max_position_embeddings,  # transformers refuses null, even where nothing is chunked
        "attn_temperature_tuning": False,
        "moe_layers": [],
        "num_local_experts": 0,
    }


def _write_pro(config: ModelConfig) -> Raw:
    """The fields that `_read_pro` asks for. Meta's own class, code on the hub, has not been tried on them."""
    _cannot("mobilellm-pro", holds=not config.qk_norm_weight, what="its QK-norm has weights")
    _cannot("mobilellm-pro", holds=LOCAL in config.layer_types, what="it has no local layers")
    _cannot("mobilellm-pro", holds=config.layer_repeats == 1, what="it applies blocks more than once")
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
        Layout(name="llama", architecture="LlamaForCausalLM", read=_read_llama, write=_write_llama),
        Layout(name="qwen3", architecture="Qwen3ForCausalLM", read=_read_qwen3, write=_write_qwen3),
        Layout(name="cwm", architecture="CwmForCausalLM", read=_read_cwm, write=_write_cwm),
        Layout(
            name="llama4_text",
            architecture="Llama4ForCausalLM",
            read=_read_llama4_text,
            write=_write_llama4_text,
            interleaved=True,
            mlp="feed_forward",
        ),
        Layout(name="mobilellm", architecture="MobileLLMForCausalLM", read=_read_mobilellm, write=_write_mobilellm),
        Layout(
            name="mobilellm-pro",
            architecture=PRO_ARCHITECTURE,
            read=_read_pro,
            write=_write_pro,
            interleaved=True,
            mlp="feed_forward",
        ),
    )
}
