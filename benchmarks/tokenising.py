"""Tokenise and pack: megabytes of text a second, beside `datasets.map` and datatrove's
DocumentTokenizer.

    python benchmarks/tokenising.py                    # on Python's own library, some 20 MB of code
    and prose
    python benchmarks/tokenising.py corpus.jsonl       # rows with a "text"
    RAYON_NUM_THREADS=1 python benchmarks/tokenising.py corpus.jsonl --rounds 5

The same documents from the same JSON-lines file, the same tokenizer (byte-level BPE of 32,000
tokens learnt from a part of them), the same cores. Ours ends in a shard; `datasets.map` in the
Arrow file of ids it keeps; datatrove in its .ds file, unshuffled. Rounds in turns, medians; each
begins with nothing remembered. Seconds are of processors, of the process and its children, where
--busy is given. `same` counts documents whose ids are those of the tokenizer asked for the whole
text.
"""

import argparse
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from pocketlm.data.encoding import encode_documents
from pocketlm.data.shards import write_shard
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer

VOCAB_SIZE, LEARNT_FROM = 32_000, 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--megabytes", type=float, default=20, help="of the file's beginning")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--busy", action="store_true", help="count processor time, where others use the machine too"
    )
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        texts = some_texts(arguments.file, int(arguments.megabytes * 1e6))
        with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"id": str(number), "text": text}) + "\n"
                for number, text in enumerate(texts)
            )
        size = sum(len(text.encode()) for text in texts)
        tokenizer = train_tokenizer(texts[: max(1, len(texts) * LEARNT_FROM // size)], VOCAB_SIZE)
        tokenizer.save(folder)
        runs: dict[str, Callable[[Path, Path], None]] = {
            "ours": ours,
            "datasets": hub_datasets,
            "datatrove": trove,
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.rounds):
            for name, run in runs.items():
                out = folder / f"{name}-{turn}"
                out.mkdir()
                started = clock(arguments.busy)
                run(folder, out)
                seconds[name].append(clock(arguments.busy) - started)
        same, tokens = compared(texts, tokenizer, folder / "ours-0")
    for name, times in seconds.items():
        ratio = median(other / own for own, other in zip(seconds["ours"], times, strict=True))
        told = {
            "by": name,
            "megabytes": round(size / 1e6, 1),
            "megabytes_per_second": round(size / 1e6 / median(times), 2),
        }
        told |= {
            "ours_times_as_fast": round(ratio, 2),
            "threads": os.environ.get("RAYON_NUM_THREADS", "all"),
        }
        print(
            json.dumps(
                told
                | (
                    {"tokens": tokens, "documents": len(texts), "same": same}
                    if name == "ours"
                    else {}
                )
            )
        )


def clock(busy: bool) -> float:
    if not busy:
        return perf_counter()
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def some_texts(file: Path | None, size: int) -> list[str]:
    """Texts of about `size` bytes: of a JSON-lines file, else of Python's library."""
    texts: list[str] = []
    for text in library() if file is None else rows(file):
        texts.append(text)
        size -= len(text.encode())
        if size <= 0:
            break
    return texts


def library() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if text.strip():
            yield text


def rows(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        yield from map(text_of, lines)


def text_of(line: str) -> str:
    return json.loads(line)["text"]


def ours(folder: Path, out: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    with open(folder / "corpus.jsonl", encoding="utf-8") as lines:
        write_shard(
            out,
            "train",
            encode_documents(map(text_of, lines), tokenizer),
            vocab_size=tokenizer.vocab_size,
        )


def hub_datasets(folder: Path, out: Path) -> None:
    from datasets import Dataset, disable_progress_bars
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = Dataset.from_json(str(folder / "corpus.jsonl"), cache_dir=str(out))

    def encode(batch: dict) -> dict:
        return {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

    rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        cache_file_name=str(out / "ids.arrow"),
    )


def trove(folder: Path, out: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    stage = DocumentTokenizer(
        str(out),
        tokenizer_name_or_path=str(folder / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
    )
    reader = JsonlReader(str(folder), glob_pattern="corpus.jsonl")
    LocalPipelineExecutor(pipeline=[reader, stage], tasks=1, logging_dir=str(out / "logs")).run()


def compared(texts: list[str], tokenizer: Tokenizer, out: Path) -> tuple[int, int]:
    """(documents whose ids are those of the whole text, ids in all) of our shard."""
    tokens, offsets = (
        np.load(out / f"train.{name}.npy", mmap_mode="r") for name in ("tokens", "offsets")
    )
    same = 0
    for number, text in enumerate(texts):
        own = tokens[offsets[number] : offsets[number + 1]]
        same += own.tolist() == [tokenizer.bos_id, *tokenizer.encode(text)]
    return same, len(tokens)


if __name__ == "__main__":
    main()
