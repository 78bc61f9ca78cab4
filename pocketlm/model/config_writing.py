"""What a config.json says beside the fields that all layouts share: a function a layout; a network
that the layout cannot hold is a ValueError.
"""

from dataclasses import asdict, replace
from typing import Any

from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig

Raw = dict[str, Any]  # config.json


def cannot(layout: str, *, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the layout {layout} cannot hold this network: {what}")


def write_llama(config: ModelConfig) -> Raw:
    cannot("llama", holds=not config.use_qk_norm, what="it has QK-norm")
    cannot("llama", holds=LOCAL not in config.layer_types, what="it has local layers")
    cannot("llama", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {"model_type": "llama"}


def write_mobilellm(config: ModelConfig) -> Raw:
    write_llama(replace(config, layer_repeats=1))
    cannot(
        "mobilellm",
        holds=config.layer_repeats <= 2,
        what=f"it applies blocks {config.layer_repeats} times, not 2",
    )
    return {
        "model_type": "mobilellm",
        "share_embedding": config.tie_word_embeddings,
        "layer_sharing": config.layer_repeats == 2,
    }


def write_qwen2(config: ModelConfig) -> Raw:
    cannot("qwen2", holds=config.qkv_bias, what="its queries, keys and values have no biases")
    return {"model_type": "qwen2", **_qwen_windows(config)}


def write_smollm3(config: ModelConfig) -> Raw:
    cannot("smollm3", holds=not config.use_qk_norm, what="it has QK-norm")
    cannot("smollm3", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "smollm3",
        "no_rope_layers": list(config.no_rope_layers) or [1] * config.num_hidden_layers,
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        "sliding_window": config.sliding_window,
        "use_sliding_window": bool(config.sliding_window),
        "pad_token_id": None,  # its class's own, 128,004, is beyond smaller vocabularies
    }


def write_gemma3(config: ModelConfig) -> Raw:
    cannot("gemma3_text", holds=config.gemma_blocks, what="its blocks are not Gemma's")
    scaling = config.rope_scaling
    scaled = {"rope_type": "llama3", **asdict(scaling)} if scaling else {"rope_type": "default"}
    local = config.rope_local_base_freq or config.rope_theta
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.head_dim,
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        # transformers refuses null, even where every layer is global
        "sliding_window": config.sliding_window or config.max_position_embeddings,
        "rope_parameters": {
            GLOBAL: {**scaled, "rope_theta": config.rope_theta},
            LOCAL: {"rope_type": "default", "rope_theta": local},
        },
        "rope_local_base_freq": local,  # the name before transformers 5
        "pad_token_id": None,
    }


def write_qwen3(config: ModelConfig) -> Raw:
    cannot("qwen3", holds=config.use_qk_norm, what="it has no QK-norm")
    cannot("qwen3", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {"model_type": "qwen3", **_qwen_windows(config)}


def _qwen_windows(config: ModelConfig) -> Raw:
    return {
        "layer_types": list(config.layer_types) or [GLOBAL] * config.num_hidden_layers,
        "sliding_window": config.sliding_window,
        "use_sliding_window": bool(config.sliding_window),
        "max_window_layers": config.num_hidden_layers,
    }


def write_cwm(config: ModelConfig) -> Raw:
    cannot("cwm", holds=not config.use_qk_norm, what="it has QK-norm")
    cannot("cwm", holds=LOCAL in config.layer_types, what="it has no local layers")
    cannot("cwm", holds=config.layer_repeats == 1, what="it applies blocks more than once")
    return {
        "model_type": "cwm",
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
    }


def write_llama4_text(config: ModelConfig) -> Raw:
    cannot("llama4_text", holds=not config.qk_norm_weight, what="its QK-norm has weights")
    cannot("llama4_text", holds=LOCAL not in config.layer_types, what="it has local layers")
    cannot("llama4_text", holds=config.layer_repeats == 1, what="it applies blocks more than once")
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


def write_pro(config: ModelConfig) -> Raw:
    """The fields that `read_pro` asks for. Meta's own class, code on the hub, has not been tried on
    them.
    """
    cannot("mobilellm-pro", holds=not config.qk_norm_weight, what="its QK-norm has weights")
    cannot("mobilellm-pro", holds=LOCAL in config.layer_types, what="it has no local layers")
    cannot(
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
