"""The network that a config.json in Llama 4's fields describes: MobileLLM-R1's and Pro's."""

from pocketlm.model.config_fields import DEFAULTS, check_fields
from pocketlm.model.config_reading import network_shape, num_layers
from pocketlm.model.json_shape import WHOLE, JsonObject, described
from pocketlm.model.model_config import GLOBAL, ModelConfig
from pocketlm.model.rope_fields import rope_fields

CHUNKED = "chunked_attention"  # Llama 4's local layers


def read_llama4_text(raw: JsonObject) -> ModelConfig:
    """Every layer dense, global and with RoPE, as MobileLLM-R1; Llama 4's own mixtures and NoPE
    layers are refused.

    `intermediate_size` is the experts' width; a dense layer has `intermediate_size_mlp`.
    """
    check_fields(raw, "llama4_text")
    if raw.get("moe_layers") != []:
        _refuse_experts(raw)
    _refuse_nope(raw)
    chunk, positions = (
        raw.get("attention_chunk_size", 8192),
        raw.typed("max_position_embeddings", WHOLE),
    )
    kinds = raw.get("layer_types")
    if kinds is None:
        if len(raw["no_rope_layers"]) != num_layers(raw):
            raise raw.wrong(
                "no_rope_layers",
                f"names {len(raw['no_rope_layers'])} layers, not num_hidden_layers",
            )
        kinds = [GLOBAL if chunk is None else CHUNKED] * num_layers(raw)
    if CHUNKED in kinds and (chunk is None or chunk < positions):
        raise ValueError(
            f"{raw.file}: attention_chunk_size {described(chunk)} is below max_position_embeddings "
            f"{positions}; "
            "chunked attention is not in this network (set max_position_embeddings to the chunk to "
            "use the model that far)"
        )
    return network_shape(
        _dense_width(raw),
        DEFAULTS["llama4_text"],
        use_qk_norm=raw.get("use_qk_norm", True),
        layer_types=[GLOBAL if kind == CHUNKED else kind for kind in kinds],
    )


def read_pro(raw: JsonObject) -> ModelConfig:
    """MobileLLM-Pro: Llama 4's fields, with windows. Nothing that changes the numbers is guessed:
    it must be there.
    """
    check_fields(raw, "mobilellm-pro")
    if raw.get("moe_layers") or raw.get("num_local_experts"):
        _refuse_experts(raw)
    if raw.get("no_rope_layers"):
        _refuse_nope(raw)
    for field in (
        "layer_types",
        "sliding_window",
        "use_qk_norm",
        "head_dim",
        "num_key_value_heads",
    ):
        if raw.get(field) is None:
            raise ValueError(
                f"{raw.file}: field {field} is missing, and the MobileLLM-Pro report does "
                "not state it; add it to config.json"
            )
    if not (raw.get("rope_theta") or rope_fields(raw).get("rope_theta")):
        raise ValueError(
            f"{raw.file}: field rope_theta is missing, and the MobileLLM-Pro report does not "
            "state it; add it to config.json"
        )
    return network_shape(
        _dense_width(raw),
        DEFAULTS["mobilellm-pro"],
        use_qk_norm=raw["use_qk_norm"],
        layer_types=raw["layer_types"],
        sliding_window=raw["sliding_window"],
    )


def _dense_width(raw: JsonObject) -> JsonObject:
    return JsonObject({**raw, "intermediate_size": raw["intermediate_size_mlp"]}, raw.file)


def _refuse_experts(raw: JsonObject) -> None:
    raise ValueError(
        f"{raw.file}: a mixture of experts (moe_layers {described(raw.get('moe_layers'))}, "
        "num_local_experts "
        f"{raw.get('num_local_experts')}); only dense models are read, and they say moe_layers []"
    )


def _refuse_nope(raw: JsonObject) -> None:
    turned = raw.get("no_rope_layers") or []
    used = turned[: num_layers(raw)]
    if len(used) < num_layers(raw) or any(layer != 1 for layer in used):
        raise ValueError(
            f"{raw.file}: no_rope_layers leaves layers without RoPE (0 means none), which are read "
            "of smollm3 alone: Llama 4's have attention of another kind"
        )
    if raw.get("no_rope_layer_interval", 4) == 0:  # transformers divides by it, wanted or not
        raise raw.wrong("no_rope_layer_interval", "is 0; transformers does not open such a file")
