"""Every field of a config.json: its kind, and whether it is read, without effect on the numbers, or
refused by its name.

The tables follow the config classes of transformers (a test compares names, kinds and defaults with
the installed ones). A field that is in no table is one that transformers keeps and nothing reads:
it is ignored here too, and `pocketlm import` names it.
"""

from dataclasses import dataclass

from pocketlm.model.json_shape import (
    DECIMAL,
    FLAG,
    NUMBER,
    OBJECT,
    OR_NULL,
    TEXT,
    TEXTS,
    WHOLE,
    WHOLES,
    JsonObject,
    described,
    is_kind,
)

READ = "read"
LABELS = "for classifiers; this network predicts words"
TRAINING = "acts in training alone, and this project trains without it"
OUTPUTS = "which Python objects transformers gives back, not their numbers"
SPECIAL_IDS = "read with the tokenizer, not for the network"
NO_EXPERTS = "acts on mixtures of experts, which are refused"
NO_NOPE = "acts on layers without RoPE, which are refused"
IDS = "a whole number or a list of whole numbers"
SPECIAL_FLOAT = "__float__"  # transformers writes infinity and NaN as objects of this one field

Fields = dict[str, tuple[str, str]]  # name: (kind, READ or why it changes no number)

PRETRAINED: Fields = {  # of transformers' PreTrainedConfig
    "transformers_version": (TEXT + OR_NULL, "which version wrote the file"),
    "architectures": (TEXTS + OR_NULL, READ),
    "output_hidden_states": (FLAG + OR_NULL, OUTPUTS),
    "return_dict": (FLAG + OR_NULL, READ),
    "dtype": (TEXT + OR_NULL, "weights are kept in float32"),
    "chunk_size_feed_forward": (WHOLE, "of other classes: how a product is cut, not what it gives"),
    "is_encoder_decoder": (FLAG, READ),
    "id2label": (OBJECT + OR_NULL, LABELS),
    "label2id": (OBJECT + OR_NULL, LABELS),
    "problem_type": (TEXT + OR_NULL, LABELS),
}
OLDER: Fields = {  # names that transformers takes beside the fields of its classes
    "torch_dtype": (TEXT + OR_NULL, "weights are kept in float32"),
    "num_labels": (WHOLE, LABELS),
    "rope_scaling": (OBJECT + OR_NULL, READ),
    "auto_map": (OBJECT, "code from the hub, which is never run"),
    "model_type": (TEXT, READ),
    "pocketlm": (OBJECT, READ),
    "head_dim": (WHOLE + OR_NULL, READ),  # Qwen2's class has no such field, and reads it
    "quantization_config": (OBJECT + OR_NULL, READ),
}
SHARED: Fields = {
    "vocab_size": (WHOLE, READ),
    "hidden_size": (WHOLE, READ),
    "intermediate_size": (WHOLE, READ),
    "num_hidden_layers": (WHOLE, READ),
    "num_attention_heads": (WHOLE, READ),
    "num_key_value_heads": (WHOLE, READ),
    "head_dim": (WHOLE, READ),
    "hidden_act": (TEXT, READ),
    "max_position_embeddings": (WHOLE, READ),
    "initializer_range": (DECIMAL, READ),
    "rms_norm_eps": (DECIMAL, READ),
    "tie_word_embeddings": (FLAG, READ),
    "rope_parameters": (OBJECT + OR_NULL, READ),
    "attention_dropout": (NUMBER, TRAINING),
    "use_cache": (FLAG, "whether generating keeps keys and values, not what it gives"),
    "pad_token_id": (WHOLE + OR_NULL, READ),
    "bos_token_id": (WHOLE + OR_NULL, SPECIAL_IDS),
    "eos_token_id": (IDS + OR_NULL, SPECIAL_IDS),
}
PRETRAINING_TP = "older versions cut products into so many parts; the numbers are the same"
LLAMA: Fields = SHARED | {
    "num_key_value_heads": (WHOLE + OR_NULL, READ),
    "head_dim": (WHOLE + OR_NULL, READ),
    "attention_bias": (FLAG, READ),
    "mlp_bias": (FLAG, READ),
    "attention_dropout": (NUMBER + OR_NULL, TRAINING),
    "pretraining_tp": (WHOLE + OR_NULL, PRETRAINING_TP),
}
QWEN3: Fields = SHARED | {
    "num_key_value_heads": (WHOLE + OR_NULL, READ),
    "attention_bias": (FLAG, READ),
    "use_sliding_window": (FLAG, READ),
    "sliding_window": (WHOLE + OR_NULL, READ),
    "max_window_layers": (WHOLE, READ),
    "layer_types": (TEXTS + OR_NULL, READ),
}
QWEN2: Fields = {
    name: kind for name, kind in QWEN3.items() if name not in ("attention_bias", "head_dim")
}
SMOLLM3: Fields = {name: kind for name, kind in QWEN3.items() if name != "max_window_layers"} | {
    "mlp_bias": (FLAG, READ),
    "no_rope_layers": (WHOLES + OR_NULL, READ),
    "no_rope_layer_interval": (WHOLE, READ),
}
SMOLLM3.pop("head_dim")
CWM: Fields = SHARED | {
    "mlp_bias": (FLAG, READ),
    "sliding_window": (WHOLE, READ),
    "layer_types": (TEXTS + OR_NULL, READ),
    "bos_token_id": (WHOLE, SPECIAL_IDS),
    "pretraining_tp": (WHOLE, PRETRAINING_TP),
}
LLAMA4: Fields = SHARED | {
    "attention_bias": (FLAG, READ),
    "intermediate_size": (WHOLE, NO_EXPERTS),
    "intermediate_size_mlp": (WHOLE, READ),
    "use_qk_norm": (FLAG, READ),
    "layer_types": (TEXTS + OR_NULL, READ),
    "moe_layers": (WHOLES + OR_NULL, READ),
    "num_local_experts": (WHOLE, READ),
    "interleave_moe_layer_step": (WHOLE, NO_EXPERTS),
    "num_experts_per_tok": (WHOLE, NO_EXPERTS),
    "output_router_logits": (FLAG, NO_EXPERTS),
    "router_aux_loss_coef": (DECIMAL, NO_EXPERTS),
    "router_jitter_noise": (DECIMAL, NO_EXPERTS),
    "no_rope_layers": (WHOLES + OR_NULL, READ),
    "no_rope_layer_interval": (WHOLE, READ),
    "attention_chunk_size": (WHOLE + OR_NULL, READ),
    "attn_temperature_tuning": (FLAG, NO_NOPE),
    "floor_scale": (WHOLE, NO_NOPE),
    "attn_scale": (DECIMAL, NO_NOPE),
}
GEMMA3: Fields = {name: kind for name, kind in SHARED.items() if name != "hidden_act"} | {
    "attention_bias": (FLAG, READ),
    "attention_dropout": (NUMBER + OR_NULL, TRAINING),
    "hidden_activation": (TEXT, READ),
    "sliding_window": (WHOLE + OR_NULL, READ),
    "layer_types": (TEXTS + OR_NULL, READ),
    "query_pre_attn_scalar": (WHOLE, READ),
    "final_logit_softcapping": (DECIMAL + OR_NULL, READ),
    "attn_logit_softcapping": (DECIMAL + OR_NULL, READ),
    "use_bidirectional_attention": (FLAG + OR_NULL, READ),
}
FIELDS: dict[str, Fields] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "smollm3": SMOLLM3,
    "gemma3_text": GEMMA3,
    "qwen3": QWEN3,
    "cwm": CWM,
    "llama4_text": LLAMA4,
    "mobilellm": LLAMA | {"share_embedding": (FLAG, READ), "layer_sharing": (FLAG, READ)},
    "mobilellm-pro": LLAMA4 | {"sliding_window": (WHOLE + OR_NULL, READ)},
}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a class takes for a field that is not there. head_dim None: hidden_size / heads; kv
    None: as many as heads.
    """

    rope_theta: float
    rms_norm_eps: float
    head_dim: int | None
    num_key_value_heads: int | None
    tie_word_embeddings: bool = False


DEFAULTS = {
    "llama": Defaults(rope_theta=1e4, rms_norm_eps=1e-6, head_dim=None, num_key_value_heads=None),
    "qwen2": Defaults(rope_theta=1e4, rms_norm_eps=1e-6, head_dim=None, num_key_value_heads=32),
    "smollm3": Defaults(
        rope_theta=2e6,
        rms_norm_eps=1e-6,
        head_dim=None,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
    "gemma3_text": Defaults(
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        head_dim=256,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
    "qwen3": Defaults(rope_theta=1e4, rms_norm_eps=1e-6, head_dim=128, num_key_value_heads=32),
    "cwm": Defaults(rope_theta=1e6, rms_norm_eps=1e-5, head_dim=128, num_key_value_heads=8),
    "llama4_text": Defaults(rope_theta=5e5, rms_norm_eps=1e-5, head_dim=128, num_key_value_heads=8),
}
DEFAULTS["mobilellm"] = DEFAULTS["llama"]  # its class is Llama's with two fields more
DEFAULTS["mobilellm-pro"] = DEFAULTS["llama4_text"]

HONOURED_AS: dict[str, tuple[object, ...]] = {  # fields whose other values would change the numbers
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "hidden_activation": ("gelu_pytorch_tanh",),  # Gemma 3's name of it
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "is_encoder_decoder": (False,),
    "return_dict": (True, None),  # else transformers' own classes end in an error
    "is_causal": (True,),
    "quantization_config": (None,),
    "per_layer_config": (None,),  # fields that differ from layer to layer
    "kv_sharing_modes": (None,),
    "transformers_weights": (None,),  # the name of another file of weights
    "configuration_files": (),  # names of other config.json files
    "text_config": (None,),  # a model of more than text, or its fields one level down
    "decoder": (None,),
    "generator": (None,),
    "text_encoder": (None,),
}
# read as RoPE's
ROPE_BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
RESERVED_NAMES = """
    allow_global_per_layer_attribute_access attribute_map base_config_key base_model_ep_plan
    base_model_fsdp_plan base_model_pp_plan base_model_tp_plan convert_rope_params_to_dict
    default_config_fields default_rope_type default_theta dict_dtype_to_str extra_config_files
    extra_files from_dict from_json_file from_pretrained get_config_dict get_mtp_config
    get_text_config ignore_keys_at_rope_validation is_custom_code is_heterogeneous is_remote_code
    nested_rope_parameter_keys per_layer_attributes push_to_hub register_for_auto_class
    save_pretrained serialize_explicit_per_layer_config standardize_rope_params sub_configs
    sub_configs_defaults to_dict to_diff_dict to_json_file to_json_string update
    update_from_string use_return_dict validate validate_architecture validate_layer_type
    validate_output_attentions validate_rope validate_token_ids
"""
# names of transformers' own methods: as fields they break its classes
RESERVED = frozenset(RESERVED_NAMES.split())
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification", None)


def check_fields(raw: JsonObject, layout: str) -> None:
    """Nothing, or a ValueError for the first field of a wrong kind, and for those that cannot be
    honoured, by name.
    """
    known = PRETRAINED | OLDER | FIELDS[layout]
    for name in raw.keys() & known.keys():
        _check_kind(raw, name, known[name][0])
    refused = [
        name for name, values in HONOURED_AS.items() if name in raw and raw[name] not in values
    ]
    refused += [name for name in raw if name in RESERVED or name.startswith("__")]
    if refused:
        raise ValueError(
            f"{raw.file}: this network cannot honour {', '.join(refused)} as set there"
        )
    _check_labels(raw)
    _check_dtype(raw)


def _check_kind(raw: JsonObject, name: str, kind: str) -> None:
    value = raw[name]
    if kind.startswith(IDS):
        null = OR_NULL if kind.endswith(OR_NULL) else ""
        if not (is_kind(value, WHOLE + null) or is_kind(value, WHOLES)):
            raise raw.wrong(name, f"is {described(value)}, {kind} is needed")
        return
    raw.typed(name, kind)
    if is_kind(value, WHOLE) and not -(2**63) <= value < 2**63:
        raise raw.wrong(name, f"is {described(value)}, which does not fit in 64 bits")
    if isinstance(value, dict) and set(value) == {SPECIAL_FLOAT}:
        raise raw.wrong(name, f"is the number {described(value[SPECIAL_FLOAT])}, {kind} is needed")


def _check_labels(raw: JsonObject) -> None:
    """Classifiers' fields change nothing here, but transformers does not open a folder where they
    are broken.
    """
    for name, label in (raw.get("id2label") or {}).items():
        if not name.lstrip("-").isdecimal() or not isinstance(label, str):
            raise raw.wrong(
                "id2label", f"has the entry {name[:40]!a}; it is to lead from numbers to texts"
            )
    for name, number in (raw.get("label2id") or {}).items():
        if not is_kind(number, WHOLE):
            raise raw.wrong(
                "label2id", f"has the entry {name[:40]!a}; it is to lead to whole numbers"
            )
    if raw.get("problem_type") not in PROBLEM_TYPES:
        raise raw.wrong(
            "problem_type", f"is {described(raw['problem_type'])}; known are {PROBLEM_TYPES[:3]}"
        )
    if raw.get("problem_type") == PROBLEM_TYPES[1] and len(raw.get("id2label") or "12") == 1:
        raise raw.wrong("problem_type", "asks for more labels than the one of id2label")
    if (raw.get("num_labels") or 0) > 2**20:
        raise raw.wrong("num_labels", f"is {described(raw['num_labels'])}, which no model has")


def _check_dtype(raw: JsonObject) -> None:
    import torch

    for name in ("dtype", "torch_dtype"):
        if raw.get(name) is not None and not isinstance(
            getattr(torch, raw[name], None), torch.dtype
        ):
            raise raw.wrong(name, f"is {described(raw[name])}, which torch does not know")


def rope_agrees(raw: JsonObject) -> bool:
    """Whether rope_parameters, where it stands beside rope_scaling, says nothing else."""
    scaling, parameters = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    return all(scaling.get(name, raw.get(name)) == parameters[name] for name in parameters)


def unused_fields(raw: JsonObject, layout: str) -> dict[str, str]:
    """The fields that change nothing, each with the reason, of those a reader may have meant
    something by.
    """
    known = PRETRAINED | OLDER | FIELDS[layout]
    unused = {
        name: f"no field of {layout}; transformers ignores it too"
        for name in raw
        if name not in known
        and name not in HONOURED_AS
        and name not in ROPE_BESIDE
        and name[:1] != "_"
    }
    if raw.get("attention_dropout"):
        unused["attention_dropout"] = TRAINING
    if raw.get("rope_scaling") and not rope_agrees(raw):
        unused["rope_parameters"] = "rope_scaling is taken where both stand, as transformers does"
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if "rope_theta" in raw and rope.get("rope_theta", raw["rope_theta"]) != raw["rope_theta"]:
        unused["rope_theta"] = (
            f"rope_theta {rope['rope_theta']} of the RoPE fields is taken, as transformers does"
        )
    return unused
