"""Token shards: the documents of one source and split, end to end in one flat array, and where each
begins.

`<split>.tokens.npy` holds the ids (uint16 when they fit, else uint32), `<split>.offsets.npy` the
int64 positions [0, end of document 0, ...]. Both are plain .npy files, opened as memory maps and
not read: a shard may be far larger than memory, and opens as fast. Every document starts with the
bos id, which is part of the stream; the next bos ends it.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "probe")
WRITTEN_AT_ONCE = 1000  # documents


@dataclass(frozen=True)
class Shard:
    """One opened shard. tokens: [T] uint16 or uint32; offsets: [documents + 1] int64; both
    memory-mapped.
    """

    tokens: np.ndarray
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
    raw_file = folder / f".{split}.tokens.raw"
    offsets, number, some = [np.zeros(1, dtype=np.int64)], 0, iter(documents)
    with open(raw_file, "wb") as raw:
        while arrays := [np.asarray(ids) for ids in islice(some, WRITTEN_AT_ONCE)]:
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
            raw.write(tokens.astype(dtype, copy=False).data)
            offsets.append(np.cumsum(lengths) + offsets[-1][-1])
            number += len(arrays)
    whole = np.concatenate(offsets)
    write_array(tokens_file, raw_file, dtype, int(whole[-1]))
    np.save(offsets_file, whole, allow_pickle=False)
    return read_shard(folder, split)


def token_dtype(vocab_size: int) -> np.dtype:
    """What the ids of a vocabulary are kept in."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_array(file: Path, raw_file: Path, dtype: np.dtype, length: int) -> None:
    """Make of the bytes in raw_file, which goes, the .npy file of a flat array: its header states
    the length first.
    """
    with open(file, "wb") as whole, open(raw_file, "rb") as raw:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (length,),
        }
        np.lib.format.write_array_header_1_0(whole, header)
        shutil.copyfileobj(raw, whole, 1 << 20)
    raw_file.unlink()


def read_shard(folder: Path, split: str) -> Shard:
    """The shard of one source folder and split, tokens memory-mapped; errors name the file and its
    fault.
    """
    tokens_file, offsets_file = _files(folder, split)
    tokens, offsets = _open(tokens_file), _open(offsets_file)
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


def _open(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; is its folder the output of a curate stage?")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a whole .npy file ({error}); curate again") from None
