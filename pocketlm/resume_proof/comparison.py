"""Compare two runs of a recipe stage by stage: token ids, losses and weights, to the bit."""

import filecmp
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pocketlm.model.files import read_json
from pocketlm.resume_proof.kills import status_of
from pocketlm.runner.record import RECORD


@dataclass(frozen=True)
class StageComparison:
    """Whether a stage of two runs is equal, to the bit; None where it has no such thing. `first`:
    the first differences, in words.
    """

    stage: str
    steps: int
    tokens: bool | None
    losses: bool | None
    weights: bool | None
    first: str | None

    @property
    def same(self) -> bool:
        return self.first is None


def compare(unbroken: Path, broken: Path, stages: Iterable[str]) -> list[StageComparison]:
    """Each stage's token ids, losses with gradient norms, and weights in one run against
    another.
    """
    return [_compare_stage(name, unbroken / name, broken / name) for name in stages]


def _compare_stage(name: str, unbroken: Path, broken: Path) -> StageComparison:
    one, other = _lines(unbroken), _lines(broken)
    pairs = list(zip_longest(one, other, fillvalue={}))
    mismatches: dict[str, str] = {}
    for what, keys in (
        ("token ids", ("step", "token_digest")),
        ("losses", ("step", "loss", "grad_norm", "lr")),
    ):
        wrong = next(
            (
                n
                for n, pair in enumerate(pairs)
                if any(pair[0].get(k) != pair[1].get(k) for k in keys)
            ),
            None,
        )
        if wrong is not None:
            mismatches[what] = f"{what} differ from step {wrong} on"
    files = sorted(file.relative_to(unbroken) for file in unbroken.rglob("*.safetensors"))
    for file in files:
        if "weights" not in mismatches and not (
            (broken / file).is_file() and filecmp.cmp(unbroken / file, broken / file, shallow=False)
        ):
            mismatches["weights"] = f"{file} differs"
    if status_of(broken) != "finished":
        mismatches["stage"] = "the stage is not finished"
    return StageComparison(
        stage=name,
        steps=len(one),
        tokens="token ids" not in mismatches if pairs else None,
        losses="losses" not in mismatches if pairs else None,
        weights="weights" not in mismatches if files else None,
        first="; ".join(mismatches.values()) or None,
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.is_file()
        else []
    )


def seconds_of(out: Path, stages: Iterable[str]) -> float:
    """How long these stages ran, from their records."""
    return sum(read_json(out / name / RECORD)["seconds"] for name in stages)


def copy_stages(source: Path, target: Path, stages: Iterable[str]) -> None:
    """Copies the folders of finished stages into another run's."""
    for name in stages:
        if not (target / name).exists():
            shutil.copytree(source / name, target / f".{name}.partial", dirs_exist_ok=True)
            (target / f".{name}.partial").rename(target / name)
