"""IFEval: prompts with instructions whose following a program can check (arXiv 2311.07911), in
lm-eval 0.4.13's form (tasks/ifeval).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketlm.eval.instructions import (
    AT_LEAST,
    KINDS,
    LESS_THAN,
    RELATIONS,
    Instruction,
    loose_forms,
)
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import LIST, TEXT, TEXTS, WHOLE, JsonObject

FIGURES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
MEAN = "mean_of_four"


def _problem(row: JsonObject) -> Problem:
    names = row.typed("instruction_id_list", TEXTS)
    arguments = row.typed("kwargs", LIST)
    if not names or len(arguments) != len(names):
        raise row.wrong("kwargs", f"are {len(arguments)} for {len(names)} instructions")
    instructions = tuple(map(_instruction, [row] * len(names), names, arguments))
    key = row.typed("key", WHOLE)
    prompt, answer = row.typed("prompt", TEXT), ", ".join(names)
    return Problem(id=str(key), family="", prompt=prompt, answer=answer, expected=instructions)


def _instruction(row: JsonObject, name: str, given: object) -> Instruction:
    """ValueError: an instruction that we do not know, or an argument that is missing or of another
    kind.
    """
    if name not in KINDS:
        raise row.wrong("instruction_id_list", f"names {name!r}, which is none of {len(KINDS)}")
    if not isinstance(given, JsonObject):
        raise row.wrong("kwargs", f"hold no object for {name}")
    arguments = {key: given.typed(key, kind) for key, kind in KINDS[name].arguments.items()}
    for key, value in arguments.items():
        if key in RELATIONS and value not in (AT_LEAST, LESS_THAN):
            raise given.wrong(key, f"is {value!r}, not {AT_LEAST!r} or {LESS_THAN!r}")
        if isinstance(value, int) and value < (1 if key == "nth_paragraph" else 0):
            raise given.wrong(key, f"is {value}")
        if isinstance(value, str) and not value.strip():
            raise given.wrong(key, "is empty")
    return Instruction(name, arguments)


def ifeval(problem: Problem, answer: str) -> dict[str, float]:
    """prompt_*: all instructions are followed; instruction_*: the share of them; mean_of_four: of
    these. instructions: how many there are.
    """
    forms = loose_forms(answer)
    strict = [instruction.followed(answer) for instruction in problem.expected]
    loose = [any(map(instruction.followed, forms)) for instruction in problem.expected]
    scores = {
        "prompt_strict": float(all(strict)),
        "instruction_strict": sum(strict) / len(strict),
        "prompt_loose": float(all(loose)),
        "instruction_loose": sum(loose) / len(loose),
    }
    return {MEAN: sum(scores.values()) / len(scores), **scores, "instructions": float(len(strict))}


@dataclass(frozen=True, kw_only=True)
class Checkable:
    """The prompts whose instructions can be checked here.

    language: also those that langdetect decides. Without the package they are refused: no figure
    over fewer prompts takes the place of the whole one.
    """

    rows: Rows
    language: bool

    def load(self, data: Path | None) -> Iterator[Problem]:
        """ValueError: langdetect is missing, with how many instructions need it."""
        problems = list(self.rows.load(data))
        need = [problem for problem in problems if _needs_language(problem)]
        if not self.language:
            return iter([problem for problem in problems if problem not in need])
        if need and importlib.util.find_spec("langdetect") is None:
            raise ValueError(_refusal(need, len(problems)))
        return iter(problems)


def _needs_language(problem: Problem) -> bool:
    return any(KINDS[instruction.id].language for instruction in problem.expected)


def _refusal(need: list[Problem], total: int) -> str:
    counts = Counter(
        instruction.id
        for problem in need
        for instruction in problem.expected
        if KINDS[instruction.id].language
    )
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return (
        f"ifeval: {len(need)} of {total} prompts have instructions that langdetect decides "
        f"({listed}); pip install langdetect, or measure ifeval_no_language, which leaves these "
        "prompts out"
    )


ROWS = Rows(file="ifeval", dataset="google/IFEval", config=None, split="train", problem=_problem)


def _suite(name: str, *, language: bool) -> Suite:
    return Suite(
        name=name,
        problems=Checkable(rows=ROWS, language=language),
        kind="generation",
        scorer=ifeval,
        metric=MEAN,
        mean_of=FIGURES,
        weighted_by={"instruction_strict": "instructions", "instruction_loose": "instructions"},
        constant_answer=False,
        prompt_format="{prompt}",
        chat=True,
        max_new_tokens=1280,
        sources={}
        if language
        else {"problems": "differs: prompts that langdetect would decide are left out"},
    )


IFEVAL = {
    suite.name: suite
    for suite in (_suite("ifeval", language=True), _suite("ifeval_no_language", language=False))
}
