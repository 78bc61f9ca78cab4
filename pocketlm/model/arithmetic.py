"""What decides the last bits of a result beside its inputs: the processor, its instructions, torch,
and how many threads.

A sum of floats depends on its order. Kernels for other instructions sum in other orders, and so do
other numbers of threads and of processes, which each take a part. Work that was stopped therefore
goes on with the threads it began with.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

# in the environment
FORCED = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def arithmetic(processes: int = 1) -> dict[str, Any]:
    """{"processor", "instructions", "torch", "threads", "processes"} of this process, one of
    `processes` that compute together.
    """
    forced = [f"{name}={os.environ[name]}" for name in FORCED if os.environ.get(name)]
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return {
        "processor": " and ".join([processor_name(), *gpu]),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *forced]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


@cache
def processor_name() -> str:
    """As the operating system names it."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [
        line.partition(":")[2].strip()
        for line in cpuinfo.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def threads_to_go_on(
    begun: dict[str, Any] | None, now: dict[str, Any], what: str
) -> tuple[int, str]:
    """(how many threads resumed work computes with, a line that says so or "").

    As many as it began with. Where the processor, instructions, torch or number of processes is
    another, no number of threads gives the bits it would have had: it takes what this process has.
    begun: None where nothing was.
    """
    if begun is None or begun == now:
        return now["threads"], ""
    changed = [key for key in now if key != "threads" and begun.get(key) != now[key]]
    if changed:
        differences = ", ".join(f"{key} {begun.get(key)} -> {now[key]}" for key in changed)
        return now[
            "threads"
        ], f"{what} goes on where sums have another order ({differences}): its last bits may differ"
    return begun["threads"], (
        f"{what} goes on with the number of threads it began with, {begun['threads']}, not "
        f"{now['threads']}: "
        "it decides the last bits"
    )


@contextlib.contextmanager
def on_threads(number: int) -> Iterator[None]:
    """A block that computes with so many threads.

    Where torch's number was never set, MKL may choose fewer for a product.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
