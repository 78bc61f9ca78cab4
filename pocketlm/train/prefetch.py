"""Prefetch the next step's batches in a thread while this step runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")


@contextmanager
def prefetched(batches: Callable[[int], Made], last_step: int) -> Iterator[Callable[[int], Made]]:
    """`batches`, which after each call makes those of the next step in a thread, up to last_step.

    Batches are a pure function of the step, so what is prefetched is what would be made later. An
    error there is raised in the call that asks for that step. At the end the thread finishes what
    it has begun, and nothing of it is left.
    """
    with ThreadPoolExecutor(1, "batches") as thread:
        begun: dict[int, Future[Made]] = {}

        def fetch(step: int) -> Made:
            future = begun.pop(step, None) or thread.submit(batches, step)
            made = future.result()
            if step < last_step:
                begun[step + 1] = thread.submit(batches, step + 1)
            return made

        yield fetch
