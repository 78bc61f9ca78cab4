"""Benchmarks whose answers the model writes: GSM8K and MATH-500.

Definitions: lm-eval 0.4.13 (tasks/gsm8k, tasks/minerva_math) where nothing else is said.
"""

from __future__ import annotations

from pocketlm.eval.scorers import gsm8k, math
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, JsonObject


def _gsm8k(row: JsonObject) -> Problem:
    return Problem(
        id="", family="", prompt=row.typed("question", TEXT), answer=row.typed("answer", TEXT)
    )


def _math(row: JsonObject) -> Problem:
    return Problem(
        id=str(row.get("unique_id", "")),
        family=str(row.get("subject", "")),
        prompt=row.typed("problem", TEXT),
        answer=row.typed("answer", TEXT),
    )


def _solution(row: JsonObject) -> Problem:
    """A shot of MATH: what is shown is the whole solution."""
    return Problem(
        id="", family="", prompt=row.typed("problem", TEXT), answer=row.typed("solution", TEXT)
    )


GSM8K_TEST = Rows(
    file="gsm8k_test", dataset="openai/gsm8k", config="main", split="test", problem=_gsm8k
)
GSM8K_TRAIN = Rows(
    file="gsm8k_train", dataset="openai/gsm8k", config="main", split="train", problem=_gsm8k
)
MATH500 = Rows(
    file="math500_test", dataset="HuggingFaceH4/MATH-500", config=None, split="test", problem=_math
)
MATH_TRAIN = Rows(
    file="math_train",
    dataset="EleutherAI/hendrycks_math",
    config="algebra",
    split="train",
    problem=_solution,
)

WRITTEN = {
    suite.name: suite
    for suite in (
        Suite(
            name="gsm8k",
            problems=GSM8K_TEST,
            shots_from=GSM8K_TRAIN,
            shots=5,
            kind="generation",
            scorer=gsm8k,
            metric="strict_match",
            # lm-eval's until, without the two texts that are other models' special tokens
            stop_strings=("Question:",),
            max_new_tokens=256,  # the default of lm-eval's hf backend
        ),
        Suite(
            name="math500",
            problems=MATH500,
            shots_from=MATH_TRAIN,
            shots=4,
            kind="generation",
            scorer=math,
            metric="math_verify",
            prompt_format="Problem:\n{prompt}\n\nSolution:",
            stop_strings=("Problem:",),
            max_new_tokens=1024,  # our choice; lm-eval's hf backend would stop at 256
        ),
    )
}
