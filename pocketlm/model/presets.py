"""The published networks, by name: MobileLLM-R1, MobileLLM-Pro and MobileLLM 2024, each figure with
its source.

A test asserts the published number of parameters of every one.
"""

from dataclasses import replace

from pocketlm.model.model_config import ModelConfig

R1_140M = ModelConfig(
    vocab_size=128_256,  # R1, section 3.1: the Llama 3.2 tokenizer
    hidden_size=576,  # R1, table 1
    intermediate_size=2048,  # R1, table 1
    num_hidden_layers=15,  # R1, table 1
    num_attention_heads=9,  # R1, table 1
    num_key_value_heads=3,  # R1, table 1
    head_dim=64,  # width / heads, in all three sizes
    max_position_embeddings=4096,  # README: base models read 4k
    # not found; the final 8,000,000 divided by the 8 of the repository's sft/README
    rope_theta=1_000_000.0,
    use_qk_norm=True,  # R1, section 3.1; without weights, as the published parameter count shows
)
R1_360M = replace(  # R1, table 1
    R1_140M, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_key_value_heads=4
)
R1_950M = replace(  # R1, table 1
    R1_140M,
    hidden_size=1536,
    intermediate_size=6144,
    num_hidden_layers=22,
    num_attention_heads=24,
    num_key_value_heads=6,
)

PRO = ModelConfig(
    vocab_size=202_048,  # config.json: the Llama 4 tokenizer
    hidden_size=1280,  # Pro, architecture
    intermediate_size=6144,  # Pro, architecture
    num_hidden_layers=30,  # Pro, architecture
    num_attention_heads=20,  # Pro, architecture
    num_key_value_heads=4,  # Pro, architecture
    head_dim=64,  # config.json
    max_position_embeddings=2048,  # phase 1: not found; R1, of the same group, trains on 2k
    rope_theta=500_000.0,  # not found
    # not found: the parameter count leaves room for none with weights; R1's has no weights either
    use_qk_norm=True,
    # config.json: global at 0, 4, ..., 28 and 29; 9 of 30
    layer_types=ModelConfig.local_global(30),
    sliding_window=512,  # Pro, architecture
)

MOBILELLM_125M = ModelConfig(  # the repository's configs/125M/config.json, as all five sizes
    vocab_size=32_000,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=2048,
    rope_theta=10_000.0,
    use_qk_norm=False,
)


def _mobilellm(layers: int, heads: int, kv_heads: int, intermediate_size: int) -> ModelConfig:
    return replace(
        MOBILELLM_125M,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=heads * 64,
        intermediate_size=intermediate_size,
    )


MOBILELLM_350M = _mobilellm(32, 15, 5, 2560)

PRESETS = {
    "r1-140m": R1_140M,
    "r1-360m": R1_360M,
    "r1-950m": R1_950M,
    "pro": PRO,
    "mobilellm-125m": MOBILELLM_125M,
    "mobilellm-350m": MOBILELLM_350M,
    "mobilellm-600m": _mobilellm(40, 18, 6, 3072),
    "mobilellm-1b": _mobilellm(54, 20, 5, 3584),
    "mobilellm-1.5b": _mobilellm(54, 25, 5, 4352),
    # MobileLLM 2024: immediate block-wise sharing
    "mobilellm-ls-125m": replace(MOBILELLM_125M, layer_repeats=2),
    "mobilellm-ls-350m": replace(MOBILELLM_350M, layer_repeats=2),
}
