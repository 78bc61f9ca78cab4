"""Generation here against transformers.generate: the same weights, threads and float32, the two in
turns.

    python benchmarks/generation.py            R1-140M's shape and one of 15M parameters, random
    weights

Prints one JSON line for each row of the table in docs/benchmarks.md. A ratio above 1 says that ours
is faster; it is the median of the ratios of neighbouring calls, so that what else the machine does
meets both.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

SHAPES = {
    "r1-140m": replace(PRESETS["r1-140m"], initializer_range=0.05),
    "15m": replace(  # the demo's kind: a small vocabulary, so that the blocks are what is read
        PRESETS["r1-140m"],
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.05,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    for name in options.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(name, tokenizer, Path(folder), options.repeats):
                print(json.dumps({"shape": name, "threads": options.threads, **row}), flush=True)


def compare(shape: str, tokenizer: Tokenizer, folder: Path, repeats: int) -> Iterator[dict]:
    """A row for each of prefill and decode, each with 1 and 8 prompts."""
    save_checkpoint(folder, Transformer(SHAPES[shape]), tokenizer)
    ours = LanguageModel.open(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # nothing ends an answer early
    for what, length, new in (("prefill", 512, 1), ("decode", 16, 64)):
        for batch in (1, 8):
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(
                3, SHAPES[shape].vocab_size, (batch, length), generator=generator
            )
            ids = prompts.tolist()
            options: dict = {
                "attention_mask": torch.ones_like(prompts),
                "max_new_tokens": new,
                "do_sample": False,
            }
            calls = (
                partial(ours.generate, ids, max_new_tokens=new, stop_ids=set()),
                partial(theirs.generate, prompts, **options),
            )
            mine, other, ratio = in_turns(*calls, repeats)
            tokens = batch * (length if what == "prefill" else new)
            yield {
                "what": what,
                "batch": batch,
                "prompt": length,
                "new": new,
                "ours_tokens_per_second": round(tokens / mine),
                "theirs_tokens_per_second": round(tokens / other),
                "ratio": round(ratio, 2),
                "same_ids": calls[0]() == calls[1]()[:, length:].tolist(),
            }


def in_turns(first: Callable, second: Callable, repeats: int) -> tuple[float, float, float]:
    """(median seconds of the first, of the second, median of second / first), called in turns after
    one call each.
    """
    first()
    second()
    times = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times)


def seconds(call: Callable) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
