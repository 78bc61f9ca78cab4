"""A folder that Hugging Face opens, and a model again from such a folder. Only safetensors and
JSON: never a pickle.
"""

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pocketlm.model.adapters import Adapter, merge_adapter
from pocketlm.model.costs import num_parameters
from pocketlm.model.files import write_json
from pocketlm.model.json_shape import OR_NULL, TEXT, JsonObject, read_object
from pocketlm.model.layouts import LAYOUTS, Layout, layout_of, native_layout
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import (
    ACCELERATOR,
    SCALE,
    prepare,
    round_scale_to_bfloat16,
    scheme,
    scheme_of,
)
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.tokenizer_files import FILES
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import (
    ADAPTER_CONFIG,
    INDEX,
    WEIGHTS,
    count_numbers,
    open_safetensors,
    read_tensors,
    unread_weights,
    weight_files,
)

GENERATION = "generation_config.json"


def save_checkpoint(
    folder: Path, model: Transformer, tokenizer: Tokenizer, *, layout: str | None = None
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into an existing folder.

    Of a prepared model the weights are the latent ones, and its scheme is written down: they become
    four-bit when pocketlm loads them. Learned scales are stored as the grid has them, bfloat16
    values, so that torchao, which rounds no scale, computes the same grid from the same names.
    layout: a name of LAYOUTS; None takes the network's own. ValueError where that layout cannot
    hold it.
    """
    chosen = LAYOUTS[layout] if layout else native_layout(model.config)
    scheme = scheme_of(model)
    write_files(
        folder,
        hugging_face_config(model.config, tokenizer, scheme.name if scheme else None, chosen),
        stored_tensors(model, chosen),
        tokenizer,
    )


def stored_tensors(model: Transformer, chosen: Layout) -> dict[str, Tensor]:
    """The tensors of a checkpoint in that layout, by its names."""
    tensors = {
        chosen.name_out(name): chosen.tensor_out(name, tensor.detach(), model.config).contiguous()
        for name, tensor in model.state_dict().items()
    }
    for name in [name for name in tensors if name.endswith(SCALE)]:
        tensors[name] = round_scale_to_bfloat16(tensors[name]).float()
    if chosen.name == "qwen3" and not model.config.qk_norm_weight:
        ones = torch.ones(model.config.head_dim)
        for i in range(model.config.num_hidden_layers):
            for norm in ("q_norm", "k_norm"):
                tensors[f"model.layers.{i}.self_attn.{norm}.weight"] = ones.clone()
    return tensors


def write_files(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """A folder as Hugging Face has it: config.json and generation_config.json, model.safetensors,
    the tokenizer's files.
    """
    write_json(folder / "config.json", config)
    write_json(
        folder / GENERATION,
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
    extras = {"qk_norm_weight": fields.pop("qk_norm_weight"), "quantization": quantization}
    for ours in (
        *("use_qk_norm", "layer_types", "sliding_window", "rope_scaling", "layer_repeats"),
        *("qkv_bias", "no_rope_layers", "gemma_blocks", "rope_local_base_freq"),
    ):
        fields.pop(ours)
    scaling = config.rope_scaling
    rope = {"rope_type": "llama3", **asdict(scaling)} if scaling else {"rope_type": "default"}
    bos = {"bos_token_id": tokenizer.bos_id}
    if tokenizer.bos_id is None and layout.name == "cwm":  # its class takes no null
        bos = {}
    return {
        "architectures": [layout.architecture],
        **fields,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        **({"rope_scaling": rope} if scaling else {}),  # the name before transformers 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        **({} if config.gemma_blocks else {"hidden_act": "silu"}),
        "dtype": "float32",
        **bos,
        **layout.config_fields(config),
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pocketlm": extras,
    }


def load_checkpoint(folder: Path, *, empty: bool = False) -> tuple[Transformer, Tokenizer]:
    """(model in float32, tokenizer) of a checkpoint folder in any of the LAYOUTS.

    A missing file, a field this network cannot honour, and missing, unexpected or misshaped tensors
    are ValueErrors that list the names. A checkpoint trained for four bits comes back computing in
    four bits. Where two sets of weights lie in the folder, a line on stderr says which is read.

    empty: without weights, on the meta device, and no file of weights is read.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder}: {ADAPTER_CONFIG} is there, so its weights are not the whole model; "
            f"`pocketlm import {folder}` "
            f"merges the adapter (where the weights are merged already, delete {ADAPTER_CONFIG})"
        )
    config, layout = _read_config(folder)
    tokenizer = Tokenizer.load(folder)
    check_ids(tokenizer, config, folder)
    if (folder / GENERATION).is_file():
        # in a folder of ours nothing else reads it, but transformers does
        read_object(folder / GENERATION)
    if empty:
        with torch.device("meta"):
            return _network(folder, config), tokenizer
    if INDEX in unread_weights(folder):
        print(
            f"{folder}: {WEIGHTS} is read, not the shards of {INDEX}, as transformers does",
            file=sys.stderr,
        )
    return _filled(folder, config, layout, read_tensors(folder)), tokenizer


def load_adapted(base: Path, adapter: Adapter) -> tuple[Transformer, Tokenizer, int]:
    """(model in float32, tokenizer, matrices changed) of a checkpoint folder and an adapter merged
    into it.

    The tokenizer is the adapter's where it has one: it was trained with that. Errors as
    load_checkpoint's.
    """
    config, layout = _read_config(base)
    brought = any((adapter.folder / name).is_file() for name in FILES)
    tokenizer = Tokenizer.load(adapter.folder if brought else base)
    check_ids(tokenizer, config, base)
    if quantization_of(base):
        raise ValueError(
            f"{base} is quantized ({quantization_of(base)}); merge the adapter into its "
            "full-precision parent"
        )
    tensors = read_tensors(base)
    changed = merge_adapter(tensors, adapter)
    return _filled(base, config, layout, tensors), tokenizer, changed


def _filled(
    folder: Path, config: ModelConfig, layout: Layout, tensors: dict[str, Tensor]
) -> Transformer:
    """The network of a folder with its tensors in it."""
    wanted, present = num_parameters(config), count_numbers(folder)
    # before it is allocated: a size that somebody mistyped may ask for terabytes
    if wanted > 2 * present + 2**20:
        raise ValueError(
            f"{folder}: the weights do not fit config.json, whose sizes ask for {wanted:,} "
            f"parameters; there are {present:,}"
        )
    model = _network(folder, config)
    load_tensors(
        model, {layout.name_in(name): tensor for name, tensor in tensors.items()}, str(folder)
    )
    if layout.changes_tensors:  # after load_tensors, which names what is misshaped
        model.load_state_dict(
            {n: layout.tensor_in(n, t, config) for n, t in model.state_dict().items()}
        )
    return model


def _network(folder: Path, config: ModelConfig) -> Transformer:
    """The network of a folder with its first weights, in four bits where it was trained for
    them.
    """
    model = Transformer(config)
    quantization = quantization_of(folder)
    if quantization:
        prepare(model, scheme(quantization))
    return model


def check_ids(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Nothing, or a ValueError where a token's id lies beyond the embedding. More rows than tokens
    are fine.

    Added tokens count too, and the greatest id, not how many there are: ids may have gaps.
    """
    words = tokenizer.backend.get_vocab(with_added_tokens=True)
    word, greatest = max(words.items(), key=lambda item: item[1], default=("", -1))
    greatest = max([greatest, *tokenizer.stop_ids])
    if greatest >= config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(words)} tokens with ids up to {greatest} "
            f"({word!r}), the embedding only "
            f"{config.vocab_size} rows; this tokenizer belongs to another checkpoint"
        )


def shape_of(folder: Path) -> ModelConfig:
    """The network of a checkpoint folder, from its config.json alone; errors as
    load_checkpoint's.
    """
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, Layout]:
    raw = raw_config(folder)
    layout = layout_of(raw)
    return layout.read(raw), layout


def raw_config(folder: Path) -> JsonObject:
    """config.json of a checkpoint folder; FileNotFoundError where there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}")
    if not (folder / "config.json").is_file():
        adapter = f"; {ADAPTER_CONFIG} is there: `pocketlm import` merges it into its base model"
        hint = adapter if (folder / ADAPTER_CONFIG).is_file() else ""
        raise FileNotFoundError(f"{folder} is not a checkpoint: it holds no config.json{hint}")
    return read_object(folder / "config.json")


def quantization_of(folder: Path) -> str | None:
    """The scheme a checkpoint was trained for, or None for full precision.

    A folder that is not ours says it with its tensors: torchao's learned scales, as in Meta's
    *-int4-accelerator. Their names do not tell the bits; Meta published four.
    """
    raw = raw_config(folder)
    if "pocketlm" in raw:
        return raw.object("pocketlm").typed("quantization", TEXT + OR_NULL, None)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_safetensors(file)) for file in weight_files(folder)]
        learned = any(name.endswith(SCALE) for content in opened for name in content.keys())  # noqa: SIM118
    return ACCELERATOR.name if learned else None


def load_tensors(model: Transformer, tensors: dict[str, Tensor], where: str) -> None:
    """Fill the model, exactly: every tensor used, every parameter filled, every shape equal."""
    expected = dict(model.state_dict())
    for name in [n for n in tensors if n.endswith("rotary_emb.inv_freq")]:
        tensors.pop(name)  # older Hugging Face code saved what follows from config.json
    if model.config.use_qk_norm and not model.config.qk_norm_weight:
        for name in [n for n in tensors if n.endswith(("q_norm.weight", "k_norm.weight"))]:
            if not bool((tensors[name] == 1).all()):
                raise ValueError(
                    f"{where}: {name} is not all ones, but config.json says QK-norm has no weights"
                )
            tensors.pop(name)
    for name in ("weight", SCALE):
        if model.lm_head is None and f"lm_head.{name}" in tensors:
            if not torch.equal(
                tensors[f"lm_head.{name}"],
                tensors.get(f"model.embed_tokens.{name}", torch.empty(0)),
            ):
                raise ValueError(
                    f"{where}: config.json ties the embeddings, but lm_head.{name} differs from "
                    "embed_tokens"
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
        raise ValueError(
            f"{where}: the weights do not fit config.json:\n  " + "\n  ".join(problems[:12]) + more
        )
    model.load_state_dict(tensors)
