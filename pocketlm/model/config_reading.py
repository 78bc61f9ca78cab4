"""The network that a config.json describes: each field resolved as transformers resolves it, or
refused by its name.

Where two fields disagree transformers' own order is kept: rope_scaling before rope_parameters, what
stands in them before rope_theta beside them, a field left out is its class's default
(config_fields.py). A test over many changed files compares with transformers' logits.
"""

from dataclasses import replace

from pocketlm.model.config_fields import DEFAULTS, Defaults, check_fields
from pocketlm.model.json_shape import FLAG, NUMBER, OR_NULL, TEXTS, WHOLE, JsonObject, described
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.rope_fields import (
    MOST_POSITIONS,
    gemma_ropes,
    refuse_partial,
    rope_fields,
    scaling_of,
    theta_of,
)

# no model is larger; torch would ask for terabytes
LARGEST_SIZE, MOST_LAYERS = 2**24, 2**12


def read_llama(raw: JsonObject) -> ModelConfig:
    """Llama, SmolLM2: every layer global, no QK-norm."""
    check_fields(raw, "llama")
    _refuse_window(raw)
    _whole_heads(raw)
    return network_shape(raw, DEFAULTS["llama"], use_qk_norm=False)


def read_mobilellm(raw: JsonObject) -> ModelConfig:
    """MobileLLM 2024: Llama's fields, its own name for tied embeddings, and blocks applied
    twice.
    """
    check_fields(raw, "mobilellm")
    _refuse_window(raw)
    config = network_shape(raw, DEFAULTS["mobilellm"], use_qk_norm=False)
    tied = config.tie_word_embeddings or raw.get("share_embedding", False)
    return replace(
        config, tie_word_embeddings=tied, layer_repeats=2 if raw.get("layer_sharing", False) else 1
    )


def read_qwen2(raw: JsonObject) -> ModelConfig:
    """Qwen2 and 2.5: biases on queries, keys and values, no QK-norm; windows as Qwen3's."""
    check_fields(raw, "qwen2")
    if raw.get("head_dim") is None:
        _whole_heads(raw)
    kinds, window = _windows(raw)
    return replace(
        network_shape(
            raw, DEFAULTS["qwen2"], use_qk_norm=False, layer_types=kinds, sliding_window=window
        ),
        qkv_bias=True,
    )


def read_smollm3(raw: JsonObject) -> ModelConfig:
    """SmolLM3: layers without RoPE as no_rope_layers says, else every fourth; windows, where they
    are used, in those.
    """
    check_fields(raw, "smollm3")
    if raw.get("head_dim") is None:
        _whole_heads(raw)
    layers, turned = num_layers(raw), raw.get("no_rope_layers")
    if turned is None:
        interval = raw.typed("no_rope_layer_interval", WHOLE, 4, least=1)
        turned = [int((layer + 1) % interval != 0) for layer in range(layers)]
    turned = [int(bool(layer)) for layer in turned[:layers]]
    if len(turned) < layers:
        raise raw.wrong("no_rope_layers", f"names {len(turned)} layers of {layers}")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", False) else None
    kinds = raw.get("layer_types")
    if kinds is None:
        local = window is not None
        kinds = [GLOBAL if rope or not local else LOCAL for rope in turned]
    elif window is None:  # its class then leaves every layer global
        kinds = [GLOBAL if kind == LOCAL else kind for kind in kinds]
    shape = network_shape(
        raw, DEFAULTS["smollm3"], use_qk_norm=False, layer_types=kinds, sliding_window=window
    )
    return replace(shape, no_rope_layers=tuple(turned) if 0 in turned else ())


def read_gemma3(raw: JsonObject) -> ModelConfig:
    """Gemma 3's text models: their own blocks; layers local but every sixth, or as layer_types
    say; a RoPE for each kind.
    """
    check_fields(raw, "gemma3_text")
    _whole_heads(raw)
    kinds = raw.get("layer_types")
    if kinds is None:
        every = raw.typed("sliding_window_pattern", WHOLE, 6, least=1)
        kinds = [GLOBAL if (i + 1) % every == 0 else LOCAL for i in range(num_layers(raw))]
    flat, local_theta = gemma_ropes(raw)
    shape = network_shape(
        flat,
        DEFAULTS["gemma3_text"],
        use_qk_norm=True,
        qk_norm_weight=True,
        layer_types=kinds,
        sliding_window=raw.get("sliding_window", 4096),
    )
    scalar = raw.get("query_pre_attn_scalar", 256)
    if scalar != shape.head_dim:
        raise raw.wrong(
            "query_pre_attn_scalar",
            f"is {described(scalar)}; only that of head_dim, {shape.head_dim}, can be honoured",
        )
    local = LOCAL in shape.layer_types
    return replace(shape, gemma_blocks=True, rope_local_base_freq=local_theta if local else None)


def read_qwen3(raw: JsonObject) -> ModelConfig:
    """Qwen3, and ours with QK-norm: windows as layer_types say, else from max_window_layers on."""
    check_fields(raw, "qwen3")
    kinds, window = _windows(raw)
    return network_shape(
        raw,
        DEFAULTS["qwen3"],
        use_qk_norm=True,
        qk_norm_weight=raw.object("pocketlm", None).typed("qk_norm_weight", FLAG, True),
        layer_types=kinds,
        sliding_window=window,
    )


def _windows(raw: JsonObject) -> tuple[list[str] | None, int | None]:
    """(kinds of layers, window) of the Qwen classes."""
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    layer_types = raw.get("layer_types")
    if layer_types is None and window is not None:
        first = raw.get("max_window_layers", 28)
        layer_types = [LOCAL if i >= first else GLOBAL for i in range(num_layers(raw))]
    return layer_types, window


def read_cwm(raw: JsonObject) -> ModelConfig:
    """CWM, and ours for windows without QK-norm. Its own default RoPE and windows, those of a 32B
    model, are not taken.
    """
    check_fields(raw, "cwm")
    raw.typed("layer_types", TEXTS)
    if not (raw.get("rope_parameters") or raw.get("rope_scaling")):
        raise ValueError(f"{raw.file}: field rope_parameters is missing")
    _whole_heads(raw)
    return network_shape(
        raw,
        DEFAULTS["cwm"],
        use_qk_norm=False,
        layer_types=raw["layer_types"],
        sliding_window=raw.get("sliding_window", 8192),
    )


def num_layers(raw: JsonObject) -> int:
    return raw.typed("num_hidden_layers", WHOLE, least=1, most=MOST_LAYERS)


def _refuse_window(raw: JsonObject) -> None:
    """Llama's class computes a prompt with all keys; a window would act on what it keeps while
    generating alone.
    """
    kinds = raw.typed("layer_types", TEXTS + OR_NULL, None)
    if kinds is not None and kinds != [GLOBAL] * num_layers(raw):
        raise ValueError(
            f"{raw.file}: model_type {raw.get('model_type')} has no local layers, but layer_types "
            "is not "
            f"{GLOBAL} for each of num_hidden_layers {num_layers(raw)}"
        )
    positions = raw.typed("max_position_embeddings", WHOLE)
    for name in ("sliding_window", "attention_chunk_size"):
        # transformers keeps it in 64 bits
        window = raw.typed(name, WHOLE + OR_NULL, None, most=2**62)
        if raw.get("use_sliding_window") or (
            kinds is None and window is not None and window < positions
        ):
            raise ValueError(
                f"{raw.file}: model_type {raw.get('model_type')} has no local layers, but "
                "config.json asks for some "
                f"({name} {window}); take the field out if none is meant"
            )


def _whole_heads(raw: JsonObject) -> None:
    hidden, heads = (
        raw.typed(name, WHOLE, least=1) for name in ("hidden_size", "num_attention_heads")
    )
    if hidden % heads:
        raise raw.wrong(
            "hidden_size", f"is {hidden}, which is not a multiple of num_attention_heads {heads}"
        )


def network_shape(
    raw: JsonObject,
    defaults: Defaults,
    *,
    use_qk_norm: bool,
    qk_norm_weight: bool = False,
    layer_types: list[str] | None = None,
    sliding_window: int | None = None,
) -> ModelConfig:
    """The fields all layouts share."""
    rope = rope_fields(raw)
    refuse_partial(raw, rope)
    vocab, hidden, width, heads = (
        raw.typed(name, WHOLE, least=1, most=LARGEST_SIZE)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    )
    kv_heads = raw.typed(
        "num_key_value_heads", WHOLE + OR_NULL, defaults.num_key_value_heads, least=1
    )
    head_dim = raw.typed("head_dim", WHOLE + OR_NULL, defaults.head_dim, least=1, most=LARGEST_SIZE)
    layers = num_layers(raw)
    if layer_types is not None and len(layer_types) != layers:
        raise raw.wrong(
            "layer_types", f"names {len(layer_types)} layers, num_hidden_layers is {layers}"
        )
    pad = raw.get("pad_token_id")
    if pad is not None and not -vocab <= pad < vocab:
        raise raw.wrong(
            "pad_token_id",
            f"is {pad}, outside of vocab_size {vocab}; transformers does not open that",
        )
    windowed = LOCAL in (layer_types or ())
    if windowed and sliding_window is not None and sliding_window < 0:
        raise raw.wrong("sliding_window", f"is {sliding_window}, at least 1 is needed")
    try:
        return ModelConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else kv_heads,
            head_dim=hidden // heads if head_dim is None else head_dim,
            max_position_embeddings=raw.typed(
                "max_position_embeddings", WHOLE, least=1, most=MOST_POSITIONS
            ),
            rope_theta=theta_of(raw, rope, defaults.rope_theta),
            rms_norm_eps=raw.typed("rms_norm_eps", NUMBER, defaults.rms_norm_eps, least=0),
            tie_word_embeddings=raw.get("tie_word_embeddings", defaults.tie_word_embeddings),
            use_qk_norm=use_qk_norm,
            qk_norm_weight=qk_norm_weight,
            layer_types=tuple(layer_types or ()) if windowed or _odd(layer_types) else (),
            sliding_window=sliding_window if windowed else None,
            initializer_range=raw.typed("initializer_range", NUMBER, 0.02, least=0, most=1),
            rope_scaling=scaling_of(raw, rope),
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text if text.startswith(f"{raw.file}") else f"{raw.file}: {text}"
        ) from None


def _odd(layer_types: list[str] | None) -> bool:
    """Whether there is a kind of layer that ModelConfig has to refuse by its name."""
    return any(kind not in (GLOBAL, LOCAL) for kind in layer_types or ())
