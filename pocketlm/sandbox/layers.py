"""What keeps a worker from the rest of the machine: the best of the operating system's layers."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

SOURCES = ("values", "lockdown", "worker")  # in the order of their imports
BOOTSTRAP = """
import sys, types
for name in ("pocketlm", "pocketlm.sandbox"):
    sys.modules[name] = types.ModuleType(name)
for name, text in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main({settings!r})
"""
NOBODY = 65534
SEATBELT = """(version 1)(allow default)(deny network*)(deny file-write*)(deny process-fork)
(deny signal (target others))(deny mach-lookup)
(deny file-read-data (subpath "/Users") (subpath "/private/tmp") (subpath "/private/var/folders")
(subpath "/private/etc"))
(allow file-read-data (subpath "{prefix}"))
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one judged program (our choice; human-eval gives 3 seconds of the clock, and one of MBPP's
    references takes as many of the processor).

    cpu_seconds: processor time of a worker. wall_seconds: from the first instruction to the
    verdict, generous, as a loaded machine is slow. memory_bytes: of address space. output_bytes:
    printed. value_bytes: of one call's result.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 1024 * 2**20
    output_bytes: int = 2**20
    value_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit <= 0:
                raise ValueError(f"{name} is {limit}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One way to start a worker. wrapper: the command before Python's. needs: the filters that the
    worker must report, or nothing runs. user: the id it runs under, where this process is root.
    """

    name: str
    wrapper: tuple[str, ...] = ()
    landlock: bool = False
    needs: frozenset[str] = frozenset()
    user: int | None = None


def layers(python: str) -> Iterator[Layer]:
    """The layers of this platform, the best first; as root, each for an ordinary user first."""
    users = (NOBODY, None) if os.geteuid() == 0 else (None,)
    if sys.platform == "linux":
        filters = frozenset({"landlock", "seccomp"})
        for user in users:
            yield Layer(name="landlock + seccomp", landlock=True, needs=filters, user=user)
        if bwrap := shutil.which("bwrap"):
            for user in users:
                yield Layer(name="bubblewrap", wrapper=_bubblewrap(bwrap, python), user=user)
    # nobody of us has had a Mac to try it on: the report says so with its name
    if sys.platform == "darwin" and (command := shutil.which("sandbox-exec")):
        profile = SEATBELT.format(prefix=Path(python).parent.parent)
        yield Layer(name="sandbox-exec (untried)", wrapper=(command, "-p", profile))


def bare_layers() -> Iterator[Layer]:
    """Without a layer of the operating system: files stay readable. Linux's seccomp where it is; a
    root without it would have no limit at all, and is refused.
    """
    if os.geteuid() == 0:
        yield Layer(name="none", needs=frozenset({"seccomp"}), user=NOBODY)
        yield Layer(name="none", needs=frozenset({"seccomp"}))
    else:
        yield Layer(name="none")


def _bubblewrap(bwrap: str, python: str) -> tuple[str, ...]:
    prefix = str(Path(python).parent.parent)
    folders = [prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache"]
    binds = [part for folder in folders for part in ("--ro-bind-try", folder, folder)]
    options = ("--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--dev", "/dev")
    return (bwrap, *options, *binds, "--chdir", "/", "--")


def base_python() -> str:
    """The interpreter behind a virtual environment: a worker needs no package."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def command_of(layer: Layer, python: str, role: str, channel: int, limits: Limits) -> list[str]:
    """The command of a worker: no environment, no packages, its program as an argument."""
    settings = {
        "role": role,
        "fd": channel,
        "limits": {"cpu_seconds": limits.cpu_seconds, "memory_bytes": limits.memory_bytes},
        "landlock": layer.landlock,
    }
    program = BOOTSTRAP.format(sources=_sources(), settings=settings)
    return [*layer.wrapper, python, *("-P", "-s", "-S", "-B", "-X", "utf8"), "-c", program]


@cache
def _sources() -> list[tuple[str, str]]:
    folder = Path(__file__).parent
    return [
        (f"pocketlm.sandbox.{stem}", (folder / f"{stem}.py").read_text(encoding="utf-8"))
        for stem in SOURCES
    ]
