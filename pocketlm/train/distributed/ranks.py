"""Ranks: the processes of one run. torchrun starts them (RANK and WORLD_SIZE in the environment);
they join one group.

NCCL speaks between GPUs, gloo between processors. The first rank decides and writes; a board, which
torchrun's own store keeps, tells the others what it decided, so that they may wait for days without
a collective that times out.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _set_pg_timeout

# for a rank that hangs, or loads for long; one that dies is noticed in seconds
PATIENCE = timedelta(minutes=10)
# for ranks that are all there to find each other: torch hears no signal in it
FORMING = timedelta(seconds=20)
POLL_SECONDS = 0.1
FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. The first writes what is to be written once."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


ALONE = Ranks()


def ranks() -> Ranks:
    """This process among those that train together; ALONE where no group was joined."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def device() -> torch.device:
    """Where this rank computes: a GPU of its own where there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def has_the_screen() -> bool:
    """Whether this is the run's first rank: where stages run side by side, theirs alone shows a
    live line.
    """
    return int(os.environ.get("RANK", 0)) == 0


def meet() -> None:
    """Returns when every rank is here; where one is gone, gloo raises at once."""
    least(0)


def least(number: int) -> int:
    """The least of the ranks' numbers."""
    if not dist.is_initialized():
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


class Board:
    """What a run's ranks tell each other. Alone there is nobody to tell, and every error is one's
    own to explain.
    """

    def __init__(self, own: Ranks = ALONE, store: Store | None = None) -> None:
        """own: this rank among all of the run, whatever group it is in."""
        self.own, self.world_size = own, own.world_size
        self.launch, self.store = store, PrefixStore("board", store) if store else None
        self.words = self.meetings = self.formed = 0

    def tell(self, word: str) -> None:
        """The first rank's next word to the others."""
        if self.store is not None:
            self.words += 1
            self.store.set(f"word {self.words}", word)

    def hear(self) -> str:
        """The first rank's next word, waited for as long as it takes. SystemExit where it left
        instead.
        """
        assert self.store is not None
        self.words += 1
        while not self.store.check([f"word {self.words}"]):
            if self.store.check(["left"]):
                raise SystemExit(int(self.store.get("left")))
            time.sleep(POLL_SECONDS)
        return self.store.get(f"word {self.words}").decode()

    def share(self, word: str) -> list[str]:
        """Every rank's word, waited for as long as it takes. ConnectionError where one left
        instead.
        """
        assert self.store is not None
        self.meetings += 1
        places = [f"meeting {self.meetings} {rank}" for rank in range(self.world_size)]
        self.store.set(places[self.own.rank], word)
        gone = 0
        while not self.store.check(places):
            if gone:
                raise ConnectionError(
                    "another rank ended before its stage was done; start the same command again"
                )
            time.sleep(POLL_SECONDS)
            # asked before the places: one that left in good order was here first
            gone = self.store.add("gone", 0)
        return [self.store.get(place).decode() for place in places]

    @contextlib.contextmanager
    def apart(self, groups: list[range]) -> Iterator[int | None]:
        """While the block lasts, each of these ranges of ranks is a group of its own, which is all
        that `ranks()` tells of.

        Comes with the number of this rank's; None where it is in none.
        """
        own = next((number for number, group in enumerate(groups) if self.own.rank in group), None)
        self.form(None if own is None else groups[own])
        yield own
        self.form(range(self.world_size))

    def form(self, group: range | None) -> None:
        """This rank's process group, of these ranks of the run; None: it is alone. All ranks of the
        run call it together.
        """
        self.formed += 1
        # none is still in an exchange of the last group, and to connect need not be waited for long
        self.share("here")
        if dist.is_initialized():
            dist.destroy_process_group()
        if group is not None:
            assert self.launch is not None
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=PrefixStore(f"group {self.formed} {group.start}", self.launch),
                rank=group.index(self.own.rank),
                world_size=len(group),
                timeout=FORMING,
            )
            _set_pg_timeout(PATIENCE)
        # gloo's ranks connect one by one: one that went on and left would fail the others
        self.share("connected")

    def leave(self, status: int) -> None:
        """The first rank's last word, and a moment for the others to hear it: the store may go with
        this process.
        """
        with contextlib.suppress(dist.DistError):
            assert self.store is not None
            gone = self.store.add("gone", 1)
            if self.own.first:
                self.store.set("left", str(status))
                deadline = time.monotonic() + FAREWELL_SECONDS
                while gone < self.world_size and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    gone = self.store.add("gone", 0)

    def may_explain(self) -> bool:
        """Whether this rank is the first to ask: where all stop for one reason, one tells it."""
        # the store went down with its rank, so all explain themselves
        with contextlib.suppress(dist.DistError):
            return self.store is None or self.store.add("explained", 1) == 1
        return True


@contextlib.contextmanager
def joined() -> Iterator[Board]:
    """The board of this run's ranks, whose process group is joined for as long as the block lasts;
    alone, none is.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Board()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    store, rank, world_size = next(rendezvous("env://", timeout=PATIENCE))
    board, status = Board(Ranks(rank, world_size), store), 1
    board.form(range(world_size))
    try:
        yield board
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    except BaseException as error:
        status = getattr(error, "exit_code", 1)  # typer's word for it
        raise
    finally:
        board.leave(status)
        if status == 0:  # else others may not come to leave the group in order
            dist.destroy_process_group()


@contextlib.contextmanager
def lost_rank_as_error() -> Iterator[None]:
    """Turns what gloo and NCCL raise when another rank is gone into a ConnectionError that says
    so.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        own = ranks()
        raise ConnectionError(
            f"rank {own.rank} of {own.world_size} lost the others: one of them ended, or did not "
            "answer for "
            f"{PATIENCE.seconds // 60} minutes. Start the same command again: it goes on from the "
            "last saved state"
            f"\n({str(error).splitlines()[0][:200]})"
        ) from error
