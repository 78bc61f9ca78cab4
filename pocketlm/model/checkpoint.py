"""A folder that Hugging Face opens, and a model again from such a folder. Only safetensors and JSON: never a pickle."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pocketlm.model.files import read_json, write_json
from pocketlm.model.layouts import LAYOUTS, Layout, layout_of, native_layout
from pocketlm.model.quant import ACCELERATOR, SCALE, prepare, scheme, scheme_of, snap
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_checkpoint(folder: Path, model: Transformer, tokenizer: Tokenizer, *, layout: str | None = None) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into an existing folder.

    Of a prepared model the weights are the latent ones, and its scheme is written down: they become four-bit when
    pocketlm loads them. Learned scales are stored as the grid has them, bfloat16 values, so that torchao, which
    does not snap, computes the same grid from the same names.
    layout: a name of LAYOUTS; None takes the network's own. ValueError where that layout cannot hold it.
    """
    chosen = LAYOUTS[layout] if layout else native_layout(model.config)
    own = scheme_of(model)
    write_files(
        folder,
        hugging_face_config(model.config, tokenizer, own.name if own else None, chosen),
        stored_tensors(model, chosen),
        tokenizer,
    )


def stored_tensors(model: Transformer, chosen: Layout) -> dict[str, Tensor]:
    """The tensors of a checkpoint in that layout, by its names."""
    tensors = {
        chosen.name_out(name): chosen.rows_out(name, tensor.detach(), model.config).contiguous()
        for name, tensor in model.state_dict().items()
    }
    for name in [name for name in tensors if name.endswith(SCALE)]:
        tensors[name] = snap(tensors[name]).float()
    if chosen.name == "qwen3" and not model.config.qk_norm_weight:
        ones = torch.ones(model.config.head_dim)
        for i in range(model.config.num_hidden_layers):
            for norm in ("q_norm", "k_norm"):
                tensors[f"model.layers.{i}.self_attn.{norm}.weight"] = ones.clone()
    return tensors


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """A folder as Hugging Face has it: config.json and generation_config.json, model.safetensors, the tokenizer's files."""
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": sorted(tokenizer.stop_ids), "bos_token_id": tokenizer.bos_id},
    )
    temporary = folder / f".{WEIGHTS}.partial"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(folder / WEIGHTS)
    tokenizer.save(folder)


def hugging_face_config(
    config: ModelConfig, tokenizer: Tokenizer, quantization: str | None, layout: Layout
) -> dict[str, Any]:
    """config.json in that layout."""
    fields = asdict(config)
    own = {"qk_norm_weight": fields.pop("qk_norm_weight"), "quantization": quantization}
    for ours in ("use_qk_norm", "layer_types", "sliding_window", "rope_scaling", "layer_repeats"):
        fields.pop(ours)
    scaling = config.rope_scaling
    rope = {"rope_type": "llama3", **asdict(scaling)} if scaling else {"rope_type": "default"}
    return {
        "architectures": [layout.architecture],
        **fields,
        **layout.write(config),
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        **({"rope_scaling": rope} if scaling else {}),  # the name before transformers 5
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
    """(model in float32, tokenizer) of a checkpoint folder in any of the LAYOUTS.

    A missing file, a field this network cannot honour, and missing, unexpected or misshaped tensors are ValueErrors
    that list the names. A checkpoint trained for four bits comes back computing in four bits.
    """
    folder = Path(folder)
    config, layout = _read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows; "
            "this tokenizer belongs to another checkpoint"
        )
    model = Transformer(config)
    quantization = quantization_of(folder)
    if quantization:
        prepare(model, scheme(quantization))
    tensors = {layout.name_in(name): tensor for name, tensor in read_tensors(folder).items()}
    load_tensors(model, tensors, str(folder))
    if layout.interleaved:  # after load_tensors, which names what is misshaped
        model.load_state_dict({n: layout.rows_in(n, t, config) for n, t in model.state_dict().items()})
    return model, tokenizer


def shape_of(folder: Path) -> ModelConfig:
    """The network of a checkpoint folder, from its config.json alone; errors as load_checkpoint's."""
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, Layout]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it holds no config.json")
    raw = read_json(config_file)
    layout = layout_of(raw, config_file)
    return layout.read(raw, config_file), layout


def quantization_of(folder: Path) -> str | None:
    """The scheme a checkpoint was trained for, or None for full precision.

    A folder that is not ours says it with its tensors: torchao's learned scales, as in Meta's *-int4-accelerator. Their
    names do not tell the bits; Meta published four.
    """
    raw = read_json(folder / "config.json")
    if "pocketlm" in raw:
        return raw["pocketlm"].get("quantization")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_safetensors(file)) for file in weight_files(folder)]
        learned = any(name.endswith(SCALE) for content in opened for name in content.keys())  # noqa: SIM118
    return ACCELERATOR.name if learned else None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file or shards, by name, in float32."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors.update(read_safetensors(file))
    return {name: tensor.float() for name, tensor in tensors.items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; FileNotFoundError names the one that is missing."""
    index = folder / INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    for name in names:
        file = folder / name
        if not file.is_file():
            pickles = sorted(found.name for found in folder.glob("*.bin"))
            hint = "".join(
                f"; {found} is a pickle, which may run code: save it as safetensors first" for found in pickles[:1]
            )
            raise FileNotFoundError(f"{folder} lacks the weights file {name}{hint}")
    return [folder / name for name in names]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file; a truncated or foreign file is a ValueError that names it."""
    with open_safetensors(file) as content:
        names = list(content.keys())  # safe_open is no mapping
        return {name: content.get_tensor(name) for name in names}


@contextlib.contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """A safetensors file, opened; a truncated or foreign one is a ValueError that names it."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or not a safetensors file ({error}); fetch or save it again") from None


def load_tensors(model: Transformer, tensors: dict[str, Tensor], where: str) -> None:
    """Fill the model, exactly: every tensor used, every parameter filled, every shape equal."""
    expected = dict(model.state_dict())
    for name in [n for n in tensors if n.endswith("rotary_emb.inv_freq")]:
        tensors.pop(name)  # older Hugging Face code saved what follows from config.json
    if model.config.use_qk_norm and not model.config.qk_norm_weight:
        for name in [n for n in tensors if n.endswith(("q_norm.weight", "k_norm.weight"))]:
            if not bool((tensors[name] == 1).all()):
                raise ValueError(f"{where}: {name} is not all ones, but config.json says QK-norm has no weights")
            tensors.pop(name)
    for name in ("weight", SCALE):
        if model.lm_head is None and f"lm_head.{name}" in tensors:
            if not torch.equal(tensors[f"lm_head.{name}"], tensors.get(f"model.embed_tokens.{name}", torch.empty(0))):
                raise ValueError(
                    f"{where}: config.json ties the embeddings, but lm_head.{name} differs from embed_tokens"
                )
            tensors.pop(f"lm_head.{name}")
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
