"""The layouts that checkpoints of this network lie in on disk: which config.json, which tensor
names, which row order.

    llama         Llama, SmolLM2, Llama 3.2, MobileLLM 2024's own code       no QK-norm, every layer
    global
    qwen2         Qwen2 and 2.5                                               biases on q, k and v
    smollm3       SmolLM3                                                    layers without RoPE
    gemma3_text   Gemma 3's text models (270M, 1B)                           its own blocks, windows
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
from dataclasses import dataclass

from torch import Tensor

from pocketlm.model.config_reading import (
    read_cwm,
    read_gemma3,
    read_llama,
    read_mobilellm,
    read_qwen2,
    read_qwen3,
    read_smollm3,
)
from pocketlm.model.config_writing import (
    Raw,
    cannot,
    write_cwm,
    write_gemma3,
    write_llama,
    write_llama4_text,
    write_mobilellm,
    write_pro,
    write_qwen2,
    write_qwen3,
    write_smollm3,
)
from pocketlm.model.json_shape import OR_NULL, TEXTS, JsonObject, described
from pocketlm.model.llama4_reading import read_llama4_text, read_pro
from pocketlm.model.model_config import LOCAL, ModelConfig

PRO_ARCHITECTURE = "MobileLLMP1ForCausalLM"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """read: the ModelConfig of a config.json. write: what that config.json says beside the common
    fields. biases, nope, gemma: whether it holds those of q, k and v, layers without RoPE, Gemma's
    blocks. interleaved: RoPE turns channels 2i and 2i + 1 of a head, where ours turns i and i +
    E/2. names: (ours, its own) of parts of tensor names. norm_offset: what its weights of norms
    lack.
    """

    name: str
    architecture: str
    read: Callable[[JsonObject], ModelConfig]
    write: Callable[[ModelConfig], Raw]
    biases: bool = False
    nope: bool = False
    gemma: bool = False
    interleaved: bool = False
    names: tuple[tuple[str, str], ...] = ()
    norm_offset: float = 0.0

    def config_fields(self, config: ModelConfig) -> Raw:
        """What its config.json says beside the common fields; ValueError where it cannot hold this
        network.
        """
        biases = "its queries, keys and values have biases"
        cannot(self.name, holds=self.biases or not config.qkv_bias, what=biases)
        rope = "it has layers without RoPE"
        cannot(self.name, holds=self.nope or not config.no_rope_layers, what=rope)
        blocks = "its blocks are Gemma's"
        cannot(self.name, holds=self.gemma or not config.gemma_blocks, what=blocks)
        return self.write(config)

    @property
    def changes_tensors(self) -> bool:
        """Whether some of its tensors are other than ours."""
        return self.interleaved or self.norm_offset != 0

    def name_in(self, name: str) -> str:
        """Our name of one of its tensors."""
        for part, stored in reversed(self.names):
            name = name.replace(stored, part)
        return name

    def name_out(self, name: str) -> str:
        """Its name of one of our tensors."""
        for part, stored in self.names:
            name = name.replace(part, stored)
        return name

    def tensor_in(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Its tensor, by our name, as ours: rows in our order, norms whole."""
        if self.interleaved and _is_turned(name):
            return half_split(tensor, config.head_dim)
        return tensor + self.norm_offset if self.norm_offset and _is_norm(name) else tensor

    def tensor_out(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Our tensor as its own: the inverse of `tensor_in`."""
        if self.interleaved and _is_turned(name):
            return interleaved(tensor, config.head_dim)
        return tensor - self.norm_offset if self.norm_offset and _is_norm(name) else tensor


def _is_turned(name: str) -> bool:
    return (
        re.search(r"self_attn\.[qk]_proj\.(weight|weight_fake_quantizer\.scale)$", name) is not None
    )


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


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
    if config.gemma_blocks:
        return LAYOUTS["gemma3_text"]
    if config.use_qk_norm:
        return LAYOUTS["qwen3"]
    if config.qkv_bias:
        return LAYOUTS["qwen2"]
    if config.no_rope_layers:
        return LAYOUTS["smollm3"]
    return LAYOUTS["cwm" if LOCAL in config.layer_types else "llama"]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(name="llama", architecture="LlamaForCausalLM", read=read_llama, write=write_llama),
        Layout(
            name="qwen2",
            architecture="Qwen2ForCausalLM",
            read=read_qwen2,
            write=write_qwen2,
            biases=True,
        ),
        Layout(
            name="smollm3",
            architecture="SmolLM3ForCausalLM",
            read=read_smollm3,
            write=write_smollm3,
            nope=True,
        ),
        Layout(
            name="gemma3_text",
            architecture="Gemma3ForCausalLM",
            read=read_gemma3,
            write=write_gemma3,
            gemma=True,
            names=(
                (".post_attention_layernorm.", ".pre_feedforward_layernorm."),
                (".self_attn.out_norm.", ".post_attention_layernorm."),
                (".mlp.out_norm.", ".post_feedforward_layernorm."),
            ),
            norm_offset=1.0,
        ),
        Layout(name="qwen3", architecture="Qwen3ForCausalLM", read=read_qwen3, write=write_qwen3),
        Layout(name="cwm", architecture="CwmForCausalLM", read=read_cwm, write=write_cwm),
        Layout(
            name="llama4_text",
            architecture="Llama4ForCausalLM",
            read=read_llama4_text,
            write=write_llama4_text,
            interleaved=True,
            names=((".mlp.", ".feed_forward."),),
        ),
        Layout(
            name="mobilellm",
            architecture="MobileLLMForCausalLM",
            read=read_mobilellm,
            write=write_mobilellm,
        ),
        Layout(
            name="mobilellm-pro",
            architecture=PRO_ARCHITECTURE,
            read=read_pro,
            write=write_pro,
            interleaved=True,
            names=((".mlp.", ".feed_forward."),),
        ),
    )
}
