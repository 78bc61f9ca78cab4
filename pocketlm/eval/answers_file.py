"""Answers on disk while they are made: JSON lines, a batch at a time, read again after an
interruption.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from pocketlm.eval.suites.suite import Problem
from pocketlm.model.files import write_json, write_text
from pocketlm.model.json_lines import Span, json_lines
from pocketlm.model.json_shape import read_object

Row = dict[str, Any]


def transcript(evaluation: Path, label: str, suite: str) -> Path:
    """Where an evaluation's folder keeps a model's answers to a suite."""
    return evaluation / "transcripts" / f"{label}.{suite}.jsonl"


class AnswersFile:
    """The answers of one model to one suite, by the key of their request.

    A line that an interrupted process left half written is dropped when the file is opened. None
    for `path` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        """ValueError: a damaged line that is not the last, with file and line."""
        self.path = path
        self.rows: dict[str, Row] = {}
        if path is not None and path.is_file():
            _drop_half_line(path)
            self.rows = kept_rows(path)

    def add(self, rows: Iterable[Row]) -> None:
        """Keep these answers; once this returns, a kill does not lose them."""
        rows = list(rows)
        self.rows |= {row["request"]: row for row in rows}
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(lines_of(rows))
                file.flush()
                os.fsync(file.fileno())

    def finish(self, rows: Iterable[Row]) -> None:
        """The file holds these rows, in this order, and no other."""
        if self.path is not None:
            write_text(self.path, lines_of(rows))


class SharedAnswers:
    """The same, of several processes that share the suite: each writes a file of its own, and the
    first makes one of them all. One process has the one file alone.

    Files of other processes, of an interrupted run perhaps of another number of them, are read too.
    """

    def __init__(self, path: Path | None, rank: int, world_size: int) -> None:
        if path is None and world_size > 1:
            raise ValueError("several processes share a suite through files; give a path")
        self.path, self.first = path, rank == 0
        part = path if path is None or world_size == 1 else part_of(path, rank)
        self.mine = AnswersFile(part)
        self.rows = self._kept() | self.mine.rows

    def add(self, rows: Iterable[Row]) -> None:
        """Keep these answers; once this returns, a kill does not lose them."""
        self.mine.add(rows)
        self.rows |= self.mine.rows

    def gather(self) -> None:
        """Read what the other processes answered."""
        self.rows |= self._kept()

    def finish(self, rows: Iterable[Row]) -> None:
        """On the first process: one file of these rows, in this order, and no other."""
        if self.path is None or not self.first:
            return
        AnswersFile(self.path).finish(rows)
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return (
            []
            if self.path is None
            else sorted(self.path.parent.glob(f"{escape(self.path.stem)}.rank-*"))
        )

    def _kept(self) -> dict[str, Row]:
        files = [] if self.path is None else [self.path, *self._parts()]
        return {key: row for file in files for key, row in kept_rows(file).items()}


def part_of(path: Path, rank: int) -> Path:
    """The file of one process beside `path`."""
    return path.with_name(f"{path.stem}.rank-{rank}")


def kept_rows(path: Path) -> dict[str, Row]:
    """The answers in a file by the key of their request; a half last line, which another process
    may be writing, is no answer. ValueError: a damaged line, with file and line.
    """
    rows: dict[str, Row] = {}
    if not path.is_file():
        return rows
    advice = "delete the file to answer anew"
    whole = Span(0, path.read_bytes().rfind(b"\n") + 1, 1)
    for number, row in json_lines(path, advice, whole):
        if not isinstance(row, dict) or not isinstance(row.get("request"), str):
            raise ValueError(f"{path}:{number}: not a kept answer; {advice}")
        rows[row["request"]] = row
    return rows


def lines_of(rows: Iterable[Row]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def documents_digest(problems: Iterable[Problem], shots: Mapping[str, Iterable[Problem]]) -> str:
    """A hash of all documents and shots, the tests of programs included."""
    whole = hashlib.sha256()
    for problem in (*problems, *(shot for family in sorted(shots) for shot in shots[family])):
        fields = {**vars(problem), "task": problem.task and problem.task.digest}
        whole.update(json.dumps(fields, default=repr).encode() + b"\n")
    return whole.hexdigest()[:16]


def keep_to(folder: Path, basis: dict[str, dict[str, str]]) -> None:
    """Note what the answers and verdicts of this evaluation depend on: {suite: {what: which}}.
    ValueError: those kept there depend on something else.
    """
    path = folder / "transcripts" / "basis.json"
    before = read_object(path) if path.is_file() else {}
    for suite, facts in basis.items():
        for what, which in facts.items():
            kept = before.get(suite, {}).get(what, which)
            if kept != which:
                raise ValueError(
                    f"{folder} holds answers to suite {suite}, whose {what} changed: it was {kept} "
                    f"there and is {which} now; delete the folder to evaluate anew"
                )
    write_json(path, {**before, **basis})


def _drop_half_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
