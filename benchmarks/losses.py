"""Losses over large vocabularies: memory beside inputs, weights and gradients, and speed beside the
loss that holds its logits.

    python benchmarks/losses.py                       # memory at 8,192 tokens, speed at 1,024; a
    line of JSON each python benchmarks/losses.py --threads 2 --only speed

Memory is the highest resident memory of a child process while it takes one loss and its gradients,
less what it held before and less the two gradients (Linux counts it; the C library is told to hand
freed memory back, else it keeps some GB of freed blocks for later). Speed: medians of interleaved
repeats, in bfloat16 products, of the loss and its gradients against the plain one; above 1 ours is
faster. On one thread seconds are the processor's, not the wall's, so that other work on the machine
counts little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.train.lazy_logits import LazyLogits
from pocketlm.train.vocab_loss import head_loss

SHAPES = {"R1-140M": (128_256, 576), "R1-950M": (128_256, 1536), "Pro": (202_048, 1280)}
KINDS = ("cross-entropy", "distillation")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("memory", "speed"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--tokens", type=int, help="of both; default 8,192 for memory, 1,024 for speed"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(extra_memory(*arguments.child, arguments.tokens))
        return
    for shape in arguments.shapes:
        for kind in KINDS:
            if arguments.only != "speed":
                command = [
                    sys.executable,
                    __file__,
                    "--child",
                    shape,
                    kind,
                    "--tokens",
                    str(arguments.tokens or 8192),
                ]
                command += ["--threads", str(arguments.threads)]
                environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1000000"}
                child = subprocess.run(
                    command, capture_output=True, text=True, check=True, env=environment
                )
                show(
                    shape,
                    kind,
                    tokens=arguments.tokens or 8192,
                    extra_gib=round(int(child.stdout) / 2**30, 3),
                )
            if arguments.only != "memory":
                tokens = arguments.tokens or 1024
                show(shape, kind, tokens=tokens, **speed(shape, kind, tokens, arguments.repeats))


def task(shape: str, kind: str, tokens: int) -> tuple[Tensor, Tensor, Tensor, LazyLogits | None]:
    """(x, weight, labels, teacher): the teacher as wide as the model."""
    vocab_size, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator).mul_(0.02)
    labels = torch.randint(vocab_size, (tokens,), generator=generator)
    taught = LazyLogits(torch.randn(tokens, width, generator=generator), weight, torch.bfloat16)
    return (
        x.requires_grad_(),
        weight.requires_grad_(),
        labels,
        taught if kind == "distillation" else None,
    )


def ours(x: Tensor, weight: Tensor, labels: Tensor, teacher: LazyLogits | None) -> Tensor:
    return head_loss(
        LazyLogits(x, weight, torch.bfloat16),
        labels=labels,
        teacher=teacher,
        label_share=0.0 if teacher else 1.0,
    )


def plain(x: Tensor, weight: Tensor, labels: Tensor, teacher: LazyLogits | None) -> Tensor:
    logits = F.linear(x.bfloat16(), weight.bfloat16()).float()
    if teacher is None:
        return F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        assert teacher.weight is not None
        taught = F.linear(teacher.x.bfloat16(), teacher.weight.bfloat16()).float().log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), taught, reduction="sum", log_target=True)


def extra_memory(shape: str, kind: str, tokens: int) -> int:
    x, weight, labels, teacher = task(shape, kind, tokens)
    small = LazyLogits(
        x[:8].detach().requires_grad_(), weight[:64].detach().requires_grad_(), torch.bfloat16
    )
    # what a first product sets up is not the loss's
    head_loss(small, labels=labels[:8] % 64).backward()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    ours(x, weight, labels, teacher).backward()
    return resident("VmHWM") - before - 4 * (x.numel() + weight.numel())


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def speed(shape: str, kind: str, tokens: int, repeats: int) -> dict[str, float]:
    x, weight, labels, teacher = task(shape, kind, tokens)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for repeat in range(repeats + 1):
        for name, loss in (("ours", ours), ("plain", plain)):
            x.grad = weight.grad = None
            started = clock()
            loss(x, weight, labels, teacher).backward()
            if repeat:
                seconds[name].append(clock() - started)
    mid = {name: median(times) for name, times in seconds.items()}
    return {
        "ours_seconds": round(mid["ours"], 2),
        "times_as_fast": round(mid["plain"] / mid["ours"], 2),
    }


def show(shape: str, kind: str, **figures: float) -> None:
    print(json.dumps({"shape": shape, "loss": kind, **figures}), flush=True)


if __name__ == "__main__":
    main()
