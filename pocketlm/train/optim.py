"""The optimizer and its schedule, as the papers use them: AdamW, linear warm-up, then linear or cosine decay."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from pocketlm.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move. Defaults are R1's pre-training (section 3.2) where it names them."""

    lr: float  # the peak
    num_steps: int
    warmup_steps: int
    schedule: Literal["linear", "cosine"] = "linear"  # R1: linear; Pro phase 1: cosine
    final_lr_share: float  # of the peak, at the last step: R1 0.1 in pre-training, 0 in mid-training and SFT
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # not stated in R1; the default of the trainer its scripts use

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps {self.num_steps} must be at least 1")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below num_steps {self.num_steps}")
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown; known: linear, cosine")
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr} must be positive")


def make_optimizer(model: Transformer, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices alone: norms are scales, and pulling them to zero is no regularisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def lr_at(config: OptimConfig, step: int) -> float:
    """The learning rate of step `step` (0-based): it reaches `lr` after the warm-up and final_lr_share x lr at the end."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * left)
