"""Golden losses: the first 20 steps of tiny.py's base stage, in float32, on one thread, kept in
golden.json.

    python tests/recipes/golden.py      # writes golden.json anew: after a change that is meant to
    change what is computed

Token digests are the same everywhere. Losses are the same bits on the same kind of processor with
the same torch alone.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from documents import write_documents
from tiny import PHASE, SHAPE, STEPS, corpus_of

from pocketlm.model.arithmetic import arithmetic, on_threads
from pocketlm.stages.curate import curate
from pocketlm.stages.pretrain import pretrain

GOLDEN = Path(__file__).with_name("golden.json")


def machine() -> dict[str, str]:
    """What the bits of a float32 product depend on, beside the number of threads, which is 1
    here.
    """
    return {
        key: value for key, value in arithmetic().items() if key not in ("threads", "processes")
    }


def first_steps(documents: Path, out: Path) -> list[dict[str, Any]]:
    """Loss, gradient norm and token digest of each of 20 steps; `out` is an empty folder."""
    with on_threads(1):
        (out / "corpus").mkdir(parents=True)
        (out / "base").mkdir()
        curate(corpus_of(documents), out / "corpus")
        optim = replace(STEPS, num_steps=20, compute_dtype="float32")
        shares = dict.fromkeys(("problems", "notes", "recall", "texts"), 0.25)
        pretrain(
            replace(PHASE, model=SHAPE, shares=shares, optim=optim),
            out / "base",
            corpus=out / "corpus",
        )
    rows = [json.loads(line) for line in (out / "base" / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("loss", "grad_norm", "token_digest")} for row in rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        steps = first_steps(write_documents(Path(place)), Path(place) / "out")
    lines = ",\n".join(f"  {json.dumps(step)}" for step in steps)
    GOLDEN.write_text(f'{{"machine": {json.dumps(machine())},\n "steps": [\n{lines}\n]}}\n')
