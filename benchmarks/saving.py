"""What a state costs the training loop: written while steps go on (ours), against waiting until it
is on disk.

    python benchmarks/saving.py                       # a 15M shape and R1-140M; a line of JSON each
    python benchmarks/saving.py --shape 15M --repeats 5 --out /somewhere/else

Steps of the three kinds (no save, save at once, save and wait) are interleaved; `step_seconds` is
the median of those without. An asynchronous save costs its copy and what it takes from the steps
that run beside it until it is on disk, all of which is counted; a synchronous one costs the whole
of its writing. Also told: bytes, the seconds of each part (copy, write with flush to disk,
SHA-256), and loading.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from pocketlm.model.batch import Batch
from pocketlm.model.presets import R1_140M
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig, StateWriter, named_tensors, saved_states
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.manifest import digest_of
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.resume import load_state

SMALL = replace(
    R1_140M, vocab_size=16_384, hidden_size=288, intermediate_size=768, num_hidden_layers=12
)
SMALL = replace(SMALL, num_attention_heads=6, num_key_value_heads=2, head_dim=48)
SHAPES = {"15M": SMALL, "R1-140M": R1_140M}
OPTIM = OptimConfig(lr=1e-3, num_steps=10, warmup_steps=1, final_lr_share=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--tokens",
        type=int,
        default=512,
        help="of a step: the fewer, the less there is to write beside",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--out", type=Path, help="a folder on the disk to measure; default: a temporary one"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shape:
        with tempfile.TemporaryDirectory(dir=arguments.out) as out:
            print(
                json.dumps(measure(shape, arguments.tokens, arguments.repeats, Path(out))),
                flush=True,
            )


def measure(shape: str, tokens: int, repeats: int, out: Path) -> dict[str, object]:
    """The figures of one shape."""
    model = Transformer(SHAPES[shape])
    optimizers = make_optimizers(model, OPTIM)
    ids = torch.randint(
        SHAPES[shape].vocab_size, (1, tokens + 1), generator=torch.Generator().manual_seed(0)
    )
    batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            train_step(model, optimizers, [batch], next_token_loss, 1e-4, 1.0, 0)
        return time.perf_counter() - start

    steps(2)
    plain, waited, copied, beside, number = [], [], [], [], 0
    with StateWriter(out, SaveConfig(every_steps=1)) as states:
        for _ in range(repeats):
            plain.append(steps(1))
            number += 1
            start = time.perf_counter()
            states.write(model, optimizers, number)
            states.wait()
            waited.append(time.perf_counter() - start)
            plain.append(steps(1))
            number += 1
            start = time.perf_counter()
            states.write(model, optimizers, number)
            copied.append(time.perf_counter() - start)
            done = 0
            while states.thread and states.thread.is_alive():
                steps(1)
                done += 1
            states.wait()
            beside.append((time.perf_counter() - start, done))
    step = median(plain)
    cost = median(seconds - done * step for seconds, done in beside)
    newest = saved_states(out)[-1]
    return {
        "shape": shape,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "tokens_of_a_step": tokens,
        "bytes": sum(file.stat().st_size for file in newest.iterdir()),
        "step_seconds": round(step, 3),
        "sync_save_seconds": round(median(waited), 3),
        "async_save_seconds": round(cost, 3),
        "async_share_of_sync": round(cost / median(waited), 2),
        "copy_seconds": round(median(copied), 3),
        "steps_beside_a_save": median(done for _, done in beside),
        **parts(model, optimizers, newest, out),
    }


def parts(
    model: Transformer, optimizers: list[torch.optim.Optimizer], newest: Path, out: Path
) -> dict[str, float]:
    """Seconds of the parts: SHA-256, a plain torch.save of the same tensors for comparison, and
    loading with its check.
    """
    start = time.perf_counter()
    digest_of(newest / "rank-00000.safetensors")
    hashed = time.perf_counter() - start
    start = time.perf_counter()
    torch.save(dict(named_tensors(model, optimizers)), out / "plain.pt")
    saved = time.perf_counter() - start
    start = time.perf_counter()
    load_state(model, optimizers, out)
    loaded = time.perf_counter() - start
    shutil.rmtree(out / "resume")
    return {
        "sha256_seconds": round(hashed, 3),
        "torch_save_seconds": round(saved, 3),  # neither flushed to disk nor checked
        "load_seconds": round(loaded, 3),
    }


if __name__ == "__main__":
    main()
