"""Which of llama.cpp's networks computes one of ours exactly.

Shapes: E head width
"""

from dataclasses import replace

from torch import Tensor

from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.rope import rope_frequencies

GEMMA_27B = 62  # layers, by which llama.cpp knows it
GEMMA_LOCAL_THETA = 1e4  # of `gemma3`, where the file says nothing
TURNED = ("llama", "smollm3")  # whose RoPE turns neighbouring channels


def architecture(config: ModelConfig) -> str:
    """llama.cpp's architecture that computes exactly this network: the one place that chooses.

    Gemma's blocks -> `gemma3`, whose every sixth layer is global. Biases on q, k and v ->
    `qwen2`, which has no windows. Layers without RoPE -> `smollm3`, which leaves it out of every
    fourth. Local layers -> `step35`: the only graph there with per-layer windows and plain RMSNorm,
    SwiGLU and RoPE. All global with QK-norm -> `qwen3`. All global without -> `llama`, whose RoPE
    turns neighbouring channels.
    """
    if config.gemma_blocks:
        _refuse_unlike_gemma(config)
        return "gemma3"
    if config.qkv_bias:
        if LOCAL in config.layer_types:
            raise ValueError(
                "llama.cpp's 'qwen2', which has biases on q, k and v, has no sliding windows"
            )
        if config.num_attention_heads * config.head_dim != config.hidden_size:
            raise ValueError(
                f"llama.cpp's 'qwen2' has heads of hidden_size / num_attention_heads; head_dim is "
                f"{config.head_dim}"
            )
        return "qwen2"
    if config.no_rope_layers:
        if LOCAL in config.layer_types:
            raise ValueError("llama.cpp's 'smollm3', which has layers without RoPE, has no windows")
        if config.no_rope_layers != smollm3_layers(config.num_hidden_layers):
            raise ValueError(
                "llama.cpp's 'smollm3' leaves RoPE out of every fourth layer, and nothing else: "
                f"no_rope_layers is {config.no_rope_layers}; export it to pte or hf"
            )
        return "smollm3"
    if LOCAL in config.layer_types:
        return "step35"
    return "qwen3" if config.use_qk_norm else "llama"


def _refuse_unlike_gemma(config: ModelConfig) -> None:
    if config.layer_types != gemma3_layers(config.num_hidden_layers):
        raise ValueError(
            "llama.cpp's 'gemma3' has a global layer after each five local ones, and nothing else: "
            f"layer_types is {config.layer_types}; export it to pte or hf"
        )
    if not config.tie_word_embeddings:
        raise ValueError("llama.cpp's 'gemma3' has a tied head, and this model's is its own")
    if config.num_hidden_layers == GEMMA_27B:
        raise ValueError(f"llama.cpp scales the queries of {GEMMA_27B} layers as Gemma 3 27B's")


def gemma3_layers(count: int) -> tuple[str, ...]:
    """The layer_types that llama.cpp's `gemma3` computes."""
    return tuple(LOCAL if (layer + 1) % 6 else GLOBAL for layer in range(count))


def smollm3_layers(count: int) -> tuple[int, ...]:
    """The no_rope_layers that llama.cpp's `smollm3` computes, whatever its file says."""
    return tuple(int((layer + 1) % 4 != 0) for layer in range(count))


def rope_divisors(config: ModelConfig) -> Tensor:
    """What llama.cpp divides each frequency of the plain RoPE by, float32 [E / 2]: Llama 3's
    scaling, as a tensor.

    Of its graphs that are written here only `llama` is known to read that tensor; others, which may
    compute without, are refused.
    """
    kind = architecture(config)
    if kind != "llama":
        raise ValueError(
            f"llama.cpp's {kind!r} has no Llama 3 rope_scaling, and would silently leave it out"
        )
    return rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)
