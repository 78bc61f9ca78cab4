"""Tokenised conversations on disk: a token shard, a bit for each token that is learnt, and the rows
that they are packed into. All is memory-mapped, so any number of conversations opens at once.

    conversations.tokens.npy, conversations.offsets.npy    one document an example, as in shards.py
    learnt.npy         uint8 [tokens / 8]: a bit for each token, in order
    row_examples.npy   int64 [examples]: the examples of row 0, then those of row 1, ...
    row_offsets.npy    int64 [rows + 1]: where the examples of each row begin
    store.json         what the store was made of, and the tally of conversations

Where each example has a row of its own, the two files of rows are not there.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pocketlm.data.batches import ConversationRows, pack
from pocketlm.data.conversations import Pair, Tally
from pocketlm.data.shards import read_shard, write_shard
from pocketlm.model.files import read_json, write_folder, write_json

SPLIT = "conversations"
LEARNT, EXAMPLES, OFFSETS, STORE = "learnt.npy", "row_examples.npy", "row_offsets.npy", "store.json"
Stored = tuple[np.ndarray, np.ndarray]  # ids int64 [T], which of them are learnt bool [T]


def write_store(
    folder: Path,
    pairs: Iterable[Pair],
    tally: Tally,
    *,
    seq_len: int,
    vocab_size: int,
    packed: bool,
    made_of: dict[str, Any],
) -> None:
    """Writes the store, which has its name when it is whole. Memory holds a thousand examples, and
    some numbers of each.

    tally: as it stands when all pairs were read. made_of: what `is_store_of` must be given.
    """
    with write_folder(folder) as partial:
        with open(partial / ".learnt.raw", "wb") as raw:
            bits = BitWriter(raw)
            ids = (_kept(bits, learnt, tokens) for tokens, learnt in pairs)
            shard = write_shard(partial, SPLIT, ids, vocab_size=vocab_size)
            bits.close()
        np.save(partial / LEARNT, np.fromfile(partial / ".learnt.raw", np.uint8))
        (partial / ".learnt.raw").unlink()
        if packed:
            rows = pack((np.diff(shard.offsets) - 1).tolist(), seq_len)
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            examples = (example for row in rows for example in row)
            np.save(partial / EXAMPLES, np.fromiter(examples, np.int64, len(shard)))
            np.save(partial / OFFSETS, np.concatenate([[0], np.cumsum(lengths)]))
        write_json(partial / STORE, {"made_of": made_of, "tally": tally.as_json()})


def _kept(bits: "BitWriter", learnt: Sequence[bool], ids: list[int]) -> list[int]:
    """The ids, once their bits are written."""
    bits.write(learnt)
    return ids


def is_store_of(folder: Path, made_of: dict[str, Any]) -> bool:
    """Whether the folder holds a whole store that was made of just this."""
    file = folder / STORE
    return file.is_file() and read_json(file)["made_of"] == made_of


def read_tally(folder: Path) -> Tally:
    """What became of the conversations when the store was written."""
    return Tally.from_json(read_json(folder / STORE)["tally"])


class BitWriter:
    """Writes flags to a file, eight a byte, the first in the lowest bit."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.pending = np.zeros(0, dtype=bool)  # fewer than eight

    def write(self, flags: Sequence[bool]) -> None:
        pending = np.concatenate([self.pending, np.asarray(flags, dtype=bool)])
        whole = len(pending) // 8 * 8
        self.file.write(np.packbits(pending[:whole], bitorder="little").tobytes())
        self.pending = pending[whole:]

    def close(self) -> None:
        """Writes the last byte, filled up with zeros."""
        self.file.write(np.packbits(self.pending, bitorder="little").tobytes())


class StoredRows(ConversationRows):
    """Rows of a store, as ConversationRows makes them in memory, read as they are asked for."""

    def __init__(self, folder: Path, seq_len: int, eos_id: int) -> None:
        self.seq_len, self.eos_id = seq_len, eos_id
        self.conversations = StoredConversations(folder)  # type: ignore[assignment]
        if (folder / OFFSETS).is_file():
            self.rows = StoredLists(folder)  # type: ignore[assignment]
        else:
            self.rows = OneEach(len(self.conversations))  # type: ignore[assignment]


class StoredConversations(Sequence[Stored]):
    """The examples of a store, by number."""

    def __init__(self, folder: Path) -> None:
        self.shard = read_shard(folder, SPLIT)
        self.learnt = np.load(folder / LEARNT, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, number: int) -> Stored:  # type: ignore[override]
        start, stop = (int(place) for place in self.shard.offsets[number : number + 2])
        flags = np.unpackbits(self.learnt[start // 8 : -(-stop // 8)], bitorder="little")
        first = start % 8
        ids = self.shard.document(number).astype(np.int64)
        return ids, flags[first : first + stop - start].astype(bool)


class StoredLists(Sequence[np.ndarray]):
    """The examples of each row of a store."""

    def __init__(self, folder: Path) -> None:
        self.examples = np.load(folder / EXAMPLES, mmap_mode="r", allow_pickle=False)
        self.offsets = np.load(folder / OFFSETS, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        return self.examples[self.offsets[number] : self.offsets[number + 1]]


class OneEach(Sequence[tuple[int]]):
    """Rows of one example each."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> tuple[int]:  # type: ignore[override]
        return (number,)
