"""The plan of a run: each stage's time, memory and disk on the devices asked for, beside what it
took where it is done.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pocketlm.estimate import local as here
from pocketlm.estimate.devices import Device
from pocketlm.estimate.memory_fit import fitting_settings, memory_parts
from pocketlm.estimate.speed import step_seconds
from pocketlm.estimate.stage import Stage
from pocketlm.estimate.work import Work
from pocketlm.runner.record import read_record
from pocketlm.runner.schedule import at_once
from pocketlm.train.memory import TrainingMemory


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """seconds: of wall clock, None where unknown. devices: how many of those asked for have work.
    memory: of each, at most.

    overlaps: it runs at the same time as the stage before it, on other devices. actual_seconds:
    what it took; so far, carried on to its end, where it is unfinished. None where it has not
    begun.
    """

    stage: Stage
    seconds: float | None
    devices: int
    overlaps: bool
    memory: TrainingMemory | None
    actual_seconds: float | None
    notes: tuple[str, ...]

    @property
    def device_hours(self) -> float | None:
        """Of the devices that compute; a stage without products keeps none."""
        if self.stage.other_seconds is not None:
            return 0.0
        return None if self.seconds is None else self.seconds * self.devices / 3600

    @property
    def ratio(self) -> float | None:
        """Actual over planned time."""
        return self.actual_seconds / self.seconds if self.actual_seconds and self.seconds else None

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: bytes, seconds, tokens, FLOPs; null is unknown."""
        stage = self.stage
        return {
            "stage": stage.call.name,
            "function": stage.call.record["stage"],
            "tokens": stage.tokens,
            "flops": stage.flops,
            "at_most": stage.at_most,
            "at_least": stage.at_least,
            "seconds": self.seconds,
            "devices": self.devices,
            "overlaps": self.overlaps,
            "device_hours": self.device_hours,
            "memory_bytes": self.memory.peak if self.memory else None,
            "memory_by_part": asdict(self.memory) if self.memory else None,
            "disk_bytes": stage.disk,
            "resume_bytes": stage.resume,
            "actual_seconds": self.actual_seconds,
            "actual_over_planned": self.ratio,
            "notes": list(self.notes),
        }


def estimate(stage: Stage, device: Device | None, count: int) -> Estimate:
    """Of one stage on `count` such devices; device None: on this machine's processor, whose steps
    are tried.
    """
    notes = list(stage.notes)
    work = stage.work
    together = at_once(stage.call.num_beside, count)
    share = count // together
    computed = work or (stage.like if stage.other_flops else None)
    ranks = computed.ranks(share) if computed else 1
    if work and ranks < share:
        notes.append(
            f"a step's {work.rows_per_step:,} rows, {work.micro_batch_size} at once, keep {ranks} "
            f"of {share} busy" + ("" if together > 1 else ", so that a run on all is refused")
        )
    seconds = _seconds(stage, device, share)
    if seconds is None and (work or stage.like):
        notes.append("too large to be tried here")
    memory = (
        work.memory("cuda" if device else "cpu", ranks, device.per_machine if device else 1)
        if work
        else None
    )
    if work and memory and device and memory.peak > device.memory_bytes:
        notes.append(
            f"needs {memory.peak / 1e9:.3g} GB and each {device.name} has "
            f"{device.memory_bytes / 1e9:.3g} ({memory_parts(memory)}); "
            + fitting_settings(stage.call.name, work, device, share)
        )
    return Estimate(
        stage=stage,
        seconds=seconds,
        devices=ranks,
        overlaps=together > 1 and stage.call.side_by_side.index(stage.call.name) % together > 0,
        memory=memory,
        actual_seconds=actual_seconds(stage),
        notes=tuple(notes),
    )


def _seconds(stage: Stage, device: Device | None, count: int) -> float | None:
    """Training, then whatever else is computed, at the pace of such a training; or the seconds of a
    stage without products.
    """
    if stage.other_seconds is not None:
        return stage.other_seconds
    total = 0.0
    for work, flops in (
        (stage.work, stage.work.flops if stage.work else 0),
        (stage.like or stage.work, stage.other_flops),
    ):
        if work is None or not flops:
            continue
        step = _step(work, device, count)
        if step is None:
            return None
        total += flops * step / (work.micro_batches * work.micro_batch_flops())
    return total if stage.work or stage.like else None


def _step(work: Work, device: Device | None, count: int) -> float | None:
    if device is None:
        return here.step_seconds(work)
    fused = work.optim.compile != "no"
    return step_seconds(work, device, count, fused=fused)


def actual_seconds(stage: Stage) -> float | None:
    """What the stage took if it is finished as it is now configured; if it is training, what it
    will take at its pace.
    """
    state = stage.call.state()
    if state == "done":
        record = read_record(stage.call.folder)
        return record["seconds"] if record else None
    metrics = stage.call.folder / "metrics.jsonl"
    if state != "unfinished" or stage.work is None or not metrics.is_file():
        return None
    paces = [
        pace for line in metrics.read_text(encoding="utf-8").splitlines() if (pace := _pace(line))
    ]
    return stage.work.tokens / median(paces) if paces else None


def _pace(line: str) -> float | None:
    """Tokens a second of one line of metrics.jsonl; None for a torn line."""
    try:
        return json.loads(line)["tokens_per_second"]
    except (json.JSONDecodeError, KeyError):
        return None


def totals(estimates: list[Estimate]) -> dict[str, Any]:
    """Sums over the stages that are known, and which are not. Seconds are of the clock: of stages
    side by side the longest's.
    """
    timed = [one for one in estimates if one.seconds is not None]
    both = [one for one in timed if one.actual_seconds is not None and one.seconds]
    return {
        "tokens": sum(one.stage.tokens or 0 for one in estimates),
        "flops": sum(one.stage.flops or 0 for one in estimates),
        "seconds": _by_turns(estimates, [one.seconds for one in estimates]),
        "device_hours": sum(one.device_hours or 0.0 for one in timed),
        "memory_bytes": max((one.memory.peak for one in estimates if one.memory), default=None),
        "disk_bytes": sum(one.stage.disk or 0 for one in estimates),
        "resume_bytes": max((one.stage.resume for one in estimates), default=0),
        "actual_seconds": _by_turns(estimates, [one.actual_seconds for one in estimates]),
        "actual_over_planned": sum(e.actual_seconds or 0.0 for e in both)
        / sum(e.seconds or 0.0 for e in both)
        if both
        else None,
        "unknown": [one.stage.call.name for one in estimates if one.seconds is None],
    }


def _by_turns(estimates: list[Estimate], seconds: list[float | None]) -> float:
    """The sum of each turn's longest; unknown ones count as nothing."""
    longest: list[float] = []
    for one, known in zip(estimates, seconds, strict=True):
        if not one.overlaps:
            longest.append(0.0)
        longest[-1] = max(longest[-1], known or 0.0)
    return sum(longest)


def plan_report(
    estimates: list[Estimate], run_dir: Path, device: Device | None, count: int
) -> dict[str, Any]:
    """What --json writes."""
    return {
        "run": str(run_dir),
        "device": asdict(device) if device else here.describe(),
        "count": count,
        "stages": [one.as_json() for one in estimates],
        "together": totals(estimates),
    }
