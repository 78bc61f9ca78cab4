"""Documents a second of our evaluation and of lm-eval's own hf backend, on the same rows, in pairs.

    pip install "pocketlm[lm-eval,eval]" accelerate
    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py MODEL DATA --repeats 3

MODEL and DATA as in lm_eval_parity.py. A repeat runs each task once in lm-eval's backend (float32,
--batch-size rows) and once here, one after the other, by turns in either order; what is counted is
processor time, from texts to scores or answers. What is shared is read once for all documents of a
run, so that more documents make the examples cheaper: their number stands beside the figures.
MMLU's are the first of one subject, which has some 250.

Prints one JSON line a task: documents, medians of documents a second, and the median of the
repeats' ratios; and the same of all tasks together, as seconds for all their documents.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval_parity import TASKS, Compared, hf_backend, prepared

from pocketlm.inference.torch_runtime import LanguageModel

COUNTS = {"arc_challenge": 16, "hellaswag": 12, "piqa": 20, "mmlu": 8, "gsm8k": 6}  # documents


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(COUNTS), choices=list(TASKS))
    parser.add_argument("--share", type=float, default=1.0, help="of the documents of each task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4, help="of lm-eval's hf backend")
    arguments = parser.parse_args()
    theirs = hf_backend(arguments.model, arguments.batch_size)
    ours = LanguageModel.open(arguments.model)
    counts = {n: max(1, round(arguments.share * COUNTS.get(n, 16))) for n in arguments.tasks}
    pairs = {n: prepared(n, arguments.data, count, spread=False) for n, count in counts.items()}
    seconds: dict[str, list[tuple[float, float]]] = {}
    for name, pair in pairs.items():
        turns = (repeat % 2 == 0 for repeat in range(arguments.repeats))
        seconds[name] = [in_turn(pair, theirs, ours, theirs_first=first) for first in turns]
        line = {"task": name, **figures(counts[name], seconds[name])}
        print(json.dumps(line), flush=True)
    together = [
        (sum(theirs for theirs, _ in timed), sum(ours for _, ours in timed))
        for timed in zip(*seconds.values(), strict=True)
    ]
    settings = {"lm_eval_batch_size": arguments.batch_size, "repeats": arguments.repeats}
    print(json.dumps({"task": "all", **figures(sum(counts.values()), together), **settings}))


def in_turn(pair: Compared, theirs: Any, ours: LanguageModel, *, theirs_first: bool) -> Any:
    """(seconds of lm-eval's backend, of ours)."""
    calls = [lambda: pair.ask(theirs), lambda: pair.run(ours)]
    if theirs_first:
        return tuple(map(processor_seconds, calls))
    return tuple(map(processor_seconds, calls[::-1]))[::-1]


def processor_seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def figures(documents: int, timed: list[tuple[float, float]]) -> dict[str, Any]:
    medians = [statistics.median(times) for times in zip(*timed, strict=True)]
    ratios = [theirs / ours for theirs, ours in timed]
    return {
        "documents": documents,
        "documents_per_second": {
            "lm-eval": round(documents / medians[0], 2),
            "here": round(documents / medians[1], 2),
        },
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
    }


if __name__ == "__main__":
    main()
