"""Which of llama.cpp's networks computes one of ours exactly.

Shapes: E head width
"""

from dataclasses import replace

from torch import Tensor

from pocketlm.model.rope import rope_frequencies
from pocketlm.model.transformer import LOCAL, ModelConfig

TURNED = ("llama", "smollm3")  # whose RoPE turns neighbouring channels


def architecture(config: ModelConfig) -> str:
    """llama.cpp's architecture that computes exactly this network: the one place that chooses.

    Biases on q, k and v -> `qwen2`, which has no windows. Layers without RoPE -> `smollm3`, which
    leaves it out of every fourth. Local layers ->
    `step35`: the only graph there with per-layer windows and plain RMSNorm, SwiGLU
    and RoPE. All global with QK-norm -> `qwen3`. All global without -> `llama`, whose RoPE turns
    neighbouring channels.
    """
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
