"""An unbroken run and broken ones, until the asked number of kills has hit; what agreed between
them.
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
from pocketlm.resume_proof.kills import (
    PLACES,
    Command,
    Kill,
    Launcher,
    Likeness,
    break_run,
    compare,
    copied_stages,
    seconds_of,
)
from pocketlm.runner.overrides import parse_settings
from pocketlm.runner.run import plan

KILLS_OF_A_RUN = 25  # most; then the run is left to finish, and is compared


@dataclass
class Proof:
    """What came out: the kills that hit, in how many runs, and for each stage whether all of these
    agreed with the unbroken.
    """

    out: Path
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    likeness: list[Likeness] = field(default_factory=list)

    @property
    def parted(self) -> list[Likeness]:
        return [each for each in self.likeness if not each.same]

    def places(self) -> str:
        """How many kills hit where."""
        counts = Counter(kill.place for kill in self.kills)
        alone = sum(kill.alone for kill in self.kills)
        told = ", ".join(f"{place} {counts[place]}" for place in PLACES)
        return told + (f"; {alone} of one process alone, which the others noticed" if alone else "")


def prove(
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
) -> Proof:
    """The proof, gone on with from what is in `out`. It ends early where a run differs from the
    unbroken one.

    command: runs a recipe, given its path and further words. words: those. ValueError for an
    unknown stage, or an `out` of other words.
    """
    unbroken, broken = out / "unbroken", out / "broken"
    dry = plan(function, unbroken, parse_settings(settings), missing_ok=True, **flags)
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
        command, out / "shown.txt", sorted({call.stage_fn.__module__ for call in dry.calls})
    )
    arguments = [str(recipe), *words]
    proof = Proof(out, kills=_kills_before(out), runs=_runs_before(out))
    with _progress(kills, len(proof.kills)) as tell:
        tell("the unbroken run", proof)
        for name in [*before, *tested] if stage else [None]:
            only = ["--only", name] if name else []
            launcher.finish([*arguments, "--out", str(unbroken), *only], processes)
        # all kills in one run, or many in each of some
        span = seconds_of(unbroken, tested) * max(2 / (kills + 1), 1 / 8)
        arguments += ["--out", str(broken), *(["--only", stage] if stage else [])]
        while len(proof.kills) < kills or not proof.likeness:
            broken.mkdir(parents=True, exist_ok=True)
            copied_stages(unbroken, broken, before)
            count = min(KILLS_OF_A_RUN, kills - len(proof.kills))
            randoms = (Random(f"{seed} {len(proof.kills)} {attempt}") for attempt in range(count))
            for kill in break_run(launcher, arguments, broken, processes, randoms, span):
                proof.kills.append(kill)
                with open(out / "kills.jsonl", "a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(kill)) + "\n")
                tell(f"{kill.place} {kill.stage}", proof)
            proof.likeness = compare(unbroken, broken, tested)
            if proof.parted:
                break
            shutil.rmtree(broken)
            proof.runs += 1
            write_json(out / "runs.json", proof.runs)
    return proof


def _same_question(out: Path, words: list[str]) -> None:
    """Nothing, or a ValueError where the folder holds another proof."""
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
def _progress(kills: int, before: int) -> Iterator[Callable[[str, Proof], None]]:
    """A bar of the kills, and a function that says what happened last."""
    columns = (
        TextColumn("kills"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("kills", total=kills, completed=before, told="")

        def tell(text: str, proof: Proof) -> None:
            progress.update(
                task, completed=len(proof.kills), told=f"{text}; {proof.runs} runs alike"
            )

        yield tell
