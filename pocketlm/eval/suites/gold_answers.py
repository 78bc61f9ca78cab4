"""Right answers that are measured in bits per byte alone: MMLU's as text instead of a letter, and
MBPP's programs.

A small model's choice among letters is chance, and its programs do not run; the likelihood of the
right answer moves long before either.
"""

from __future__ import annotations

from pocketlm.eval.scorers import bits_per_byte
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, TEXTS, WHOLE, JsonObject


def _mmlu(row: JsonObject) -> Problem:
    """The question without its choices: the answer is to be written, not pointed at."""
    choices, gold = row.typed("choices", TEXTS), row.typed("answer", WHOLE)
    return Problem(
        id="",
        family=row.typed("subject", TEXT),
        prompt=row.typed("question", TEXT).strip(),
        answer=choices[gold] if 0 <= gold < len(choices) else " ",
    )


def _mbpp(row: JsonObject) -> Problem:
    """Task and program, of the hub ("text") or of a folder ("prompt"); line ends as on Unix."""
    prompt = row.typed("text" if "text" in row else "prompt", TEXT)
    program = row.typed("code", TEXT).replace("\r\n", "\n").strip()
    return Problem(id=str(row.get("task_id", "")), family="", prompt=prompt, answer=program)


def _suite(name: str, rows: Rows, **fields: object) -> Suite:
    return Suite(
        name=f"bpb.{name}",
        protocol_name="bpb",
        problems=rows,
        kind="bits_per_byte",
        scorer=bits_per_byte,
        metric="bits_per_byte",
        **fields,  # type: ignore[arg-type]
    )


GOLD_ANSWERS = (
    _suite(
        "mmlu",  # 1,531 questions of all its subjects; the test split has nine times as many
        Rows(
            file="mmlu_validation",
            dataset="cais/mmlu",
            config="all",
            split="validation",
            problem=_mmlu,
        ),
    ),
    _suite(
        "mbpp",
        Rows(
            file="mbpp_test",
            dataset="google-research-datasets/mbpp",
            config="full",
            split="test",
            problem=_mbpp,
        ),
        prompt_format="{prompt}\n",
    ),
)
