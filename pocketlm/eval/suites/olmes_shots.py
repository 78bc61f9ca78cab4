"""OLMES's curated shots, as names of rows: which rows of a benchmark's train split they are.

Source: allenai/OLMo-Eval@3e3b280, olmo_eval/tasks/olmes_v0_1/std_fewshot.py, of whose lists a
k-shot prompt takes the first k (arc_std.py). The texts are the train split's, and are read there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem
from pocketlm.model.json_shape import JsonObject

SHOTS = 5  # OLMES takes five of each list
# benchmark: the fields that name a row, and the first five names of its list; where the rows have
# no ids, a name is the beginning of the SHA-256 of the fields, one space for any blanks
NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "arc_easy": (
        ("id",),
        (
            "MCAS_2007_8_5189",
            "Mercury_SC_401169",
            "MCAS_2004_8_27",
            "NYSEDREGENTS_2006_8_10",
            "Mercury_7013388",
        ),
    ),
    "arc_challenge": (
        ("id",),
        (
            "Mercury_SC_415702",
            "MCAS_2009_5_6516",
            "Mercury_7233695",
            "Mercury_7041615",
            "MCAS_1998_4_3",
        ),
    ),
    "boolq": (("idx",), ("0", "1", "7", "11", "3")),
    "csqa": (
        ("id",),
        (
            "61fe6e879ff18686d7552425a36344c8",
            "02e821a3e53cb320790950aab4489e85",
            "23505889b94e880c3e89cff4ba119860",
            "a76403b4921a9281b6ee2a7241a5ec9f",
            "6dc921840aa1e5dda3333b79007f630b",
        ),
    ),
    "hellaswag": (
        ("source_id", "ind"),
        (
            "wikihow~19 12",
            "wikihow~66 39",
            "activitynet~v_-2dxp-mv2zo 9",
            "activitynet~v_-Xl95IW5H_s 47",
            "wikihow~62 38",
        ),
    ),
    "openbookqa": (("id",), ("7-584", "7-870", "9-732", "9-782", "8-72")),
    "piqa": (
        ("goal", "sol1", "sol2"),
        (
            "efcfb1797d6fae8f",
            "ee4b00a5d7f44dee",
            "283067bc9c2a8aab",
            "dfaaf699dbd721f1",
            "0f146967d7b5e60a",
        ),
    ),
    "siqa": (
        ("context", "question", "answerA"),
        (
            "87c13c7cf40286b7",
            "dcd415789ca787bf",
            "d6b84c11824b1600",
            "04f259602e8c3a5b",
            "1bfe35d29b96e4f6",
        ),
    ),
    "winogrande": (
        ("sentence",),
        (
            "6d85bb83e1288b93",
            "792f04408f2a223a",
            "b67610eeafc23565",
            "93c29007485d3d2d",
            "188699edb163b757",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class CuratedShots:
    """The rows of a train split that a list names, in the list's order."""

    rows: Rows
    fields: tuple[str, ...]
    names: tuple[str, ...]

    def load(self, data: Path | None) -> Iterator[Problem]:
        """ValueError: the split lacks one of them; else as Rows.load."""
        named = replace(self.rows, problem=self._named)
        chosen: dict[str, Problem] = {}
        for problem in named.load(data):
            if problem.id in self.names:
                chosen.setdefault(problem.id, problem)
                if len(chosen) == len(self.names):
                    break
        if missing := [name for name in self.names if name not in chosen]:
            raise ValueError(
                f"{self.rows.file}: OLMES's curated examples {', '.join(missing)} (by "
                f"{', '.join(self.fields)}) are not among its rows; fetch the whole train split"
            )
        yield from (chosen[name] for name in self.names)

    def _named(self, row: JsonObject) -> Problem:
        text = " ".join(" ".join(str(row.get(field, "")) for field in self.fields).split())
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return replace(self.rows.problem(row), id=digest if digest in self.names else text)


def curated_shots(benchmark: str, train: Rows) -> CuratedShots:
    """The first five of OLMES's list for a benchmark, read from its train split."""
    fields, names = NAMES[benchmark]
    return CuratedShots(rows=train, fields=fields, names=names)
