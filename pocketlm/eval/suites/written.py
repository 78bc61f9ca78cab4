"""Benchmarks whose answers the model writes: GSM8K, MATH-500, AIME, TriviaQA, Natural Questions and
LAMBADA.

Definitions: lm-eval 0.4.13 (tasks/gsm8k, minerva_math, triviaqa, nq_open) where nothing else is
said. AIME: the mean of 64 drawn answers to each problem, as MobileLLM-R1's README has it.
"""

from __future__ import annotations

from pocketlm.eval.scorers import (
    exact_match,
    exact_match_without_articles,
    gsm8k,
    last_word,
    math,
    r1_math,
)
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.inference.sampling import Sampling
from pocketlm.model.json_shape import TEXT, TEXTS, WHOLE, JsonObject


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


def _aime(row: JsonObject) -> Problem:
    """A row of the hub, whose answer is a number from 0 to 999, or its digits as text."""
    answer = row["answer"]
    if not isinstance(answer, str):
        answer = str(row.typed("answer", WHOLE))
    return Problem(
        id=str(row.get("id", "")), family="", prompt=row.typed("problem", TEXT), answer=answer
    )


def _lambada(row: JsonObject) -> Problem:
    """A row of the hub, one text, or of a folder: the text without its last word, and that word."""
    if "query" in row:
        words = row.typed("answers_text", TEXTS)
        if len(words) != 1:
            raise row.wrong("answers_text", f"are {len(words)}, one is needed")
        return Problem(id="", family="", prompt=row.typed("query", TEXT), answer=words[0])
    prompt, _, word = row.typed("text", TEXT).rpartition(" ")
    return Problem(id="", family="", prompt=prompt, answer=word)


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
AIME24, AIME25 = (
    Rows(file=file, dataset=dataset, config=None, split=split, problem=_aime)
    for file, dataset, split in (
        ("aime24", "HuggingFaceH4/aime_2024", "train"),
        ("aime25", "math-ai/aime25", "test"),
    )
)
LAMBADA = Rows(
    file="lambada",
    dataset="EleutherAI/lambada_openai",
    config="default",
    split="test",
    problem=_lambada,
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
        *(
            Suite(
                name=name,
                problems=rows,
                kind="generation",
                scorer=r1_math,
                metric="math_verify",
                prompt_format="{prompt}",
                chat=True,
                max_new_tokens=30_000,  # R1's README, as temperature and top-p
                sampling=Sampling(temperature=0.6, top_p=0.95),
                samples=64,
            )
            for name, rows in (("aime24", AIME24), ("aime25", AIME25))
        ),
        # lm-eval asks whether the word's tokens are the likeliest ones; here what is written is
        # compared, so that a word may come as other tokens
        Suite(
            name="lambada",
            problems=LAMBADA,
            kind="generation",
            scorer=last_word,
            metric="acc",
            prompt_format="{prompt}",
            max_new_tokens=8,
        ),
    )
}
