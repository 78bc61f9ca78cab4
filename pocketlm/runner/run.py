"""Run: a stage call remembered on disk. A finished stage is not run again; a changed one is never
reused.

In a recipe, or in a notebook after `run = Run(Path("runs/mine"))`:

    corpus = run(curate, CurateConfig(name="corpus", ...), documents=Path("notes.txt")) model =
    run(pretrain, PretrainConfig(name="base", ...), corpus=corpus) branches =
    run.side_by_side(pretrain, [replace(BRANCH, name=...), replace(BRANCH, name=...)],
    corpus=corpus, model=model)
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketlm.model.arithmetic import arithmetic, on_threads, threads_to_go_on
from pocketlm.model.files import write_json
from pocketlm.runner.overrides import Settings, apply_settings, check_stages, nearest
from pocketlm.runner.record import (
    RECORD,
    Call,
    as_paths,
    damage,
    differences,
    list_outputs,
    make_record,
    read_record,
    started,
)
from pocketlm.runner.schedule import Company, runs_on_all_ranks, take_turn, turns

# a folder's name; no dot, because --set splits at dots
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LOCK = ".lock"


class Plan:
    """Called like a Run, it only remembers the calls: a dry pass over a recipe.

    `calls` holds them in order. A recipe never reads what its stages write, so a Plan will do.
    """

    def __init__(
        self, run_dir: Path, settings: Settings | None = None, *, missing_ok: bool = False
    ) -> None:
        """missing_ok: inputs that are not there are noted (the stage "needs" them) instead of
        stopping the pass.
        """
        self.run_dir = Path(run_dir)
        self.settings = settings or {}
        self.missing_ok = missing_ok
        self.calls: list[Call] = []

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        return self.side_by_side(stage_fn, [config], **inputs)[0]

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        return [call.folder for call in self.add(stage_fn, configs, inputs)]

    def add(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], inputs: dict[str, Any]
    ) -> list[Call]:
        """The calls, with their settings and records. ValueError if a name is taken or is none."""
        calls = [self._add(stage_fn, config, inputs) for config in configs]
        if len(calls) > 1:
            names = tuple(call.name for call in calls)
            self.calls[-len(calls) :] = calls = [
                replace(call, side_by_side=names) for call in calls
            ]
        return calls

    def _add(self, stage_fn: Callable[..., Path], config: Any, inputs: dict[str, Any]) -> Call:
        name = getattr(config, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"a stage's config needs a name of letters, digits, - and _, not {name!r}"
            )
        if name in self.names:
            raise ValueError(
                f"two stages of the recipe are named {name!r}; give each its own name: it names "
                "the folder"
            )
        config = apply_settings(config, self.settings.get(name, {}))
        inputs = {key: as_paths(value, f"{name}: input {key}") for key, value in inputs.items()}
        digests = {call.folder.absolute(): call.digest for call in self.calls}
        # files that the config names
        named = {"reads": config.reads()} if hasattr(config, "reads") else {}
        record = make_record(
            stage_fn, config, {**inputs, **named}, self.run_dir, digests, missing_ok=self.missing_ok
        )
        call = Call(stage_fn, config, inputs, self.run_dir / name, record)
        self.calls.append(call)
        return call

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]


class Run:
    """Runs stages, each in the folder `run_dir/config.name`, and remembers them in `stage.json`
    there.

    Same record and finished: the folder comes back at once. Unfinished: the stage is called again,
    and resumes itself. Another record: ValueError with the difference. One process at a time: a
    second Run of the same folder is a ValueError.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        plan: Plan | None = None,
        only: str | None = None,
        company: Company | None = None,
    ) -> None:
        """`plan` is the dry pass over the same recipe; the count of stages and settings come from
        it. `only` names the one stage to run; every other is passed over, and what it needs must be
        there. `company`: where this is the first of several ranks, and the others call the recipe
        with a Follower."""
        self.run_dir = Path(run_dir)
        self.stages = Plan(self.run_dir, plan.settings if plan else None)
        self.only = only
        self.company = company
        self.current: str | None = None  # the stages now running
        self.console = Console(stderr=True, highlight=False)
        self._total = f" of {len(plan.calls)}" if plan else ""
        # stage, function, what happened, seconds
        self._told: list[tuple[str, str, str, float]] = []
        if plan:
            check_stages(plan.settings, plan.names)
            if only is not None and only not in plan.names:
                raise ValueError(
                    f"--only {only}: the recipe has no stage {only!r}{nearest(only, plan.names)}"
                )
            _check_same([call for call in plan.calls if only in (None, call.name)])
        self._lock = _lock(self.run_dir)

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder, finished. Inputs are paths or lists of them."""
        return self.side_by_side(stage_fn, [config], **inputs)[0]

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        """The folders of stages that need nothing of each other, finished: one after another, or
        with several ranks at the same time, each on a part of them."""
        calls = self.stages.add(stage_fn, configs, inputs)
        company = self.company if runs_on_all_ranks(stage_fn) else None
        for turn in turns([call.config for call in calls], company.world_size if company else 1):
            to_do = [
                (calls[number], ranks)
                for number, ranks in turn.items()
                if self._is_to_do(calls[number])
            ]
            begun = [self._begin(call, ranks) for call, ranks in to_do]
            if company:
                company.tell(" ".join(call.name for call, _ in to_do))
            if begun:
                self._execute(begun, company)
        return [call.folder for call in calls]

    def _is_to_do(self, call: Call) -> bool:
        """Whether the stage is to be called. ValueError where it was called otherwise, or what it
        needs is not there.
        """
        if self.only not in (None, call.name):
            return False
        _check_same([call])
        found = read_record(call.folder)
        self._header(call)
        if found and found["status"] == "finished":
            _check_whole(call, found)
            self._finish(call, "done before", found["seconds"])
            return False
        self._check_inputs(call)
        return True

    def _begin(self, call: Call, ranks: range) -> "_Begun":
        """The stage, written down as started; what was begun before goes on with as many
        threads.
        """
        found = read_record(call.folder)
        now = arithmetic(len(ranks))
        threads, line = threads_to_go_on(
            found and found.get("arithmetic"), now, f"stage {call.name}"
        )
        # training says the rest itself
        if line and (threads != now["threads"] or not runs_on_all_ranks(call.stage_fn)):
            self.console.print(line, soft_wrap=True)
        record = started(
            call.record, {**now, "threads": threads}, found["seconds"] if found else 0.0
        )
        call.folder.mkdir(parents=True, exist_ok=True)
        write_json(call.folder / RECORD, record)
        return _Begun(call, ranks, record, again=found is not None)

    def _execute(self, turn: list["_Begun"], company: Company | None) -> None:
        """Calls the stages of one turn, and writes down what came out."""
        self.current = " and ".join(each.call.name for each in turn)
        start = time.monotonic()
        try:
            took = take_turn([(partial(_call, each), each.ranks) for each in turn], company)
        except KeyboardInterrupt:
            for each in turn:
                each.record["seconds"] = round(each.record["seconds"] + time.monotonic() - start, 2)
                write_json(each.call.folder / RECORD, each.record)
            raise
        for each, seconds in zip(turn, took, strict=True):
            call, record = each.call, each.record
            record["seconds"] = round(record["seconds"] + seconds, 2)
            write_json(
                call.folder / RECORD,
                {**record, "status": "finished", "files": list_outputs(call.folder)},
            )
            # what only an unfinished stage needs
            shutil.rmtree(call.folder / "resume", ignore_errors=True)
            self._finish(call, "resumed" if each.again else "ran", record["seconds"])
        self.current = None

    def _check_inputs(self, call: Call) -> None:
        """Nothing, or a ValueError naming a stage of this run that is needed and not done."""
        wanted = [
            path
            for value in call.inputs.values()
            if value
            for path in (value if isinstance(value, list) else [value])
        ]
        for other in self.stages.calls:
            if (
                any(path.is_relative_to(other.folder) for path in wanted)
                and (state := other.state()) != "done"
            ):
                raise ValueError(
                    f"stage {call.name} needs {other.name}, which is {state}; run that first, or "
                    "all"
                )

    # ---- what is shown ----

    def _header(self, call: Call) -> None:
        text = (
            f"stage {self.stages.names.index(call.name) + 1}{self._total} · {call.record['stage']} "
            f"· {call.name}"
        )
        if self.console.is_terminal:
            self.console.rule(f"[bold]{text}", align="left")
        else:
            self.console.print(text, soft_wrap=True)

    def _finish(self, call: Call, what: str, seconds: float) -> None:
        self._told.append((call.name, call.record["stage"], what, seconds))
        self.console.print(
            f"{call.name}: {what}, {_duration(seconds)}", style="dim", soft_wrap=True
        )

    def show_summary(self) -> None:
        """Prints the stages of this run with their seconds."""
        table = Table(title=f"{self.run_dir}", title_justify="left")
        for heading in ("stage", "function", "", "seconds"):
            table.add_column(
                heading, justify="right" if heading == "seconds" else "left", no_wrap=heading != ""
            )
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
    """The stages with their key figures and their state on disk: done, unfinished, changed, to do,
    or what they need.
    """
    table = Table(title=f"{dry.run_dir}: {len(dry.calls)} stages", title_justify="left")
    for heading in ("", "stage", "function", "config", "state"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "stage")
    colours = {"done": "green", "unfinished": "yellow", "changed": "red", "to do": ""}
    for number, call in enumerate(dry.calls, start=1):
        state = call.state()
        colour = colours.get(state, "yellow")
        shown = f"[{colour}]{escape(state)}[/]" if colour else state
        table.add_row(
            str(number), call.name, call.record["stage"], escape(key_figures(call.config)), shown
        )
    return table


def key_figures(config: Any, count: int = 4) -> str:
    """What is worth seeing of a config on one line: its own `summary()`, else its first few plain
    fields.
    """
    if callable(getattr(config, "summary", None)):
        return config.summary()
    values = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name != "name"
    }
    plain = {
        name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))
    }
    return " ".join(f"{name}={value}" for name, value in list(plain.items())[:count])


@dataclass(frozen=True)
class _Begun:
    """A stage about to be called. record: as written down, its seconds those of earlier calls.
    again: there were any.
    """

    call: Call
    ranks: range
    record: dict[str, Any]
    again: bool


def _call(begun: _Begun) -> None:
    """The stage, called. An error says in which stage it was."""
    call = begun.call
    try:
        with on_threads(begun.record["arithmetic"]["threads"]):
            call.stage_fn(call.config, call.folder, **call.inputs)
    except Exception as error:
        error.add_note(f"(in stage {call.name}: {call.folder})")
        raise


def _check_same(calls: list[Call]) -> None:
    """Nothing, or a ValueError that shows how a stage's folder was made otherwise, and which
    others.
    """
    found = [(call, read_record(call.folder)) for call in calls]
    changed = [
        (call, old, lines)
        for call, old in found
        if old and (lines := differences(old, call.record))
    ]
    if not changed:
        return
    call, old, lines = changed[0]
    state = "is finished" if old["status"] == "finished" else "was begun"
    folders = " ".join(str(each.folder) for each, _, _ in changed)
    raise ValueError(
        f"stage {call.name} {state} with another configuration (old -> new):\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nNothing was touched. Choose another --out, or delete what must be made anew: "
        f"rm -r {folders}"
    )


def _check_whole(call: Call, found: dict[str, Any]) -> None:
    """Nothing, or a ValueError when files that a finished stage wrote are gone or cut."""
    if broken := damage(call.folder, found):
        raise ValueError(
            f"stage {call.name} finished, but its files are not whole:\n"
            + "\n".join(f"  {line}" for line in broken[:10])
            + f"\nRestore them, or delete {call.folder} to run the stage anew."
        )


def _lock(run_dir: Path) -> TextIO:
    """The run's lock file, held until closed or this process ends; ValueError while another holds
    it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(
            f"{run_dir} is in use by process {holder}; wait for it, stop it, or choose another "
            "--out"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )
