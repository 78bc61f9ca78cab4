"""A training step of the demo's network on an idle machine, and with busy processes beside it, by
the number of threads and by how long they spin before they sleep.

    python benchmarks/busy_machine.py [--busy 1] [--steps 12]

Each figure is the median of the steps of a process of its own, because libgomp reads its settings
when it is loaded. Busy processes are niced loops of this interpreter, as `stress-ng --cpu 1` is.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

WAYS = {
    "2 threads, libgomp's own waiting": {"OMP_NUM_THREADS": "2"},
    "2 threads, spin briefly, then sleep": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "2 threads, OMP_WAIT_POLICY=passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
BUSY_LOOP = "import os; os.nice(19)\nwhile True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", action="store_true", help="time the steps of this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(steps_timed(arguments.steps)))
        return
    print(f"{'seconds a step (share of the time without a core)':<50} busy processes beside it")
    print(f"{'':<38}" + "".join(f"{count:>14}" for count in arguments.busy))
    for name, settings in WAYS.items():
        cells = [cell(settings, count, arguments.steps) for count in arguments.busy]
        print(f"{name:<38}" + "".join(f"{text:>14}" for text in cells), flush=True)


def cell(settings: dict[str, str], busy: int, steps: int) -> str:
    """The figure of one way beside so many busy processes."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--one", "--steps", str(steps)]
        output = subprocess.run(
            command, env={**environment, **settings}, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    finally:
        for loop in loops:
            loop.kill()
    seconds, waited = json.loads(output)
    return f"{seconds:.2f} ({100 * waited:.0f} %)"


def steps_timed(count: int) -> tuple[float, float]:
    """(median seconds of a step, share of the steps' time that a thread waited for a core)."""
    import torch

    from pocketlm.model.batch import Batch
    from pocketlm.model.model_config import ModelConfig
    from pocketlm.model.transformer import Transformer
    from pocketlm.train.busy import CoreWait
    from pocketlm.train.loop import train_step
    from pocketlm.train.losses import next_token_loss
    from pocketlm.train.optim import OptimConfig, compute_settings, computing, make_optimizers

    shape = ModelConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        rope_theta=1_000.0,
        qk_norm_weight=True,
        layer_types=("sliding_attention", "full_attention", "full_attention"),
        sliding_window=4,
        initializer_range=0.08,
    )
    model, optim = (
        Transformer(shape, seed=0),
        OptimConfig(lr=1e-2, num_steps=1, warmup_steps=0, final_lr_share=0.1, optimizer="muon"),
    )
    optimizers = make_optimizers(model, optim)
    ids = torch.randint(1024, (16, 257), generator=torch.Generator().manual_seed(0))
    batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])
    seconds, wait = [], CoreWait()
    with computing(model, compute_settings(model, optim)):
        for step in range(count + 2):
            if step == 2:  # what is made once is not counted
                wait = CoreWait()
            start = time.perf_counter()
            train_step(model, optimizers, [batch], next_token_loss, 1e-3, 1.0, step)
            seconds.append(time.perf_counter() - start)
    return median(seconds[2:]), wait.share()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
