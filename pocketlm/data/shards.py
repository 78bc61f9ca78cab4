"""Token shards: the documents of one source and split, end to end in one stream of ids, and where
each begins.

`<split>.tokens.npy` holds the ids (uint16 when they fit, else uint32), `<split>.offsets.npy` the
int64 positions [0, end of document 0, ...]. Both are plain .npy files, opened as memory maps and
not read: a shard may be far larger than memory, and opens as fast. Where several tasks wrote it,
its ids stay in their files, `<split>-00000.tokens.npy` and on, and `<split>.index.json` says how
many each holds. Every document starts with the bos id, which is part of the stream; the next bos
ends it.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pocketlm.model.files import write_json
from pocketlm.model.json_shape import WHOLES, read_object

SPLITS = ("train", "validation", "probe")
WRITTEN_AT_ONCE = 1000  # documents
AT_ONCE = 2**20  # offsets
Link = Callable[[Path, Path], None]  # gives a file a second name


class JoinedTokens:
    """The ids of several files as one flat array [T], each mapped when it is first read from."""

    ndim = 1

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        self.files = files
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.arrays: list[np.ndarray | None] = [None] * len(files)

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @property
    def dtype(self) -> np.dtype:
        return self._array(0).dtype

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        """The ids of a slice without a step; a view of the map where one file holds them all."""
        start, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens are read from start to stop, not in steps of {step}")
        pieces = []
        file = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            begin = int(self.ends[file - 1]) if file else 0
            pieces.append(self._array(file)[start - begin : stop - begin])
            start, file = int(self.ends[file]), file + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=self.dtype)

    def _array(self, file: int) -> np.ndarray:
        array = self.arrays[file]
        if array is None:
            begin = int(self.ends[file - 1]) if file else 0
            array = self.arrays[file] = _open(self.files[file])
            if len(array) != self.ends[file] - begin:
                raise ValueError(f"{self.files[file]}: does not fit its index; curate again")
        return array


@dataclass(frozen=True)
class Shard:
    """One opened shard. tokens: [T] uint16 or uint32; offsets: [documents + 1] int64; both
    memory-mapped.
    """

    tokens: "np.ndarray | JoinedTokens"
    offsets: np.ndarray
    file: Path  # of the tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, number: int) -> np.ndarray:
        """Ids of one document [T], bos first: a view of the map, not a copy."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of a shard that holds {len(self)}")
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    def documents_of(self, start: int, stop: int) -> np.ndarray:
        """The number of the document, counted from 1, of each token of the stream in start..stop -
        1, [stop - start] int64.
        """
        first, last = np.searchsorted(self.offsets, np.asarray([start, stop]), side="right")
        return first + np.searchsorted(
            self.offsets[first:last], np.arange(start, stop), side="right"
        )


def write_shard(
    folder: Path, split: str, documents: Iterable[Sequence[int] | np.ndarray], *, vocab_size: int
) -> Shard:
    """The shard written to `folder`, opened.

    Documents are streamed: memory holds WRITTEN_AT_ONCE documents and the offsets. Raises
    ValueError for an empty document or an id outside [0, vocab_size).
    """
    dtype = token_dtype(vocab_size)
    tokens_file, offsets_file = _files(folder, split)
    offsets, number, remaining = [np.zeros(1, dtype=np.int64)], 0, iter(documents)
    with open(tokens_file, "wb") as file:
        _write_header(file, dtype, 0)  # as long as the one that will replace it
        while arrays := [np.asarray(ids) for ids in islice(remaining, WRITTEN_AT_ONCE)]:
            lengths = np.asarray([len(ids) for ids in arrays])
            if not lengths.all():
                raise ValueError(
                    f"document {number + int(np.argmin(lengths))} of split {split!r} has no "
                    "tokens, not even bos"
                )
            tokens = np.concatenate(arrays)
            if tokens.min() < 0 or tokens.max() >= vocab_size:
                wrong = next(
                    n for n, ids in enumerate(arrays) if ids.min() < 0 or ids.max() >= vocab_size
                )
                raise ValueError(
                    f"document {number + wrong} of split {split!r} has ids outside "
                    f"0..{vocab_size - 1}"
                )
            # tofile loses what a full disk refuses
            file.write(tokens.astype(dtype, copy=False).data)
            offsets.append(np.cumsum(lengths) + offsets[-1][-1])
            number += len(arrays)
        whole = np.concatenate(offsets)
        file.seek(0)
        _write_header(file, dtype, int(whole[-1]))
    np.save(offsets_file, whole, allow_pickle=False)
    return read_shard(folder, split)


def join_shards(parts: Sequence[Path], folder: Path, split: str, link: Link) -> None:
    """One shard in `folder` of those that lie in the folders `parts`: their ids are linked, not
    copied, and their offsets written anew (8 bytes a document).
    """
    tokens_file, offsets_file = _files(folder, split)
    if len(parts) == 1:
        link(_files(parts[0], split)[0], tokens_file)
        link(_files(parts[0], split)[1], offsets_file)
        return
    raw, end, sizes = folder / f".{split}.offsets.raw", 0, []
    with open(raw, "wb") as file:
        file.write(np.int64(0).tobytes())
        for number, part in enumerate(parts):
            shard = read_shard(part, split)
            link(shard.file, _part_file(folder, split, number))
            for first in range(1, len(shard.offsets), AT_ONCE):
                file.write((shard.offsets[first : first + AT_ONCE] + end).tobytes())
            sizes.append(len(shard.tokens))
            end += sizes[-1]
        count = file.tell() // 8
    write_array(offsets_file, raw, np.dtype(np.int64), count)
    write_json(folder / f"{split}.index.json", {"tokens": sizes})


def token_dtype(vocab_size: int) -> np.dtype:
    """What the ids of a vocabulary are kept in."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_array(file: Path, raw_file: Path, dtype: np.dtype, length: int) -> None:
    """Make of the bytes in raw_file, which goes, the .npy file of a flat array: its header states
    the length first.
    """
    with open(file, "wb") as whole, open(raw_file, "rb") as raw:
        _write_header(whole, dtype, length)
        shutil.copyfileobj(raw, whole, 1 << 20)
    raw_file.unlink()


def _write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    """The header of a flat array. numpy leaves room in it for any length, so its size is fixed."""
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def read_shard(folder: Path, split: str) -> Shard:
    """The shard of one source folder and split, tokens memory-mapped; errors name the file and its
    fault.
    """
    tokens_file, offsets_file = _files(folder, split)
    offsets = _open(offsets_file)
    if (index := folder / f"{split}.index.json").is_file():
        sizes = read_object(index).typed("tokens", WHOLES)
        tokens = JoinedTokens([_part_file(folder, split, n) for n in range(len(sizes))], sizes)
    else:
        tokens = _open(tokens_file)
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise ValueError(
            f"{tokens_file}: holds {tokens.dtype} {tokens.shape}, not a flat uint16 or uint32 array"
        )
    if offsets.ndim != 1 or offsets.dtype != np.int64 or not len(offsets):
        raise ValueError(
            f"{offsets_file}: holds {offsets.dtype} {offsets.shape}, not a flat int64 array; "
            "curate again"
        )
    # whether they rise is seen where rows are made of them
    if offsets[0] != 0 or offsets[-1] != len(tokens):
        raise ValueError(
            f"{offsets_file}: does not fit the {len(tokens)} ids of {tokens_file.name}; curate "
            "again"
        )
    return Shard(tokens, offsets, tokens_file)


def open_shard(corpus: Path, source: str, split: str) -> Shard:
    """The shard of a source in a corpus folder that the curate stage wrote; the error lists those
    there.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    sources = list_sources(corpus)
    if source not in sources:
        raise ValueError(f"{corpus} has no source {source!r}; it has {', '.join(sources)}")
    return read_shard(corpus / "shards" / source, split)


def list_sources(corpus: Path) -> list[str]:
    """The sources of a corpus folder, sorted by name."""
    folder = corpus / "shards"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{corpus} holds no shards/ folder; is it the output of a curate stage?"
        )
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.tokens.npy", folder / f"{split}.offsets.npy"


def _part_file(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.tokens.npy"


def _open(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; is its folder the output of a curate stage?")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a whole .npy file ({error}); curate again") from None
