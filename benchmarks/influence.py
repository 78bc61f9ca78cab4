"""Influence scores: peak memory as rows grow, and time beside training's forward and backward pass.

python benchmarks/influence.py memory
python benchmarks/influence.py speed --rows 8 --length 256
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from pocketlm.data.influence import influence, probe_directions
from pocketlm.model.batch import Batch
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import dtype_of

VOCAB_SIZE = 128_256  # R1's
NARROW = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=1024,
    rope_theta=1e4,
)
MIB = 2**20


def drawn_batch(rows: int, length: int) -> Batch:
    ids = torch.randint(VOCAB_SIZE, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def added_bytes(function, *arguments) -> int:
    """How far the memory of this process rose above where it was, while the function ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_bytes("VmRSS")
    function(*arguments)
    return status_bytes("VmHWM") - before


def logits_loss(model: Transformer, batch: Batch) -> torch.Tensor:
    """What holding logits alone costs: one tensor [B, T, V] and its log-softmax."""
    with torch.no_grad():
        return F.cross_entropy(model(batch.input_ids).flatten(0, 1), batch.labels.flatten())


def print_memory() -> None:
    model = Transformer(NARROW).requires_grad_(False)
    direction = probe_directions(model, {"probe": [drawn_batch(1, 64)]})
    influence(model, drawn_batch(1, 64), direction)
    print(f"V = {VOCAB_SIZE:,}, hidden {NARROW.hidden_size}; MiB above the model and a direction")
    print("rows x length   one [B, T, V]   influence   directions   logits and their loss")
    for rows, length in ((1, 128), (2, 256), (4, 512), (8, 1024)):
        batch = drawn_batch(rows, length)
        scored = added_bytes(influence, model, batch, direction)
        probed = added_bytes(probe_directions, model, {"probe": [batch]})
        whole = added_bytes(logits_loss, model, batch) if rows * length <= 2048 else None
        held = rows * length * VOCAB_SIZE * 4 / MIB
        whole_mib = "not run" if whole is None else f"{whole / MIB:.0f}"
        print(
            f"{rows:4} x {length:<6} {held:13,.0f} {scored / MIB:12.0f} {probed / MIB:12.0f}"
            f" {whole_mib:>12}"
        )


def print_speed(rows: int, length: int, layers: int | None, repeats: int) -> None:
    shape = PRESETS["r1-140m"]
    shape = replace(shape, num_hidden_layers=layers or shape.num_hidden_layers)
    model, batch = Transformer(shape), drawn_batch(rows, length)
    dtype = dtype_of("auto", torch.device("cpu"))
    model.compute = ComputeSettings(dtype=dtype)
    direction = probe_directions(model, {"probe": [drawn_batch(1, 64)]})

    def trained() -> None:
        next_token_loss(model, batch).backward()

    def scored() -> None:
        influence(model, batch, direction)

    times: dict[str, float] = {}
    for _ in range(repeats):
        for name, function, gradients in (("train", trained, True), ("score", scored, False)):
            model.requires_grad_(gradients)
            began = time.process_time()
            function()
            seconds = time.process_time() - began
            times[name] = min(times.get(name, seconds), seconds)
            model.zero_grad()
    print(
        f"R1-140M with {shape.num_hidden_layers} layers, V {VOCAB_SIZE:,}, {rows} x {length} "
        f"tokens, products in {dtype or torch.float32}, {torch.get_num_threads()} threads"
    )
    print(
        f"processor seconds, best of {repeats}: forward + backward {times['train']:.2f}, influence "
        f"{times['score']:.2f}: {times['score'] / times['train']:.2f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    if given.what == "memory":
        print_memory()
    else:
        print_speed(given.rows, given.length, given.layers, given.repeats)


if __name__ == "__main__":
    main()
