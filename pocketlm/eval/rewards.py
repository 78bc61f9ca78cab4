"""Rewards of written answers that a program can check: reasoning-gym's verifiers, math-verify, or a
user's own function.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketlm.eval.math_judge import same_value
from pocketlm.eval.scorers import final_answer, match_answer, without_thinking
from pocketlm.eval.user_reward import UserReward
from pocketlm.model.json_lines import json_lines
from pocketlm.problems.families import FAMILIES
from pocketlm.problems.generated import score_answer

OWN = ("answer", "math", "chance")
SECONDS = 30.0  # that a user's function may take for one answer


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question whose answer is rewarded. row: all fields of its line, for a user's function."""

    prompt: str
    answer: str = ""
    family: str = ""
    row: dict[str, Any] = field(default_factory=dict)


Reward = Callable[[Question, str], float]


def check_reward(name: str) -> None:
    """Nothing, or a ValueError where no reward has this name."""
    file, _, function = name.rpartition(":")
    if name not in OWN and not (file.endswith(".py") and function.isidentifier()):
        raise ValueError(
            f"reward {name!r} is unknown; known: {', '.join(OWN)}, or your own as FILE.py:function"
        )


@contextmanager
def opened_reward(name: str) -> Iterator[Reward]:
    """The reward of that name, checked: each is a number, or a ValueError that names the prompt.

    answer: 1 where the final answer is right, by reasoning-gym's verifier for its families. math: 1
    where math-verify finds the right value. chance: 1 for half of all answers, whatever they say: a
    control. FILE.py:function: function(prompt, answer, row) in a
    process of its own, row being the problem's line with its "answer"; one that raises, gives no
    number, or takes more than SECONDS stops the training.
    """
    check_reward(name)
    if name in OWN:
        yield {"answer": _right_answer, "math": _right_value, "chance": _by_chance}[name]
        return
    file, _, function = name.rpartition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"reward {name}: there is no file {file}")
    with UserReward(Path(file), function, SECONDS) as user:

        def reward(question: Question, answer: str) -> float:
            value = user(question.prompt, answer, {**question.row, "answer": question.answer})
            if isinstance(value, bool):
                value = float(value)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(
                    f"reward {name}: it gave {value!r} for the prompt {question.prompt[:80]!r}; a "
                    "finite number is needed"
                )
            return float(value)

        yield reward


def _right_answer(question: Question, answer: str) -> float:
    given = final_answer(without_thinking(answer))
    if question.family in FAMILIES:
        problem = {"prompt": question.prompt, "answer": question.answer}
        return float(score_answer(question.family, problem, given))
    return float(match_answer(question.answer, given))


def _right_value(question: Question, answer: str) -> float:
    return float(same_value(question.answer, without_thinking(answer)))


def _by_chance(question: Question, answer: str) -> float:
    return float(zlib.crc32(f"{question.prompt}\n{answer}".encode()) % 2)


def read_questions(file: Path, *, with_answers: bool) -> list[Question]:
    """The questions of a JSON-lines file: "prompt", and the right "answer" where it is needed.
    ValueError: a line without them, or no line.
    """
    questions = []
    for number, row in json_lines(file):
        fields = ("prompt", "answer") if with_answers else ("prompt",)
        if not isinstance(row, dict) or not all(isinstance(row.get(f), str) for f in fields):
            raise ValueError(
                f"{file}:{number}: an object with the texts {' and '.join(fields)} is needed"
            )
        answer = row.get("answer")
        questions.append(
            Question(
                prompt=row["prompt"],
                answer=answer if isinstance(answer, str) else "",
                family=str(row.get("family") or ""),
                row=row,
            )
        )
    if not questions:
        raise ValueError(f"{file}: no questions; nothing to train on")
    return questions
