"""What a live teacher costs: a distillation step beside a plain step of the student and a forward
pass of the teacher.

    python benchmarks/distillation_step.py

Random weights, one row of tokens, AdamW, products in bfloat16 where the processor has them. Medians
of interleaved repeats; on one thread seconds are the processor's. Prints one JSON line a case:
`times` is the distillation step over the sum of the two.
"""

import argparse
import json
import time
from statistics import median

import torch

from pocketlm.model.batch import Batch
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.distill.teacher import Teacher, live_teacher
from pocketlm.train.loop import train_step
from pocketlm.train.losses import LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers, product_dtype

OPTIM = OptimConfig(lr=1e-4, num_steps=100, warmup_steps=1, final_lr_share=0.0)


def small(layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=16_384,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=64,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
    )


CASES = {  # student, teacher, tokens
    "15M from 60M": (small(6, 384), small(12, 640), 1024),
    "R1-140M from R1-360M": (PRESETS["r1-140m"], PRESETS["r1-360m"], 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.cases:
        print(json.dumps({"case": name, **measured(*CASES[name], arguments.repeats)}), flush=True)


def measured(
    student: ModelConfig, teacher: ModelConfig, tokens: int, repeats: int
) -> dict[str, float]:
    model, reader = Transformer(student), live_teacher(Transformer(teacher, seed=1), OPTIM)
    model.compute = ComputeSettings(dtype=product_dtype(OPTIM, torch.device("cpu")))
    optimizers = make_optimizers(model, OPTIM)
    ids = torch.randint(
        student.vocab_size, (1, tokens + 1), generator=torch.Generator().manual_seed(0)
    )
    batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])

    def step(loss_fn: LossFn) -> None:
        train_step(model, optimizers, [batch], loss_fn, 1e-4, 1.0, 0)

    work = {
        "student": lambda: step(next_token_loss),
        "teacher": lambda: all_logits(reader, batch),
        "together": lambda: step(distillation_loss(reader)),
    }
    seconds: dict[str, list[float]] = {each: [] for each in work}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for repeat in range(repeats + 1):
        for each, run in work.items():
            started = clock()
            run()
            if repeat:
                seconds[each].append(clock() - started)
    mid = {each: median(times) for each, times in seconds.items()}
    ratio = mid["together"] / (mid["student"] + mid["teacher"])
    return {
        "tokens": tokens,
        **{each: round(s, 3) for each, s in mid.items()},
        "times": round(ratio, 3),
    }


def all_logits(teacher: Teacher, batch: Batch) -> None:
    """The teacher's whole forward pass: its logits, as a loss would take them."""
    with torch.no_grad():
        logits = teacher(batch)
        logits.block(slice(0, logits.vocab_size))


if __name__ == "__main__":
    main()
