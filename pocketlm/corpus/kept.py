"""The documents that stay, from the folders of read tasks to their place in the corpus."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketlm.corpus.decisions import KEPT
from pocketlm.corpus.documents import SPLITS, row_document
from pocketlm.corpus.read_step import load_items, load_records, part_folder


@dataclass(frozen=True)
class KeptDocuments:
    """What one task wrote and what became of it. moves: places that leave "train", and their
    split.
    """

    work: Path
    number: int
    moves: Mapping[float, str]

    def lines(self, split: str) -> Iterator[bytes]:
        """The lines of documents that stay and are now of this split, in reading order."""
        for written in SPLITS:
            if written == split or (written == "train" and split in self.moves.values()):
                yield from self._lines(written, split)

    def is_as_written(self, split: str) -> bool:
        """Whether the file that the task wrote is that of the split as it is."""
        keep = self._stays(split, split)
        return split not in self.moves.values() and bool(keep.all())

    def texts(self, split: str, file: Path) -> Iterator[str]:
        """The texts of the split, while its documents are put in `file`: the one that was written
        under another name, or a copy without those that go.
        """
        if self.is_as_written(split):
            link(part_folder(self.work / "parts", self.number) / f"{split}.jsonl", file)
            yield from map(text_of, self.lines(split))
            return
        with open(file, "wb") as out:
            for line in self.lines(split):
                out.write(line)
                yield text_of(line)

    def _lines(self, written: str, split: str) -> Iterator[bytes]:
        keep = self._stays(written, split)
        path = part_folder(self.work / "parts", self.number) / f"{written}.jsonl"
        if not keep.any():
            return
        with open(path, "rb") as file:  # most lines are passed on, or over, and not read
            for line, stays in zip(file, keep.tolist(), strict=True):
                if stays:
                    yield line

    def _stays(self, written: str, split: str) -> np.ndarray:
        """[lines] of a file: whether the document stays, and is now of `split`."""
        items = load_items(part_folder(self.work / "parts", self.number))
        codes = load_records(self.work / "decisions" / f"{self.number:05d}.bin", np.dtype("u1"))
        mine = (items["reason"] == 0) & (items["split"] == SPLITS.index(written))
        items, keep = items[mine], codes[mine] == KEPT
        if written == "train":
            belongs = np.full(len(items), split == "train")
            for place, moved_to in self.moves.items():
                belongs[items["place"] == place] = moved_to == split
            keep &= belongs
        return keep


def text_of(line: bytes) -> str:
    """The text of a document's line."""
    return row_document(json.loads(line), "", "a document of a task", None).text


def link(source: Path, target: Path) -> None:
    """The file under another name too; a copy where the file system knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
