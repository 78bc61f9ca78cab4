"""Solve a suite: ask a model, match its answers, and say what one constant answer would score."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pocketlm.eval.suites import Suite
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.stop_strings import before_stop
from pocketlm.model.tokenizer import Tokenizer

ANSWER_MARK = "####"
ANSWER_LABEL = "answer:"  # what a plain-text prompt ends in, so models write it before a result too
# a base model goes on to the next problem: not part of its answer. A chat model ends its turn
RUN_ONS = ("\nQuestion:", "\nAnswer:", "\n\n\n")
# never evaluated in an answer: 9^9^9 would not finish, and there is no timeout
UNBOUNDED = ("^", "**", "!")


@dataclass(frozen=True, kw_only=True)
class Result:
    """`problems`: solved and total of each family. `transcripts`: one row a problem, with its
    completion.

    A row's `cut` is true where the answer did not end by itself: it reached max_new_tokens, or the
    model's length.
    """

    problems: dict[str, dict[str, int]]
    transcripts: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """Solved over all problems, 0 to 1."""
        return sum(row["correct"] for row in self.transcripts) / len(self.transcripts)

    @property
    def answers_cut(self) -> int:
        """How many answers did not end by themselves."""
        return sum(row["cut"] for row in self.transcripts)


def solve(
    model: Runtime,
    suite: Suite,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    score: Callable[[dict[str, str], str], bool] | None = None,
) -> Result:
    """What the model solves of the suite, greedily, zero-shot.

    A model with a chat template gets each prompt as a user turn, and its answer ends where its turn
    does; others get "Question: ...\\nAnswer:", and end at RUN_ONS too. The answer is what stands
    after the last "####" of the completion (the last line, where there is none) and has to match.
    `score(problem, answer)` replaces `match_answer`. ValueError: the suite is empty, or a prompt
    leaves no room to answer.
    """
    if not suite.problems:
        raise ValueError(f"suite {suite.name!r} holds no problems")
    problems = list(suite.problems)
    prompts = [prompt_ids(model.tokenizer, problem["prompt"]) for problem in problems]
    for problem, ids in zip(problems, prompts, strict=True):
        if len(ids) >= model.max_length:
            raise ValueError(
                f"suite {suite.name!r}, problem {problem['id']}: {len(ids)} prompt tokens leave no "
                "room "
                f"to answer in the model's {model.max_length}"
            )
    stops = run_ons(model.tokenizer)
    completions, cut = [""] * len(problems), [False] * len(problems)
    # little padding in a batch
    by_length = sorted(range(len(problems)), key=lambda place: len(prompts[place]))
    for start in range(0, len(by_length), batch_size):
        places = by_length[start : start + batch_size]
        answers = model.generate(
            [prompts[place] for place in places],
            max_new_tokens=max_new_tokens,
            stop_ids=model.tokenizer.stop_ids,
            stop_strings=stops,
        )
        for place, ids in zip(places, answers, strict=True):
            text = model.tokenizer.decode(ids)
            answer = before_stop(text, stops)
            room = min(max_new_tokens, model.max_length - len(prompts[place]))
            completions[place], cut[place] = answer.strip(), answer == text and len(ids) >= room
    return _result(problems, completions, cut, score)


def run_ons(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts that end an answer: none where a chat template gives turns, which end in a token of
    their own.
    """
    return () if tokenizer.chat_template else RUN_ONS


def _result(
    problems: list[dict[str, str]],
    completions: list[str],
    cut: list[bool],
    score: Callable[[dict[str, str], str], bool] | None,
) -> Result:
    transcripts, counts = [], defaultdict(lambda: {"solved": 0, "total": 0})
    for problem, completion, was_cut in zip(problems, completions, cut, strict=True):
        answer = final_answer(completion)
        correct = score(problem, answer) if score else match_answer(problem["answer"], answer)
        counts[problem["family"]]["solved"] += correct
        counts[problem["family"]]["total"] += 1
        transcripts.append(
            {
                "id": problem["id"],
                "family": problem["family"],
                "prompt": problem["prompt"],
                "completion": completion,
                "answer": problem["answer"],
                "correct": correct,
                "cut": was_cut,
            }
        )
    return Result(problems=dict(counts), transcripts=transcripts)


def best_constant_answer(suite: Suite) -> dict[str, float]:
    """For each family the share that one answer, given to every problem, would solve."""
    answers = defaultdict(list)
    for problem in suite.problems:
        answers[problem["family"]].append(problem["answer"].strip())
    return {
        family: Counter(given).most_common(1)[0][1] / len(given)
        for family, given in answers.items()
    }


def prompt_ids(tokenizer: Tokenizer, prompt: str, passage: str = "") -> list[int]:
    """Ids that ask `prompt`, after a passage to read if there is one; a plain one starts a
    document.
    """
    if tokenizer.chat_template:
        content = f"{passage}\n{prompt}" if passage else prompt
        return tokenizer.encode_chat(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    before = f"{passage}\n" if passage else ""
    return [*tokenizer.document_start, *tokenizer.encode(f"{before}Question: {prompt}\nAnswer:")]


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
