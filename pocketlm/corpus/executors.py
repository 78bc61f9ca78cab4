"""Tasks on datatrove's executors: processes of this computer, a Slurm cluster, or a Ray cluster.

A task that finished leaves a mark in its folder and is never repeated. The mistake of a task, on
whatever machine, becomes the error of the call.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger

Steps = Sequence[Callable[..., Any]]
# of one task on a cluster: our choice, several times what a part of 256 MB takes
TASK_TIME = "24:00:00"
TASK_GB = 4
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Place:
    """Where tasks run. kind: "local", "slurm" or "ray"; at: the number of workers, the partition,
    or the address.
    """

    kind: str
    at: str

    @classmethod
    def parse(cls, text: str) -> "Place":
        """ValueError for anything but local:N, slurm:PARTITION or ray:ADDRESS."""
        kind, _, at = text.partition(":")
        if kind not in ("local", "slurm", "ray") or not at:
            raise ValueError(
                f"executor is {text!r}; use local:N (N processes of this computer), "
                "slurm:PARTITION or ray:ADDRESS"
            )
        if kind == "local" and not (at.isdecimal() and int(at)):
            raise ValueError(f"executor is {text!r}; local:N needs a number of processes from 1 on")
        return cls(kind, at)


def run_tasks(place: Place, steps: Steps, num_tasks: int, folder: Path) -> None:
    """Runs every task that has no mark in `folder` yet. The error of a task is raised as ValueError
    or FileNotFoundError, as it was raised there.
    """
    shutil.rmtree(folder / "errors", ignore_errors=True)
    common: dict[str, Any] = {
        "pipeline": list(steps),
        "tasks": num_tasks,
        "logging_dir": str(folder.absolute()),
    }
    if place.kind == "local":
        workers = min(int(place.at), num_tasks)
        _run_here(LocalTasks(**common, workers=workers), workers)
    elif place.kind == "slurm":
        _run_on_slurm(place.at, common)
    else:
        _run_on_ray(place.at, common)


def unfinished_tasks(folder: Path, num_tasks: int) -> list[int]:
    """The tasks without a mark in `folder`."""
    return [n for n in range(num_tasks) if not (folder / "completions" / f"{n:05d}").is_file()]


def repeat_task(folder: Path, number: int) -> None:
    """Takes the mark of a task away."""
    (folder / "completions" / f"{number:05d}").unlink(missing_ok=True)


class _Reporting(PipelineExecutor):
    """Leaves the mistake of a task in a file, where the process that waits for it finds it."""

    def _run_for_rank(self, rank: int, *where: Any, **options: Any) -> Any:
        try:
            return super()._run_for_rank(rank, *where, **options)
        except Exception as error:
            folder = Path(self.logging_dir.path) / "errors"
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{rank:05d}.{os.getpid()}"
            partial.write_text(f"{type(error).__name__}\n{error}", encoding="utf-8")
            partial.replace(folder / f"{rank:05d}")
            raise


class LocalTasks(_Reporting, LocalPipelineExecutor):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.caller = os.getpid()

    def _run_for_rank(self, rank: int, *where: Any, **options: Any) -> Any:
        logger.disable("datatrove")  # the terminal shows progress and errors in our words
        if os.getpid() != self.caller:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by its siblings
        return super()._run_for_rank(rank, *where, **options)


class SlurmTasks(_Reporting, SlurmPipelineExecutor):
    pass


class RayTasks(_Reporting, RayPipelineExecutor):
    pass


def _run_here(executor: LocalTasks, workers: int) -> None:
    if workers > 1:
        logger.disable("datatrove")
        # the server from which datatrove's pools are forked imports these once; without, each
        # process of each pool imports them again
        modules = {type(step).__module__ for step in executor.pipeline} | {__name__}
        import_module("multiprocess.forkserver").set_forkserver_preload(sorted(modules))
        with _no_main_file():
            executor.run()
        return
    # in this process: datatrove's own run() would start another for its queue
    for rank in executor.get_incomplete_ranks():
        executor._run_for_rank(rank)


@contextmanager
def _no_main_file() -> Iterator[None]:
    """While it lasts, new processes do not run the caller's script again: it may be one that calls
    the stage on its outermost level. What it defines is pickled by value.
    """
    script = sys.modules["__main__"]
    stand_in = ModuleType("__main__")
    stand_in.__dict__.update({**vars(script), "__spec__": None})
    stand_in.__dict__.pop("__file__", None)
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _run_on_slurm(partition: str, common: dict[str, Any]) -> None:
    if shutil.which("sbatch") is None:
        raise ValueError(
            f"executor is 'slurm:{partition}', but there is no sbatch here; start this on a login "
            "node of the cluster, or use local:N"
        )
    executor = SlurmTasks(
        **common,
        partition=partition,
        time=TASK_TIME,
        mem_per_cpu_gb=TASK_GB,
        job_name="pocketlm-curate",
        qos="",
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
    )
    logger.disable("datatrove")
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        raise ValueError(f"sbatch refused the tasks of {partition!r}: {error}") from None
    _wait(executor, lambda: not _slurm_knows(executor.job_id))


def _slurm_knows(job_id: int | str | None) -> bool:
    """Whether the job waits or runs; True as well where squeue gives no answer."""
    if shutil.which("squeue") is None:
        return True
    answer = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job_id}"], capture_output=True, text=True, check=False
    )
    # of a job that ended a while ago squeue says "Invalid job id"
    ended = not answer.stdout.strip() if answer.returncode == 0 else "Invalid" in answer.stderr
    return not ended


def _run_on_ray(address: str, common: dict[str, Any]) -> None:
    try:
        ray = import_module("ray")
    except ImportError:
        raise ValueError(
            f"executor is 'ray:{address}', but ray is not installed: pip install 'ray[default]'"
        ) from None
    ray.init(address=address, ignore_reinit_error=True)
    executor = RayTasks(**common, mem_per_cpu_gb=TASK_GB)
    logger.disable("datatrove")
    executor.run()
    _wait(executor, lambda: True)


def _wait(executor: Any, ended: Callable[[], bool]) -> None:
    """Returns when all tasks are finished; raises what one raised, or says that some ended without
    a word.
    """
    folder = Path(executor.logging_dir.path)
    while True:
        over = ended()  # asked first: what ends after it is found in the next round
        unfinished = executor.get_incomplete_ranks()
        if not unfinished:
            return
        for file in sorted(folder.glob("errors/[0-9]*")):
            kind, _, message = file.read_text(encoding="utf-8").partition("\n")
            raise (FileNotFoundError if kind == "FileNotFoundError" else ValueError)(message)
        if over:
            raise ValueError(
                f"{len(unfinished)} of {executor.world_size} tasks ended without a result, the "
                f"first is {unfinished[0]}; their logs are in {folder}. Run again: finished tasks "
                "are kept"
            )
        time.sleep(POLL_SECONDS)
