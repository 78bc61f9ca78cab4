"""Batches that lie on the device only while they are looked at: many more are passed over than a
device holds beside a network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import overload

from pocketlm.data.batches import BatchPlan, TextRows, fixed_batches, make_batches
from pocketlm.data.mixture import uniform_shares
from pocketlm.model.batch import Batch


class MovedBatches(Sequence[Batch]):
    """These batches, each where `move` puts it when it is asked for."""

    def __init__(self, batches: Sequence[Batch], move: Callable[[Batch], Batch]) -> None:
        self.batches, self.move = batches, move

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> "MovedBatches": ...
    def __getitem__(self, place: int | slice) -> "Batch | MovedBatches":
        if isinstance(place, slice):
            return MovedBatches(self.batches[place], self.move)
        return self.move(self.batches[place])

    def __iter__(self) -> Iterator[Batch]:
        return map(self.move, self.batches)


class Joined(Sequence[Batch]):
    """Several sequences of batches as one, no batch asked for before it is looked at."""

    def __init__(self, sequences: Sequence[Sequence[Batch]]) -> None:
        self.places = [(batches, n) for batches in sequences for n in range(len(batches))]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> "Joined": ...
    def __getitem__(self, place: int | slice) -> "Batch | Joined":
        if isinstance(place, slice):
            part = Joined([])
            part.places = self.places[place]
            return part
        batches, number = self.places[place]
        return batches[number]


def drawn_equally(
    rows: Mapping[str, TextRows],
    plan: BatchPlan,
    fixed_rows: int | None,
    move: Callable[[Batch], Batch],
) -> Callable[[int], Sequence[Batch]]:
    """Rows of some sources in equal shares: those of a step, or at most `fixed_rows` that are the
    same at each.
    """
    if fixed_rows is not None:
        fixed = MovedBatches(list(fixed_batches(rows, plan, fixed_rows)), move)
        return lambda step: fixed
    batches = make_batches(
        rows, uniform_shares(dict.fromkeys(rows, 1)), plan, separate_documents=False
    )
    return lambda step: MovedBatches(batches(step), move)
