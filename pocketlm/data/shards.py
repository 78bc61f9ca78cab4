"""Token shards: the documents of one source and split, end to end in one flat array, and where each begins.

`<split>.tokens.npy` holds the ids (uint16 when they fit, else uint32), `<split>.offsets.npy` the int64
positions [0, end of document 0, ...]. Both are plain .npy files, opened as memory maps: a shard may be larger
than memory. Every document starts with the bos id, which is part of the stream; the next bos ends it.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "probe")


@dataclass(frozen=True)
class Shard:
    """One opened shard. tokens: [T] uint16 or uint32, memory-mapped; offsets: [documents + 1] int64."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, number: int) -> np.ndarray:
        """Ids of one document [T], bos first: a view of the map, not a copy."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of a shard that holds {len(self)}")
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


def write_shard(folder: Path, split: str, documents: Iterable[Sequence[int]], *, vocab_size: int) -> Shard:
    """The shard written to `folder`, opened.

    Documents are streamed: memory holds one document and the offsets. Raises ValueError for an empty document
    or an id outside [0, vocab_size).
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    tokens_file, offsets_file = _files(folder, split)
    raw_file = folder / f".{split}.tokens.raw"
    offsets = [0]
    with open(raw_file, "wb") as raw:
        for number, ids in enumerate(documents):
            if not len(ids):
                raise ValueError(f"document {number} of split {split!r} has no tokens, not even bos")
            if min(ids) < 0 or max(ids) >= vocab_size:
                raise ValueError(f"document {number} of split {split!r} has ids outside 0..{vocab_size - 1}")
            raw.write(np.asarray(ids, dtype=dtype).tobytes())  # tofile loses what a full disk refuses
            offsets.append(offsets[-1] + len(ids))
    # the .npy header states the length, which is only known now
    with open(tokens_file, "wb") as file, open(raw_file, "rb") as raw:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (offsets[-1],),
        }
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(raw, file, 1 << 20)
    raw_file.unlink()
    np.save(offsets_file, np.asarray(offsets, dtype=np.int64), allow_pickle=False)
    return read_shard(folder, split)


def read_shard(folder: Path, split: str) -> Shard:
    """The shard of one source folder and split, tokens memory-mapped; errors name the file and its fault."""
    tokens_file, offsets_file = _files(folder, split)
    tokens, offsets = _open(tokens_file, map_mode="r"), _open(offsets_file, map_mode=None)
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"{tokens_file}: holds {tokens.dtype} {tokens.shape}, not a flat uint16 or uint32 array")
    if offsets.ndim != 1 or offsets.dtype != np.int64 or not len(offsets):
        raise ValueError(f"{offsets_file}: holds {offsets.dtype} {offsets.shape}, not a flat int64 array; curate again")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) <= 0).any():
        raise ValueError(f"{offsets_file}: does not fit the {len(tokens)} ids of {tokens_file.name}; curate again")
    return Shard(tokens, offsets)


def open_shard(corpus: Path, source: str, split: str) -> Shard:
    """The shard of a source in a corpus folder that the curate stage wrote; the error lists those there."""
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
        raise FileNotFoundError(f"{corpus} holds no shards/ folder; is it the output of a curate stage?")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.tokens.npy", folder / f"{split}.offsets.npy"


def _open(path: Path, map_mode: str | None) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; is its folder the output of a curate stage?")
    try:
        return np.load(path, mmap_mode=map_mode, allow_pickle=False)  # type: ignore[arg-type]
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a whole .npy file ({error}); curate again") from None
