"""Run: a stage call remembered on disk. A finished stage is not run again; a changed one is never reused.

In a recipe, or in a notebook after `run = Run(Path("runs/mine"))`:

    corpus = run(curate, CurateConfig(name="corpus", ...), documents=Path("notes.txt"))
    model = run(pretrain, PretrainConfig(name="base", ...), corpus=corpus)
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketlm.model.files import write_json
from pocketlm.record import RECORD, Call, damage, differences, list_outputs, make_record, read_record
from pocketlm.settings import Settings, apply_settings, check_stages, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a folder's name; no dot, because --set splits at dots
LOCK = ".lock"
JOIN, PASS = "join", "pass"  # what the first rank tells the others of a stage that runs on all


class Plan:
    """Called like a Run, it only remembers the calls: a dry pass over a recipe.

    `calls` holds them in order. A recipe never reads what its stages write, so a Plan will do.
    """

    def __init__(self, run_dir: Path, settings: Settings | None = None, *, missing_ok: bool = False) -> None:
        """missing_ok: inputs that are not there are noted (the stage "needs" them) instead of stopping the pass."""
        self.run_dir = Path(run_dir)
        self.settings = settings or {}
        self.missing_ok = missing_ok
        self.calls: list[Call] = []

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        return self.add(stage_fn, config, inputs).folder

    def add(self, stage_fn: Callable[..., Path], config: Any, inputs: dict[str, Any]) -> Call:
        """The call, its settings applied, its record made. ValueError if its name is taken or is none."""
        name = getattr(config, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"a stage's config needs a name of letters, digits, - and _, not {name!r}")
        if name in self.names:
            raise ValueError(
                f"two stages of the recipe are named {name!r}; give each its own name: it names the folder"
            )
        config = apply_settings(config, self.settings.get(name, {}))
        inputs = {key: _as_paths(value, f"{name}: input {key}") for key, value in inputs.items()}
        digests = {call.folder.absolute(): call.digest for call in self.calls}
        named = {"reads": config.reads()} if hasattr(config, "reads") else {}  # files that the config names
        record = make_record(stage_fn, config, {**inputs, **named}, self.run_dir, digests, missing_ok=self.missing_ok)
        call = Call(stage_fn, config, inputs, self.run_dir / name, record)
        self.calls.append(call)
        return call

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]


class Run:
    """Runs stages, each in the folder `run_dir/config.name`, and remembers them in `stage.json` there.

    Same record and finished: the folder comes back at once. Unfinished: the stage is called again, and
    resumes itself. Another record: ValueError with the difference. One process at a time: a second Run of
    the same folder is a ValueError.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        plan: Plan | None = None,
        only: str | None = None,
        tell: Callable[[str], None] = lambda word: None,
    ) -> None:
        """`plan` is the dry pass over the same recipe; the count of stages and settings come from it. `only`
        names the one stage to run; every other is passed over, and what it needs must be there. `tell` reaches the
        Follower on every other rank."""
        self.run_dir = Path(run_dir)
        self.stages = Plan(self.run_dir, plan.settings if plan else None)
        self.only = only
        self.tell = tell
        self.current: str | None = None  # the stage now running
        self.console = Console(stderr=True, highlight=False)
        self._total = f" of {len(plan.calls)}" if plan else ""
        self._told: list[tuple[str, str, str, float]] = []  # stage, function, what happened, seconds
        if plan:
            check_stages(plan.settings, plan.names)
            if only is not None and only not in plan.names:
                raise ValueError(f"--only {only}: the recipe has no stage {only!r}{nearest(only, plan.names)}")
            _check_same([call for call in plan.calls if only in (None, call.name)])
        self._lock = _lock(self.run_dir)

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder, finished. Inputs are paths or lists of them."""
        call = self.stages.add(stage_fn, config, inputs)
        if self.only not in (None, call.name):
            self._tell(call, PASS)
            return call.folder
        _check_same([call])
        found = read_record(call.folder)
        self._header(call)
        if found and found["status"] == "finished":
            _check_whole(call, found)
            self._finish(call, "done before", found["seconds"])
            self._tell(call, PASS)
            return call.folder
        self._check_inputs(call)
        self._execute(call, found)
        return call.folder

    def _execute(self, call: Call, found: dict[str, Any] | None) -> None:
        """Calls the stage, for the first time or again, and writes down what came out."""
        seconds_before = found["seconds"] if found else 0.0
        call.folder.mkdir(parents=True, exist_ok=True)
        record = {
            **call.record,
            "pocketlm": _version(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "started",
            "seconds": seconds_before,
        }
        write_json(call.folder / RECORD, record)
        self.current = call.name
        start = time.monotonic()
        self._tell(call, JOIN)
        try:
            call.stage_fn(call.config, call.folder, **call.inputs)
        except KeyboardInterrupt:
            record["seconds"] = round(seconds_before + time.monotonic() - start, 2)
            write_json(call.folder / RECORD, record)
            raise
        except Exception as error:
            error.add_note(f"(in stage {call.name}: {call.folder})")
            raise
        record["seconds"] = round(seconds_before + time.monotonic() - start, 2)
        write_json(call.folder / RECORD, {**record, "status": "finished", "files": list_outputs(call.folder)})
        shutil.rmtree(call.folder / "resume", ignore_errors=True)  # what only an unfinished stage needs
        self.current = None
        self._finish(call, "resumed" if found else "ran", record["seconds"])

    def _tell(self, call: Call, word: str) -> None:
        if runs_on_all_ranks(call.stage_fn):
            self.tell(word)

    def _check_inputs(self, call: Call) -> None:
        """Nothing, or a ValueError naming a stage of this run that is needed and not done."""
        wanted = [
            path for value in call.inputs.values() if value for path in (value if isinstance(value, list) else [value])
        ]
        for other in self.stages.calls[:-1]:
            if any(path.is_relative_to(other.folder) for path in wanted) and (state := other.state()) != "done":
                raise ValueError(f"stage {call.name} needs {other.name}, which is {state}; run that first, or all")

    # ---- what is shown ----

    def _header(self, call: Call) -> None:
        text = f"stage {len(self.stages.calls)}{self._total} · {call.record['stage']} · {call.name}"
        if self.console.is_terminal:
            self.console.rule(f"[bold]{text}", align="left")
        else:
            self.console.print(text, soft_wrap=True)

    def _finish(self, call: Call, what: str, seconds: float) -> None:
        self._told.append((call.name, call.record["stage"], what, seconds))
        self.console.print(f"{call.name}: {what}, {_duration(seconds)}", style="dim", soft_wrap=True)

    def show_summary(self) -> None:
        """Prints the stages of this run with their seconds."""
        table = Table(title=f"{self.run_dir}", title_justify="left")
        for heading in ("stage", "function", "", "seconds"):
            table.add_column(heading, justify="right" if heading == "seconds" else "left", no_wrap=heading != "")
        for name, function, what, seconds in self._told:
            table.add_row(name, function, what, f"{seconds:,.1f}")
        table.add_section()
        table.add_row("together", "", "", f"{sum(row[3] for row in self._told):,.1f}")
        self.console.print(table)

    # ---- one process at a time ----

    def close(self) -> None:
        """Lets another process use the folder."""
        self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Follower:
    """What other ranks than the first call a recipe with: they join it in the stages that run on all ranks.

    It writes nothing and checks nothing: the first rank's Run does, and what stops that one stops all.
    """

    def __init__(self, run_dir: Path, settings: Settings, hear: Callable[[], str]) -> None:
        self.run_dir, self.settings, self.hear = run_dir, settings, hear

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder. A stage that the first rank runs alone may not have finished yet."""
        folder = self.run_dir / config.name
        if runs_on_all_ranks(stage_fn) and self.hear() == JOIN:
            config = apply_settings(config, self.settings.get(config.name, {}))
            stage_fn(config, folder, **{key: _as_paths(value, key) for key, value in inputs.items()})
        return folder


def runs_on_all_ranks(stage_fn: Callable[..., Path]) -> bool:
    """Whether every rank calls the stage (train/parallel.py marks those that train); else the first does, for all."""
    return getattr(stage_fn, "on_all_ranks", False)


def plan(
    recipe: Callable[..., Any],
    run_dir: Path,
    settings: Settings | None = None,
    *,
    missing_ok: bool = False,
    **flags: Any,
) -> Plan:
    """The stages a recipe would run, in order; nothing runs. ValueError for an unknown setting."""
    dry = Plan(run_dir, settings, missing_ok=missing_ok)
    recipe(dry, **flags)
    check_stages(dry.settings, dry.names)
    return dry


def plan_table(dry: Plan) -> Table:
    """The stages with their key figures and their state on disk: done, unfinished, changed, to do, or what they need."""
    table = Table(title=f"{dry.run_dir}: {len(dry.calls)} stages", title_justify="left")
    for heading in ("", "stage", "function", "config", "state"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "stage")
    colours = {"done": "green", "unfinished": "yellow", "changed": "red", "to do": ""}
    for number, call in enumerate(dry.calls, start=1):
        state = call.state()
        colour = colours.get(state, "yellow")
        shown = f"[{colour}]{escape(state)}[/]" if colour else state
        table.add_row(str(number), call.name, call.record["stage"], escape(key_figures(call.config)), shown)
    return table


def key_figures(config: Any, count: int = 4) -> str:
    """What is worth seeing of a config on one line: its own `summary()`, else its first few plain fields."""
    if callable(getattr(config, "summary", None)):
        return config.summary()
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "name"}
    plain = {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
    return " ".join(f"{name}={value}" for name, value in list(plain.items())[:count])


def _check_same(calls: list[Call]) -> None:
    """Nothing, or a ValueError that shows how a stage's folder was made otherwise, and which others."""
    found = [(call, read_record(call.folder)) for call in calls]
    changed = [(call, old, lines) for call, old in found if old and (lines := differences(old, call.record))]
    if not changed:
        return
    call, old, lines = changed[0]
    state = "is finished" if old["status"] == "finished" else "was begun"
    folders = " ".join(str(each.folder) for each, _, _ in changed)
    raise ValueError(
        f"stage {call.name} {state} with another configuration (old -> new):\n"
        + "\n".join(f"  {line}" for line in lines)
        + f"\nNothing was touched. Choose another --out, or delete what must be made anew: rm -r {folders}"
    )


def _check_whole(call: Call, found: dict[str, Any]) -> None:
    """Nothing, or a ValueError when files that a finished stage wrote are gone or cut."""
    if broken := damage(call.folder, found):
        raise ValueError(
            f"stage {call.name} finished, but its files are not whole:\n"
            + "\n".join(f"  {line}" for line in broken[:10])
            + f"\nRestore them, or delete {call.folder} to run the stage anew."
        )


def _as_paths(value: Any, where: str) -> Path | list[Path] | None:
    """An input as a path, a list of paths, or None; TypeError for anything else: a stage takes folders."""
    if isinstance(value, (list, tuple)):
        return [Path(item) for item in value]
    if value is None or isinstance(value, (str, os.PathLike)):
        return None if value is None else Path(value)
    raise TypeError(f"{where} is a {type(value).__name__}; a stage takes paths, and everything else in its config")


def _lock(run_dir: Path) -> TextIO:
    """The run's lock file, held until closed or this process ends; ValueError while another holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(
            f"{run_dir} is in use by process {holder}; wait for it, stop it, or choose another --out"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _version() -> str:
    """The installed version of pocketlm, which is recorded but never compared."""
    try:
        return version("pocketlm")
    except PackageNotFoundError:
        return "not installed"


def _duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
