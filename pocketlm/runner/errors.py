"""User-facing errors: one message, and an exit status."""

import contextlib
import errno
import importlib.metadata
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

BAD_INPUT = 2
# the last: a training that diverged
MENDABLE = (ValueError, OSError, ImportError, FloatingPointError)
INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextlib.contextmanager
def plain_errors(
    log_folder: Path | None = None, may_explain: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Turns what a user can fix into one message and exit status 2; bugs of the program pass.

    may_explain: where several processes stop for one reason, whether this is the one to print it.
    The traceback goes to `error.log` in `log_folder` if that exists; POCKETLM_TRACEBACK=1 shows it
    instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        full = _disk_full(error)
        if os.environ.get("POCKETLM_TRACEBACK") or not (full or isinstance(error, MENDABLE)):
            raise
        if not may_explain():
            raise typer.Exit(BAD_INPUT) from None
        message = _disk_message(error, log_folder) if full else _message(error)
        if log_folder is not None and log_folder.is_dir():
            with contextlib.suppress(OSError):  # the disk may be what is wrong
                (log_folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
        say(message, title="error")
        raise typer.Exit(BAD_INPUT) from None


def say(message: str, title: str | None = None) -> None:
    """Prints a message on stderr: in a frame on a terminal, as plain lines elsewhere."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if console.is_terminal and title:
        console.print(Panel(Text(message), title=title, title_align="left", border_style="red"))
    else:
        print(f"{title}: {message}" if title else message, file=sys.stderr)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that training saves before it stops."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _message(error: Exception) -> str:
    """An error in words; the system's own errors are written as `file: what is wrong`."""
    text = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and (extra := extra_with(error.name or "")):
        text = f"this needs the package {error.name}: pip install 'pocketlm[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return "\n".join([text, *getattr(error, "__notes__", [])])


def extra_with(module: str) -> str | None:
    """The extra of this package that installs a module, or None: core or not ours."""
    package = re.sub(r"[-_.]+", "-", module.split(".")[0]).lower()
    for requirement in importlib.metadata.requires("pocketlm") or ():
        extra = re.search(r"""extra == ["']([\w-]+)["']""", requirement)
        if extra and re.match(rf"{re.escape(package)}(?![\w-])", requirement.lower()):
            return extra[1]
    return None


def _disk_full(error: Exception) -> bool:
    """Whether a disk ran full, in whichever library's words."""
    return getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
    ) or "No space left on device" in str(error)


def _disk_message(error: Exception, folder: Path | None) -> str:
    """Where a disk ran full, and how much is free there."""
    place = Path(getattr(error, "filename", None) or folder or ".").absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    problem = f"the disk is full: {free / 1e6:,.1f} MB are free at {place}"
    return f"{problem}; make room, then run the same command again to go on"
