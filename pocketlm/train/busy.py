"""Whether other processes take the cores that a training wants, by the kernel's own count.

Threads wait for each other at every operation, so that one of them off its core stops all. What a
user sees is a slow run; this says why. benchmarks/busy_machine.py has figures.
"""

import sys
import time
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
BUSY = 0.3  # of the time: our choice
LOOK_SECONDS = 20.0  # long enough that a burst of others is not told as a busy machine


class CoreWait:
    """How long the threads of this process were ready to compute and had no core, since it was
    made: Linux counts it for each (`schedstat`). Elsewhere it knows nothing.
    """

    def __init__(self) -> None:
        self.started, self.waited = time.perf_counter(), waited_by_thread()

    def share(self) -> float:
        """Of the time since then: that of the thread which waited longest, the others wait for it.
        0 where nothing is known.
        """
        seconds = time.perf_counter() - self.started
        before = self.waited
        longest = max(
            (after - before.get(thread, 0.0) for thread, after in waited_by_thread().items()),
            default=0.0,
        )
        return min(1.0, longest / seconds) if seconds > 0 else 0.0


class BusyMonitor:
    """Looks at each step of a training, and says once where the machine is busy."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.wait: CoreWait | None = CoreWait()

    def look(self) -> None:
        """After a step: a line on stderr, the first time that others took a large share."""
        if self.wait is None or time.perf_counter() - self.wait.started < LOOK_SECONDS:
            return
        share = self.wait.share()
        if share < BUSY:
            self.wait = CoreWait()
            return
        self.wait = None
        line = (
            f"  {self.label}: the machine is busy: other processes had the cores for {share:.0%} "
            f"of the last {LOOK_SECONDS:.0f} s"
        )
        if torch.get_num_threads() > 1:
            line += (
                ", and threads wait for each other. Fewer are faster then: stop, set "
                "OMP_NUM_THREADS=1, and run again (a stage begun keeps its threads)"
            )
        print(line, file=sys.stderr, flush=True)


def waited_by_thread() -> dict[str, float]:
    """Seconds that each thread of this process was ready and had no core, by its number; empty
    where the system does not tell.
    """
    waited = {}
    for file in TASKS.glob("*/schedstat"):
        try:
            _, nanoseconds, _ = file.read_text().split()
        except (OSError, ValueError):
            continue  # a thread that ended, or a kernel that counts nothing
        waited[file.parent.name] = int(nanoseconds) / 1e9
    return waited
