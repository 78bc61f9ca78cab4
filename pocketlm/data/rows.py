"""Where the rows of a shard begin, so that any of them is found without reading the tokens, or the
offsets, before it.

Two ways to cut documents into rows of T tokens (`Packing`):

concatenate      one stream of all documents, cut every T tokens, as R1's loader does. Every token
                 is read once an epoch. Most rows open inside a document.
document_heads   a row begins where a document begins, or where a long one was cut; a document that
                 the row's end cut comes again, whole, in the next row. No row opens in
                 mid-sentence, which matters at short windows, where torn solutions are noise.
                 Beginnings are read again: 2 to 33 % of the tokens, measured (docs/pipeline.md).

With document heads, which rows there are depends on the documents before, from the first one on: so
they are computed once for each length. Rows that follow each other in one long document are a run,
whose rows are arithmetic: a shard of 10^12 tokens in a thousand books has a thousand runs. Where
documents are many, the runs are kept beside the shard and mapped from then on. Concatenated, a
shard is one run.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pocketlm.data.shards import Shard, write_array

AT_ONCE = 2**20  # documents read together; a shard of more keeps its runs in a file
Packing = Literal["concatenate", "document_heads"]


@dataclass(frozen=True)
class RowIndex:
    """Row number n lies in run r, the last with before[r] <= n, and begins at begins[r] + (n -
    before[r]) x seq_len.

    begins: [runs] int64; before: [runs + 1] int64, rows before each run, and at the end all of
    them.
    """

    seq_len: int
    begins: np.ndarray
    before: np.ndarray

    def __len__(self) -> int:
        return int(self.before[-1])

    def start(self, number: int) -> int:
        """Where in the stream row `number` begins."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of a shard that holds {len(self)}")
        run = int(np.searchsorted(self.before, np.int64(number), side="right")) - 1
        return int(self.begins[run]) + (number - int(self.before[run])) * self.seq_len


def row_index(shard: Shard, seq_len: int, packing: Packing) -> RowIndex:
    """The rows of a shard, of seq_len + 1 tokens each, the last a label alone; with document heads
    of a large shard from the file kept beside it, made when missing.
    """
    if packing == "concatenate":
        rows = -(-max(0, len(shard.tokens) - 1) // seq_len)  # the last token is a label alone
        return RowIndex(seq_len, np.zeros(1, dtype=np.int64), np.asarray([0, rows]))
    if packing != "document_heads":
        raise ValueError(f"packing {packing!r} is unknown; known: concatenate, document_heads")
    if len(shard) <= AT_ONCE:
        none = np.zeros(0, dtype=np.int64)
        begins, sizes = next(row_runs(shard.offsets, seq_len), (none, none))  # all of them
        return RowIndex(seq_len, begins, np.concatenate([[0], np.cumsum(sizes)]))
    folder = shard.file.with_name(shard.file.name.replace(".tokens.npy", f".rows-{seq_len}"))
    if not folder.is_dir():
        _keep(row_runs(shard.offsets, seq_len), folder)
    return RowIndex(
        seq_len, *(np.load(folder / name, mmap_mode="r") for name in ("begins.npy", "before.npy"))
    )


def row_runs(offsets: np.ndarray, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(begins, sizes in rows) of the runs, given where documents begin (offsets, the last is the
    end), some at a time.

    A row begins at the last document that begins inside the row before it or at its end; where none
    does, that row ends inside a long document and the next goes on there.
    """
    count, document = len(offsets) - 1, 0
    for first in range(0, count, AT_ONCE):
        stop = min(first + AT_ONCE, count)
        if document >= stop:
            continue
        begins = np.asarray(offsets[first:stop])
        lengths = np.asarray(offsets[first + 1 : stop + 1]) - begins
        if (lengths <= 0).any():
            raise ValueError("offsets do not rise from document to document; curate again")
        # rows that begin in the document, if one begins at its beginning
        sizes = np.maximum(1, -(-lengths // seq_len))
        following = (np.searchsorted(offsets, begins + sizes * seq_len, side="right") - 1).tolist()
        chosen = []
        while document < stop:
            chosen.append(document - first)
            document = following[document - first]
        yield begins[chosen], sizes[chosen]


def _keep(runs: Iterator[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Write the runs under another name, then give them theirs. Of several processes that do so at
    once one is first.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    total = size = 0
    with open(partial / "begins", "wb") as begins, open(partial / "before", "wb") as before:
        for starts, sizes in runs:
            begins.write(starts.astype(np.int64).tobytes())
            before.write((np.cumsum(sizes) - sizes + total).astype(np.int64).tobytes())
            total, size = total + int(sizes.sum()), size + len(sizes)
        before.write(np.int64(total).tobytes())
    for name, length in (("begins", size), ("before", size + 1)):
        write_array(partial / f"{name}.npy", partial / name, np.dtype(np.int64), length)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(partial)
