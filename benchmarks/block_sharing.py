"""What applying every block twice costs: MobileLLM-LS-125M beside 125M and beside 60 layers with
weights of their own.

    python benchmarks/block_sharing.py

Random weights, float32, the three in turns. One JSON line each: seconds to load the folder, to the
first token after 16, and of each token after that, with the ratios to 125M: the table of MobileLLM
2024 (load, init, execute on an iPhone 13).
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from pocketlm.eval.latency import measure_speed
from pocketlm.inference.kv_cache import KVCache
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer

NETWORKS = {
    "125m": PRESETS["mobilellm-125m"],
    "ls-125m": PRESETS["mobilellm-ls-125m"],
    "60 layers unshared": replace(PRESETS["mobilellm-125m"], num_hidden_layers=60),
}
NEW_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NETWORKS}
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in NETWORKS.items():
            folder = Path(scratch) / name
            folder.mkdir()
            save_checkpoint(folder, Transformer(config), tokenizer)
        # the first, which warms the page cache, is not counted
        for run in range(options.repeats + 1):
            for name in NETWORKS:
                found = measure(Path(scratch) / name)
                if run > 0:
                    times[name].append(found)
    base = times["125m"]
    for name, config in NETWORKS.items():
        row: dict[str, object] = {"network": name, "threads": options.threads}
        for i, what in enumerate(("load", "first_token", "token")):
            row[f"{what}_ms"] = round(1000 * median(run[i] for run in times[name]), 1)
            row[f"{what}_ratio"] = round(
                median(
                    run[i] / reference[i] for run, reference in zip(times[name], base, strict=True)
                ),
                2,
            )
        with torch.device("meta"):
            row["parameters"] = sum(p.numel() for p in Transformer(config).parameters())
        row["cache_kib_a_token"] = KVCache(config, 1, 1).num_bytes / 1024
        print(json.dumps(row), flush=True)


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds to load, to the first token, and of a later one."""
    started = time.perf_counter()
    model = LanguageModel.open(folder)
    loaded = time.perf_counter() - started
    speed = measure_speed(model, 16, NEW_TOKENS, 1)
    return loaded, speed["time_to_first_token_seconds"], 1 / speed["decode_tokens_per_second"]


if __name__ == "__main__":
    main()
