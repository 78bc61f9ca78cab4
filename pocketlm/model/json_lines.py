"""Rows of JSON files: the one reader of sources, conversations and suites.

A row is what stands on a line that ends in a line feed; other separators that Unicode knows are
text. A byte order mark is skipped on the first line. NaN and Infinity are read, as Python writes
them; empty lines are no rows.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pocketlm.model.unpacked import COMPRESSED_SUFFIXES, unpacked

ADVICE = "mend the line, or leave it out"


class Span(NamedTuple):
    """Bytes start..stop - 1 of a file, and the number of the line at `start`. Of a packed file:
    bytes of its text (stop 0: to its end), the lines that begin there, and no number.
    """

    start: int
    stop: int
    first_line: int


STRING = r'"(?:[^"\\]|\\.)*"'


def row_files(folder: Path, name: str) -> list[Path]:
    """`<name>.jsonl` of a folder, or the parts it was written in, `<name>-00000.jsonl` and on, in
    order; none where there are neither.
    """
    whole = folder / f"{name}.jsonl"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{name}-[0-9]*.jsonl"))


def json_lines(
    path: Path,
    advice: str = ADVICE,
    span: Span | None = None,
    unreadable: Callable[[ValueError], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """(line number, row) of each line of a file, plain or compressed, in time that grows with its
    size alone.

    span: a part of the file; of a plain one it begins at a line's beginning.
    ValueError names file, line and column of what is not UTF-8, not JSON, or beyond what Python
    reads of it (nesting, digits of a number), then gives `advice`; with `unreadable`, that is given
    the error, and the lines behind are read.
    """
    for number, line in _numbered(path, span):
        try:
            text = _text(line, f"{path}:{number}", advice, first=number == 1)
            row = _parsed(text, f"{path}:{number}", advice) if text.strip() else None
        except ValueError as error:
            if unreadable is None:
                raise
            unreadable(error)
            continue
        if text.strip():
            yield number, row


def json_rows(path: Path, advice: str = ADVICE) -> Iterator[tuple[str, int, Any]]:
    """(where it stands, number, row) of a .json file: an array of rows, one object a line, or a
    single object.

    An array, or an object over several lines, is held in memory whole. ValueErrors as of
    `json_lines`.
    """
    first = next(
        (line for line in _lines(unpacked(path)) if line.strip(b" \t\r\n\xef\xbb\xbf")), b""
    )
    if not first:
        return
    if not _is_whole(first):
        text = _text(b"".join(unpacked(path)), str(path), advice, first=True)
        rows = _parsed(text, str(path), advice, many_lines=True)
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
            yield f"{path}: row {number}", number, row
        return
    for number, row in json_lines(path, advice):
        yield f"{path}:{number}", number, row


def _is_whole(line: bytes) -> bool:
    """Whether the first line is an object by itself, so that more may follow on lines of their
    own.
    """
    try:
        text = line.decode("utf-8-sig").strip()
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _numbered(path: Path, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a file, or of a part of it."""
    if span is None:
        yield from enumerate(_lines(unpacked(path)), start=1)
    elif path.suffix.lower() in COMPRESSED_SUFFIXES:
        yield from _packed_lines(unpacked(path), span)
    else:
        yield from enumerate(_lines(_chunks(path, span)), start=span.first_line)


def _packed_lines(chunks: Iterator[bytes], span: Span) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines of a text that begin in the span; those before it are counted."""
    at, number, rest = 0, 1, b""  # where `rest` begins, and the number of its first line
    if span.start:
        for chunk in chunks:
            end = chunk.find(b"\n", max(0, span.start - 1 - at)) + 1
            number += chunk.count(b"\n", 0, end or None)
            if end:
                at, rest = at + end, chunk[end:]
                break
            at += len(chunk)
        else:
            return
    for line in _lines(chain([rest], chunks)):
        if span.stop and at >= span.stop:
            return
        yield number, line
        at, number = at + len(line) + 1, number + 1


def _chunks(path: Path, span: Span) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(span.start)
        while chunk := file.read(min(1 << 20, span.stop - file.tell())):
            yield chunk


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their line feed. A line over many pieces is joined once, at its end."""
    parts: list[bytes] = []
    for chunk in chunks:
        end, *others = chunk.split(b"\n")
        parts.append(end)
        for begin in others:
            yield b"".join(parts)
            parts = [begin]
    if last := b"".join(parts):
        yield last


def _text(line: bytes, where: str, advice: str, *, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        before = line[: error.start]
        line_feeds = before.count(b"\n")
        if line_feeds:  # a whole file: where in it is the line
            where, before = f"{where}:{line_feeds + 1}", before[before.rindex(b"\n") + 1 :]
        column = len(before.decode()) + 1
        place = f"not UTF-8 at byte {len(before)} of the line"
        raise ValueError(f"{where}:{column}: {place}; convert the file") from None


def _parsed(text: str, where: str, advice: str, *, many_lines: bool = False) -> Any:
    """What the text holds; ValueError at its place, which `where` begins."""

    def place(at: int) -> str:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        return f"{where}:{line}:{column}" if many_lines else f"{where}:{column}"

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place(error.pos)}: not JSON ({error.msg}); {advice}") from None
    except RecursionError:
        depth, at = _deepest(text)
        raise ValueError(
            f"{place(at)}: nested {depth:,} deep, more than can be read; {advice}"
        ) from None
    except ValueError as error:
        limit = sys.get_int_max_str_digits()
        bad_lines = (
            m
            for m in re.finditer(rf"{STRING}|\d{{{limit + 1},}}", text, re.DOTALL)
            if m[0][0] != '"'
        )
        if (number := next(bad_lines, None)) is None:
            raise ValueError(f"{where}: JSON that cannot be read ({error}); {advice}") from None
        digits = f"a number of {len(number[0]):,} digits, more than the {limit:,} that are read"
        raise ValueError(f"{place(number.start())}: {digits}; {advice}") from None


def _deepest(text: str) -> tuple[int, int]:
    """(how deep brackets nest, where the deepest opens)."""
    depth = deepest = at = 0
    for match in re.finditer(rf"{STRING}|[\[\]{{}}]", text, re.DOTALL):
        if match[0] in ("[", "{"):
            depth += 1
            if depth > deepest:
                deepest, at = depth, match.start()
        elif match[0] in ("]", "}"):
            depth -= 1
    return deepest, at
