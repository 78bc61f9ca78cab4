"""The plan of a curation, made once, and the folder where its tasks leave their files."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketlm.corpus.dedup import content_hash
from pocketlm.corpus.executors import Place, repeat_task, run_tasks, unfinished_tasks
from pocketlm.corpus.parts import split_source
from pocketlm.corpus.progress import Bar
from pocketlm.corpus.read_step import ReadTask, part_folder, planned_tasks, read_part_record
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import Source
from pocketlm.model.files import read_json, write_json

WORTH_A_PROCESS = 16_000_000  # bytes: another process takes about two seconds to start


class Work:
    """What the tasks of one call read, and the folder where they leave their files.

    The plan is made once and kept there, so that a dataset that grows meanwhile moves nothing.
    """

    def __init__(self, folder: Path, sources: Sequence[Source], part_bytes: int, call: str) -> None:
        """call: all that the stage was called with, so that files of another call are not used."""
        self.folder, self.sources = folder, {source.name: source for source in sources}
        self.seconds: dict[str, float] = {}
        self.done_now: dict[str, list[int]] = {}
        self.plan_file = self.folder / "plan.json"
        call = content_hash(call)
        if not self.plan_file.is_file() or read_json(self.plan_file)["call"] != call:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self.plan_file, {"call": call, "sources": _planned(sources, part_bytes)})
        self.plan = read_json(self.plan_file)

    @property
    def tasks(self) -> tuple[ReadTask, ...]:
        """In the order of the sources, then of reading."""
        return planned_tasks(self.plan, [*self.sources.values()])

    def numbers(self, name: str) -> list[int]:
        """The tasks of one source."""
        return [n for n, task in enumerate(self.tasks) if task.source.name == name]

    def size(self, name: str) -> int:
        """Bytes of a source's files; 0 where it is none."""
        return sum(size for _, size in self.plan["sources"][name]["parts"])

    def bar(self, name: str) -> Bar:
        """The bar of a source that is read."""
        cap = self.sources[name].max_bytes
        return Bar(f"read {name}", self.numbers(name), cap or self.size(name), cap is not None)

    def worth(self) -> Place:
        """As many processes as cores, tasks, and WORTH_A_PROCESS bytes."""
        size = sum(map(self.size, self.sources))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        number = min(cores or 1, len(self.tasks), 1 + size // WORTH_A_PROCESS)
        return Place("local", str(number))

    def read_further(self, tasks: list[int]) -> None:
        """Duplicates took what a cap has room for: these tasks read twice as much."""
        for number in tasks:
            self.plan["sources"][self.tasks[number].source.name]["limit"] *= 2
        write_json(self.plan_file, self.plan)

    def forget_short_parts(self) -> None:
        """Takes back the marks of tasks that read less than the plan says now."""
        logs = self.folder / "logs"
        unfinished = unfinished_tasks(logs / "read", len(self.tasks))
        for number, task in enumerate(self.tasks):
            if number in unfinished or task.limit is None:
                continue
            if read_part_record(self.folder, number)["limit"] != task.limit:
                repeat_task(logs / "read", number)
                unfinished.append(number)
        if unfinished:
            for folder in (logs / "groups", self.folder / "groups"):
                shutil.rmtree(folder, ignore_errors=True)

    def timed(self, phase: str, place: Place, steps: list[Any], num_tasks: int) -> None:
        """Runs the tasks of a phase, and keeps which were run and in how many seconds."""
        folder = self.folder / "logs" / phase
        self.done_now[phase] = unfinished_tasks(folder, num_tasks)
        begun = time.monotonic()
        run_tasks(place, steps, num_tasks, folder)
        self.seconds[phase] = time.monotonic() - begun

    def write_throughput(self, file: Path, place: Place) -> str:
        """What was done in this call, in one line; in the file for each phase documents and bytes a
        second, and the slowest task.
        """
        read = self._throughput("read")
        figures = {
            "executor": f"{place.kind}:{place.at}",
            "read": read,
            "duplicates": {"seconds": round(self.seconds["duplicates"], 2)},
            "tokenizer": {"seconds": round(self.seconds["tokenizer"], 2)},
            "encode": self._throughput("encode"),
        }
        write_json(file, figures)
        line = (
            f"read on {figures['executor']}: {read['documents_per_second']:,} documents/s, "
            f"{read['megabytes_per_second']:,} MB/s"
        )
        if slowest := read.get("slowest_task"):
            line += f"; slowest task: part {slowest['part']} of {slowest['source']}, "
            line += f"{slowest['seconds']:,} s"
        return line

    def _throughput(self, phase: str) -> dict[str, Any]:
        tasks = self.tasks
        records = {n: read_part_record(self.folder, n) for n in self.done_now[phase]}
        seconds = max(self.seconds[phase], 1e-9)
        figures: dict[str, Any] = {
            "seconds": round(seconds, 2),
            "documents_per_second": round(
                sum(record["documents"] for record in records.values()) / seconds, 1
            ),
            "megabytes_per_second": round(
                sum(record["bytes"] for record in records.values()) / seconds / 1e6, 3
            ),
        }
        if times := {number: self.task_seconds(phase, number) for number in records}:
            slowest = max(times, key=lambda number: times[number])
            name = tasks[slowest].source.name
            figures["slowest_task"] = {
                "source": name,
                "part": self.numbers(name).index(slowest),
                "seconds": round(times[slowest], 2),
            }
        return figures

    def task_seconds(self, phase: str, number: int) -> float:
        if phase == "read":
            return read_part_record(self.folder, number)["seconds"]
        return read_json(part_folder(self.folder / "encoded", number) / "encoded.json")["seconds"]


def _planned(sources: Sequence[Source], part_bytes: int) -> dict[str, Any]:
    """For each source its parts, the files that none of them reads, and after how many bytes of
    good text a task ends.
    """
    plan = {}
    for source in sources:
        reading = Reading()
        parts = split_source(source, part_bytes, reading)
        plan[source.name] = {"parts": parts, "unread": reading.unread, "limit": source.max_bytes}
    return plan
