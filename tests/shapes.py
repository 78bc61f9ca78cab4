"""The small network of the tests: two layers of 32, two heads on one. A test names what differs."""

from dataclasses import replace
from typing import Any

from pocketlm.model.model_config import ModelConfig

SMALL = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=1e4,
)


def small(**changes: Any) -> ModelConfig:
    """The small network with these fields changed."""
    return replace(SMALL, **changes)
