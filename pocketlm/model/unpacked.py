"""A file's content, plain or compressed (.gz .bz2 .xz .zst), in pieces."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED_SUFFIXES = (*OPENERS, ".zst")
CHUNK_BYTES = 1 << 20


def unpacked(path: Path) -> Iterator[bytes]:
    """The content in pieces of about CHUNK_BYTES; ValueError when a packed file is cut short or
    damaged.
    """
    if path.suffix.lower() == ".zst":
        yield from _zstd(path)
        return
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: cut short or damaged ({first_line(error)}); fetch it again"
        ) from None
    except OSError as error:
        # the system's own word (no permission, a bad disk) names the file already
        if error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged ({first_line(error)}); fetch it again") from None


def unpacked_size(path: Path) -> int:
    """Bytes of a packed file's content, about: as much longer than the file as that of its first
    CHUNK_BYTES is (of .bz2 eight times as many). The file's own size where they cannot be unpacked.
    """
    size = path.stat().st_size
    # bzip2 gives its blocks of 900 kB whole, and nothing of the last one that is cut
    few = CHUNK_BYTES * (8 if path.suffix.lower() == ".bz2" else 1)
    with open(path, "rb") as file:
        packed = file.read(few)
    makers: dict[str, Callable[[], Any]] = {
        ".gz": partial(zlib.decompressobj, zlib.MAX_WBITS | 16),
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lzma.LZMADecompressor,
    }
    make = makers.get(path.suffix.lower()) or _zstandard(path).ZstdDecompressor().decompressobj
    unpacker = make()
    try:
        content = len(unpacker.decompress(packed))
    except Exception:  # damaged: each library has its own kind, and reading it says so
        return size
    read = len(packed) - len(unpacker.unused_data)  # what follows the first of several frames
    return size * content // max(1, read)


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise ValueError(
            f"{path}: reading .zst needs the zstandard package: pip install zstandard"
        ) from None
    return zstandard


def _zstd(path: Path) -> Iterator[bytes]:
    zstandard = _zstandard(path)
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    started = False
    with open(path, "rb") as file:
        while packed := file.read(CHUNK_BYTES):
            while packed:  # a file may hold several frames
                if unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield unpacker.decompress(packed)
                except zstandard.ZstdError as error:
                    raise ValueError(
                        f"{path}: damaged ({first_line(error)}); fetch it again"
                    ) from None
                started, packed = True, unpacker.unused_data if unpacker.eof else b""
    if started and not unpacker.eof:
        raise ValueError(f"{path}: cut short (the last zstd frame does not end); fetch it again")


def first_line(error: BaseException) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
