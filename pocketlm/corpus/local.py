"""Local files to documents: texts (.txt .md .py ...) one each, rows (.jsonl .json .parquet) one a
row, packed or not.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pocketlm.corpus.documents import Document, row_document
from pocketlm.corpus.reading import Reading, printable
from pocketlm.model.file_tree import files_below
from pocketlm.model.json_lines import Span, json_lines, json_rows
from pocketlm.model.unpacked import COMPRESSED_SUFFIXES, first_line, unpacked, unpacked_size

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")

LINE_SUFFIXES = (".jsonl", ".ndjson")
# parts of one packed file at most (our choice): each is unpacked from the file's beginning, half of
# it on average, so that twice as many parts cost twice as much unpacking
PACKED_PARTS = 32
# the fields of a prompt and its response, where rows name them otherwise
Pair = tuple[str, str] | None


class Slice(NamedTuple):
    """A file below the source's folder, or a part of it that begins at `start`.

    start, stop: bytes of a file of lines, or row groups of a parquet file; stop 0: to the end. Of
    a packed file of lines they are bytes of its text, and a line is of the part where it begins.
    first_row: the number of the row at `start`, from 1 on; of a packed file it is counted where
    the part is read.
    """

    name: str
    start: int = 0
    stop: int = 0
    first_row: int = 1


def list_files(path: Path, reading: Reading) -> tuple[Path, list[str]]:
    """(folder, the names of what is read below it, in order): a file alone, or all readable files
    of a folder, linked folders too. `reading` counts the others by reason.

    FileNotFoundError where nothing is at `path`, ValueError for a file of a kind not read here.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_file():
        return path, _readable_below(path, reading)
    if _suffix(path) is None:
        raise ValueError(f"{path}: cannot read this kind of file; {_readable()}")
    return path.parent, [path.name]


def read_local(path: Path, text_field: str | None, pair: Pair = None) -> Iterator[Document]:
    """All documents of a file, or of the readable files of a folder."""
    reading = Reading()
    _, names = list_files(path, reading)
    yield from read_files(path, list(map(Slice, names)), text_field, pair, reading)


def cut_file(folder: Path, name: str, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    """(a slice, its size in bytes) of a file: one, or as many of about part_bytes as its kind
    allows: files of lines are cut between lines, parquet files between row groups. The size of a
    packed file is that of its text, about.

    A plain file of lines is read once for that, so that each part knows the number of its first
    line; a packed one is not: its parts are unpacked from the beginning, and of no more than
    PACKED_PARTS.
    """
    path = folder / name
    packed = path.suffix.lower() in COMPRESSED_SUFFIXES
    size = unpacked_size(path) if packed else path.stat().st_size
    if size > part_bytes and _suffix(path) in LINE_SUFFIXES:
        yield from (
            _cut_packed(name, size, part_bytes)
            if packed
            else _cut_lines(path, name, size, part_bytes)
        )
    elif size > part_bytes and path.suffix.lower() == ".parquet":
        yield from _cut_row_groups(path, name, part_bytes)
    else:
        yield Slice(name), size


def _cut_packed(name: str, size: int, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    """Equal parts of the text of about `size` bytes; the last one goes to the end, wherever that
    is.
    """
    count = min(PACKED_PARTS, -(-size // part_bytes))
    starts = [number * size // count for number in range(count)]
    for start, stop in zip(starts, [*starts[1:], 0], strict=True):
        yield Slice(name, start, stop), (stop or size) - start


def _cut_lines(path: Path, name: str, size: int, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    with open(path, "rb") as file:
        start, row = 0, 1
        while start < size:
            lines, stop = 0, start
            while stop < size and stop - start < part_bytes:
                chunk = file.read(min(1 << 20, part_bytes - (stop - start)))
                stop += len(chunk)
                lines += chunk.count(b"\n")
            if stop < size:
                rest = file.readline()
                stop, lines = stop + len(rest), lines + rest.count(b"\n")
            yield Slice(name, start, stop, row), stop - start
            start, row = stop, row + lines


def _cut_row_groups(path: Path, name: str, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError):
        yield Slice(name), path.stat().st_size  # it is refused, with its name, where it is read
        return
    start = size = rows = 0
    row = 1
    for number, group in enumerate(groups, start=1):
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= part_bytes or number == len(groups):
            yield Slice(name, start, number, row), size
            start, row, size, rows = number, row + rows, 0, 0


def read_files(
    path: Path, slices: list[Slice], text_field: str | None, pair: Pair, reading: Reading
) -> Iterator[Document]:
    """The documents of these slices of files, in order. Ids are paths below the folder, with
    ":line" for rows.

    ValueError names the file, and the line, column, byte or row, that cannot be read. `reading`
    counts the files that are read, and those that hold nothing by reason.
    """
    single = path.is_file()
    folder = path.parent if single else path
    for piece in slices:
        file, empty = folder / piece.name, True
        if piece.start == 0:
            reading.open(piece.name)
        for document in _read_file(file, piece, text_field, pair, single=single):
            empty = False
            yield document
        if empty and piece.start == 0:
            reading.close("empty" if not any(map(bytes.strip, unpacked(file))) else "no_rows")


def _readable_below(folder: Path, reading: Reading) -> list[str]:
    """Names below the folder of what is read, in order; the rest is counted."""
    files, others = files_below(folder)
    names = []
    for file, reason in others.items():
        reading.leave(reason, file.relative_to(folder).as_posix())
    for file in files:
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            reading.leave("hidden", name.as_posix())
        elif _suffix(file) is None:
            reading.leave("kind_not_read", name.as_posix())
        else:
            names.append(name.as_posix())
    return names


def _readable() -> str:
    plain, packed = " ".join(TEXT_SUFFIXES + ROW_SUFFIXES), " ".join(COMPRESSED_SUFFIXES)
    return f"use {plain}, as they are or with {packed} after the name"


def _suffix(path: Path) -> str | None:
    """What the file holds once unpacked, or None when that is nothing read here."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_SUFFIXES + ROW_SUFFIXES else None


def _read_file(
    path: Path, piece: Slice, text_field: str | None, pair: Pair, *, single: bool
) -> Iterator[Document]:
    """The documents of one slice. single: the user named this very file, so it must hold rows."""
    id = printable(piece.name)
    match _suffix(path):
        case ".jsonl" | ".ndjson":
            part = piece.start or piece.stop
            span = Span(piece.start, piece.stop, piece.first_row) if part else None
            for number, row in json_lines(path, span=span):
                yield row_document(row, f"{id}:{number}", f"{path}:{number}", text_field, pair)
        case ".json":
            yield from _read_json(path, id, text_field, pair, single)
        case ".parquet":
            yield from _read_parquet(path, piece, text_field, pair)
        case _:
            content = b"".join(unpacked(path))
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                raise ValueError(
                    f"{path}:{line}: not UTF-8 at byte {error.start} of the file; convert it"
                ) from None
            if text:
                yield Document(id=id, text=text)


def _read_json(
    path: Path, id: str, text_field: str | None, pair: Pair, single: bool
) -> Iterator[Document]:
    """Rows of a .json file; none where it plainly holds something else, such as the settings of a
    program.

    That is a file of a folder with one object that is no document, or with no objects at all.
    """
    rows = json_rows(path)
    for place, number, row in rows:
        try:
            document = row_document(row, f"{id}:{number}", place, text_field, pair)
        except ValueError:
            if (
                not single
                and number == 1
                and (not isinstance(row, dict) or next(rows, None) is None)
            ):
                return
            raise
        yield document


def _read_parquet(
    path: Path, piece: Slice, text_field: str | None, pair: Pair
) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    id, number = printable(piece.name), piece.first_row
    source = BytesIO(b"".join(unpacked(path))) if path.suffix in COMPRESSED_SUFFIXES else path
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            groups = list(range(piece.start, piece.stop or file.metadata.num_row_groups))
            for batch in file.iter_batches(batch_size=1024, row_groups=groups):
                for row in batch.to_pylist():
                    place = f"{path}: row {number}"
                    yield row_document(row, f"{id}:{number}", place, text_field, pair)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a whole parquet file ({first_line(error)}); fetch it again"
        ) from None
