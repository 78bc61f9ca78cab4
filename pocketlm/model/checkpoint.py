"""A folder that Hugging Face opens, and a model again from such a folder. Only safetensors and JSON: never a pickle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pocketlm.model.files import read_json, write_json
from pocketlm.model.quant import prepare, scheme
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_checkpoint(folder: Path, model: Transformer, tokenizer: Tokenizer, quantization: str | None = None) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into an existing folder.

    With `quantization` the weights are the latent ones of that scheme: they become four-bit when pocketlm loads them.
    """
    write_json(folder / "config.json", hugging_face_config(model.config, tokenizer, quantization))
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": sorted(tokenizer.stop_ids), "bos_token_id": tokenizer.bos_id},
    )
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.use_qk_norm and not model.config.qk_norm_weight:
        ones = torch.ones(model.config.head_dim)
        for i in range(model.config.num_hidden_layers):
            for norm in ("q_norm", "k_norm"):
                tensors[f"model.layers.{i}.self_attn.{norm}.weight"] = ones.clone()
    temporary = folder / f".{WEIGHTS}.partial"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(folder / WEIGHTS)
    tokenizer.save(folder)


def hugging_face_config(config: ModelConfig, tokenizer: Tokenizer, quantization: str | None) -> dict[str, Any]:
    """config.json: model_type `qwen3` where q and k are normed (weightless norm = weight one), else `llama`."""
    if not config.use_qk_norm and config.layer_types:
        raise ValueError("Hugging Face has no dense class with local layers and no QK-norm in the layouts written here")
    model_type, name = ("qwen3", "Qwen3ForCausalLM") if config.use_qk_norm else ("llama", "LlamaForCausalLM")
    fields = asdict(config)
    own = {"qk_norm_weight": fields.pop("qk_norm_weight"), "quantization": quantization}
    fields.pop("use_qk_norm")
    layer_types = list(fields.pop("layer_types"))
    if model_type == "qwen3":
        fields["layer_types"] = layer_types or ["full_attention"] * config.num_hidden_layers
        fields["use_sliding_window"] = bool(config.sliding_window)
        fields["max_window_layers"] = config.num_hidden_layers
    else:
        fields.pop("sliding_window")
    return {
        "architectures": [name],
        "model_type": model_type,
        **fields,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_act": "silu",
        "dtype": "float32",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pocketlm": own,
    }


def load_checkpoint(folder: Path) -> tuple[Transformer, Tokenizer]:
    """(model in float32, tokenizer) of a checkpoint folder, ours or a Hugging Face `llama` or `qwen3` one.

    A missing file, a field this network cannot honour, and missing, unexpected or misshaped tensors are ValueErrors
    that list the names. A checkpoint trained for four bits comes back computing in four bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it holds no config.json")
    raw = read_json(config_file)
    config = model_config(raw, config_file)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows; "
            "this tokenizer belongs to another checkpoint"
        )
    model = Transformer(config)
    load_tensors(model, read_tensors(folder), str(folder))
    quantization = raw.get("pocketlm", {}).get("quantization")
    return (prepare(model, scheme(quantization)) if quantization else model), tokenizer


def quantization_of(folder: Path) -> str | None:
    """The scheme a checkpoint was trained for, or None for full precision."""
    return read_json(folder / "config.json").get("pocketlm", {}).get("quantization")


def model_config(raw: dict[str, Any], file: Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face config.json; a field that would change the numbers and is not honoured stops."""
    model_type = raw.get("model_type")
    if model_type not in ("llama", "qwen3"):
        raise ValueError(f"{file}: model_type {model_type!r} is not read here; known: llama, qwen3")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    refused = {
        "rope type": rope.get("rope_type", rope.get("type", "default")) not in ("default", None),
        "attention_bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "use_sliding_window without layer_types": raw.get("use_sliding_window", False) and not raw.get("layer_types"),
        "quantization_config": raw.get("quantization_config") is not None,
    }
    if any(refused.values()):
        fields = ", ".join(name for name, is_set in refused.items() if is_set)
        raise ValueError(f"{file}: this network cannot honour {fields} as set there")
    layer_types = tuple(raw.get("layer_types") or ())
    windowed = "sliding_attention" in layer_types
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
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rms_norm_eps=raw["rms_norm_eps"],
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            use_qk_norm=model_type == "qwen3",
            qk_norm_weight=model_type == "qwen3" and raw.get("pocketlm", {}).get("qk_norm_weight", True),
            layer_types=layer_types if windowed else (),
            sliding_window=raw.get("sliding_window") if windowed else None,
            initializer_range=raw.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ValueError(f"{file}: field {error.args[0]} is missing") from None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file or shards, by name, in float32."""
    index = folder / INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in names:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{folder} lacks the weights file {name}")
        tensors.update(read_safetensors(file))
    return {name: tensor.float() for name, tensor in tensors.items()}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file; a truncated or foreign file is a ValueError that names it."""
    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())  # safe_open is no mapping
            return {name: content.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or not a safetensors file ({error}); fetch or save it again") from None


def load_tensors(model: Transformer, tensors: dict[str, Tensor], where: str) -> None:
    """Fill the model, exactly: every tensor used, every parameter filled, every shape equal."""
    expected = dict(model.state_dict())
    if model.config.use_qk_norm and not model.config.qk_norm_weight:
        for name in [n for n in tensors if n.endswith(("q_norm.weight", "k_norm.weight"))]:
            if not bool((tensors[name] == 1).all()):
                raise ValueError(f"{where}: {name} is not all ones, but config.json says QK-norm has no weights")
            tensors.pop(name)
    if model.lm_head is None and "lm_head.weight" in tensors:
        if not torch.equal(tensors["lm_head.weight"], tensors.get("model.embed_tokens.weight", torch.empty(0))):
            raise ValueError(f"{where}: config.json ties the embeddings, but lm_head.weight differs from embed_tokens")
        tensors.pop("lm_head.weight")
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, the config asks for {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(f"{where}: the weights do not fit config.json:\n  " + "\n  ".join(problems[:12]) + more)
    model.load_state_dict(tensors)
