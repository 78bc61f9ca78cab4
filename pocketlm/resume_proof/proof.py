"""The proof that stopping a run changes nothing: one unbroken run, and killed ones until the
requested number of kills has hit, compared.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pocketlm.model.files import read_json, write_json
from pocketlm.resume_proof.comparison import StageComparison, compare, copy_stages, seconds_of
from pocketlm.resume_proof.kills import PLACES, Command, Kill, Launcher, break_run
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.overrides import parse_settings

KILLS_OF_A_RUN = 25  # most; then the run is left to finish, and is compared


@dataclass
class KillReport:
    """The kills that hit, in how many runs, and for each stage whether all of these are equal to
    the unbroken run.
    """

    out: Path
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    comparisons: list[StageComparison] = field(default_factory=list)

    @property
    def mismatches(self) -> list[StageComparison]:
        return [comparison for comparison in self.comparisons if not comparison.same]

    def places(self) -> str:
        """How many kills hit where."""
        counts = Counter(kill.place for kill in self.kills)
        alone = sum(kill.alone for kill in self.kills)
        text = ", ".join(f"{place} {counts[place]}" for place in PLACES)
        return text + (f"; {alone} of one process alone, which the others noticed" if alone else "")


def kill_and_compare(
    command: Command,
    recipe: Path,
    function: Callable[..., Any],
    flags: dict[str, Any],
    words: list[str],
    out: Path,
    settings: list[str],
    *,
    kills: int,
    seed: int,
    processes: int,
    stage: str | None,
) -> KillReport:
    """The report, which goes on from the kills already in `out`. It ends early where a run differs
    from the unbroken one.

    command: runs a recipe, given its path and further words. words: those. ValueError for an
    unknown stage, or an `out` of other words.
    """
    unbroken, broken = out / "unbroken", out / "broken"
    dry = dry_run(function, unbroken, parse_settings(settings), missing_ok=True, **flags)
    if stage is not None and stage not in dry.names:
        raise ValueError(
            f"--stage {stage}: the recipe has no such stage; it has {', '.join(dry.names)}"
        )
    first = dry.names.index(stage) if stage else 0
    before, tested = dry.names[:first], [stage] if stage else dry.names
    _same_question(
        out, [str(recipe), *words, f"--processes {processes}", f"--stage {stage}", f"--seed {seed}"]
    )
    launcher = Launcher(
        command, out / "output.txt", sorted({call.stage_fn.__module__ for call in dry.calls})
    )
    arguments = [str(recipe), *words]
    report = KillReport(out, kills=_kills_before(out), runs=_runs_before(out))
    with _progress(kills, len(report.kills)) as show:
        show("the unbroken run", report)
        for name in [*before, *tested] if stage else [None]:
            only = ["--only", name] if name else []
            launcher.finish([*arguments, "--out", str(unbroken), *only], processes)
        # all kills in one run, or many in each of some
        span = seconds_of(unbroken, tested) * max(2 / (kills + 1), 1 / 8)
        arguments += ["--out", str(broken), *(["--only", stage] if stage else [])]
        while len(report.kills) < kills or not report.comparisons:
            broken.mkdir(parents=True, exist_ok=True)
            copy_stages(unbroken, broken, before)
            count = min(KILLS_OF_A_RUN, kills - len(report.kills))
            randoms = (Random(f"{seed} {len(report.kills)} {attempt}") for attempt in range(count))
            for kill in break_run(launcher, arguments, broken, processes, randoms, span):
                report.kills.append(kill)
                with open(out / "kills.jsonl", "a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(kill)) + "\n")
                show(f"{kill.place} {kill.stage}", report)
            report.comparisons = compare(unbroken, broken, tested)
            if report.mismatches:
                break
            shutil.rmtree(broken)
            report.runs += 1
            write_json(out / "runs.json", report.runs)
    return report


def _same_question(out: Path, words: list[str]) -> None:
    """Nothing, or a ValueError where the folder holds the proof of another command."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "question.json"
    if file.is_file() and (before := read_json(file)) != words:
        raise ValueError(
            f"{out} holds another proof ({' '.join(before)}); choose another --out, or delete it"
        )
    write_json(file, words)


def _kills_before(out: Path) -> list[Kill]:
    file = out / "kills.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Kill(**json.loads(line)) for line in lines]


def _runs_before(out: Path) -> int:
    return read_json(out / "runs.json") if (out / "runs.json").is_file() else 0


@contextmanager
def _progress(kills: int, before: int) -> Iterator[Callable[[str, KillReport], None]]:
    """A progress bar of the kills; yields a function that shows the last event."""
    columns = (
        TextColumn("kills"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[event]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("kills", total=kills, completed=before, event="")

        def show(text: str, report: KillReport) -> None:
            progress.update(
                task, completed=len(report.kills), event=f"{text}; {report.runs} runs equal"
            )

        yield show
