"""Local files to documents: texts (.txt .md .py ...) one each, rows (.jsonl .json .parquet) one a
row, packed or not.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pocketlm.corpus.documents import Document, row_document
from pocketlm.corpus.reading import Reading, printable
from pocketlm.model.file_tree import files_below
from pocketlm.model.json_lines import json_lines, json_rows
from pocketlm.model.unpacked import COMPRESSED_SUFFIXES, first_line, unpacked

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")

# the fields of a prompt and its response, where rows name them otherwise
Pair = tuple[str, str] | None


def read_local(
    path: Path, text_field: str | None, pair: Pair = None, reading: Reading | None = None
) -> Iterator[Document]:
    """The documents of a file, or of every readable file below a folder in name order, linked
    folders too.

    FileNotFoundError where nothing is at `path`. ValueError names the file, and the line, column,
    byte or row, that cannot be read. Ids are paths below the folder, with ":line" for rows.
    `reading` counts the files that are read, and those that are not by reason.
    """
    reading = reading or Reading()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file() and _suffix(path) is None:
        raise ValueError(f"{path}: cannot read this kind of file; {_readable()}")
    if path.is_file():
        names = [path.name]
        folder = path.parent
    else:
        names, folder = _readable_below(path, reading), path
    reading.waiting = names[::-1]
    while reading.waiting:
        name = reading.waiting.pop()
        file, empty = folder / name, True
        reading.read += 1
        for document in _read_file(file, printable(name), text_field, pair, single=path.is_file()):
            empty = False
            yield document
        if empty:
            reading.read -= 1
            reading.leave("empty" if not any(map(bytes.strip, unpacked(file))) else "no_rows", name)


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
    path: Path, id: str, text_field: str | None, pair: Pair, *, single: bool
) -> Iterator[Document]:
    """The documents of one file. single: the user named this very file, so it must hold rows."""
    match _suffix(path):
        case ".jsonl" | ".ndjson":
            for number, row in json_lines(path):
                yield row_document(row, f"{id}:{number}", f"{path}:{number}", text_field, pair)
        case ".json":
            yield from _read_json(path, id, text_field, pair, single)
        case ".parquet":
            yield from _read_parquet(path, id, text_field, pair)
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


def _read_parquet(path: Path, id: str, text_field: str | None, pair: Pair) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    source = BytesIO(b"".join(unpacked(path))) if path.suffix in COMPRESSED_SUFFIXES else path
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield row_document(
                        row, f"{id}:{number}", f"{path}: row {number}", text_field, pair
                    )
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a whole parquet file ({first_line(error)}); fetch it again"
        ) from None
