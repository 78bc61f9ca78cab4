"""Curation measured: documents and bytes a second with 1 and more processes, beside datatrove's own
FineWeb example on the same text, and memory at 1 and 4 times the corpus.

    pip install orjson  # which the example needs
    python benchmarks/curation.py TEXTS.jsonl.zst MORE.jsonl.zst --megabytes 32

TEXTS: rows with a "text". From them a file of so many megabytes is made, and one of four times as
many (--packed: each one .jsonl.zst, whose parts are unpacked from its beginning). Each figure comes
from a process of its own: seconds of the stage, and the highest memory (RSS) of any of its
processes. Where others use the machine too, compare the processors' seconds, of all its processes.
Workers share "read", "encode" and most of "duplicates"; the tokenizer's training
and "other" are one process's. The tokenizer's own threads are as many as the processes, so that one
process is one core.
The last lines are the ratios: pace by the number of processes, memory by the size of the corpus.

The example is examples/fineweb.py of datatrove from its repetition filter on: without what reads
web archives and finds languages, with this project's words instead of spaCy's. Both write clean
text without near duplicates; ours also drops exact duplicates, trains a tokenizer and encodes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pocketlm.model.json_lines import json_lines

PARTS = 8  # of the small corpus; as many bytes to a part of the large one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--packed", action="store_true", help="from one .zst file; ours alone")
    parser.add_argument("--ours-alone", action="store_true", help="without datatrove's example")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster of this machine")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, workers, part_bytes, out = arguments.child
        child(kind, arguments.texts[0], int(workers), int(part_bytes), Path(out))
        return
    arguments.ours_alone |= arguments.packed
    if not arguments.ours_alone and find_spec("orjson") is None:
        parser.error("datatrove's example needs orjson: pip install orjson, or give --ours-alone")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "1x.jsonl", Path(folder) / "4x.jsonl"
        size = int(arguments.megabytes * 1e6)
        counts = {
            path: cut(arguments.texts, path, n * size) for path, n in ((small, 1), (large, 4))
        }
        if arguments.packed:
            counts = {packed(path): count for path, count in counts.items()}
            small, large = counts
        part_bytes = size // PARTS + 1
        rows = [("pocketlm", small, workers) for workers in arguments.workers]
        rows += [("pocketlm", large, workers) for workers in arguments.workers]
        if not arguments.ours_alone:
            rows += [("fineweb", small, workers) for workers in arguments.workers]
        rows += [("ray", small, os.cpu_count() or 1)] if arguments.ray else []
        figures: dict[tuple[str, str, int], dict] = {}
        for number, (kind, path, workers) in enumerate(rows):
            out, stem = Path(folder) / f"out{number}", path.name.partition(".")[0]
            measured = figures[kind, stem, workers] = run(kind, path, workers, part_bytes, out)
            documents, text_bytes = counts[path]
            print(
                f"{kind:8} {stem} {documents:6,} documents {text_bytes / 1e6:6.1f} MB "
                f"{workers} processes: {measured['seconds']:6.1f} s, "
                f"{documents / measured['seconds']:6.0f} documents/s, "
                f"{text_bytes / measured['seconds'] / 1e6:5.2f} MB/s, "
                f"processors {measured['processor_seconds']:5.1f} s, "
                f"peak {measured['peak_megabytes']:5.0f} MB, kept {measured['kept']:,}"
                + "".join(f", {name} {seconds:.1f} s" for name, seconds in measured["phases"]),
                flush=True,
            )
        print_ratios(figures, arguments.workers)


def print_ratios(figures: dict[tuple[str, str, int], dict], workers: list[int]) -> None:
    """Pace by the number of processes, and memory at four times the corpus by that at one."""
    kinds = dict.fromkeys((kind, stem) for kind, stem, _ in figures if kind != "ray")
    first, *others = workers
    for kind, stem in kinds:
        alone = figures[kind, stem, first]["seconds"]
        for more in others:
            ratio = alone / figures[kind, stem, more]["seconds"]
            print(f"{kind} {stem}: {more} processes are {ratio:.2f} times as fast as {first}")
    for number in workers:
        small, large = (
            figures["pocketlm", stem, number]["peak_megabytes"] for stem in ("1x", "4x")
        )
        print(
            f"pocketlm, {number} processes: {large / small:.2f} times the memory at 4x the corpus "
            f"({small:.0f} -> {large:.0f} MB)"
        )


def cut(texts: list[Path], path: Path, size: int) -> tuple[int, int]:
    """(documents, bytes of text) of the first texts that fill `size`, of each file an even share;
    where they end, they come again with other words in them.
    """
    count = written = 0
    with open(path, "w", encoding="utf-8") as file:
        for number, source in enumerate(texts, start=1):
            turn, until = 0, size * number // len(texts)
            while written < until:
                before = written
                for _, row in json_lines(source):
                    text = row["text"] if not turn else row["text"].replace("e", "e" * turn)
                    file.write(json.dumps({"text": text, "id": str(count)}) + "\n")
                    count, written = count + 1, written + len(text.encode())
                    if written >= until:
                        break
                if written == before:
                    sys.exit(f"{source} holds no text")
                turn += 1
    return count, written


def packed(path: Path) -> Path:
    """The file, packed; itself it goes."""
    import zstandard

    whole = path.with_name(f"{path.name}.zst")
    with open(path, "rb") as plain, open(whole, "wb") as file:
        zstandard.ZstdCompressor().copy_stream(plain, file)
    path.unlink()
    return whole


def run(kind: str, path: Path, workers: int, part_bytes: int, out: Path) -> dict:
    words = [sys.executable, __file__, str(path), "--child", kind, str(workers), str(part_bytes)]
    threads = {"RAYON_NUM_THREADS": str(workers), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as shown, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*words, str(out)],
            stdout=shown,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **threads},
        )
        seen: dict[int, tuple[float, float]] = {}
        while process.poll() is None:
            seen |= usage(process.pid)
            time.sleep(0.05)
        for file in (shown, errors):
            file.seek(0)
        if process.returncode:
            sys.exit(errors.read()[-3000:])
        figures = json.loads(shown.read().splitlines()[-1])
    seconds, peaks = zip(*seen.values(), strict=True)
    return {**figures, "processor_seconds": sum(seconds), "peak_megabytes": max(peaks)}


def usage(session: int) -> dict[int, tuple[float, float]]:
    """{process: (seconds of processors, highest memory in MB)} of all processes of a session."""
    figures = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            status = (folder / "status").read_text()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and "VmHWM" in status:
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
            ticks = int(fields[11]) + int(fields[12])
            figures[int(folder.name)] = (ticks / os.sysconf("SC_CLK_TCK"), peak)
    return figures


def child(kind: str, path: Path, workers: int, part_bytes: int, out: Path) -> None:
    out.mkdir()
    # what whoever curates has imported
    import_module("datatrove.executor.local" if kind == "fineweb" else "pocketlm.stages.curate")
    begun = time.monotonic()
    if kind == "fineweb":
        kept = fineweb(path, workers, part_bytes, out)
    else:
        executor = "ray:local" if kind == "ray" else f"local:{workers}"
        kept = ours(path, executor, part_bytes, out)
    seconds = time.monotonic() - begun
    print(json.dumps({"seconds": seconds, "kept": kept, "phases": phases(out, seconds)}))


def phases(out: Path, seconds: float) -> list[tuple[str, float]]:
    """(phase, seconds) of a curation of ours; nothing of the example."""
    file = out / "throughput.json"
    if not file.is_file():
        return []
    figures = json.loads(file.read_text())
    names = ("read", "duplicates", "tokenizer", "encode")
    parts = [(name, figures[name]["seconds"]) for name in names]
    return [*parts, ("other", seconds - sum(part for _, part in parts))]


def ours(path: Path, executor: str, part_bytes: int, out: Path) -> int:
    from pocketlm.corpus.sources import LocalSource
    from pocketlm.stages.curate import CurateConfig, curate

    filters = ("repetition", "prose")  # what the example has of ours
    source = LocalSource(name="text", domain="knowledge", path=str(path), filters=filters)
    config = CurateConfig(
        name="corpus",
        sources=(source,),
        vocab_size=4096,
        max_chars=10**9,
        part_bytes=part_bytes,
        executor=executor,
    )
    curate(config, out)
    kept = json.loads((out / "curation.json").read_text())["sources"]["text"]["kept"]
    return sum(split["documents"] for split in kept.values())


def fineweb(path: Path, workers: int, part_bytes: int, out: Path) -> int:
    """datatrove's example: the filters, then the four steps of MinHash."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from pocketlm.corpus.dedup import MinHash
    from pocketlm.corpus.duplicates import minhash_config
    from pocketlm.corpus.word_split import WORDS

    parts = out / "parts"
    parts.mkdir()
    tasks, lines = 0, path.read_text(encoding="utf-8").splitlines(keepends=True)
    size = 0
    for line in lines:
        with open(parts / f"{tasks:03}.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
        size += len(line)
        if size > part_bytes:
            tasks, size = tasks + 1, 0
    tasks = len(list(parts.iterdir()))
    config, words = minhash_config(MinHash()), {"language": WORDS}
    steps = [
        (
            tasks,
            [
                JsonlReader(str(parts)),
                GopherRepetitionFilter(**words),
                GopherQualityFilter(**words),
                C4QualityFilter(filter_no_terminal_punct=False, **words),
                FineWebQualityFilter(**words),
                JsonlWriter(str(out / "filtered")),
            ],
        ),
        (
            tasks,
            [
                JsonlReader(str(out / "filtered")),
                MinhashDedupSignature(str(out / "signatures"), config, **words),
            ],
        ),
        (
            config.num_buckets,
            [MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)],
        ),
        (1, [MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config)]),
        (
            tasks,
            [
                JsonlReader(str(out / "filtered")),
                MinhashDedupFilter(str(out / "remove")),
                PIIFormatter(),
                JsonlWriter(str(out / "clean"), compression=None),
            ],
        ),
    ]
    for number, (count, pipeline) in enumerate(steps):
        LocalPipelineExecutor(
            pipeline,
            tasks=count,
            workers=min(workers, count),
            logging_dir=str(out / f"log{number}"),
        ).run()
    return sum(len(file.read_text().splitlines()) for file in (out / "clean").glob("*.jsonl"))


if __name__ == "__main__":
    main()
