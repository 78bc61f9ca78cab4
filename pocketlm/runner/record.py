"""The record of a stage call, `stage.json`: what it was called with, as plain data that can be
compared.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pocketlm.model.file_tree import files_below
from pocketlm.model.files import read_json
from pocketlm.runner.differences import differences, fingerprints

RECORD = "stage.json"
MISSING = "missing"  # the fingerprint, in a dry run, of an input that is not there
HASHED_BYTES = 4 << 30  # of one input; what lies beyond counts by name and size alone
# folders, at any depth, that a user may delete from a finished stage
NOT_OUTPUTS = {"resume", "tensorboard"}


@dataclass(frozen=True)
class Call:
    """One stage call of a recipe: what would run, on what, and where."""

    stage_fn: Callable[..., Path]
    config: Any
    inputs: dict[str, Path | list[Path] | None]
    folder: Path
    record: dict[str, Any]  # stage, config, inputs, digest
    # the stages, itself among them, that may run at the same time; none if alone
    side_by_side: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def num_beside(self) -> int:
        """How many stages, itself among them, may run at the same time."""
        return max(1, len(self.side_by_side))

    @property
    def digest(self) -> str:
        return self.record["digest"]

    def state(self) -> str:
        """ "to do", "unfinished", "changed", "done", or "needs <path>", from what lies there
        now.
        """
        if missing := self.missing():
            return f"needs {', '.join(missing)}"
        record = read_record(self.folder)
        if record is None:
            return "to do"
        if self.differences(record) or damage(self.folder, record):
            return "changed"
        return "done" if record["status"] == "finished" else "unfinished"

    def missing(self) -> list[str]:
        """The inputs that are not there: only a dry run lets a call with any come this far."""
        entries = [entry for value in self.record["inputs"].values() for entry in _entries(value)]
        return [entry["path"] for entry in entries if entry["fingerprint"] == MISSING]

    def differences(self, record: dict[str, Any]) -> list[str]:
        """One line `field: old -> new` for every field on which a folder's record and this call
        disagree; none for the same call.

        A field that the record lacks, and that has its default here, is one that a later version
        added: a default computes what was computed before. A field may have had another name then,
        which its metadata tells: field(metadata={"was": NAME}).
        """
        before = {**record, "config": with_todays_names(record["config"], self.config)}
        return differences(before, self.record, set(default_fields(self.config)))


def make_record(
    stage_fn: Callable[..., Path],
    config: Any,
    inputs: Mapping[str, Any],
    run_dir: Path,
    digests: Mapping[Path, str],
    *,
    missing_ok: bool = False,
) -> dict[str, Any]:
    """{"stage", "config", "inputs", "digest"} of a call; `digests` of the stages before it, by
    folder.

    An input inside a stage's folder counts as that stage's digest, so a change at the top of a
    recipe reaches every stage below it; anything else counts as its contents. Where an input lies
    is written down but not compared: data may move. FileNotFoundError names an input that is not
    there; with missing_ok it is written down as missing.
    """
    described: dict[str, Any] = {}
    for name, value in inputs.items():
        where = f"stage {config.name}: input {name}"
        if isinstance(value, list):
            described[name] = [_input(where, path, run_dir, digests, missing_ok) for path in value]
        else:
            described[name] = (
                None if value is None else _input(where, value, run_dir, digests, missing_ok)
            )
    record = {
        "stage": getattr(stage_fn, "__name__", str(stage_fn)),
        "config": as_json(config),
        "inputs": described,
    }
    record = json.loads(json.dumps(record))  # tuples become lists, as they will be read back
    compared = {
        "stage": record["stage"],
        "config": record["config"],
        "inputs": fingerprints(record["inputs"]),
    }
    digest = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()
    return {**record, "digest": digest[:16]}


def started(record: dict[str, Any], arithmetic: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The record as it is written when the stage begins, or goes on after `seconds`; what is added
    is never compared.

    arithmetic: on what it is computed, `pocketlm.model.arithmetic`.
    """
    return {
        **record,
        "pocketlm": _version(),
        "arithmetic": arithmetic,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "started",
        "seconds": seconds,
    }


def _version() -> str:
    """The installed version of pocketlm."""
    try:
        return version("pocketlm")
    except PackageNotFoundError:
        return "not installed"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a stage folder, or None where no stage has begun. ValueError if the file is not
    one.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    record = read_json(path)
    if (
        not isinstance(record, dict)
        or not {"stage", "config", "inputs", "digest", "status"} <= record.keys()
    ):
        raise ValueError(
            f"{path}: not the record of a stage; delete the folder {folder}, or restore the file"
        )
    return record


def damage(folder: Path, record: dict[str, Any]) -> list[str]:
    """Files of a finished stage that are gone or have another size: one line each."""
    lines = []
    for name, size in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name} is gone")
        elif path.stat().st_size != size:
            lines.append(f"{name} has {path.stat().st_size} bytes, not {size}")
    return lines


def list_outputs(folder: Path) -> dict[str, int]:
    """Sizes in bytes of what a stage left in its folder, by relative name."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder): path.stat().st_size for path in paths}
    return {
        str(name): size
        for name, size in names.items()
        if not NOT_OUTPUTS & set(name.parts) and str(name) != RECORD
    }


def as_json(value: Any, where: str = "config") -> Any:
    """A config as JSON: a nested dataclass keeps its class's name, a function is its name, a path
    text. Fields that are not compared (where something runs) are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.compare]
        values = {name: as_json(getattr(value, name), f"{where}.{name}") for name in names}
        return values if where == "config" else {"class": type(value).__name__, **values}
    if isinstance(value, Mapping):
        return {str(key): as_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted(as_json(item, where) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(
        f"{where} is a {type(value).__name__}; a config holds numbers, text, paths, dicts and "
        "dataclasses"
    )


def default_fields(value: Any, where: str = "config") -> Iterator[str]:
    """The dotted places below a config where a dataclass's field has its default."""
    if isinstance(value, Mapping):
        parts = [(f"{where}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{where}.{i}", item) for i, item in enumerate(value)]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{where}.{field.name}", getattr(value, field.name)) for field in fields(value)]
        for field, (place, item) in zip(fields(value), parts, strict=True):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if default is not dataclasses.MISSING and as_json(default) == as_json(item):
                yield place
    else:
        return
    for place, item in parts:
        yield from default_fields(item, place)


def with_todays_names(config: Any, value: Any) -> Any:
    """A recorded config whose dataclasses' fields have the names that `value`'s have now."""
    if not isinstance(config, dict) or not is_dataclass(value):
        return config
    config = dict(config)
    for field in fields(value):
        name, before = field.name, field.metadata.get("was")
        if before in config and name not in config:
            config[name] = config.pop(before)
        if name in config:
            config[name] = with_todays_names(config[name], getattr(value, name))
    return config


# ---- inputs ----


def as_paths(value: Any, where: str) -> Path | list[Path] | None:
    """An input as a path, a list of paths, or None; TypeError for anything else: a stage takes
    folders.
    """
    if isinstance(value, (list, tuple)):
        return [Path(item) for item in value]
    if value is None or isinstance(value, (str, os.PathLike)):
        return None if value is None else Path(value)
    raise TypeError(
        f"{where} is a {type(value).__name__}; a stage takes paths, and everything else in its "
        "config"
    )


def _input(
    where: str, path: Path, run_dir: Path, digests: Mapping[Path, str], missing_ok: bool = False
) -> dict[str, str]:
    """The path of an input, relative inside the run, and a fingerprint of its contents."""
    name = str(path)
    path = path.absolute()
    if path.is_relative_to(run_dir.absolute()):
        name = str(path.relative_to(run_dir.absolute()))
    for folder in (path, *path.parents):
        digest = digests.get(folder)
        if digest is None and (folder / RECORD).is_file() and (record := read_record(folder)):
            if record["status"] != "finished":
                raise ValueError(
                    f"{where}: the stage in {folder} has not finished; finish that run first"
                )
            digest = record["digest"]
        if digest is not None:
            inside = "" if folder == path else f"/{path.relative_to(folder)}"
            return {"path": name, "fingerprint": f"stage {digest}{inside}"}
    if not path.exists():
        if missing_ok:
            return {"path": name, "fingerprint": MISSING}
        raise FileNotFoundError(f"{where}: {name} does not exist; check the path")
    return {
        "path": name,
        "fingerprint": f"{'folder' if path.is_dir() else 'file'} {content_hash(path)}",
    }


def _entries(value: Any) -> list[dict[str, str]]:
    """A record's input, one path, several or none, as a list."""
    return value if isinstance(value, list) else [value] if value else []


def content_hash(path: Path) -> str:
    """A hash of a file, or of a folder's files and names: contents up to `HASHED_BYTES`, sizes
    beyond.
    """
    digest = hashlib.sha256()
    budget = HASHED_BYTES
    for file in _files(path):
        stat = file.stat()
        num_bytes = min(budget, stat.st_size)
        content = _file_hash(str(file), stat.st_size, stat.st_mtime_ns, num_bytes)
        line = f"{file.relative_to(path)}\0{stat.st_size}\0{content}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))  # names are bytes
        budget -= num_bytes
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """A file itself, or the files below a folder in the order of their names."""
    return [path] if path.is_file() else files_below(path)[0]


@lru_cache(maxsize=100_000)
def _file_hash(path: str, size: int, modified_ns: int, num_bytes: int) -> str:
    """sha256 of the first bytes of a file; size and time are there so that a changed file is read
    again.
    """
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while num_bytes > 0 and (block := file.read(min(1 << 20, num_bytes))):
            whole.update(block)
            num_bytes -= len(block)
    return whole.hexdigest()
