"""Turns: which ranks run a stage, and which stages run at the same time.

A stage that trains or scores runs on all ranks, any other on the first. Stages that need nothing of
each other may run side by side: each gets an even share of the ranks, and where there are more
stages than ranks, the rest come in the next turn.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pocketlm.runner.overrides import Settings, apply_settings
from pocketlm.runner.record import as_paths


class Company(Protocol):
    """What the ranks of a run are to each other: train/distributed/ranks.py's Board. A run of one
    process has none.
    """

    world_size: int

    def tell(self, word: str) -> None: ...
    def hear(self) -> str: ...
    def share(self, word: str) -> list[str]: ...
    def apart(self, groups: list[range]) -> AbstractContextManager[int | None]: ...


def runs_on_all_ranks(stage_fn: Callable[..., Path]) -> bool:
    """Whether every rank calls the stage (train/distributed/fsdp.py marks those that train); else
    the first does, for all.
    """
    return getattr(stage_fn, "on_all_ranks", False)


def at_once(num_stages: int, world_size: int) -> int:
    """How many of so many stages side by side run at the same time."""
    return max(1, min(num_stages, world_size))


def num_ranks(config: Any, num_stages: int, world_size: int) -> int:
    """How many of the ranks a stage has that is one of so many side by side; all of them where it
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


def take_turn(
    jobs: Sequence[tuple[Callable[[], object], range]], company: Company | None
) -> list[float]:
    """Calls each function on its ranks, all at the same time. How many seconds each took, once all
    are done.
    """
    start = time.monotonic()
    groups = [ranks for _, ranks in jobs]
    if company is None or groups == [range(company.world_size)]:
        jobs[0][0]()
        return [time.monotonic() - start]
    with company.apart(groups) as own:
        if own is not None:
            jobs[own][0]()
        seconds = company.share(f"{time.monotonic() - start}")
    return [float(seconds[ranks.start]) for ranks in groups]


class Follower:
    """What other ranks than the first call a recipe with: they join it in the stages that run on
    several.

    It writes nothing and checks nothing: the first rank's Run does, and what stops that one stops
    all.
    """

    def __init__(self, run_dir: Path, settings: Settings, company: Company) -> None:
        self.run_dir, self.settings, self.company = run_dir, settings, company

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        """The stage's folder. A stage that the first rank runs alone may not have finished yet."""
        return self.side_by_side(stage_fn, [config], **inputs)[0]

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        """The stages' folders."""
        configs = [apply_settings(config, self.settings.get(config.name, {})) for config in configs]
        inputs = {name: as_paths(value, name) for name, value in inputs.items()}
        folders = [self.run_dir / config.name for config in configs]
        for turn in turns(configs, self.company.world_size) if runs_on_all_ranks(stage_fn) else ():
            told = self.company.hear().split()
            jobs = [
                (partial(stage_fn, configs[number], folders[number], **inputs), ranks)
                for number, ranks in turn.items()
                if configs[number].name in told
            ]
            if jobs:
                take_turn(jobs, self.company)
        return folders
