"""Answers on disk while they are made: JSON lines, a batch at a time, read again after an
interruption.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pocketlm.eval.suites.suite import Problem
from pocketlm.model.files import write_json, write_text
from pocketlm.model.json_lines import json_lines
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
            advice = "delete the file to answer anew"
            for number, row in json_lines(path, advice):
                if not isinstance(row, dict) or not isinstance(row.get("request"), str):
                    raise ValueError(f"{path}:{number}: not a kept answer; {advice}")
                self.rows[row["request"]] = row

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
