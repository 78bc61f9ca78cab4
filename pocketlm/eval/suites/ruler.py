"""RULER's first tasks (arXiv 2404.06654) at any length, for any tokenizer: needles in a haystack
with one or several keys, values and queries, variable tracking and common words.

The form is that of lm-eval 0.4.13's port (tasks/ruler), texts included. Ours differ in: the words
that are hidden (ruler_words.py); where sentences of a haystack end (eval/sentences.py); the first
words of an answer, which end the prompt also where a chat model is asked. Problems are drawn when
the model's tokenizer is known, as long as fits the length together with the room for an answer.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Literal, NoReturn

from pocketlm.eval.prompts import requests_of
from pocketlm.eval.sentences import sentences
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.ruler_words import ADJECTIVES, NOUNS
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, JsonObject
from pocketlm.model.tokenizer import Tokenizer

Filler = Literal["repeat", "essay", "needle"]
Values = Literal["numbers", "words", "uuids"]
TRIALS, SEED = 500, 42  # the reference's
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
HIDDEN = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\nWhat {all} the special magic {kind} "
    "for {query} mentioned in the provided text? The special magic {kind} for {query} mentioned in "
    "the provided text {are}"
)
TRACKED = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables"
    " are assigned the value {value}, they are:"
)
COUNTED = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list? Answer: The top 10 words that appear most often in the list are:"
)
COMMON, HOPS, SHORT = 10, 4, 4096  # SHORT: below it the list repeats words less


@dataclass(frozen=True)
class Drawn:
    """One trial: what is asked, and all that an answer must hold."""

    prompt: str
    values: tuple[str, ...]


# (randomness, size of the haystack, sentences of essays, context length) -> a trial
Task = Callable[[Random, int, Sequence[str], int], Drawn]


@dataclass(frozen=True, kw_only=True)
class RulerProblems:
    """Trials of one task that fill `lengths` tokens of a tokenizer, answer included; so many at
    each length.
    """

    task: str
    lengths: tuple[int, ...]
    trials: int = TRIALS
    seed: int = SEED

    def load(self, data: Path | None) -> NoReturn:
        """ValueError: their length depends on a tokenizer (see `fitted`)."""
        raise ValueError(
            f"RULER's {self.task} is drawn for a model's tokenizer; it has no problems to be read "
            "without one"
        )

    def check(self, data: Path | None) -> None:
        """Nothing, or an error where the essays that needles are hidden in cannot be read."""
        if self.task in FROM_ESSAYS:
            next(iter(ESSAYS.load(data)))

    def fitted(self, suite: Suite, tokenizer: Tokenizer, data: Path | None) -> Iterator[Problem]:
        """The trials, each drawn anew if asked again, one of each length after the other.
        ValueError: a length in which nothing can be hidden; or essays that cannot be read, or are
        too short.
        """
        by_length = [self._fitted(length, suite, tokenizer, data) for length in self.lengths]
        for trials in zip(*by_length, strict=True):
            yield from trials

    def _fitted(
        self, context_tokens: int, suite: Suite, tokenizer: Tokenizer, data: Path | None
    ) -> Iterator[Problem]:
        task = TASKS.get(self.task) or CARD_TASKS[self.task]
        essays = _essays(data) if self.task in FROM_ESSAYS else ()
        family = f"{context_tokens} tokens" if len(self.lengths) > 1 else ""

        def drawn(trial: int, size: int) -> Problem:
            rng = Random(f"{self.seed} {self.task} {context_tokens} {trial}")
            given = task(rng, size, essays, context_tokens)
            return Problem(
                id=f"{self.task}-{context_tokens}-{trial}",
                family=family,
                prompt=given.prompt,
                answer=", ".join(given.values),
                accepted=given.values,
            )

        def fits(problem: Problem) -> bool:
            (request,) = requests_of(tokenizer, suite, [problem], {family: []})
            return request.num_tokens + suite.max_new_tokens <= context_tokens

        size, too_large = 1, 2
        if not fits(drawn(0, size)):
            raise ValueError(
                f"suite {suite.name}: in {context_tokens} tokens nothing can be hidden and "
                "asked for; take a longer context"
            )
        while fits(drawn(0, too_large)):
            size, too_large = too_large, 2 * too_large
            if too_large > 2 * context_tokens:  # a unit is at least one token
                raise ValueError(f"suite {suite.name}: {too_large} units of text are no tokens")
        while too_large - size > 1:
            middle = (size + too_large) // 2
            size, too_large = (middle, too_large) if fits(drawn(0, middle)) else (size, middle)
        for trial in range(self.trials):
            problem, fitting = drawn(trial, size), size
            while not fits(problem):  # its own words are longer
                if fitting == 1:
                    raise ValueError(f"suite {suite.name}, trial {trial}: too long")
                fitting = max(1, fitting - max(1, size // 100))
                problem = drawn(trial, fitting)
            yield problem


def _essays(data: Path | None) -> tuple[str, ...]:
    return _sentences(tuple(problem.prompt for problem in ESSAYS.load(data)))


@cache
def _sentences(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for text in texts for part in sentences(re.sub(r"\s+", " ", text)))


def _essay(row: JsonObject) -> Problem:
    return Problem(id="", family="", prompt=row.typed("text", TEXT), answer="none")


ESSAYS = Rows(
    file="ruler_essays",
    dataset="baber/paul_graham_essays",
    config=None,
    split="train",
    problem=_essay,
)


def _value(rng: Random, kind: Values) -> str:
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _needles(
    filler: Filler,
    *,
    keys: Values = "words",
    kind: Values = "numbers",
    num_keys: int = 1,
    num_values: int = 1,
    num_queries: int = 1,
) -> Task:
    """A task of needles: keys with values are hidden, and the values of some keys asked for."""

    def task(rng: Random, size: int, essays: Sequence[str], context_tokens: int) -> Drawn:
        names: list[str] = []
        while len(names) < max(num_keys, num_queries):
            name = _value(rng, keys)
            names += [name] * (name not in names)
        hidden = {name: tuple(_value(rng, kind) for _ in range(num_values)) for name in names}
        needles = [_needle(kind, name, value) for name in names for value in hidden[name]]
        rng.shuffle(needles)
        if filler == "essay":
            # the words of `size` sentences, from the beginning of the essays, around again
            text = [essays[place % len(essays)] for place in range(size)]
        elif filler == "repeat":
            text = [NOISE] * size
        else:
            text = [_needle(kind, _value(rng, keys), _value(rng, kind)) for _ in range(size)]
        for place in sorted((rng.randint(0, size) for _ in needles), reverse=True):
            text.insert(place, needles.pop())
        context = (" " if filler == "essay" else "\n").join(text)
        queries = rng.sample(names, num_queries)
        values = tuple(value for name in queries for value in hidden[name])
        return Drawn(_asked(context, queries, kind, len(values) == 1), values)

    return task


def _needle(kind: Values, key: str, value: str) -> str:
    return NEEDLE.format(kind=kind, key=key, value=value)


def _asked(context: str, queries: Sequence[str], kind: str, single: bool) -> str:
    listed = f"{', '.join(queries[:-1])}, and {queries[-1]}" if len(queries) > 1 else queries[0]
    words = {"some": "A", "are": "is", "all": "is", "kind": kind[:-1]}
    several = {"some": "Some", "are": "are", "all": "are all", "kind": kind}
    return HIDDEN.format(context=context, query=listed, **(words if single else several))


def _variable_tracking(rng: Random, size: int, essays: Sequence[str], context_tokens: int) -> Drawn:
    """One chain of HOPS assignments among `size` lines of noise, after an example with its
    answer.
    """
    example, names = _chain(rng, 5, letters=3)
    prompt, values = _chain(rng, size, letters=5)
    return Drawn(f"{example} {' '.join(names)}\n\n{prompt}", values)


def _chain(rng: Random, size: int, letters: int) -> tuple[str, tuple[str, ...]]:
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=letters))
        names += [name] * (name not in names)
    value = rng.randint(10_000, 99_998)
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
    lines = [NOISE] * size
    places = sorted(rng.randint(0, size) for _ in chain)
    for place, assignment in reversed(list(zip(places, chain, strict=True))):
        lines.insert(place, assignment)
    prompt = TRACKED.format(context="\n".join(lines), value=value, count=len(names))
    return prompt, tuple(names)


def _common_words(rng: Random, size: int, essays: Sequence[str], context_tokens: int) -> Drawn:
    """COMMON words that stand often in a list and `size` that stand seldom, after an example."""
    short = context_tokens < SHORT
    example, answer = _word_list(rng, 10 if short else 30, *((3, 1) if short else (10, 3)))
    prompt, common = _word_list(rng, size, *((6, 1) if short else (30, 3)))
    numbered = " ".join(f"{place}. {word}" for place, word in enumerate(answer, start=1))
    return Drawn(f"{example} {numbered}\n{prompt}", common)


def _word_list(rng: Random, seldom: int, often: int, rarely: int) -> tuple[str, tuple[str, ...]]:
    words = _distinct_words(rng, COMMON + seldom)
    listed = words[:COMMON] * often + words[COMMON:] * rarely
    rng.shuffle(listed)
    context = " ".join(f"{place}. {word}" for place, word in enumerate(listed, start=1))
    return COUNTED.format(context=context), tuple(words[:COMMON])


def _distinct_words(rng: Random, count: int) -> list[str]:
    """So many words; pairs of two where the list is at its end."""
    words = sorted({*ADJECTIVES, *NOUNS})
    if count <= len(words):
        return rng.sample(words, count)
    pairs = sorted({f"{first}-{second}" for first in ADJECTIVES for second in NOUNS})
    if count > len(pairs):
        raise ValueError(f"a list of {count:,} distinct words; take a shorter context")
    return rng.sample(pairs, count)


TASKS: dict[str, Task] = {
    "niah_single_1": _needles("repeat"),
    "niah_single_2": _needles("essay"),
    "niah_single_3": _needles("essay", kind="uuids"),
    "niah_multikey_1": _needles("essay", num_keys=4),
    "niah_multikey_2": _needles("needle"),
    "niah_multikey_3": _needles("needle", keys="uuids", kind="uuids"),
    "niah_multivalue": _needles("essay", num_values=4),
    "niah_multiquery": _needles("essay", num_keys=4, num_queries=4),
    "vt": _variable_tracking,
    "cwe": _common_words,
}
# of the Llama 3.2 card; four and two: the Llama 3 report, quoted from memory
CARD_TASKS: dict[str, Task] = {"four_needles": _needles("essay", num_keys=4, num_queries=2)}
FROM_ESSAYS = {
    *("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"),
    *CARD_TASKS,
}
ANSWER_TOKENS = {"vt": 30, "cwe": 120}  # the reference's; needles 128
PREFIX, AT = "ruler", "@"  # ruler.vt@4096, or ruler@4096: all tasks


def string_match(problem: Problem, completion: str) -> dict[str, float]:
    """string_match: the share of the values that stand in the answer, in small letters or large."""
    given = completion.lower()
    return {
        "string_match": sum(value.lower() in given for value in problem.accepted)
        / len(problem.accepted)
    }


def ruler_suites(name: str) -> tuple[Suite, ...] | None:
    """The suites of a name "ruler@4096" or "ruler.vt@4096"; None for any other name. ValueError: a
    task that RULER has not, or a length that is no number above 0.
    """
    stem, at, length = name.partition(AT)
    family, _, task = stem.partition(".")
    if family != PREFIX:
        return None
    if not at or not length.isdecimal() or not int(length) or (task and task not in TASKS):
        raise ValueError(
            f"suite {name!r}: RULER's suites are {PREFIX}{AT}LENGTH, and {PREFIX}.TASK{AT}LENGTH "
            f"with {', '.join(TASKS)}; LENGTH in tokens"
        )
    return tuple(_suite(one, int(length)) for one in ([task] if task else TASKS))


def _suite(task: str, context_tokens: int) -> Suite:
    return Suite(
        name=f"{PREFIX}.{task}{AT}{context_tokens}",
        problems=RulerProblems(task=task, lengths=(context_tokens,)),
        kind="generation",
        scorer=string_match,
        metric="string_match",
        constant_answer=False,
        prompt_format="{prompt}",
        chat=True,
        max_new_tokens=ANSWER_TOKENS.get(task, 128),
    )


# meta-llama/llama-models@2f6bfef, models/llama3_2/eval_details.md: ten lengths, evenly spaced with
# both ends, and 256 tokens; how many trials is not there (our choice)
CARD_TRIALS, CARD_ANSWER = 5, 256
CARD_LENGTHS = tuple(round(2000 + part * (131_072 - 2000) / 9) for part in range(10))
NEEDLES = Suite(
    name="needles",
    problems=RulerProblems(task="four_needles", lengths=CARD_LENGTHS, trials=CARD_TRIALS),
    kind="generation",
    scorer=string_match,
    metric="string_match",
    constant_answer=False,
    prompt_format="{prompt}",
    chat=True,
    shortened=True,
    max_new_tokens=CARD_ANSWER,
)
