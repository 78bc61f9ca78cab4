"""Memory of training: the estimate that a stage makes before its first step, against the peak of a
process that trains.

    python benchmarks/memory.py                   # a line of JSON for each case, then the largest
    error python benchmarks/memory.py --only 15m
    python benchmarks/memory.py --as-it-is        # with the C library's usual settings

Each case is a process of its own that takes two steps of the training loop on random tokens and
writes its state, as a stage does. Measured is its highest resident memory less what it held once
everything was imported and a tiny network had trained. Error: estimate over measurement, less 1.

The C library is told to hand freed memory back. By itself glibc keeps much of it, which the
estimate does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pocketlm.eval.hardware import memory_bytes, peak_memory_bytes
from pocketlm.model.batch import Batch
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import R1_140M
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.loop import train
from pocketlm.train.losses import distillation_loss, next_token_loss
from pocketlm.train.memory import training_memory
from pocketlm.train.optim import OptimConfig

M15 = replace(
    R1_140M,
    vocab_size=32_000,
    hidden_size=288,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    head_dim=48,
)
LOCAL = replace(M15, layer_types=ModelConfig.local_global(6), sliding_window=128)
ADAMW = OptimConfig(lr=1e-4, num_steps=2, warmup_steps=0, final_lr_share=1.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    model: ModelConfig
    rows: int
    micro_batches: int = 1
    seq_len: int = 512
    optim: OptimConfig = ADAMW
    teacher: ModelConfig | None = None
    scheme: str | None = None
    masked: bool = False
    saves: bool = False


CASES = {
    **{f"15m x{rows}": Case(model=M15, rows=rows) for rows in (1, 4, 8)},
    "15m x8, float32": Case(model=M15, rows=8, optim=replace(ADAMW, compute_dtype="float32")),
    "15m x8, local and global": Case(model=LOCAL, rows=8),
    "15m x8, documents apart": Case(model=M15, rows=8, masked=True),
    "15m x4 twice a step, Muon": Case(
        model=M15, rows=4, micro_batches=2, optim=replace(ADAMW, optimizer="muon")
    ),
    "15m x8, its like as teacher": Case(model=M15, rows=8, teacher=M15),
    "15m x8, states written on the way": Case(model=M15, rows=8, saves=True),
    "15m x8, activation checkpointing": Case(
        model=M15, rows=8, optim=replace(ADAMW, checkpoint_every_n_blocks=1)
    ),
    "15m x8, QAT": Case(model=M15, rows=8, teacher=M15, scheme="int4_group32"),
    **{f"r1-140m x{rows}": Case(model=R1_140M, rows=rows) for rows in (1, 4, 8)},
    "r1-140m x1 twice a step": Case(model=R1_140M, rows=1, micro_batches=2),
    "r1-140m x4, its like as teacher": Case(model=R1_140M, rows=4, teacher=R1_140M),
    "r1-140m x4, QAT": Case(model=R1_140M, rows=4, teacher=R1_140M, scheme="int4_group32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases that begin so")
    parser.add_argument(
        "--as-it-is", action="store_true", help="leave the C library's settings alone"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(measured(CASES[arguments.child]))
        return
    errors = []
    environment = {
        **os.environ,
        **({} if arguments.as_it_is else {"MALLOC_TRIM_THRESHOLD_": "1000000"}),
    }
    for name, case in CASES.items():
        if not name.startswith(arguments.only):
            continue
        command = [sys.executable, __file__, "--child", name]
        child = subprocess.run(command, capture_output=True, text=True, env=environment)
        if child.returncode:
            raise SystemExit(child.stderr)
        peak, estimate = int(child.stdout), estimated(case)
        errors.append(estimate / peak - 1)
        gib = {"estimate_gib": estimate / 2**30, "measured_gib": peak / 2**30}
        figures = {**gib, "error": errors[-1]}
        print(
            json.dumps({"case": name, **{key: round(value, 3) for key, value in figures.items()}}),
            flush=True,
        )
    print(f"from {min(errors):+.1%} to {max(errors):+.1%}")


def estimated(case: Case) -> int:
    return training_memory(
        case.model,
        case.optim,
        rows=case.rows,
        seq_len=case.seq_len,
        accumulates=case.micro_batches > 1,
        masked=case.masked,
        saves=True,
        teacher=case.teacher,
        on_grid=case.scheme is not None,
    ).peak


def measured(case: Case) -> int:
    """Bytes at the peak of two steps, beside what a process that trained a tiny network holds."""
    steps(
        replace(
            case,
            model=shrunk(case.model),
            teacher=case.teacher and shrunk(case.teacher),
            seq_len=32,
        )
    )
    before = memory_bytes()
    steps(case)
    return peak_memory_bytes() - before


def shrunk(shape: ModelConfig) -> ModelConfig:
    return replace(shape, vocab_size=512, num_hidden_layers=1, layer_types=shape.layer_types[:1])


def steps(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(case.model)
    if case.scheme:
        prepare(model, SCHEMES[case.scheme])
    loss_fn = next_token_loss
    if case.teacher:
        loss_fn = distillation_loss(live_teacher(Transformer(case.teacher), case.optim))

    def batches(step: int) -> list[Batch]:
        return [batch(case, generator) for _ in range(case.micro_batches)]

    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            batches,
            loss_fn,
            case.optim,
            Path(folder),
            label="memory",
            save=SaveConfig(every_steps=1 if case.saves else 2),
        )


def batch(case: Case, generator: torch.Generator) -> Batch:
    ids = torch.randint(case.model.vocab_size, (case.rows, case.seq_len), generator=generator)
    if not case.masked:
        return Batch(input_ids=ids, labels=ids)
    places = torch.arange(case.seq_len).expand(case.rows, -1)
    return Batch(input_ids=ids, labels=ids, positions=places % 64, doc_ids=places // 64)


if __name__ == "__main__":
    main()
