"""How far the tasks of a stage are: bars in the terminal with the time that is left, fed by files
that tasks write, so that tasks of any executor are seen alike.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress, TaskID

POLL_SECONDS = 0.5


class Bar(NamedTuple):
    """One source's bar: its tasks, and the sum that makes it full (0 or None: nobody knows)."""

    label: str
    tasks: Sequence[int]
    total: int | None
    counts_good: bool  # which sum: the third number that tasks write, or the second, bytes read


@contextmanager
def progress_bars(progress: Progress, bars: Sequence[Bar], folder: Path) -> Iterator[None]:
    """Bars that follow the files `<task>` of a folder ("documents bytes good" each) while the
    block runs, and are full when it ends well.
    """
    ids = [progress.add_task(bar.label, total=bar.total or None, status="") for bar in bars]
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            for bar, id in zip(bars, ids, strict=True):
                _update(progress, id, bar, folder)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for bar, id in zip(bars, ids, strict=True):
        _update(progress, id, bar, folder)
        progress.update(id, total=1, completed=1)


def _update(progress: Progress, id: TaskID, bar: Bar, folder: Path) -> None:
    documents = size = good = 0
    for task in bar.tasks:
        try:
            numbers = (folder / f"{task:05d}").read_text().split()
        except FileNotFoundError:
            continue
        documents, size, good = (
            a + int(b) for a, b in zip((documents, size, good), numbers, strict=True)
        )
    if documents:
        status = f"{documents:,} documents, {size / 1e6:.1f} MB"
        progress.update(id, completed=good if bar.counts_good else size, status=status)


def write_progress(file: Path, documents: int, size: int, good: int) -> None:
    """How far a task is; no reader meets a half-written line."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(f"{documents} {size} {good}")
    partial.replace(file)
