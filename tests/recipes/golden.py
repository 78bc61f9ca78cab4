"""Golden losses: the first 20 steps of tiny.py's base stage, in float32, on one thread, kept in golden.json.

    python tests/recipes/golden.py      # writes golden.json anew: after a change that is meant to change what is computed

Token digests are the same everywhere. Losses are the same bits on the same kind of processor with the same torch alone.
"""

import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from documents import write_documents
from tiny import PHASE, SHAPE, STEPS, corpus_of

from pocketlm.stages.curate import curate
from pocketlm.stages.pretrain import pretrain

GOLDEN = Path(__file__).with_name("golden.json")


def machine() -> dict[str, str]:
    """What the bits of a float32 product depend on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return {
        "torch": torch.__version__,
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def first_steps(documents: Path, out: Path) -> list[dict[str, Any]]:
    """Loss, gradient norm and token digest of each of 20 steps; `out` is an empty folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (out / "corpus").mkdir(parents=True)
        (out / "base").mkdir()
        curate(corpus_of(documents), out / "corpus")
        optim = replace(STEPS, num_steps=20, compute_dtype="float32")
        shares = dict.fromkeys(("problems", "notes", "recall", "texts"), 0.25)
        pretrain(replace(PHASE, model=SHAPE, shares=shares, optim=optim), out / "base", corpus=out / "corpus")
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (out / "base" / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("loss", "grad_norm", "token_digest")} for row in rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        steps = first_steps(write_documents(Path(place)), Path(place) / "out")
    lines = ",\n".join(f"  {json.dumps(step)}" for step in steps)
    GOLDEN.write_text(f'{{"machine": {json.dumps(machine())},\n "steps": [\n{lines}\n]}}\n')
