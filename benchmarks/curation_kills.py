"""Curation killed at random moments and begun again: every byte as if it had never stopped.

    python benchmarks/curation_kills.py                  # 20 kills, two processes
    python benchmarks/curation_kills.py --kills 100 --seed 7 --executor local:3

Each time a new corpus is begun, all its processes are killed (SIGKILL) at a moment drawn evenly
from the time that an unbroken curation takes, from its plan to its end, and it is begun again until
it ends. All its files are compared with those of the unbroken one, but for throughput.json, which
tells the time. Prints what each kill met and a line of JSON; the exit status is 1 where a byte
differs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

LETTERS = "aeiounrstlm"
# what lies in the folder of the work, the latest first, and what is going on while it does
TRACES = (
    ("published", "publish"),
    ("logs/encode", "encode"),
    ("decisions", "decide and tokenizer"),
    ("logs/groups", "duplicates"),
    ("parts", "read"),
    ("plan.json", "before the first task"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--executor", default="local:2")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        texts, out = arguments.child
        child(texts, out, arguments.executor)
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        write_texts(texts)
        whole = Path(folder) / "whole"
        seconds = duration(start(texts, whole, arguments.executor), whole)
        expected = contents(whole)
        random, hits, different = Random(arguments.seed), [], 0
        while len(hits) < arguments.kills:
            out = Path(folder) / f"killed{len(hits)}"
            place = killed(texts, out, arguments.executor, random.uniform(0, seconds))
            if place is None:  # it was faster than the unbroken one: another moment
                shutil.rmtree(out)
                continue
            hits.append(place)
            again = start(texts, out, arguments.executor)
            same = again.wait() == 0 and contents(out) == expected
            different += not same
            print(f"kill {len(hits)} in {place}: {'the same' if same else 'OTHER'} bytes")
            if same:
                shutil.rmtree(out)
    print(
        json.dumps(
            {
                "executor": arguments.executor,
                "seed": arguments.seed,
                "kills": len(hits),
                "hit": Counter(hits),
                "files": len(expected),
                "bytes": sum(map(len, expected.values())),
                "different": different,
                "seconds_unbroken": round(seconds, 2),
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    )
    sys.exit(different > 0)


def start(texts: Path, out: Path, executor: str) -> subprocess.Popen[bytes]:
    """A curation in a session of its own."""
    out.mkdir(exist_ok=True)
    root = str(Path(__file__).parents[1])
    words = [sys.executable, __file__, "--executor", executor, "--child", str(texts), str(out)]
    return subprocess.Popen(
        words,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )


def await_plan(process: subprocess.Popen[bytes], out: Path) -> None:
    while process.poll() is None and not (out / "resume" / "plan.json").exists():
        time.sleep(0.005)


def duration(process: subprocess.Popen[bytes], out: Path) -> float:
    """Seconds from the plan to the end."""
    await_plan(process, out)
    begun = time.monotonic()
    if process.wait():
        sys.exit("the unbroken curation failed")
    return time.monotonic() - begun


def killed(texts: Path, out: Path, executor: str, after: float) -> str | None:
    """What was going on when all processes were killed; None where they had ended before."""
    process = start(texts, out, executor)
    await_plan(process, out)
    try:
        process.wait(timeout=after)
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    work = out / "resume"
    return next((place for name, place in TRACES if (work / name).exists()), "the end")


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if path.name != "throughput.json"
    }


def write_texts(folder: Path) -> None:
    """Rows of which many repeat earlier ones, word for word or but for a word; pages; questions."""
    random = Random(3)
    words = ["".join(random.choices(LETTERS, k=random.randint(3, 8))) for _ in range(500)]
    pool = [" ".join(random.choices(words, k=80)) for _ in range(5)]
    folder.mkdir()
    for name, count in (("rows", 900), ("capped", 500)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for _ in range(count):
                text = random.choice(pool).split()
                for _ in range(random.choice((0, 1, 80, 80))):
                    text[random.randrange(len(text))] = random.choice(words)
                pool.append(" ".join(text))
                file.write(json.dumps({"text": pool[-1]}) + "\n")
    (folder / "pages").mkdir()
    for number in range(60):
        page = ". ".join(" ".join(random.choices(words, k=20)) for _ in range(20))
        (folder / "pages" / f"{number}.txt").write_text(page)
    with open(folder / "questions.jsonl", "w") as file:
        for n in range(300):
            row = {"prompt": f"What is {n} + 7?", "response": f"{n} + 7 is\n#### {n + 7}"}
            file.write(json.dumps(row) + "\n")


def child(texts: Path, out: Path, executor: str) -> None:
    from pocketlm.corpus.sources import LocalSource
    from pocketlm.stages.curate import CurateConfig, curate

    def source(name: str, domain: str = "knowledge", **fields) -> LocalSource:
        return LocalSource(
            name=name.partition(".")[0], domain=domain, path=str(texts / name), **fields
        )

    config = CurateConfig(
        name="corpus",
        sources=(
            source("rows.jsonl", filters=()),
            source("pages", filters=("length",)),
            source("capped.jsonl", filters=(), max_bytes=60_000),
            source("questions.jsonl", domain="maths"),
        ),
        vocab_size=600,
        part_bytes=60_000,
        validation_share=0.05,
        probe_share=0.05,
        executor=executor,
    )
    curate(config, out)


if __name__ == "__main__":
    main()
