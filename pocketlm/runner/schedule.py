"""The schedule of a recipe on several ranks: which ranks run a stage, and which stages run at the
same time.

A stage whose config says `on_all_ranks` runs on all of them, any other on the first. Stages that
need nothing of each other may run side by side: each gets an even share of the ranks, and where
there are more stages than ranks, the rest come in the next turn.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pocketlm.runner.overrides import Settings, apply_settings
from pocketlm.runner.record import Call, as_paths


class Coordinator(Protocol):
    """How the ranks of a run agree: train/distributed/ranks.py's LaunchStore."""

    world_size: int

    def broadcast(self, message: str) -> None: ...
    def receive(self) -> str: ...
    def gather(self, message: str) -> list[str]: ...
    def alone(self) -> AbstractContextManager[None]: ...
    def subgroups(self, groups: list[range]) -> AbstractContextManager[int | None]: ...


def runs_on_all_ranks(config: Any) -> bool:
    """Whether every rank calls the stage of this config, which then has `on_all_ranks: ClassVar =
    True`; else the first rank does, and the others wait.
    """
    return getattr(config, "on_all_ranks", False)


def at_once(num_stages: int, world_size: int) -> int:
    """How many of so many stages side by side run at the same time."""
    return max(1, min(num_stages, world_size))


def num_ranks(config: Any, num_stages: int, world_size: int) -> int:
    """How many of the ranks run a stage that is one of so many side by side; all of them where it
    is the only one.

    Of its even share it takes as many as its rows divide into, and the others wait: that is worth
    more than to refuse, because a specialist's step may be a single long row (Pro, section 6).
    """
    share = world_size // at_once(num_stages, world_size)
    # what scores or merges divides any number of rows over any number of ranks
    if num_stages == 1 or share == 1 or not hasattr(config, "rows_per_step"):
        return share
    fitting = (
        count
        for count in range(share, 0, -1)
        if config.rows_per_step % (config.micro_batch_size * count) == 0
    )
    return next(fitting, share)


def turns(configs: Sequence[Any], world_size: int) -> list[dict[int, range]]:
    """By turns: which stages, by number, run at the same time, and the ranks of each.

    The same for the same ranks, whatever is finished: a stage that is resumed trains on as many as
    before.
    """
    together = at_once(len(configs), world_size)
    firsts = [number % together * (world_size // together) for number in range(len(configs))]
    counts = [num_ranks(config, len(configs), world_size) for config in configs]
    ranks = [range(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    numbers = range(len(configs))
    return [
        {number: ranks[number] for number in numbers[i : i + together]} for i in numbers[::together]
    ]


def idle_ranks(calls: Sequence[Call], world_size: int) -> list[str]:
    """A line for each turn of stages side by side, still to come, that leaves ranks without work:
    the shares are even, and a stage takes no more of its own than its rows divide into.
    """
    groups: dict[tuple[str, ...], list[Call]] = {}
    for call in calls:
        if call.num_beside > 1 and runs_on_all_ranks(call.config):
            groups.setdefault(call.side_by_side, []).append(call)
    lines = []
    for group in groups.values():
        for turn in turns([call.config for call in group], world_size):
            counts = {group[number].name: len(ranks) for number, ranks in turn.items()}
            idle = world_size - sum(counts.values())
            if idle and any(group[number].state() != "done" for number in turn):
                used = ", ".join(f"{name} {count}" for name, count in counts.items())
                lines.append(
                    f"side by side: of {world_size} ranks {used}; {idle} wait{'s' * (idle == 1)} "
                    f"until {'it is' if len(counts) == 1 else 'these are'} done"
                )
    return lines


def take_turn(
    jobs: Sequence[tuple[Callable[[], object], range]], coordinator: Coordinator | None
) -> list[float]:
    """Calls each function on its ranks, all at the same time. How many seconds each took, once all
    are done.
    """
    start = time.monotonic()
    groups = [ranks for _, ranks in jobs]
    if coordinator is None or groups == [range(coordinator.world_size)]:
        jobs[0][0]()
        return [time.monotonic() - start]
    with coordinator.subgroups(groups) as number:
        if number is not None:
            jobs[number][0]()
        seconds = coordinator.gather(f"{time.monotonic() - start}")
    return [float(seconds[ranks.start]) for ranks in groups]


class WorkerRun:
    """What other ranks than the first call a recipe with: they join it in the stages that run on
    several ranks.

    It writes nothing and checks nothing: the first rank's Run does, and an error there ends all
    ranks.
    """

    def __init__(self, run_dir: Path, settings: Settings, coordinator: Coordinator) -> None:
        self.run_dir, self.settings, self.coordinator = run_dir, settings, coordinator

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder. A stage that the first rank runs alone may not have finished yet."""
        config, folder, inputs = self._resolved(config, inputs)
        if runs_on_all_ranks(config) and self.coordinator.receive():
            stage_fn(config, folder, **inputs)
        return folder

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        """The stages' folders."""
        calls = [self._resolved(config, inputs) for config in configs]
        folders = [folder for _, folder, _ in calls]
        if not configs or not runs_on_all_ranks(configs[0]):
            return folders
        for turn in turns([config for config, _, _ in calls], self.coordinator.world_size):
            started = self.coordinator.receive().split()
            jobs = [
                (partial(stage_fn, config, folder, **paths), ranks)
                for number, ranks in turn.items()
                for config, folder, paths in [calls[number]]
                if config.name in started
            ]
            if jobs:
                take_turn(jobs, self.coordinator)
        return folders

    def _resolved(self, config: Any, inputs: dict[str, Any]) -> tuple[Any, Path, dict[str, Any]]:
        """(the config with its settings, the stage's folder, the inputs as paths)."""
        config = apply_settings(config, self.settings.get(config.name, {}))
        paths = {name: as_paths(value, name) for name, value in inputs.items()}
        return config, self.run_dir / config.name, paths
