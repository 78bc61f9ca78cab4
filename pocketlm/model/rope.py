"""Rotary position embeddings (RoPE), with Llama 3's scaling for longer contexts.

Shapes: B batch, T tokens, H heads, E head width
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's slower rotation of the slow channels (`rope_type` "llama3"): how it reads further
    than it was trained.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope_scaling: high_freq_factor {self.high_freq_factor} must exceed "
                f"low_freq_factor {self.low_freq_factor}"
            )


class RopeConfig(Protocol):
    """The fields of a network's config that its rotations depend on."""

    @property
    def head_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rope_scaling(self) -> RopeScaling | None: ...


class LocalRopeConfig(RopeConfig, Protocol):
    """The same, and that of local layers."""

    @property
    def rope_local_base_freq(self) -> float | None: ...


def rope_frequencies(config: RopeConfig, device: torch.device | None = None) -> Tensor:
    """Radians a position, float32 [E / 2], of each pair of channels: theta ** (-2i / E), scaled as
    config says.

    Llama 3's scaling divides the frequency of a channel that turns fewer than low_freq_factor times
    in the original window by `factor`, leaves one alone that turns more than high_freq_factor
    times, and goes over smoothly between.
    """
    frequency = _plain_frequencies(config.head_dim, config.rope_theta, device)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return frequency * kept + frequency / scaling.factor * (1 - kept)


def local_rope_frequencies(config: LocalRopeConfig, device: torch.device | None = None) -> Tensor:
    """The same of the local layers: where rope_local_base_freq is set it is their theta, and
    nothing scales it (Gemma 3).
    """
    if config.rope_local_base_freq is None:
        return rope_frequencies(config, device)
    return _plain_frequencies(config.head_dim, config.rope_local_base_freq, device)


def _plain_frequencies(head_dim: int, theta: float, device: torch.device | None) -> Tensor:
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return theta**-exponent


def rope_angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, E] of the rotary angles, in float32, in the half-split layout of Hugging
    Face's Llama.
    """
    angle = positions[:, :, None].float() * frequencies
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, H, E] turned by the angles [B, T, E] of its tokens."""
    first, second = x.chunk(2, -1)
    return x * cos[:, :, None] + torch.cat([-second, first], -1) * sin[:, :, None]
