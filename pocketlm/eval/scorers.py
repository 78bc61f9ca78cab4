"""Scorers: functions from a problem and its answer to named figures, each from 0 to 1 (bits per
byte: from 0 up).

For written answers: match, gsm8k, math, r1_math, exact_match, last_word. For log-likelihoods:
multiple_choice, bits_per_byte.
"""

from __future__ import annotations

import logging
import math as mathematics
import re
import string
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from pocketlm.eval.math_judge import same_value

ANSWER_MARK = "####"
ANSWER_LABEL = "answer:"  # what a plain-text prompt ends in, so models write it before a result too
THINKING_BEGINS, THINKING_ENDS = "<think>", "</think>"
# never evaluated by `match`: 9^9^9 would not finish, and there is no timeout
UNBOUNDED = ("^", "**", "!")
# lm-eval 0.4.13, tasks/gsm8k/gsm8k.yaml: its two filters, and what its comparison ignores
GSM8K_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
GSM8K_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
ARTICLES = re.compile(r"\b(?:The |the |An |A |The |a |an )")  # tasks/nq_open/nq_open.yaml
GSM8K_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


class AnswerKey(Protocol):
    """What scorers read of a problem (suites/suite.py's Problem)."""

    @property
    def answer(self) -> str: ...
    @property
    def accepted(self) -> tuple[str, ...]: ...
    @property
    def choices(self) -> tuple[str, ...]: ...
    @property
    def gold(self) -> int: ...


def match(problem: AnswerKey, completion: str) -> dict[str, float]:
    """accuracy: the final answer is the right text, or has the right value."""
    return {"accuracy": float(match_answer(problem.answer, final_answer(completion)))}


def math(problem: AnswerKey, completion: str) -> dict[str, float]:
    """math_verify: math-verify finds the right answer's value in the completion (boxed, or the last
    expression).
    """
    return {"math_verify": float(same_value(problem.answer, completion))}


def r1_math(problem: AnswerKey, completion: str) -> dict[str, float]:
    """math_verify: the answer that R1's evaluation would extract has the right answer's value."""
    gold = problem.answer.rpartition(ANSWER_MARK)[2].strip()  # of GSM8K the last line, else all
    return {"math_verify": float(same_value(gold, f"${r1_answer(completion)}$"))}


def r1_answer(completion: str) -> str:
    """The answer in a completion, by the rules of facebookresearch/MobileLLM-R1@cfc816c,
    evaluation/parser.py, in their order: a final answer in Minerva's words, the last \\boxed, what
    follows "he answer is", the last number; "" without any.
    """
    _, begin, rest = completion.partition("final answer is $")
    answer, end, _ = rest.partition("$. I hope")
    if begin and end:
        return answer.strip()
    if "boxed" in completion:
        return _in_braces(completion.rpartition("boxed")[2])
    _, mark, answer = completion.rpartition("he answer is")
    if mark:
        return answer.strip().split("\n")[0].lstrip(":").rstrip("./").strip().strip("$")
    numbers = re.findall(r"-?\d*\.?\d+", completion.replace(",", ""))
    return numbers[-1] if numbers else ""


def _in_braces(text: str) -> str:
    """What stands in the braces that the text begins with, nested ones included; without braces,
    what stands before the next "$".
    """
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place]
    return text[1:]


def gsm8k(problem: AnswerKey, completion: str) -> dict[str, float]:
    """strict_match: the number after "#### ". flexible_extract: the last number. Both as lm-eval
    defines them; math_verify as `math`.
    """
    gold = _normal_number(problem.answer)
    strict = GSM8K_STRICT.search(completion)
    numbers = [whole or short for whole, short in GSM8K_FLEXIBLE.findall(completion)]
    result = problem.answer.rpartition(ANSWER_MARK)[2].strip()
    return {
        "strict_match": float(strict is not None and _normal_number(strict[1]) == gold),
        "flexible_extract": float(bool(numbers) and _normal_number(numbers[-1]) == gold),
        "math_verify": float(same_value(result, completion)),
    }


def exact_match(problem: AnswerKey, completion: str) -> dict[str, float]:
    """exact_match: the completion is one of the accepted answers, but for case and punctuation
    (lm-eval's).
    """
    return {"exact_match": float(_bare(completion) in map(_bare, problem.accepted))}


def exact_match_without_articles(problem: AnswerKey, completion: str) -> dict[str, float]:
    """The same, articles left out too, as lm-eval has it for Natural Questions."""
    given, *accepted = (_bare(ARTICLES.sub("", text)) for text in (completion, *problem.accepted))
    return {"exact_match": float(given in accepted)}


def last_word(problem: AnswerKey, completion: str) -> dict[str, float]:
    """acc: the first word that is written is the right one, marks around it aside (LAMBADA)."""
    words = completion.split(maxsplit=1)
    marks = string.punctuation + "“”‘’—–…"
    return {"acc": float(bool(words) and words[0].strip(marks) == problem.answer.strip(marks))}


def multiple_choice(problem: AnswerKey, log_probs: Sequence[float]) -> dict[str, float]:
    """acc: the right choice has the largest log-likelihood. acc_norm: the largest for each
    character of the choice (lm-eval's); acc_bytes: for each byte of it; acc_pmi, where the choices
    were scored without the question too: the largest gain by the question. Of equal ones the first
    counts.
    """
    names = ["acc", "acc_norm", "acc_bytes"]
    names += ["acc_pmi"] * (len(log_probs) == 2 * len(problem.choices))
    return {name: float(choice_of(name, problem, log_probs) == problem.gold) for name in names}


def choice_of(metric: str, problem: AnswerKey, log_probs: Sequence[float]) -> int:
    """The number of the choice that a metric of multiple_choice takes."""
    count = len(problem.choices)
    values = list(log_probs[:count])
    if metric == "acc_norm":
        values = [value / len(c) for value, c in zip(values, problem.choices, strict=True)]
    elif metric == "acc_bytes":
        values = [value / len(c.encode()) for value, c in zip(values, problem.choices, strict=True)]
    elif metric == "acc_pmi":
        values = [value - alone for value, alone in zip(values, log_probs[count:], strict=True)]
    return max(range(count), key=lambda i: values[i])


def bits_per_byte(problem: AnswerKey, log_probs: Sequence[float]) -> dict[str, float]:
    """bits_per_byte of the right answer: bits over the bytes of the answer and the space before
    it (our choice: the space is predicted too).
    """
    (nats,) = log_probs
    return {"bits_per_byte": -nats / mathematics.log(2) / answer_bytes(problem)}


def answer_bytes(problem: AnswerKey) -> int:
    """Bytes of the right answer and the space before it."""
    return len(f" {problem.answer}".encode())


def without_thinking(completion: str, *, program: bool = False) -> str:
    """What stands after </think>; "" where thinking began and was cut before its end. A program
    keeps the spaces that it begins with.
    """
    _, mark, after = completion.rpartition(THINKING_ENDS)
    if mark:
        return after.lstrip("\r\n").rstrip() if program else after.strip()
    return "" if THINKING_BEGINS in completion else completion


def final_answer(completion: str) -> str:
    """The line after the last "####", or the last line of all where there is none; "" for no text.

    A label "Answer:" before it is no part of it.
    """
    _, mark, after = completion.rpartition(ANSWER_MARK)
    line = after.strip().split("\n")[0 if mark else -1].strip()
    return line[len(ANSWER_LABEL) :].strip() if line.lower().startswith(ANSWER_LABEL) else line


def match_answer(expected: str, given: str) -> bool:
    """True for the same text up to spaces, or for the same value where a number is expected."""
    if " ".join(expected.split()) == " ".join(given.split()):
        return True
    if not given or not _is_number(expected) or any(mark in given for mark in UNBOUNDED):
        return False
    return _same_number(expected, given)


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def _normal_number(text: str) -> str:
    for ignored in GSM8K_IGNORED:
        text = re.sub(ignored, "", text)
    return text.lower()


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


@cache
def _same_number(expected: str, given: str) -> bool:
    """math-verify's judgement: "24/2" is 12. Its timeouts are off: only the main thread may set
    signals.
    """
    from math_verify import parse, verify

    # else it warns of the missing timeouts
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    off: Any = None  # accepted, and documented, though annotated as int
    gold, answer = parse(expected, parsing_timeout=off), parse(given, parsing_timeout=off)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))
