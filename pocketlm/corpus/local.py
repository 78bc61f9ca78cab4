"""Local files to documents: .txt .md .py (one each), .jsonl .parquet (one a row), compressed or not."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pocketlm.corpus.documents import Document, row_document

TEXT_SUFFIXES = (".txt", ".md", ".py")
ROW_SUFFIXES = (".jsonl", ".parquet")
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED_SUFFIXES = (*OPENERS, ".zst")
CHUNK_BYTES = 1 << 20


Pair = tuple[str, str] | None  # the fields of a prompt and its response, where rows name them otherwise


def read_local(path: Path, text_field: str | None, pair: Pair = None) -> Iterator[Document]:
    """The documents of a file, or of every readable file below a folder in name order (hidden ones aside).

    FileNotFoundError where nothing is at `path`. ValueError names the file, and the line, column, byte or
    row, that cannot be read. Ids are paths below the folder, with ":line" for rows.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        if _suffix(path) is None:
            raise ValueError(f"{path}: cannot read this kind of file; {_readable()}")
        yield from _read_file(path, path.name, text_field, pair)
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and _suffix(file) is not None and not any(part.startswith(".") for part in name.parts):
            yield from _read_file(file, name.as_posix(), text_field, pair)


def _readable() -> str:
    plain, packed = " ".join(TEXT_SUFFIXES + ROW_SUFFIXES), " ".join(COMPRESSED_SUFFIXES)
    return f"use {plain}, as they are or with {packed} after the name"


def _suffix(path: Path) -> str | None:
    """What the file holds once unpacked, or None when that is nothing read here."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_SUFFIXES + ROW_SUFFIXES else None


def _read_file(path: Path, id: str, text_field: str | None, pair: Pair) -> Iterator[Document]:
    match _suffix(path):
        case ".jsonl":
            yield from _read_jsonl(path, id, text_field, pair)
        case ".parquet":
            yield from _read_parquet(path, id, text_field, pair)
        case _:
            content = b"".join(_chunks(path))
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                raise ValueError(f"{path}:{line}: not UTF-8 at byte {error.start} of the file; convert it") from None
            yield Document(id=id, text=text)


def _read_jsonl(path: Path, id: str, text_field: str | None, pair: Pair) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 at byte {error.start} of the line; convert the file") from None
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: column {error.colno}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
            raise ValueError(f"{where}: JSON that cannot be read ({error})") from None
        yield row_document(row, f"{id}:{number}", where, text_field, pair)


def _read_parquet(path: Path, id: str, text_field: str | None, pair: Pair) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    source = BytesIO(b"".join(_chunks(path))) if path.suffix in COMPRESSED_SUFFIXES else path
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield row_document(row, f"{id}:{number}", f"{path}: row {number}", text_field, pair)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({_first_line(error)}); fetch it again") from None


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    """The unpacked content; ValueError when the packed file is cut short or damaged."""
    if path.suffix.lower() == ".zst":
        yield from _zstd_chunks(path)
        return
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: cut short or damaged ({_first_line(error)}); fetch it again") from None
    except OSError as error:
        if error.errno is not None:  # the system's own word (no permission, a bad disk) names the file already
            raise
        raise ValueError(f"{path}: damaged ({_first_line(error)}); fetch it again") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{path}: reading .zst needs the zstandard package: pip install zstandard") from None
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
                    raise ValueError(f"{path}: damaged ({_first_line(error)}); fetch it again") from None
                started, packed = True, unpacker.unused_data if unpacker.eof else b""
    if started and not unpacker.eof:
        raise ValueError(f"{path}: cut short (the last zstd frame does not end); fetch it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
