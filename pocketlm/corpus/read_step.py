"""The first step of curation: one task reads one part of a source, and writes what is good of it.

A task leaves a folder: `<split>.jsonl` with its documents, written once, each in the split that
its origin's hash says; `items.bin`, a record of every piece that was judged, in reading order;
`hashes.bin`, the pieces' hashes in rising order; and `part.json`. MinHash signatures are made of
the documents as they pass, by datatrove's own step behind this one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from datatrove.data import Document as DatatroveDocument

from pocketlm.corpus.clean import CONTAMINATED, Cleaner, Judged
from pocketlm.corpus.decontaminate import EvaluationIndex
from pocketlm.corpus.dedup import content_hash
from pocketlm.corpus.documents import SPLITS, SplitRule, document_json
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.parts import read_part
from pocketlm.corpus.progress import write_progress
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import Source
from pocketlm.model.files import read_json, write_folder, write_json

EXAMPLES = 3  # kept of each reason
EXAMPLE_CHARS = 200
FLUSH_ITEMS = 4096
PROGRESS_SECONDS = 0.5
# One piece that was judged. reason: 0 none, else a place in part.json's reasons, from 1 on; place:
# what its split depends on; near: whether near duplicates of it are searched; file: how many of the
# task's files were opened; read, cut: bytes of its document, and what filters cut out of it, at the
# document's first piece
ITEM = np.dtype(
    [
        ("reason", "u1"),
        ("split", "u1"),
        ("near", "?"),
        ("file", "<u4"),
        ("size", "<u4"),
        ("place", "<f8"),
        ("hash", "<u8"),
        ("read", "<u8"),
        ("cut", "<u8"),
    ]
)
HASH = np.dtype([("hash", "<u8"), ("item", "<u4")])


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """What one task reads: a source, the place of its part, and the bytes of good text after which
    it ends (None: at the part's end).
    """

    source: Source
    place: Any
    limit: int | None


def planned_tasks(plan: Mapping[str, Any], sources: Sequence[Source]) -> tuple[ReadTask, ...]:
    """The tasks of a plan, in the order of the sources, then of reading."""
    by_name = {source.name: source for source in sources}
    return tuple(
        ReadTask(source=by_name[name], place=place, limit=source["limit"])
        for name, source in plan["sources"].items()
        for place, _ in source["parts"]
    )


@dataclass(frozen=True, kw_only=True)
class ReadStep:
    """A step of datatrove's: task number -> the documents whose near duplicates are searched.

    It is pickled for every task, so what is large lies in files. plan: of the work (planned_tasks).
    folder: where tasks leave their folders. evaluations: of write_evaluations.
    """

    plan: Path
    sources: tuple[Source, ...]
    folder: Path
    progress: Path
    thresholds: Thresholds
    max_chars: int
    evaluations: Path
    ngram: int
    rule: SplitRule

    def __call__(self, data: Any, rank: int, world_size: int) -> Iterator[DatatroveDocument]:
        task = planned_tasks(read_json(self.plan), self.sources)[rank]
        cleaner = Cleaner(
            thresholds=self.thresholds,
            max_chars=self.max_chars,
            evaluation=_evaluation(self.evaluations, self.ngram),
        )
        with write_folder(part_folder(self.folder, rank)) as folder, ExitStack() as stack:
            writer = PartWriter(folder, stack, self.rule, self.progress / f"{rank:05d}")
            for document in read_part(task.source, task.place, writer.reading):
                read = len(document.text.encode())
                for judged in cleaner.judge(task.source, document):
                    near = task.source.near_dedup_for(judged.piece)
                    writer.add(judged, near=near, read=read)
                    read = 0
                    if near and not judged.dropped_by:
                        yield DatatroveDocument(text=judged.piece.text, id=judged.piece.id)
                if task.limit is not None and writer.good_bytes > task.limit:
                    break
            else:
                writer.ended = True
            writer.finish(task.limit)


class PartWriter:
    """Writes the files of one task as its pieces come."""

    def __init__(self, folder: Path, stack: ExitStack, rule: SplitRule, progress: Path) -> None:
        self.folder, self.rule, self.progress = folder, rule, progress
        self.reading, self.ended = Reading(), False
        self.good_bytes = self.documents = self.bytes = 0
        self.reasons: list[str] = []
        self.examples: dict[str, list[tuple[int, str]]] = {}
        self.begun, self.written = time.monotonic(), 0.0
        self._items: list[tuple] = []
        self._count = 0
        self._records: IO[bytes] = stack.enter_context((folder / "items.bin").open("wb"))
        self._files: list[IO[str]] = [
            stack.enter_context(
                (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n")
            )
            for split in SPLITS
        ]

    def add(self, judged: Judged, *, near: bool, read: int) -> None:
        piece, dropped_by = judged.piece, judged.dropped_by
        size = len(piece.text.encode())
        place = self.rule.place(piece)
        split = SPLITS.index(self.rule.split(place))
        if dropped_by:
            if dropped_by not in self.reasons:
                self.reasons.append(dropped_by)
            reason = self.reasons.index(dropped_by) + 1
            examples = self.examples.setdefault(dropped_by, [])
            if len(examples) < EXAMPLES:
                examples.append((self._count, example(judged.example)))
        else:
            reason = 0
            self.good_bytes += size
            self._files[split].write(document_json(piece))
        digest = int(content_hash(piece.text)[:16], 16)
        file = len(self.reading.opened)
        near = near and not dropped_by
        self._items.append((reason, split, near, file, size, place, digest, read, judged.cut_bytes))
        self._count += 1
        self.documents += read > 0
        self.bytes += read
        if len(self._items) >= FLUSH_ITEMS:
            self._flush()
        if (now := time.monotonic()) - self.written > PROGRESS_SECONDS:
            self.written = now
            self._write_progress()

    def finish(self, limit: int | None) -> None:
        """Everything closed, hashes sorted, part.json written."""
        self._flush()
        self._write_progress()
        for file in (self._records, *self._files):
            file.close()
        items = load_items(self.folder)
        known = items["reason"] == 0
        if CONTAMINATED in self.reasons:
            known |= items["reason"] == self.reasons.index(CONTAMINATED) + 1
        hashes = np.empty(int(known.sum()), dtype=HASH)
        hashes["item"] = np.flatnonzero(known)
        hashes["hash"] = items["hash"][known]
        hashes.sort(order=["hash", "item"])
        (self.folder / "hashes.bin").write_bytes(hashes.tobytes())
        write_json(
            self.folder / "part.json",
            {
                "reasons": self.reasons,
                "examples": self.examples,
                "files": self.reading.opened,
                "limit": limit,
                "ended": self.ended,
                "documents": self.documents,
                "bytes": self.bytes,
                "seconds": round(time.monotonic() - self.begun, 3),
                "near": int(items["near"].sum()),
            },
        )

    def _flush(self) -> None:
        self._records.write(np.asarray(self._items, dtype=ITEM).tobytes())
        self._items.clear()

    def _write_progress(self) -> None:
        """How far it is, for whoever shows it: documents, bytes read, bytes of good text."""
        write_progress(self.progress, self.documents, self.bytes, self.good_bytes)


def part_folder(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}"


def read_part_record(work: Path, number: int) -> dict[str, Any]:
    return read_json(part_folder(work / "parts", number) / "part.json")


def load_items(folder: Path) -> np.ndarray:
    """The records of one task [items], memory-mapped."""
    return load_records(folder / "items.bin", ITEM)


def load_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of nothing but records, memory-mapped: an empty file too."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def example(text: str) -> str:
    """The beginning of a text, on one line."""
    return " ".join(text[: 4 * EXAMPLE_CHARS].split())[:EXAMPLE_CHARS]


def write_evaluations(folder: Path, prompts: Mapping[str, list[str]]) -> Path:
    """A file with the prompts of each evaluation whose problems must not be trained on; its name
    tells its content.
    """
    digest = content_hash(repr(sorted(prompts.items())))
    write_json(file := folder / f"evaluations-{digest[:16]}.json", prompts)
    return file


@lru_cache(maxsize=1)
def _evaluation(file: Path, ngram: int) -> EvaluationIndex:
    """Made once a process, however many of its tasks need it."""
    return EvaluationIndex(read_json(file), ngram=ngram)
