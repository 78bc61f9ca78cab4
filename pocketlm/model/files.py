"""Writing so that nothing is ever half-written: a temporary name first, then a rename."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketlm.model.json_shape import read_any


def write_text(path: Path, text: str) -> Path:
    """The path, now holding `text`. Readers see the old file or the new one, never a part of
    either.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def write_json(path: Path, content: Any) -> Path:
    """The path, now holding `content` as indented JSON (NaN and infinity are refused: no other tool
    reads them).
    """
    return write_text(
        path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file; a ValueError names the file and line when it is not JSON.

    A field of an object in it that is asked for and missing is a ValueError with file and field
    (json_shape.py).
    """
    return read_any(path)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes
    when it does not.

    A folder already at `path` is replaced; at no moment is a half-written folder called `path`.
    """
    temporary = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
