"""Prefetch the next step's batches in a thread while this step runs, ready for the device."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from pocketlm.model.batch import Batch, laid_out, moved

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


def ready(
    batches: Callable[[int], list[Batch]], where: torch.device
) -> Callable[[int], list[Batch]]:
    """`batches`, laid out, and for a GPU in pinned memory: it copies them while it computes."""

    def make(step: int) -> list[Batch]:
        laid = [laid_out(batch) for batch in batches(step)]
        return [moved(batch, _pinned) for batch in laid] if where.type == "cuda" else laid

    return make


def _pinned(x: Tensor) -> Tensor:
    return x if x.is_cuda else x.pin_memory()
