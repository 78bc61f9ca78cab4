"""The optimizer and its schedule: AdamW as in the papers or Muon, linear warm-up, then linear or
cosine decay.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from pocketlm.model.attention import attention_case
from pocketlm.model.batch import Batch
from pocketlm.model.kernels.choose import ATTENTION, choose_kernel
from pocketlm.model.kernels.varlen import flash_attention
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCALE
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.head_kernels import HEAD_LOSSES, is_ours
from pocketlm.train.muon import Muon

ShardOver = Literal["node", "all"]
OnNonfinite = Literal["stop", "skip"]
# steps x parameters: 15 M for 670 steps, 18 minutes at 2,048 tokens a step on one core
LONG_TRAINING = 10**10
# Of the learning rate, for learned scales (our choice; ParetoQ's code takes all of it): the
# outermost level is -8 times the scale, so that it moves as fast as a weight. All of it learns
# worse (docs/log.md).
SCALE_LR_SHARE = 1 / 8
# Instruction levels without bfloat16 that these variables limit oneDNN and torch to
NO_BFLOAT16 = {
    "ONEDNN_MAX_CPU_ISA": (
        "SSE41",
        "AVX",
        "AVX2",
        "AVX2_VNNI",
        "AVX2_VNNI_2",
        "AVX512_CORE",
        "AVX512_CORE_VNNI",
    ),
    "ATEN_CPU_CAPABILITY": ("DEFAULT", "AVX2"),
}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move. Defaults are R1's pre-training (section 3.2) where it names them."""

    lr: float  # the peak
    num_steps: int
    warmup_steps: int
    # both papers: Adam; Muon learns a small network in fewer tokens
    optimizer: Literal["adamw", "muon"] = "adamw"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of matrix products, Muon's too; the rest is float32
    )
    # on several nodes: each holds all weights, or all nodes together hold them once
    shard_over: ShardOver = "node"
    # how attention is computed (model/kernels); auto: the fastest kernel that serves
    attention: Literal["auto", "sdpa", "flex", "varlen", "blockwise"] = "auto"
    # whose code computes cross-entropy (train/head_kernels.py); auto and chunked: ours
    head_loss: Literal["auto", "chunked", "torch", "liger", "cce"] = "auto"
    # each block by torch.compile; auto: where it pays
    compile: Literal["auto", "yes", "no"] = "auto"
    # activation checkpointing: every n-th block is recomputed in the backward pass; 0: none
    checkpoint_every_n_blocks: int = field(default=0, metadata={"was": "recompute_every"})
    schedule: Literal["linear", "cosine"] = "linear"  # R1: linear; Pro phase 1: cosine
    # of the peak, reached after the last step: R1 0.1 in pre-training, 0 in mid-training and SFT
    final_lr_share: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # not stated in R1; the default of the trainer its scripts use
    on_nonfinite: OnNonfinite = "stop"  # at a loss or gradient that is not finite (our choice)

    def summary(self) -> str:
        return (
            f"lr {self.lr:g} ({self.optimizer}, {self.schedule} to {self.final_lr_share:g}x, "
            f"warm-up {self.warmup_steps:,})"
        )

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps {self.num_steps} must be at least 1")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be below num_steps {self.num_steps}"
            )
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown; known: linear, cosine")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; known: adamw, muon")
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype {self.compute_dtype!r} is unknown; known: auto, float32, bfloat16"
            )
        if self.attention not in ATTENTION:
            raise ValueError(
                f"attention {self.attention!r} is unknown; known: {', '.join(ATTENTION)}"
            )
        if self.head_loss not in HEAD_LOSSES:
            raise ValueError(
                f"head_loss {self.head_loss!r} is unknown; known: {', '.join(HEAD_LOSSES)}"
            )
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite {self.on_nonfinite!r} is unknown; known: stop, skip")
        if self.shard_over not in ("node", "all"):
            raise ValueError(f"shard_over {self.shard_over!r} is unknown; known: node, all")
        if self.compile not in ("auto", "yes", "no"):
            raise ValueError(f"compile {self.compile!r} is unknown; known: auto, yes, no")
        if self.checkpoint_every_n_blocks < 0:
            raise ValueError(
                f"checkpoint_every_n_blocks {self.checkpoint_every_n_blocks} must not be negative; "
                "0 turns activation checkpointing off"
            )
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr} must be positive")


def make_optimizers(model: Transformer, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices inside the blocks and AdamW for the rest.

    Weight decay falls on matrices alone: norms and the scales of learned ranges are no matrices,
    and pulling them to zero is no regularisation. Muon's update is scaled to AdamW's usual size
    ("match_rms_adamw"), so one learning rate serves both. A group's `lr_share` is what it takes of
    that rate.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in named if p.dim() >= 2 and not name.endswith(SCALE)]
    inner = [p for name, p in matrices if "embed_tokens" not in name and "lm_head" not in name]
    by_muon = {id(p) for p in inner} if config.optimizer == "muon" else set()
    decayed = {id(p) for _, p in matrices}
    rest = [(name, p) for name, p in named if id(p) not in by_muon]
    scales = [p for name, p in rest if name.endswith(SCALE)]
    norms = [p for name, p in rest if id(p) not in decayed and not name.endswith(SCALE)]
    groups = [
        {"params": [p for _, p in rest if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": 0.0},
        *([{"params": scales, "weight_decay": 0.0, "lr_share": SCALE_LR_SHARE}] if scales else []),
    ]
    adamw = torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )
    if config.optimizer == "adamw":
        return [adamw]
    dtype = product_dtype(config, next(model.parameters()).device) or torch.float32
    return [Muon(inner, lr=config.lr, weight_decay=config.weight_decay, dtype=dtype), adamw]


def product_dtype(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """What a training's matrix products run in: None for float32."""
    return dtype_of(config.compute_dtype, device)


def dtype_of(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of products that a config names, None for float32. "auto" takes bfloat16 where the
    hardware multiplies it.

    A processor without such instructions emulates bfloat16, several times slower than float32
    (docs/log.md), and so does one that the environment forbids to use them.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or multiplies_bfloat16() else None
    return torch.bfloat16 if name == "bfloat16" else None


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products, and the environment forbids
    them to neither oneDNN nor torch.
    """
    if any(os.environ.get(name, "").upper() in levels for name, levels in NO_BFLOAT16.items()):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compute_settings(model: Transformer, config: OptimConfig) -> ComputeSettings:
    """How a training of this model computes, on the device that it is on."""
    return ComputeSettings(
        dtype=product_dtype(config, next(model.parameters()).device),
        attention=config.attention,
        head_loss=config.head_loss,
        checkpoint_every_n_blocks=config.checkpoint_every_n_blocks,
        compile=config.compile == "yes" or (config.compile == "auto" and pays(model, config)),
    )


@contextmanager
def computing(model: Transformer, settings: ComputeSettings) -> Iterator[None]:
    """A block in which the model computes so; afterwards as before."""
    before, model.compute = model.compute, settings
    try:
        yield
    finally:
        model.compute = before


def describe(
    settings: ComputeSettings, model: ModelConfig, batch: Batch, device: torch.device
) -> str:
    """How batches like this one are computed, for a progress line: dtype of products, whether
    compiled, and the attention kernel of each kind of layer. ValueError where the kernel that the
    config names cannot serve them.
    """
    dtype = settings.dtype or torch.float32
    rows, num_tokens = batch.input_ids.shape
    case = attention_case(model, rows, num_tokens, device, dtype)
    windows = dict.fromkeys(model.window(layer) for layer in range(model.num_hidden_layers))
    packed = batch.doc_ids is not None
    cases = [replace(case, window=window, packed=packed) for window in windows]
    kernels = dict.fromkeys(choose_kernel(settings.attention, case).kernel.name for case in cases)
    attention = "+".join(kernels)
    if "varlen" in kernels and device.type == "cuda":
        attention = attention.replace("varlen", f"varlen ({flash_attention()})")
    words = [str(dtype).removeprefix("torch."), attention]
    words += [] if is_ours(settings.head_loss) else [f"loss by {settings.head_loss}"]
    return ", ".join(words + (["compiled"] if settings.compile else []))


def pays(model: Transformer, config: OptimConfig) -> bool:
    """Whether compiling gains more time than it takes: on a GPU; on a processor in long trainings,
    where it has a compiler.

    It saves a tenth of a step there (docs/benchmarks.md) and takes some 20 s, whatever the size.
    """
    if next(model.parameters()).is_cuda:
        return True
    size = sum(parameter.numel() for parameter in model.parameters())
    return config.num_steps * size >= LONG_TRAINING and any(map(shutil.which, ("g++", "clang++")))


def lr_at(config: OptimConfig, step: int) -> float:
    """The learning rate of step `step` (0-based): it reaches `lr` after the warm-up and
    final_lr_share x lr at the end.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    height = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * height)
