"""Ranks: the processes of one run, started by torchrun (RANK and WORLD_SIZE in the environment), in
one process group.

Collectives go over NCCL between GPUs and over gloo between CPUs. The first rank decides and writes;
it broadcasts what it decided through a key-value store, torchrun's own, so that the other ranks may
wait for days without a collective that times out.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _set_pg_timeout

# for a rank that hangs, or loads for long; one that dies is noticed in seconds
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# for ranks that are all there to connect: torch handles no signal meanwhile
CONNECT_TIMEOUT = timedelta(seconds=20)
POLL_SECONDS = 0.1
SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. The first writes what is to be written once."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


ALONE = Ranks()
# set by LaunchStore.alone; of the process, as its group is: threads that write states read it too
_works_alone = False
# set by joined: through it the ranks wait for each other
_launch: "LaunchStore | None" = None


def ranks() -> Ranks:
    """This process among those that train together; ALONE without a process group, and while it
    does what the others wait for (`LaunchStore.alone`).
    """
    if _works_alone or not dist.is_initialized():
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def device() -> torch.device:
    """Where this rank computes: a GPU of its own where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def shows_progress() -> bool:
    """Whether this is the run's first rank: of stages that run side by side, the first rank's alone
    shows a progress bar.
    """
    return int(os.environ.get("RANK", 0)) == 0


def barrier() -> None:
    """Returns when every rank is here; where one is gone, gloo raises at once."""
    all_reduce_min(0)


def wait_for_ranks() -> None:
    """Returns when every rank is here, however long that takes: a collective times out while some
    rank computes. ConnectionError where another one ended instead.

    What each rank wrote before is then there for all, and none looks any more for what may be
    deleted now.
    """
    if ranks().world_size > 1:
        assert _launch is not None
        _launch.meet(ranks().world_size)


def all_reduce_min(number: int) -> int:
    """The least of the ranks' numbers, on every rank."""
    if ranks().world_size == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def all_reduce_sum(*values: float) -> list[float]:
    """Each value summed over all ranks, in float64: integers up to 2^53 exactly."""
    if ranks().world_size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def add_over_ranks(tensor: torch.Tensor) -> None:
    """The tensor summed over all ranks, in place: however long some of them took for their part."""
    if ranks().world_size > 1:
        wait_for_ranks()
        dist.all_reduce(tensor)


def on_first_rank(work: Callable[[], None]) -> None:
    """Calls `work` on the first rank; returns on every rank when it is done, however long it takes.

    Its error is raised on the first rank; the others get a ConnectionError when that one ends.
    """
    if ranks().first:
        work()
    wait_for_ranks()


class LaunchStore:
    """Messages between the ranks of a run, through the store of their launcher. A run of one
    process has no store, and sends nothing.
    """

    def __init__(self, launch_ranks: Ranks = ALONE, store: Store | None = None) -> None:
        """launch_ranks: this rank among all of the run, whatever process group it is in."""
        self.ranks, self.world_size = launch_ranks, launch_ranks.world_size
        self.launcher, self.store = store, PrefixStore("run", store) if store else None
        self.group: Store | None = None  # of this rank's process group
        # how many there were of each so far: ranks count alike, so a number names a message
        self.broadcasts = self.gathers = self.groups = 0

    def broadcast(self, message: str) -> None:
        """The first rank's next message to the others."""
        if self.store is not None:
            self.broadcasts += 1
            self.store.set(f"broadcast {self.broadcasts}", message)

    def receive(self) -> str:
        """The first rank's next message, waited for as long as it takes. SystemExit where that rank
        shut down instead.
        """
        assert self.store is not None
        self.broadcasts += 1
        key = f"broadcast {self.broadcasts}"
        while not self.store.check([key]):
            if self.store.check(["exit status"]):
                raise SystemExit(int(self.store.get("exit status")))
            time.sleep(POLL_SECONDS)
        return self.store.get(key).decode()

    def gather(self, message: str) -> list[str]:
        """Every rank's message, on every rank, waited for as long as it takes. ConnectionError
        where one shut down instead.
        """
        store = self.store
        assert store is not None
        self.gathers += 1
        keys = [f"gather {self.gathers} {rank}" for rank in range(self.world_size)]
        store.set(keys[self.ranks.rank], message)
        self._wait_until(lambda: store.check(keys))
        return [store.get(key).decode() for key in keys]

    def meet(self, world_size: int) -> None:
        """Returns when all ranks of this rank's process group called it as often, waited for as
        long as it takes. ConnectionError where one shut down instead.
        """
        group = self.group
        assert group is not None
        # none comes a second time before all came once, so the count says which time this is
        last = -(-group.add("met", 1) // world_size) * world_size
        self._wait_until(lambda: group.add("met", 0) >= last)

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        assert self.store is not None
        num_gone = 0
        while not ready():
            if num_gone:
                raise ConnectionError(
                    "another rank ended before its stage was done; start the same command again"
                )
            time.sleep(POLL_SECONDS)
            # asked before what is waited for: who shut down in good order had done that before
            num_gone = self.store.add("gone", 0)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts, `ranks()` is ALONE: what this rank does, the others wait for."""
        global _works_alone
        _works_alone = True
        try:
            yield
        finally:
            _works_alone = False

    @contextlib.contextmanager
    def subgroups(self, groups: list[range]) -> Iterator[int | None]:
        """While the block lasts, each of these ranges of ranks is a process group, and all that
        `ranks()` knows.

        Comes with the number of this rank's group; None where it is in none.
        """
        number = next((n for n, group in enumerate(groups) if self.ranks.rank in group), None)
        self.init_group(None if number is None else groups[number])
        yield number
        self.init_group(range(self.world_size))

    def init_group(self, group: range | None) -> None:
        """Makes these ranks of the run this rank's process group; None: it has none. All ranks of
        the run call it together.
        """
        self.groups += 1
        # no rank is still in a collective of the last group, and to connect takes no long wait
        self.gather("here")
        if dist.is_initialized():
            dist.destroy_process_group()
        if group is not None:
            assert self.launcher is not None
            self.group = PrefixStore(f"group {self.groups} {group.start}", self.launcher)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=self.group,
                rank=group.index(self.ranks.rank),
                world_size=len(group),
                timeout=CONNECT_TIMEOUT,
            )
            _set_pg_timeout(COLLECTIVE_TIMEOUT)
        # gloo's ranks connect one by one: one that went on and exited would fail the others
        self.gather("connected")

    def shutdown(self, status: int) -> None:
        """Broadcasts the first rank's exit status, and waits a moment for the others to read it:
        the store may end with this process.
        """
        with contextlib.suppress(dist.DistError):
            assert self.store is not None
            num_gone = self.store.add("gone", 1)
            if self.ranks.first:
                self.store.set("exit status", str(status))
                deadline = time.monotonic() + SHUTDOWN_SECONDS
                while num_gone < self.world_size and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    num_gone = self.store.add("gone", 0)

    def may_explain(self) -> bool:
        """Whether this rank is the first to ask: where all stop for one reason, one prints it."""
        # the store went down with its rank, so every rank prints its error
        with contextlib.suppress(dist.DistError):
            return self.store is None or self.store.add("explained", 1) == 1
        return True


@contextlib.contextmanager
def joined() -> Iterator[LaunchStore]:
    """The launch store of this run's ranks, which are one process group for as long as the block
    lasts; a run of one process has no group.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield LaunchStore()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    store, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    launch, status = LaunchStore(Ranks(rank, world_size), store), 1
    launch.init_group(range(world_size))
    global _launch
    _launch = launch
    try:
        yield launch
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    except BaseException as error:
        status = getattr(error, "exit_code", 1)  # typer's name for it
        raise
    finally:
        _launch = None
        launch.shutdown(status)
        if status == 0:  # else others may not come to destroy the group in order
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
        place = ranks()
        raise ConnectionError(
            f"rank {place.rank} of {place.world_size} lost the others: one of them ended, or did "
            f"not answer for {COLLECTIVE_TIMEOUT.seconds // 60} minutes. Start the same command "
            "again: it goes on from the last saved state"
            f"\n({str(error).splitlines()[0][:200]})"
        ) from error
