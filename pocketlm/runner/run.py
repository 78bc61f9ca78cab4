"""Run: a stage call remembered on disk. A finished stage is not run again; a changed one is never
reused.

In a recipe, or in a notebook after `run = Run(Path("runs/mine"))`:

    corpus = run(curate, CurateConfig(name="corpus", ...), documents=Path("notes.txt"))
    model = run(pretrain, PretrainConfig(name="base", ...), corpus=corpus)
    branches = run.side_by_side(
        pretrain, [replace(BRANCH, name=...), replace(BRANCH, name=...)], corpus=corpus, model=model
    )
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pocketlm.model.arithmetic import arithmetic, on_threads, threads_to_go_on
from pocketlm.model.files import write_json
from pocketlm.runner.checks import check_inputs, check_unchanged, check_undamaged, lock_folder
from pocketlm.runner.dry_run import DryRun
from pocketlm.runner.overrides import check_stages, nearest
from pocketlm.runner.record import RECORD, Call, list_outputs, read_record, started
from pocketlm.runner.schedule import Coordinator, runs_on_all_ranks, take_turn, turns
from pocketlm.runner.tables import duration


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
        plan: DryRun | None = None,
        only: str | None = None,
        coordinator: Coordinator | None = None,
    ) -> None:
        """`plan` is the dry run of the same recipe; the count of stages and settings come from it.
        `only` names the one stage to run; every other is passed over, and what it needs must be
        there. `coordinator`: where this is the first of several ranks, and the others call the
        recipe with a WorkerRun.
        """
        self.run_dir = Path(run_dir)
        self.stages = DryRun(self.run_dir, plan.settings if plan else None)
        self.only = only
        self.coordinator = coordinator
        self.current: str | None = None  # the stages now running
        self.console = Console(stderr=True, highlight=False)
        self._total = f" of {len(plan.calls)}" if plan else ""
        if plan:
            check_stages(plan.settings, plan.names)
            if only is not None and only not in plan.names:
                raise ValueError(
                    f"--only {only}: the recipe has no stage {only!r}{nearest(only, plan.names)}"
                )
            check_unchanged([call for call in plan.calls if only in (None, call.name)])
        self._lock = lock_folder(self.run_dir)

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder, finished. Inputs are paths or lists of them."""
        call = self.stages.add(stage_fn, config, inputs)
        coordinator = self._coordinator_of(call.config)
        to_do = self._is_to_do(call)
        stage = self._begin(call, coordinator.world_size if coordinator else 1) if to_do else None
        if coordinator:
            coordinator.broadcast(call.name if to_do else "")
        if stage:
            with self._recorded([stage]), stage.computing():
                stage_fn(call.config, call.folder, **call.inputs)
        return call.folder

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        """The folders of stages that need nothing of each other, finished: one after another, or
        with several ranks at the same time, each on a part of them.
        """
        calls = self.stages.add_side_by_side(stage_fn, configs, inputs)
        coordinator = self._coordinator_of(calls[0].config) if calls else None
        world_size = coordinator.world_size if coordinator else 1
        for turn in turns([call.config for call in calls], world_size):
            to_do = {
                number: ranks for number, ranks in turn.items() if self._is_to_do(calls[number])
            }
            stages = [self._begin(calls[number], len(ranks)) for number, ranks in to_do.items()]
            if coordinator:
                coordinator.broadcast(" ".join(stage.call.name for stage in stages))
            if stages:
                jobs = [
                    (partial(_call, stage), ranks)
                    for stage, ranks in zip(stages, to_do.values(), strict=True)
                ]
                with self._recorded(stages):
                    seconds = take_turn(jobs, coordinator)
                    for stage, taken in zip(stages, seconds, strict=True):
                        stage.seconds = taken
        return [call.folder for call in calls]

    def _coordinator_of(self, config: Any) -> Coordinator | None:
        """The coordinator, for a stage that runs on several ranks."""
        return self.coordinator if runs_on_all_ranks(config) else None

    def _is_to_do(self, call: Call) -> bool:
        """Whether the stage is to be called. ValueError where its folder is another call's, or an
        input is not there.
        """
        if self.only not in (None, call.name):
            return False
        check_unchanged([call])
        record = read_record(call.folder)
        self._print_header(call)
        if record and record["status"] == "finished":
            check_undamaged(call, record)
            self._print_outcome(call, "done before", record["seconds"])
            return False
        check_inputs(call, self.stages.calls)
        return True

    def _begin(self, call: Call, num_ranks: int) -> "_Started":
        """The stage, recorded as started; one that is resumed keeps its number of threads."""
        before = read_record(call.folder)
        now = arithmetic(num_ranks)
        threads, line = threads_to_go_on(
            before and before.get("arithmetic"), now, f"stage {call.name}"
        )
        # a training says the rest itself
        if line and (threads != now["threads"] or not runs_on_all_ranks(call.config)):
            self.console.print(line, soft_wrap=True)
        record = started(
            call.record, {**now, "threads": threads}, before["seconds"] if before else 0.0
        )
        call.folder.mkdir(parents=True, exist_ok=True)
        write_json(call.folder / RECORD, record)
        return _Started(call, record, resumed=before is not None)

    @contextmanager
    def _recorded(self, stages: Sequence["_Started"]) -> Iterator[None]:
        """A block that calls these stages. At its end they are recorded as finished, with their
        files; an interrupted one with its seconds.
        """
        self.current = " and ".join(stage.call.name for stage in stages)
        coordinator = self.coordinator
        alone = coordinator and not runs_on_all_ranks(stages[0].call.config)
        start = time.monotonic()
        try:
            with coordinator.alone() if coordinator and alone else nullcontext():
                yield
        except KeyboardInterrupt:
            for stage in stages:
                stage.add_seconds(time.monotonic() - start)
                write_json(stage.call.folder / RECORD, stage.record)
            raise
        elapsed = time.monotonic() - start
        for stage in stages:
            call = stage.call
            stage.add_seconds(elapsed if stage.seconds is None else stage.seconds)
            write_json(
                call.folder / RECORD,
                {**stage.record, "status": "finished", "files": list_outputs(call.folder)},
            )
            # what only an unfinished stage needs
            shutil.rmtree(call.folder / "resume", ignore_errors=True)
            outcome = "resumed" if stage.resumed else "ran"
            self._print_outcome(call, outcome, stage.record["seconds"])
        self.current = None

    # ---- what is printed ----

    def _print_header(self, call: Call) -> None:
        text = (
            f"stage {self.stages.names.index(call.name) + 1}{self._total} · {call.record['stage']} "
            f"· {call.name}"
        )
        if self.console.is_terminal:
            self.console.rule(f"[bold]{text}", align="left")
        else:
            self.console.print(text, soft_wrap=True)

    def _print_outcome(self, call: Call, outcome: str, seconds: float) -> None:
        self.console.print(
            f"{call.name}: {outcome}, {duration(seconds)}", style="dim", soft_wrap=True
        )

    # ---- one process at a time ----

    def close(self) -> None:
        """Lets another process use the folder."""
        self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@dataclass
class _Started:
    """A stage recorded as started. record: its seconds are those of earlier calls. seconds: of this
    one, where others ran at the same time.
    """

    call: Call
    record: dict[str, Any]
    resumed: bool
    seconds: float | None = None

    def add_seconds(self, seconds: float) -> None:
        self.record["seconds"] = round(self.record["seconds"] + seconds, 2)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A block on the threads of the record; an error in it names the stage."""
        try:
            with on_threads(self.record["arithmetic"]["threads"]):
                yield
        except Exception as error:
            error.add_note(f"(in stage {self.call.name}: {self.call.folder})")
            raise


def _call(stage: _Started) -> None:
    """One stage of several side by side, called."""
    with stage.computing():
        stage.call.stage_fn(stage.call.config, stage.call.folder, **stage.call.inputs)
