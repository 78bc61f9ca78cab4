"""Published trainings: what network, on what, how fast. The plan's speed is fitted to FITTED and
tried on HELD_OUT.
"""

from dataclasses import dataclass, replace

from pocketlm.estimate.devices import A100, GB, H100, Device
from pocketlm.estimate.work import Work
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.train.optim import OptimConfig

STEP = OptimConfig(lr=1.0, num_steps=1, warmup_steps=0, final_lr_share=1.0)


@dataclass(frozen=True, kw_only=True)
class Published:
    """tokens_per_second: of one device. fused: compiled, or elementwise kernels fused by hand.
    days: of the whole training.
    """

    name: str
    work: Work
    device: Device
    count: int
    fused: bool
    tokens_per_second: float
    source: str
    days: float | None = None


def dense(
    layers: int, width: int, feed_forward: int, heads: int, kv_heads: int, vocab_size: int, **more
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        max_position_embeddings=262_144,
        rope_theta=1e4,
        **{"use_qk_norm": False, **more},
    )


def on(model: ModelConfig, count: int, rows: int, seq_len: int, micro_batches: int = 1) -> Work:
    """A step of `count` devices that each take so many micro-batches of so many rows."""
    rows_per_step = count * rows * micro_batches
    return Work(
        model=model, optim=STEP, seq_len=seq_len, rows_per_step=rows_per_step, micro_batch_size=rows
    )


LLAMA_8B = dense(32, 4096, 14_336, 32, 8, 128_256, tie_word_embeddings=False)
MISTRAL_7B = dense(32, 4096, 14_336, 32, 8, 32_000, tie_word_embeddings=False)
SMOLLM3 = dense(36, 2048, 11_008, 16, 4, 128_256)
TINYLLAMA = dense(22, 2048, 5632, 32, 4, 32_000, tie_word_embeddings=False)
# nanochat's feed-forward has two matrices of four widths: as many weights as three of 8/3. Windows
# SSSL, halves of a row
NANOCHAT = {
    depth: dense(
        depth,
        64 * depth,
        64 * depth * 8 // 3,
        depth // 2,
        depth // 2,
        32_768,
        tie_word_embeddings=False,
        use_qk_norm=True,
        layer_types=tuple(
            "full_attention" if i % 4 == 3 or i == depth - 1 else "sliding_attention"
            for i in range(depth)
        ),
        sliding_window=1024,
    )
    for depth in (24, 26)
}
# 96 GB of HBM2e at 500 W: the page gives the bandwidth, and says the peak lies between SXM's 989
# and NVL's 835 TFLOP/s
GRAND_TETON = replace(
    H100, name="h100 of 500 W", flops=912e12, memory_bytes=96 * GB, bandwidth=2400 * GB
)
TORCHTITAN = {
    "device": GRAND_TETON,
    "source": "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3",
}
A100_40 = replace(A100, name="a100 of 40 GB", memory_bytes=40 * GB, bandwidth=1555 * GB)


def torchtitan(count: int, fused: bool, tokens_per_second: float) -> Published:
    name = f"torchtitan, Llama 3.1 8B, {count} H100{', compiled' if fused else ''}"
    work = on(LLAMA_8B, count, 2, 8192)
    # "selective": every other product is computed twice
    work = replace(work, optim=replace(STEP, checkpoint_every_n_blocks=2, shard_over="all"))
    return Published(
        name=name,
        work=work,
        count=count,
        fused=fused,
        tokens_per_second=tokens_per_second,
        **TORCHTITAN,
    )


FITTED = (
    torchtitan(8, False, 5762),
    torchtitan(8, True, 6667),
    torchtitan(128, False, 5605),
    torchtitan(128, True, 6514),
    Published(
        name="nanochat d24, 8 H100",
        work=on(NANOCHAT[24], 8, 16, 2048, 2),
        device=H100,
        count=8,
        fused=True,
        tokens_per_second=16_704 * 524_288 / 10_949.5 / 8,
        source="nanochat, dev/LEADERBOARD.md, run 1: 16,704 steps of 524,288 tokens in 10,949 s",
    ),
    Published(
        name="nanochat d26, 8 H100",
        work=on(NANOCHAT[26], 8, 16, 2048, 2),
        device=H100,
        count=8,
        fused=True,
        tokens_per_second=630_000 / 8,
        source="nanochat, dev/LOG.md, 2026-02-02: 630k tokens/s in bfloat16",
    ),
    Published(
        name="SmolLM3 3B, 384 H100",
        work=on(SMOLLM3, 384, 2, 4096),
        device=H100,
        count=384,
        fused=False,
        tokens_per_second=14_000,
        source=(
            "SmolLM3 training figure: 14k tokens/s a GPU, 29.4 % MFU, nanotron (its tensor "
            "parallelism of 2 left out here)"
        ),
    ),
    Published(
        name="TinyLlama 1.1B, 16 A100",
        work=on(TINYLLAMA, 16, 8, 2048),
        device=A100_40,
        count=16,
        fused=True,
        tokens_per_second=24_000,
        source=(
            "TinyLlama README: 24k tokens/s per A100-40G, 16k tokens a GPU, fused norm, SwiGLU, "
            "rotary and loss"
        ),
    ),
    Published(
        name="Fast-LLM Mistral 7B, 32 H100",
        work=on(MISTRAL_7B, 32, 1, 8192),
        device=H100,
        count=32,
        fused=True,
        tokens_per_second=9800,
        source="Fast-LLM README: 9,800 tokens/s/H100, micro-batch 8k tokens, batch 256k",
    ),
)


def mobilellm(size: str, days: float) -> Published:
    """2024: a trillion tokens on 32 A100."""
    return Published(
        name=f"MobileLLM-{size.upper()} (2024), 32 A100",
        work=on(PRESETS[f"mobilellm-{size}"], 32, 32, 2048),
        device=A100,
        count=32,
        fused=False,
        tokens_per_second=1e12 / (days * 86_400 * 32),
        days=days,
        source="MobileLLM README: days for 1T tokens on 32 A100 80G; its script has 32 rows a GPU",
    )


HELD_OUT = (
    Published(
        name="MobileLLM-R1-950M phase 1, 128 GPUs",
        work=on(PRESETS["r1-950m"], 128, 16, 2048),
        device=H100,  # the paper names no GPU; no other of its time does so much
        count=128,
        fused=False,
        tokens_per_second=500_000 * 16 * 2048 / (4.5 * 86_400),
        days=4.5,
        source=(
            "MobileLLM-R1, table 2: 500k steps of 16 rows a GPU in 4 to 5 days; efficiency was no "
            "concern, says its README"
        ),
    ),
    *(mobilellm(*row) for row in (("125m", 3), ("350m", 6), ("600m", 8), ("1b", 12), ("1.5b", 18))),
)
