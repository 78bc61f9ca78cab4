"""Families of worked problems: reasoning-gym draws an entry, a family here words it and writes out
every step.

A network of a million parameters learns a step when all it needs stands a few tokens away: one
digit sum, one comparison, one letter. So additions go digit by digit with the carry, sorting takes
one number at a time, counting keeps a running count, and a question is one short line
(reasoning-gym writes for large models).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pocketlm.problems.digits import add, subtract

# of leg_counting's animals: names of a token or two, so that copying one is no task of its own
SHORT_NAMES = (
    "chicken",
    "bird",
    "duck",
    "dog",
    "cat",
    "cow",
    "horse",
    "lion",
    "tiger",
    "ant",
    "bee",
    "spider",
    "crab",
)

# family: reasoning-gym's options. Numbers stay below 100 and lists short: a response is 15 to 80
# tokens, and each family has thousands of distinct questions (tests/unit/test_problems.py samples
# them).
CONFIGS = {
    "chain_sum": dict(min_terms=3, max_terms=3, min_digits=2, max_digits=2),
    "leg_counting": dict(min_animals=2, max_animals=3, min_instances=1, max_instances=5),
    "simple_equations": dict(
        min_terms=2, max_terms=2, max_value=12, operators_weights=[0.5, 0.5, 0.0]
    ),
    "complex_arithmetic": dict(
        min_real=0,
        max_real=9,
        min_imag=0,
        max_imag=9,
        operations=("+", "-"),
        operations_weights=[0.5, 0.5],
    ),
    "number_sorting": dict(
        min_numbers=3, max_numbers=4, max_decimals=0, min_value=10, max_value=99
    ),
    "number_filtering": dict(
        min_numbers=3, max_numbers=5, max_decimals=0, min_value=10, max_value=99
    ),
    "letter_counting": dict(min_words=2, max_words=4),
    "spell_backward": dict(min_word_len=4, max_word_len=7),
    "spiral_matrix": dict(min_n=3, max_n=3),
    "simple_geometry": dict(min_sides=3, max_sides=3, min_angle=10, max_angle=99),
}
MAX_LETTERS = 16  # of a letter_counting text


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A question as asked, its steps one a line, and the answer that follows ANSWER_MARK."""

    prompt: str
    steps: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of problem.

    `work` turns a reasoning-gym entry into a Worked problem, or None for one too hard to write out
    locally; `verifier_answer` writes our answer the way reasoning-gym's verifier reads it;
    `metadata` gives back, from (prompt, answer), what that verifier needs of the entry;
    `question_key` is what the held-out hash sees.
    """

    name: str
    work: Callable[[dict], Worked | None]
    verifier_answer: Callable[[str], str] = lambda answer: answer
    metadata: Callable[[str, str], dict] = lambda prompt, answer: {}
    question_key: Callable[[str], str] = lambda prompt: prompt


def _chain_sum(entry: dict) -> Worked | None:
    terms = entry["metadata"]["expression"].split()
    total, steps = int(terms[0]), []
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        if not 0 <= after < 100:
            return None
        steps.append((add if sign == "+" else subtract)(total, int(term)))
        total = after
    return Worked(prompt=f"Compute {''.join(terms)}.", steps=tuple(steps), answer=str(total))


def _leg_counting(entry: dict) -> Worked | None:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, steps, herd = 0, [], []
    for animal, number in entry["metadata"]["animals"].items():
        legs = number * ANIMALS[animal]
        if total + legs > 99 or animal not in SHORT_NAMES:
            return None
        herd.append(f"{number} {animal}{'s' if number > 1 else ''}")
        steps.append(f"{herd[-1]}: {number}*{ANIMALS[animal]}={legs}")
        if len(herd) > 1:
            steps.append(add(total, legs))
        total += legs
    return Worked(
        prompt=f"How many legs have {', '.join(herd)}?", steps=tuple(steps), answer=str(total)
    )


def _simple_equations(entry: dict) -> Worked | None:
    equation, variable = entry["metadata"]["equation"], entry["metadata"]["variable"]
    left, right = equation.split(" = ")
    first, sign, second = left.partition(" + ") if " + " in left else left.partition(" - ")
    if variable not in first or not sign or not 0 <= int(right) < 100:
        return None  # reasoning-gym also writes 7 - 3*x, and products that cancel the variable
    factor = int(first.split("*")[0]) if "*" in first else 1
    c, b = int(right), int(second)
    scaled = c - b if sign == " + " else c + b
    steps = [
        f"{first}={c}{'-' if sign == ' + ' else '+'}{b}",
        (subtract if sign == " + " else add)(c, b),
    ]
    if scaled > 99:
        return None
    steps.append(f"{first}={scaled}")
    if factor > 1:
        steps.append(f"{variable}={scaled}/{factor}={entry['answer']}")
    return Worked(prompt=f"Solve {equation}", steps=tuple(steps), answer=entry["answer"])


def _equation_key(prompt: str) -> str:
    # the letter makes no new problem
    return "".join("x" if c.isalpha() else c for c in prompt.removeprefix("Solve "))


def _complex_arithmetic(entry: dict) -> Worked | None:
    sign = entry["metadata"]["operation"]
    (a, b), (c, d) = (
        (int(real), int(imag))
        for real, imag in (entry["metadata"]["num1"], entry["metadata"]["num2"])
    )
    real, imag = entry["metadata"]["result"]
    steps = (f"real: {a}{sign}{c}={real}", f"imaginary: {b}{sign}{d}={imag}")
    answer = f"{real}{'-' if imag < 0 else '+'}{abs(imag)}i"
    return Worked(prompt=f"Compute ({a}+{b}i){sign}({c}+{d}i)", steps=steps, answer=answer)


def _complex_metadata(prompt: str, answer: str) -> dict:
    value = complex(answer.replace("i", "j"))
    return {"result": (int(value.real), int(value.imag))}


def _number_sorting(entry: dict) -> Worked | None:
    numbers = [int(float(number)) for number in entry["metadata"]["original_numbers"]]
    ascending = entry["metadata"]["direction"] == "ascending"
    rest, steps, answer = list(numbers), [], []
    while len(rest) > 1:
        taken = min(rest) if ascending else max(rest)
        steps.append(f"{_spaced(rest)}: {'smallest' if ascending else 'largest'} {taken}")
        answer.append(taken)
        rest.remove(taken)
    prompt = f"Sort {_spaced(numbers)} in {entry['metadata']['direction']} order."
    return Worked(prompt=prompt, steps=tuple(steps), answer=_spaced([*answer, *rest]))


def _number_filtering(entry: dict) -> Worked | None:
    limit = int(entry["metadata"]["filter_value"])
    verb, side = entry["metadata"]["operation"].split("_")
    if verb != "keep":
        return None  # one wording: what to do with a number follows from one comparison
    numbers = [int(number) for number in entry["metadata"]["original_numbers"]]
    steps, kept = [], []
    for number in numbers:
        relation = "<" if number < limit else ">" if number > limit else "="
        stays = relation == (">" if side == "larger" else "<")
        steps.append(f"{number}{relation}{limit} {'keep' if stays else 'drop'}")
        kept += [number] if stays else []
    prompt = f"{verb.capitalize()} numbers {side} than {limit}: {_spaced(numbers)}"
    return Worked(prompt=prompt, steps=tuple(steps), answer=_spaced(kept) or "none")


def _letter_counting(entry: dict) -> Worked | None:
    letter = entry["metadata"]["target_letter"]
    text = "".join(entry["metadata"]["span"]).lower()
    if len(text) > MAX_LETTERS or not (text.isascii() and text.isalpha()):
        return None
    if text.count(letter) == 1 and zlib.crc32(f"{letter} {text}".encode()) % 4:
        return None  # three in four of these: letters that occur once would make "1" a good guess
    steps = " ".join(f"{c}{text[: place + 1].count(letter)}" for place, c in enumerate(text))
    prompt = f"Count the letter {letter} in {' '.join(text)}"
    return Worked(prompt=prompt, steps=(f"so far: {steps}",), answer=entry["answer"])


def _spell_backward(entry: dict) -> Worked | None:
    word = entry["metadata"]["word"].lower()
    if not (word.isascii() and word.isalpha()):
        return None
    places = [f"{c}{place}" for place, c in enumerate(word, start=1)]
    steps = (f"forward: {' '.join(places)}", f"backward: {' '.join(reversed(places))}")
    return Worked(
        prompt=f"Spell backward: {' '.join(word)}", steps=steps, answer=" ".join(reversed(word))
    )


def _spiral_matrix(entry: dict) -> Worked | None:
    rows = entry["metadata"]["matrix"]
    (a, b, c), (d, e, f), (g, h, i) = rows
    steps = (f"top {a} {b} {c}", f"right {f} {i}", f"bottom {h} {g}", f"left {d}", f"middle {e}")
    prompt = "Read in a spiral: " + " / ".join(_spaced(row) for row in rows)
    return Worked(prompt=prompt, steps=steps, answer=entry["answer"])


def _simple_geometry(entry: dict) -> Worked | None:
    first, second = (int(angle) for angle in entry["metadata"]["known_angles"])
    rest = 180 - first
    return Worked(
        prompt=f"A triangle has angles {first} and {second}. Find the third.",
        steps=(subtract(180, first), subtract(rest, second)),
        answer=entry["answer"],
    )


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(str(number) for number in numbers)


def _as_list(answer: str) -> str:
    return str([] if answer == "none" else answer.split())


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="chain_sum", work=_chain_sum),
        Family(name="leg_counting", work=_leg_counting),
        Family(name="simple_equations", work=_simple_equations, question_key=_equation_key),
        Family(name="complex_arithmetic", work=_complex_arithmetic, metadata=_complex_metadata),
        Family(
            name="number_sorting",
            work=_number_sorting,
            verifier_answer=lambda answer: json.dumps(answer.split()),
            metadata=lambda prompt, answer: {
                "direction": "ascending" if "ascending" in prompt else "descending"
            },
        ),
        Family(name="number_filtering", work=_number_filtering, verifier_answer=_as_list),
        Family(name="letter_counting", work=_letter_counting),
        Family(
            name="spell_backward",
            work=_spell_backward,
            verifier_answer=lambda answer: answer.replace(" ", ""),
        ),
        Family(name="spiral_matrix", work=_spiral_matrix),
        Family(name="simple_geometry", work=_simple_geometry),
    )
}
