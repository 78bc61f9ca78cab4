"""LoRA adapters: small factors trained beside frozen weights, merged into them here, exactly, or
refused by name.

Merged is W + scale * B A with scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora: what
the library peft computes for a plain linear layer. What it would compute otherwise (DoRA, biases,
whole modules saved) is refused.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pocketlm.model.json_shape import (
    FLAG,
    NUMBER,
    OR_NULL,
    TEXT,
    WHOLE,
    JsonObject,
    described,
    read_object,
)
from pocketlm.model.weights import ADAPTER_CONFIG, read_safetensors

ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # peft's, before the names of the model it wraps
FACTORS = (".lora_A.weight", ".lora_B.weight")  # [r, inputs] and [outputs, r]
# the others change the weights beneath as well
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
HONOURED_AS: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "init_lora_weights": PLAIN_STARTS,
}
WITHOUT_EFFECT_NAMES = """
    task_type base_model_name_or_path auto_mapping revision inference_mode r lora_alpha
    lora_dropout target_modules exclude_modules layers_to_transform layers_pattern use_rslora
    loftq_config eva_config corda_config lora_ga_config megatron_core peft_version runtime_config
    qalora_group_size
"""
# where to, how it was trained and by what; the numbers are in the factors
WITHOUT_EFFECT = frozenset(WITHOUT_EFFECT_NAMES.split())


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """scale: what B A is multiplied by. base: the model it was made for, a folder or hub id, as its
    file says.
    """

    folder: Path
    scale: float
    rank: int
    base: str | None


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder, from its adapter_config.json; ValueError names what cannot be merged
    exactly.
    """
    raw = read_object(folder / ADAPTER_CONFIG)
    refused = [f"{name} {described(raw[name])}" for name in raw if not _is_plain(raw, name)]
    if refused:
        raise ValueError(
            f"{raw.file}: only plain LoRA on linear layers is merged here, not "
            f"{', '.join(refused)}; merge it with peft "
            "(merge_and_unload, then save_pretrained) and import that folder"
        )
    raw.typed("peft_type", TEXT)
    rank = raw.typed("r", WHOLE, least=1)
    alpha = float(raw.typed("lora_alpha", NUMBER))
    rooted = raw.typed("use_rslora", FLAG + OR_NULL, False)
    base = raw.typed("base_model_name_or_path", TEXT + OR_NULL, None)
    return Adapter(
        folder=folder, scale=alpha / (math.sqrt(rank) if rooted else rank), rank=rank, base=base
    )


def _is_plain(raw: JsonObject, name: str) -> bool:
    """Whether a field is one of plain LoRA: known, or off."""
    if name in HONOURED_AS:
        return any(
            raw[name] == value and type(raw[name]) is type(value) for value in HONOURED_AS[name]
        )
    return name in WITHOUT_EFFECT or not raw[name]


def merge_adapter(tensors: dict[str, Tensor], adapter: Adapter) -> int:
    """How many matrices changed: `tensors`, float32 by the names of their files, are changed in
    place.

    ValueError names a factor that has no partner, no matrix, or another shape than its matrix.
    """
    file = adapter.folder / ADAPTER_WEIGHTS
    if not file.is_file():
        pickle = (adapter.folder / ADAPTER_PICKLE).is_file()
        hint = (
            f"; {ADAPTER_PICKLE} is a pickle, which may run code: save it as safetensors first"
            if pickle
            else ""
        )
        raise FileNotFoundError(
            f"{adapter.folder} lacks the adapter's weights, {ADAPTER_WEIGHTS}{hint}"
        )
    factors = read_safetensors(file)
    targets = {name.removesuffix(end) for name in factors for end in FACTORS if name.endswith(end)}
    odd = sorted(
        name for name in factors if not name.endswith(FACTORS) or not name.startswith(PREFIX)
    )
    odd += sorted(
        target + end for target in targets for end in FACTORS if target + end not in factors
    )
    if odd or not targets:
        problem = (
            f"{odd[0]} is no factor of a linear layer, or lacks its partner"
            if odd
            else "no factors at all"
        )
        raise ValueError(f"{file}: {problem}; only plain LoRA is merged here")
    for target in sorted(targets):
        name = target.removeprefix(PREFIX) + ".weight"
        down, up = (factors[target + end] for end in FACTORS)
        if name not in tensors:
            tied = (
                "its output head is tied to the embedding"
                if name == "lm_head.weight"
                else "it is not its base model"
            )
            raise ValueError(f"{file}: {target} has no matrix {name} in the model beneath; {tied}")
        fits = down.dim() == up.dim() == 2 and (up.shape[0], down.shape[1]) == tuple(
            tensors[name].shape
        )
        if not fits or down.shape[0] != adapter.rank or up.shape[1] != adapter.rank:
            raise ValueError(
                f"{file}: {target} has factors of {tuple(up.shape)} and {tuple(down.shape)}, which "
                "do not make the "
                f"{tuple(tensors[name].shape)} of {name} at rank {adapter.rank}"
            )
        change = up.double() @ down.double()
        tensors[name] = (tensors[name].double() + adapter.scale * change).float()
    return len(targets)
