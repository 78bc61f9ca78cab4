"""What the machine gives a model: processors, memory, and how fast memory can be read."""

import os
import sys
from pathlib import Path
from time import perf_counter

import psutil
import torch

READ_BYTES = 2**29  # far beyond any cache: a processor's largest hold some tens of megabytes
READS = 8


def available_cores() -> int:
    """Physical cores this process may use; two hyperthreads count once, for they share one
    multiplier.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def read_bandwidth() -> float:
    """Bytes a second that torch's threads read from memory: the best of several sums over half a
    gigabyte.

    The best, because all that disturbs a read makes it slower. A sum adds less time than any other
    reduction tried.
    """
    content = torch.ones(READ_BYTES // 4)
    seconds = []
    for _ in range(READS):
        started = perf_counter()
        content.sum()
        seconds.append(perf_counter() - started)
    return READ_BYTES / min(seconds)


def memory_bytes() -> int:
    """Bytes of memory this process has resident now, mapped files included."""
    return psutil.Process().memory_info().rss


def peak_memory_bytes() -> int:
    """The most this process ever had resident.

    Linux: VmHWM, and not getrusage, whose figure a process inherits from the one that started it.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
