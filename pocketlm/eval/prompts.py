"""How a question becomes ids: a user turn for a model with a chat template, plain text for
others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketlm.eval.likelihood import encoded_pairs, prefix_ids
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.inference.continuations import Pair
from pocketlm.model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """One problem as one tokenizer writes it.

    text: all that the model reads before an answer. prompt: its ids, to be continued (generation).
    pairs: contexts and continuations (choices; one pair for bits_per_byte). key: a hash of the
    text and of all that decides the answer, by which a kept answer is known again. shared: how
    many ids of every context are the shots' (without their last, which may depend on what follows).
    cut: whether `prompt` lost its beginning.
    """

    problem: Problem
    text: str
    key: str
    prompt: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    shared: int = 0
    cut: bool = False

    @property
    def ids_hash(self) -> str:
        """Equal where two tokenizers read the same ids."""
        return hashlib.sha256(json.dumps([self.prompt, self.pairs]).encode()).hexdigest()[:8]

    @property
    def num_tokens(self) -> int:
        """Of the longest input."""
        return max([len(self.prompt), *(len(context) + len(ids) for context, ids in self.pairs)])


def requests_of(
    tokenizer: Tokenizer,
    suite: Suite,
    problems: Sequence[Problem],
    shots: Mapping[str, Sequence[Problem]],
) -> list[Request]:
    """The problems as this tokenizer writes them, in order. shots: by family (named.shots_of)."""
    asked_in_turns = suite.chat and tokenizer.chat_template is not None
    if suite.kind == "bits_per_byte" and asked_in_turns:
        return [_answered(tokenizer, suite, problem) for problem in problems]
    if suite.kind == "generation":
        write = _turns if asked_in_turns else _plain
        return [write(tokenizer, suite, problem, shots[problem.family]) for problem in problems]
    texts = [_continuations(suite, problem, shots[problem.family]) for problem in problems]
    flat = encoded_pairs(tokenizer, [pair for pairs in texts for pair in pairs], suite.prefix)
    befores = {suite.before(problem, shots[problem.family]) for problem in problems if suite.shots}
    start = len(prefix_ids(tokenizer, suite.prefix))
    shared = {text: start + len(tokenizer.encode(text)) - 1 for text in befores}
    requests, first = [], 0
    for problem, pairs in zip(problems, texts, strict=True):
        encoded = tuple(flat[first : first + len(pairs)])
        first += len(pairs)
        key = _key(suite, problem, pairs)
        before = shared.get(suite.before(problem, shots[problem.family]), 0)
        request = Request(problem=problem, text=pairs[0][0], key=key, pairs=encoded, shared=before)
        requests.append(request)
    return requests


def _continuations(
    suite: Suite, problem: Problem, shots: Sequence[Problem]
) -> list[tuple[str, str]]:
    """(context, continuation) texts: of every choice, then of every choice without the question
    where the suite asks for it; or of the right answer alone.
    """
    before = suite.before(problem, shots)
    if suite.kind == "bits_per_byte":
        return [(before + suite.prompt(problem), suite.answer_separator + problem.answer)]
    contexts = problem.contexts or (problem.prompt,) * len(problem.choices)
    pairs = [
        (before + suite.prompt_format.replace("{prompt}", context), suite.answer_separator + choice)
        for context, choice in zip(contexts, problem.choices, strict=True)
    ]
    if suite.unconditional:
        pairs += [(suite.unconditional, continuation) for _, continuation in pairs]
    return pairs


def _plain(
    tokenizer: Tokenizer, suite: Suite, problem: Problem, shots: Sequence[Problem]
) -> Request:
    text = suite.before(problem, shots) + suite.prompt(problem)
    ids = (*prefix_ids(tokenizer, suite.prefix), *tokenizer.encode(text))
    return Request(problem=problem, text=text, key=_key(suite, problem, text), prompt=ids)


def _turns(
    tokenizer: Tokenizer, suite: Suite, problem: Problem, shots: Sequence[Problem]
) -> Request:
    """Each shot a user's turn and an answer; a preamble stands before the first question."""
    preamble = suite.before(problem, ())
    messages = []
    for shot in shots:
        messages.append({"role": "user", "content": shot.prompt})
        messages.append({"role": "assistant", "content": shot.answer})
    messages.append({"role": "user", "content": problem.prompt})
    messages[0]["content"] = preamble + messages[0]["content"]
    text = tokenizer.render(messages, add_generation_prompt=True)
    ids = tuple(tokenizer.encode_chat(messages, add_generation_prompt=True))
    return Request(problem=problem, text=text, key=_key(suite, problem, text), prompt=ids)


def _answered(tokenizer: Tokenizer, suite: Suite, problem: Problem) -> Request:
    """The right answer as the assistant's turn, with the token that ends it, after the user's."""
    question = [{"role": "user", "content": problem.prompt}]
    context = tokenizer.encode_chat(question, add_generation_prompt=True)
    turns = [*question, {"role": "assistant", "content": problem.answer}]
    whole = tokenizer.encode_chat(turns, add_generation_prompt=False)
    if whole[: len(context)] != context or len(whole) == len(context):
        raise ValueError(
            f"suite {suite.name}, problem {problem.id}: the chat template writes an answer "
            "otherwise than it begins one, so that its likelihood cannot be measured"
        )
    text = tokenizer.render(question, add_generation_prompt=True)
    pair = (context, whole[len(context) :])
    key = _key(suite, problem, tokenizer.render(turns))
    return Request(problem=problem, text=text, key=key, pairs=(pair,))


def _key(suite: Suite, problem: Problem, content: object) -> str:
    described = ("protocol", "sources")  # they decide no answer
    fields = {name: value for name, value in suite.protocol().items() if name not in described}
    whole = [fields, suite.sampling.seed, problem.id, problem.answer, content]
    if problem.task is not None:  # a verdict holds for the tests that gave it
        whole.append(problem.task.digest)
    return hashlib.sha256(json.dumps(whole, ensure_ascii=True).encode()).hexdigest()[:16]


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
