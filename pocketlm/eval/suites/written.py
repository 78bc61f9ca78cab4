"""Benchmarks whose answers the model writes: GSM8K, MATH-500, TriviaQA and Natural Questions.

Definitions: lm-eval 0.4.13 (tasks/gsm8k, minerva_math, triviaqa, nq_open) where nothing else is
said.
"""

from __future__ import annotations

from pocketlm.eval.scorers import exact_match, exact_match_without_articles, gsm8k, math
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, TEXTS, JsonObject


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


def _triviaqa(row: JsonObject) -> Problem:
    accepted = tuple(row.object("answer").typed("aliases", TEXTS))
    return _with_accepted(row, accepted)


def _nq_open(row: JsonObject) -> Problem:
    return _with_accepted(row, tuple(row.typed("answer", TEXTS)))


def _with_accepted(row: JsonObject, accepted: tuple[str, ...]) -> Problem:
    if not accepted:
        raise row.wrong("answer", "names no answer")
    question = row.typed("question", TEXT)
    return Problem(id="", family="", prompt=question, answer=accepted[0], accepted=accepted)


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
TRIVIAQA, TRIVIAQA_TRAIN = (
    Rows(
        file=file,
        dataset="mandarjoshi/trivia_qa",
        config="rc.nocontext",
        split=split,
        problem=_triviaqa,
    )
    for file, split in (("triviaqa_val", "validation"), ("triviaqa_train", "train"))
)
NQ_OPEN, NQ_OPEN_TRAIN = (
    Rows(
        file=file,
        dataset="google-research-datasets/nq_open",
        config=None,
        split=split,
        problem=_nq_open,
    )
    for file, split in (("nq_open_val", "validation"), ("nq_open_train", "train"))
)
SHORT_ANSWER = ("\n", ".", ",")  # lm-eval's until: it ends "St. Louis" after "St" too

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
        Suite(
            name="triviaqa",
            problems=TRIVIAQA,
            shots_from=TRIVIAQA_TRAIN,
            kind="generation",
            scorer=exact_match,
            metric="exact_match",
            prompt_format="Question: {prompt}?\nAnswer:",
            stop_strings=SHORT_ANSWER,
            max_new_tokens=256,
        ),
        Suite(
            name="nq_open",
            problems=NQ_OPEN,
            shots_from=NQ_OPEN_TRAIN,
            shot_separator="\n",
            kind="generation",
            scorer=exact_match_without_articles,
            metric="exact_match",
            preamble="Answer these questions:\n\n",
            prompt_format="Q: {prompt}?\nA:",
            stop_strings=SHORT_ANSWER,
            max_new_tokens=256,
        ),
    )
}
