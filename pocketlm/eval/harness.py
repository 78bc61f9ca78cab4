"""Put a suite to a model: answers or log-likelihoods of every problem, scored, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.eval.answers_file import Row, SharedAnswers
from pocketlm.eval.code_scorer import over_samples
from pocketlm.eval.likelihood import shortened
from pocketlm.eval.prompts import Request, requests_of
from pocketlm.eval.scorers import answer_bytes, choice_of, without_thinking
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.inference.continuations import Pair, common_beginning
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.stop_strings import before_stop

ROW_TOKENS = 2048  # of the contexts and continuations that are scored together


@dataclass(frozen=True)
class Share:
    """Which of the processes that answer one suite together this is. meet: returns when all of them
    have called it.
    """

    rank: int = 0
    world_size: int = 1
    meet: Callable[[], None] = lambda: None


ALONE = Share()


def run_suite(
    model: Runtime,
    suite: Suite,
    problems: Sequence[Problem],
    shots: Mapping[str, Sequence[Problem]] | None = None,
    *,
    batch_size: int = 32,
    path: Path | None = None,
    progress: Callable[[int], None] = lambda answered: None,
    share: Share = ALONE,
) -> list[Row]:
    """One row a problem, in order: id, family, prompt, completion, answer, correct, scores,
    request (its key) and a hash of its token ids.

    All have `truncated` (the context lost its beginning to fit the model's length). Written answers
    have `cut` (an answer reached max_new_tokens or the model's length) and `empty` (one is), and
    `samples` where there are several;
    log-likelihoods have `log_probs` (natural, a sum for each choice); bits_per_byte has `weight`,
    the answer's bytes. `path` keeps answers as they come: what is in it already is not answered
    again, and the rows are the same whether or not a run was interrupted. share: of n
    processes each answers every n-th batch, into a file of its own beside `path`; all get all rows,
    the same as one process gives. ValueError: the suite is empty, or a prompt leaves no room
    to answer.
    """
    if not problems:
        raise ValueError(f"suite {suite.name!r} holds no problems")
    shots = shots or {problem.family: [] for problem in problems}
    requests = requests_of(model.tokenizer, suite, problems, shots)
    kept = SharedAnswers(path, share.rank, share.world_size)
    if suite.kind == "generation":
        requests = [_fitted(model, suite, request) for request in requests]
        together = max(1, batch_size // suite.samples)
        batches, answer = _by_count(requests, together), _written(model, suite)
    else:
        batches, answer = _by_tokens(suite, requests), _scored(model, suite)
    answered = 0
    for number, (first, batch) in enumerate(batches):
        assigned = number % share.world_size == share.rank
        if assigned and not all(request.key in kept.rows for request in batch):
            kept.add(answer(first, batch))
        answered += len(batch)
        progress(answered)
    share.meet()
    kept.gather()
    rows = [kept.rows[request.key] for request in requests]
    share.meet()  # all have read what the first now replaces
    kept.finish(rows)
    return rows


def _fitted(model: Runtime, suite: Suite, request: Request) -> Request:
    """The request, its shots, or a shortened suite's prompt, cut on the left to leave room for an
    answer: max_new_tokens, or half of the model's length where that is less. ValueError: a question
    alone, or a conversation, that leaves none.
    """
    room, in_turns = model.max_length, suite.chat and model.tokenizer.chat_template is not None
    if suite.shortened or (suite.shots and not in_turns):
        room -= min(suite.max_new_tokens, model.max_length // 2)
        return replace(request, prompt=request.prompt[-room:], cut=len(request.prompt) > room)
    if len(request.prompt) >= room:
        raise ValueError(
            f"suite {suite.name!r}, problem {request.problem.id}: {len(request.prompt)} prompt "
            f"tokens leave no room to answer in the model's {model.max_length}"
        )
    return request


# ---- batches: the same whatever was answered before, so that an interruption changes no row ----


def _by_count(requests: Sequence[Request], batch_size: int) -> Iterator[tuple[int, list[Request]]]:
    """(place of the first, requests): the shortest first, for little padding in a batch."""
    ordered = sorted(requests, key=lambda request: request.num_tokens)
    for first in range(0, len(ordered), batch_size):
        yield first, ordered[first : first + batch_size]


def _by_tokens(suite: Suite, requests: Sequence[Request]) -> Iterator[tuple[int, list[Request]]]:
    """The same, with at most ROW_TOKENS in a batch, of one family where each has its own shots."""
    by_family = suite.shots_by_family and suite.shots > 0
    ordered = sorted(
        requests,
        key=lambda request: (request.problem.family if by_family else "", request.num_tokens),
    )
    first, tokens, batch = 0, 0, []
    for request in ordered:
        size = len(request.pairs) * request.num_tokens
        another = by_family and batch and batch[-1].problem.family != request.problem.family
        if batch and (another or tokens + size > ROW_TOKENS):
            yield first, batch
            first, tokens, batch = first + len(batch), 0, []
        tokens += size
        batch.append(request)
    yield first, batch


# ---- answers ----


def _written(model: Runtime, suite: Suite) -> Callable[[int, list[Request]], list[Row]]:
    """Answers that the model writes. A drawn answer's seed is its place in the suite ordered by
    length, each problem as often as it has samples, whatever the batch.
    """
    tokenizer = model.tokenizer
    in_turns = suite.chat and tokenizer.chat_template is not None
    stops = () if in_turns else suite.stop_strings

    def answer(first: int, batch: list[Request]) -> list[Row]:
        repeats = suite.samples
        answers = model.generate(
            [list(request.prompt) for request in batch for _ in range(repeats)],
            max_new_tokens=suite.max_new_tokens,
            stop_ids=tokenizer.stop_ids,
            stop_strings=stops,
            sampling=replace(suite.sampling, seed=suite.sampling.seed + first * repeats),
        )
        rows = []
        for place, request in enumerate(batch):
            room = min(suite.max_new_tokens, model.max_length - len(request.prompt))
            drawn = answers[place * repeats : (place + 1) * repeats]
            samples = [completed(tokenizer.decode(ids), len(ids) >= room) for ids in drawn]
            rows.append(_written_row(suite, request, samples))
        return rows

    def completed(text: str, full: bool) -> tuple[str, bool]:
        """(completion, whether it was cut)."""
        completion = before_stop(text, stops)
        # a program begins with the spaces that it is indented by
        stripped = completion.rstrip() if suite.runs_code else completion.strip()
        return stripped, full and completion == text

    return answer


def _written_row(suite: Suite, request: Request, samples: Sequence[tuple[str, bool]]) -> Row:
    """A row of the samples (completion, cut) of one problem: scores are means over them."""
    completions = [completion for completion, _ in samples]
    answers = [without_thinking(text, program=suite.runs_code) for text in completions]
    scores = [suite.scorer(request.problem, answer) for answer in answers]
    row = _row(suite, request, completions[0], over_samples(scores, suite.pass_at))
    if len(samples) > 1:
        row["samples"] = completions
    return {
        **row,
        "cut": any(cut for _, cut in samples),
        "empty": not all(text.strip() for text in completions),
        "truncated": request.cut,
    }


def _scored(model: Runtime, suite: Suite) -> Callable[[int, list[Request]], list[Row]]:
    """Log-likelihoods of given answers."""
    score = model.scorer()

    def answer(first: int, batch: list[Request]) -> list[Row]:
        problems = [
            [shortened(pair, model.max_length) for pair in request.pairs] for request in batch
        ]
        shared = _shared(problems, min(request.shared for request in batch))
        rows = []
        for request, pairs, scored in zip(batch, problems, score(problems, shared), strict=True):
            problem, log_probs = request.problem, [pair.log_prob for pair in scored]
            scores = suite.scorer(problem, log_probs)
            chosen = problem.answer
            if suite.kind == "choices":
                chosen = problem.choices[choice_of(suite.metric, problem, log_probs)]
            row = _row(suite, request, chosen, scores)
            row |= {"log_probs": log_probs, "truncated": pairs != list(request.pairs)}
            if suite.kind == "bits_per_byte":
                row["weight"] = answer_bytes(problem)
            rows.append(row)
        return rows

    return answer


def _shared(problems: Sequence[Sequence[Pair]], most: int) -> list[int]:
    """The ids that all contexts of a batch begin with, at most so many: those of the shots, so that
    the next batch shares the same.
    """
    contexts = [context for pairs in problems for context, _ in pairs]
    return contexts[0][: min(most, common_beginning(contexts))]


def _row(suite: Suite, request: Request, completion: str, scores: dict[str, float]) -> Row:
    problem = request.problem
    row: dict[str, Any] = {
        "id": problem.id,
        "family": problem.family,
        "prompt": problem.prompt,
        "completion": completion,
        "answer": problem.answer,
    }
    if suite.kind != "bits_per_byte":
        row["correct"] = scores[suite.metric] == 1.0
    return {**row, "scores": scores, "request": request.key, "ids": request.ids_hash}
