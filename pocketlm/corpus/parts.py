"""A source cut into parts, and each part read: errors name the source."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pocketlm.corpus.documents import Document
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import LocalSource, Part, Source


def split_source(source: Source, part_bytes: int, reading: Reading) -> list[Part]:
    """The source's parts, in order; all of it in one where it is capped, since a cap counts from
    the beginning. Errors name the source.
    """
    with _named(source):
        return source.parts(part_bytes if source.max_bytes is None else sys.maxsize, reading)


def read_part(source: Source, part: Any, reading: Reading) -> Iterator[Document]:
    """A part's documents before any filter. Errors name the source, and the file and line, or the
    row.
    """
    with _named(source):
        yield from source.documents(part, reading)


def read_source(source: Source, reading: Reading | None = None) -> Iterator[Document]:
    """All documents of a source. `reading` counts its files: read, or left out by reason."""
    reading = reading or Reading()
    for part in split_source(source, sys.maxsize, reading):
        yield from read_part(source, part.place, reading)


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Puts the source's name before what is wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source.where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source.where}: {error}") from None


def check_source(source: Source) -> None:
    """FileNotFoundError for a local source that is not there: at once, before hours of work on the
    others.
    """
    if isinstance(source, LocalSource) and not source.root.exists():
        raise FileNotFoundError(f"{source.where}: {source.path}: no such file or folder")
