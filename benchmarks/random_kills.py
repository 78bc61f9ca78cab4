"""350 random SIGKILLs, in steps, saves and stage changes, by 1 and 2 processes: every run ends with
the bits of an unbroken one.

    python benchmarks/random_kills.py runs/kills                # 150, 150 and 50 kills; started
    again, it goes on python benchmarks/random_kills.py runs/kills --share 0.1 --seed 7

The recipe is tests/recipes/tiny.py from nothing to four bits: curate, pre-train, select, distil,
merge, SFT, QAT; and by two processes also its three specialists side by side; 12 steps a training,
a state each 2. Prints a line of JSON for each part; the exit status is 1 where a bit was lost.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

REPOSITORY = Path(__file__).parents[1]
TRAININGS = {
    "short": ("base", "mid", "chat", "int4"),
    # base stays short: it is not what is tested
    "specialists": ("branch-problems", "branch-notes", "branch-texts"),
}
# of the recipe, processes, kills
PARTS = (("short", 1, 150), ("short", 2, 150), ("specialists", 2, 50))
STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    documents = arguments.out / "documents"
    write_documents(documents)
    lost = [
        broke(
            arguments.out,
            documents,
            part,
            processes,
            max(1, round(kills * arguments.share)),
            arguments.seed,
        )
        for part, processes, kills in PARTS
    ]
    sys.exit(any(lost))


def broke(out: Path, documents: Path, part: str, processes: int, kills: int, seed: int) -> bool:
    """Whether a bit was lost; what happened is printed."""
    folder = out / f"{part}-{processes}"
    settings = [
        word for name in TRAININGS[part] for word in ("--set", f"{name}.optim.num_steps={STEPS}")
    ]
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "verify-resume",
        REPOSITORY / "tests" / "recipes" / "tiny.py",
    ]
    command += [
        documents,
        f"--{part}",
        "--out",
        folder,
        "--kills",
        kills,
        "--seed",
        seed,
        "--processes",
        processes,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    start = time.monotonic()
    status = subprocess.run([str(word) for word in command + settings], env=environment).returncode
    hits = [json.loads(line) for line in (folder / "kills.jsonl").read_text().splitlines()]
    told = {
        "recipe": part,
        "processes": processes,
        "seed": seed,
        "kills": len(hits),
        "runs_alike": json.loads((folder / "runs.json").read_text()),
        "lost": int(status != 0),
        "hit": dict(Counter(hit["place"] for hit in hits)),
        "of_one_process_alone": sum(hit["alone"] for hit in hits),
        "stages": dict(Counter(hit["stage"] for hit in hits)),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(told), flush=True)
    return status != 0


def write_documents(folder: Path) -> None:
    """What tiny.py reads: texts/ and exam.jsonl."""
    random = Random(1)
    words = ("line", "file", "list", "table", "number", "name", "folder", "value", "record", "key")
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number in range(40):
        lines = (
            " ".join(random.choice(words) + str(random.randrange(99)) for _ in range(30))
            for _ in range(6)
        )
        (folder / "texts" / f"{number:02}.txt").write_text(".\n".join(lines))
    exam = [{"prompt": f"What is {n} plus {n + 4}?", "answer": str(2 * n + 4)} for n in range(6)]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))


if __name__ == "__main__":
    main()
