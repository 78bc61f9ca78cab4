"""Batches: how long they take to make, beside the training step that they are made for.

    python benchmarks/loading.py 15m
    python benchmarks/loading.py r1-140m --seq-len 2048

Rows of text (a shard of random documents of some hundreds of tokens) and of packed conversations;
medians of single steps on one thread. `share` is loader seconds / step seconds: below 1 a step
never waits, as its batches are made while the step before it runs.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from training import LR, SHAPES

from pocketlm.data.batches import BatchPlan, ConversationRows, Rows, TextRows, make_batches
from pocketlm.data.shards import write_shard
from pocketlm.model.transformer import Transformer
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, compute_settings, make_optimizers

DOCUMENTS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument(
        "--steps", type=int, default=3, help="of training; the loader's are 20 times as many"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = SHAPES[arguments.shape]
    config = OptimConfig(
        lr=LR,
        num_steps=1,
        warmup_steps=0,
        final_lr_share=1.0,
        compute_dtype="bfloat16",
        compile="yes",
    )
    model = Transformer(shape).train()
    optimizers = make_optimizers(model, config)
    model.compute = compute_settings(model, config)
    layout = BatchPlan(
        seq_len=arguments.seq_len,
        rows_per_step=arguments.rows,
        micro_batch_size=arguments.rows,
        seed=0,
    )
    with TemporaryDirectory() as folder:
        for name, rows in sources(Path(folder), shape.vocab_size, arguments.seq_len).items():
            batches = make_batches({name: rows}, {name: 1.0}, layout, separate_documents=True)
            loader, steps = [], []
            for step in range(20 * arguments.steps):
                started = process_time()
                batches(step)
                loader.append(process_time() - started)
            for step in range(arguments.steps + 1):
                made = batches(step)
                started = process_time()
                train_step(model, optimizers, made, next_token_loss, LR, 1.0, step)
                steps.append(process_time() - started)
            own, whole = median(loader), median(steps[1:])
            told = {"shape": arguments.shape, "rows": name, "loader_seconds": round(own, 5)}
            told |= {"step_seconds": round(whole, 3), "share": round(own / whole, 5)}
            print(
                json.dumps(told | {"tokens_a_step": arguments.rows * arguments.seq_len}), flush=True
            )


def sources(folder: Path, vocab_size: int, seq_len: int) -> dict[str, Rows]:
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, vocab_size, n) for n in draw.integers(50, 700, DOCUMENTS)]
    shard = write_shard(folder, "train", documents, vocab_size=vocab_size)
    short = [
        (ids[:seq_len].tolist(), [True] * min(len(ids), seq_len))
        for ids in documents[: DOCUMENTS // 4]
    ]
    return {
        "text": TextRows(shard, seq_len, 0),
        "conversations": ConversationRows(short, seq_len, 0),
    }


if __name__ == "__main__":
    main()
