"""Rows of a public benchmark: a JSONL file in a folder of the user's, or a data set of the Hugging
Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.eval.suites.own_problems import check_text
from pocketlm.eval.suites.suite import Problem
from pocketlm.model.json_lines import json_lines
from pocketlm.model.json_shape import JsonObject
from pocketlm.model.unpacked import COMPRESSED_SUFFIXES, first_line

# of the command that measures, and of the stage that keeps the problems out of the training text
ADVICE = "give --data DIR (curate: suites_data)"
SUFFIXES = tuple(f".jsonl{packed}" for packed in ("", *COMPRESSED_SUFFIXES))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where a benchmark's rows are, and how one becomes a Problem.

    file: in a folder, without .jsonl (or .jsonl.zst, .jsonl.gz ...). dataset, config, split: on the
    hub; where it is not there, `dataset` is "" and `source` says where else. problem: takes a row
    in either of both forms; a field that is missing or of another kind is a ValueError of the row
    itself. An id it leaves empty becomes the file's name and line.
    """

    file: str
    dataset: str
    config: str | None
    split: str
    problem: Callable[[JsonObject], Problem]
    source: str = ""

    def load(self, data: Path | None) -> Iterator[Problem]:
        """FileNotFoundError or ValueError: no such file or data set, or the file and line of a
        damaged row.
        """
        empty = True
        for number, where, row in self._local(data) if data is not None else self._hub():
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected an object; mend the line, or leave it out")
            problem = self._checked(row, where)
            empty = False
            yield problem if problem.id else replace(problem, id=f"{self.file}-{number}")
        if empty:
            raise ValueError(f"{where_of(self, data)}: no rows; fetch the file again")

    def _checked(self, row: dict[str, Any], where: str) -> Problem:
        problem = self.problem(JsonObject(row, where))
        texts = (problem.id, problem.family, problem.prompt, problem.answer)
        for text in (*texts, *problem.accepted, *problem.choices, *problem.contexts):
            check_text(text, where)
        if problem.choices and not 0 <= problem.gold < len(problem.choices):
            raise ValueError(
                f"{where}: the right choice is number {problem.gold} of {len(problem.choices)}, "
                "counted from 0; mend the line"
            )
        if not problem.answer.strip() or not all(choice.strip() for choice in problem.choices):
            raise ValueError(f"{where}: an answer is empty; mend the line, or leave it out")
        return problem

    def _local(self, data: Path) -> Iterator[tuple[int, str, Any]]:
        path = where_of(self, data)
        for number, row in json_lines(path):
            yield number, f"{path}:{number}", row

    def _hub(self) -> Iterator[tuple[int, str, Any]]:
        if not self.dataset:
            raise ValueError(
                f"{self.file} is not on the Hugging Face hub: {ADVICE} with {self.file}.jsonl, "
                f"{self.source}"
            )
        place = f"{self.dataset} ({self.config or 'default'}, {self.split})"
        try:
            from datasets import load_dataset

            rows = load_dataset(self.dataset, self.config, split=self.split)
        except ImportError:
            raise ValueError(
                f"reading {place} from the Hugging Face hub needs the datasets package: pip "
                f"install datasets; or {ADVICE} with {self.file}.jsonl"
            ) from None
        except Exception as error:  # the hub's clients raise many kinds
            raise ValueError(
                f"{place} cannot be read from the Hugging Face hub ({first_line(error)}); "
                f"{ADVICE} with {self.file}.jsonl"
            ) from None
        for number, row in enumerate(rows, start=1):
            yield number, f"{place}: row {number}", row


def where_of(rows: Rows, data: Path | None) -> Path:
    """The file of these rows in the folder. FileNotFoundError says which names were looked for."""
    if data is None:
        return Path(rows.dataset)
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder; {ADVICE} with the benchmarks' files")
    for suffix in SUFFIXES:
        path = data / f"{rows.file}{suffix}"
        if path.is_file():
            return path
    elsewhere = f"name no folder, to read {rows.dataset} from the Hugging Face hub"
    raise FileNotFoundError(
        f"{data} holds no {rows.file}.jsonl (nor .jsonl{', .jsonl'.join(COMPRESSED_SUFFIXES)}); "
        f"put it there{', or ' + elsewhere if rows.dataset else ': ' + rows.source}"
    )
