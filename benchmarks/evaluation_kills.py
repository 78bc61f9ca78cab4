"""`pocketlm eval` killed at random moments and started again: the rows of an unbroken run.

    python benchmarks/evaluation_kills.py MODEL --suite pocket,arc_easy --data DIR --limit 40

SIGKILL comes --kills times into one folder, each time a random fraction of a second after the
process itself kept an answer, and a random number of all were there; then the command runs to its
end. Compared are every byte of transcripts/ and evaluation.json without the speed, which is
measured anew. Prints one JSON line:
kills, how many of them came while some answers were kept and others not, the answers kept after
each, and what is unlike; the exit status is 1 where anything is, or where no kill landed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--suite", default="pocket")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(killed(arguments, Path(scratch)))


def killed(arguments: argparse.Namespace, scratch: Path) -> bool:
    """Whether anything is unlike; what happened is printed."""
    whole, broken, random = scratch / "whole", scratch / "broken", Random(arguments.seed)
    if status := started(arguments, whole).wait():
        sys.exit(f"the unbroken run ended with status {status}")
    total = sum(kept(whole).values())
    # a kill for each part of the answers, at a random place of it
    marks = [
        round(total * (number + random.random()) / arguments.kills)
        for number in range(arguments.kills)
    ]
    counts = []
    for mark in marks:
        before = sum(kept(broken).values())
        run = started(arguments, broken)
        # not before this process answered: a kill while it imports tests nothing
        while run.poll() is None and sum(kept(broken).values()) < max(mark, before + 1):
            time.sleep(0.002)
        try:
            run.wait(random.uniform(0.0, 0.3))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            counts.append(sum(kept(broken).values()))
    status = started(arguments, broken).wait()
    unlike = [name for name, content in results(whole).items() if results(broken)[name] != content]
    between = sum(0 < count < total for count in counts)
    report = {"kills": len(counts), "between_answers": between, "answers_kept": counts}
    print(json.dumps({**report, "answers": total, "status": status, "unlike": unlike}))
    return bool(unlike or status or not between)


def started(arguments: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pocketlm.cli", "eval", arguments.model, "--out", out]
    command += ["--suite", arguments.suite, "--limit", arguments.limit]
    command += ["--data", arguments.data] if arguments.data else []
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **quiet)


def kept(out: Path) -> dict[str, int]:
    """Whole lines of each transcript."""
    files = (out / "transcripts").glob("*.jsonl")
    return {file.name: file.read_bytes().count(b"\n") for file in files}


def results(out: Path) -> dict[str, Any]:
    files: dict[str, Any] = {
        file.name: file.read_bytes() for file in sorted((out / "transcripts").iterdir())
    }
    evaluation = json.loads((out / "evaluation.json").read_text())
    for figures in evaluation["models"].values():
        figures.pop("tokens_per_second")
    return {**files, "evaluation.json": evaluation}


if __name__ == "__main__":
    main()
