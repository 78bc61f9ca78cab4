"""IFEval's 25 verifiable instructions (arXiv 2311.07911), each a function from an answer and the
instruction's arguments to whether the answer follows it.

They decide as lm-eval 0.4.13's (tasks/ifeval/instructions.py), but for: sentences and words
(eval/sentences.py); a letter to count that is a mark ("#", "!": 2 of 832), for which the reference
draws a letter at random, and here the mark is counted; and langdetect, whose seed is fixed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pocketlm.eval.sentences import count_words, sentences, treebank_words
from pocketlm.model.json_shape import TEXT, TEXTS, WHOLE

Arguments = Mapping[str, Any]
AT_LEAST, LESS_THAN = "at least", "less than"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
JSON_FENCES = ("```json", "```Json", "```JSON", "```")
FIRST_WORD_ENDS = re.compile(r"[.,?!'\"]")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a prompt: its id ("keywords:existence") and arguments."""

    id: str
    arguments: Arguments

    def followed(self, answer: str) -> bool:
        """Whether the answer follows it; an empty one never does."""
        return bool(answer.strip()) and KINDS[self.id].check(answer, self.arguments)


@dataclass(frozen=True)
class Kind:
    """check: (answer, arguments) -> followed. arguments: name -> kind (model/json_shape.py).
    language: whether langdetect decides.
    """

    check: Callable[[str, Arguments], bool]
    arguments: Mapping[str, str]
    language: bool = False


def _compared(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == LESS_THAN else count >= limit


def _occurrences(word: str, answer: str) -> list[str]:
    return re.findall(re.escape(word), answer, re.IGNORECASE)


def _keywords(answer: str, given: Arguments) -> bool:
    return all(_occurrences(word, answer) for word in given["keywords"])


def _keyword_frequency(answer: str, given: Arguments) -> bool:
    count = len(_occurrences(given["keyword"].strip(), answer))
    return _compared(count, given["relation"], given["frequency"])


def _forbidden_words(answer: str, given: Arguments) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE)
        for word in given["forbidden_words"]
    )


def _letter_frequency(answer: str, given: Arguments) -> bool:
    count = answer.lower().count(given["letter"].strip().lower())
    return _compared(count, given["let_relation"], given["let_frequency"])


def _response_language(answer: str, given: Arguments) -> bool:
    return language_of(answer) in (given["language"], None)


def _number_sentences(answer: str, given: Arguments) -> bool:
    return _compared(len(sentences(answer)), given["relation"], given["num_sentences"])


def _number_paragraphs(answer: str, given: Arguments) -> bool:
    """Parts between "***"; only the first and the last may be empty, and do not count."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == given["num_paragraphs"]


def _number_words(answer: str, given: Arguments) -> bool:
    return _compared(count_words(answer), given["relation"], given["num_words"])


def _nth_paragraph_first_word(answer: str, given: Arguments) -> bool:
    """Paragraphs stand between empty lines; empty ones are not counted, but keep their number."""
    parts = [part.strip() for part in answer.split("\n\n")]
    count, place = sum(map(bool, parts)), given["nth_paragraph"]
    if place > count or not parts[place - 1]:
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    first = FIRST_WORD_ENDS.split(word, maxsplit=1)[0].lower()
    return count == given["num_paragraphs"] and first == given["first_word"].lower()


def _placeholders(answer: str, given: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= given["num_placeholders"]


def _postscript(answer: str, given: Arguments) -> bool:
    marker: str = given["postscript_marker"].strip()
    patterns: dict[str, str] = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(marker, re.escape(marker.lower())), answer.lower()))


def _bullets(answer: str, given: Arguments) -> bool:
    """Lines that begin with "-", or with one "*" and something behind it."""
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(stars) + len(dashes) == given["num_bullets"]


def _constrained(answer: str, given: Arguments) -> bool:
    return any(option in answer for option in OPTIONS)


def _highlights(answer: str, given: Arguments) -> bool:
    """Texts between asterisks, single or double."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", answer)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n\*]*\*\*", answer)]
    return sum(bool(part.strip()) for part in (*single, *double)) >= given["num_highlights"]


def _sections(answer: str, given: Arguments) -> bool:
    mark = re.escape(given["section_spliter"].strip())
    return len(re.findall(rf"\s?{mark}\s?\d+\s?", answer)) >= given["num_sections"]


def _json(answer: str, given: Arguments) -> bool:
    """One JSON value, in a fenced block or not."""
    text = answer.strip()
    for fence in JSON_FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str, given: Arguments) -> bool:
    titles = re.findall(r"<<[^\n]+>>", answer)
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


def _two_responses(answer: str, given: Arguments) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    if not all(parts[1:-1]):
        return False
    filled = [part for part in parts if part]
    return len(filled) == 2 and filled[0] != filled[1]


def _repeat_prompt(answer: str, given: Arguments) -> bool:
    return answer.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _end(answer: str, given: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quotation(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(answer: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in treebank_words(answer))
    return _compared(count, given["capital_relation"], given["capital_frequency"])


def _english_capital(answer: str, given: Arguments) -> bool:
    return answer.isupper() and language_of(answer) in ("en", None)


def _english_lowercase(answer: str, given: Arguments) -> bool:
    return answer.islower() and language_of(answer) in ("en", None)


def _no_comma(answer: str, given: Arguments) -> bool:
    return "," not in answer


KINDS: dict[str, Kind] = {
    "keywords:existence": Kind(_keywords, {"keywords": TEXTS}),
    "keywords:frequency": Kind(
        _keyword_frequency, {"keyword": TEXT, "frequency": WHOLE, "relation": TEXT}
    ),
    "keywords:forbidden_words": Kind(_forbidden_words, {"forbidden_words": TEXTS}),
    "keywords:letter_frequency": Kind(
        _letter_frequency, {"letter": TEXT, "let_frequency": WHOLE, "let_relation": TEXT}
    ),
    "language:response_language": Kind(_response_language, {"language": TEXT}, language=True),
    "length_constraints:number_sentences": Kind(
        _number_sentences, {"num_sentences": WHOLE, "relation": TEXT}
    ),
    "length_constraints:number_paragraphs": Kind(_number_paragraphs, {"num_paragraphs": WHOLE}),
    "length_constraints:number_words": Kind(_number_words, {"num_words": WHOLE, "relation": TEXT}),
    "length_constraints:nth_paragraph_first_word": Kind(
        _nth_paragraph_first_word,
        {"num_paragraphs": WHOLE, "nth_paragraph": WHOLE, "first_word": TEXT},
    ),
    "detectable_content:number_placeholders": Kind(_placeholders, {"num_placeholders": WHOLE}),
    "detectable_content:postscript": Kind(_postscript, {"postscript_marker": TEXT}),
    "detectable_format:number_bullet_lists": Kind(_bullets, {"num_bullets": WHOLE}),
    "detectable_format:constrained_response": Kind(_constrained, {}),
    "detectable_format:number_highlighted_sections": Kind(_highlights, {"num_highlights": WHOLE}),
    "detectable_format:multiple_sections": Kind(
        _sections, {"section_spliter": TEXT, "num_sections": WHOLE}
    ),
    "detectable_format:json_format": Kind(_json, {}),
    "detectable_format:title": Kind(_title, {}),
    "combination:two_responses": Kind(_two_responses, {}),
    "combination:repeat_prompt": Kind(_repeat_prompt, {"prompt_to_repeat": TEXT}),
    "startend:end_checker": Kind(_end, {"end_phrase": TEXT}),
    "startend:quotation": Kind(_quotation, {}),
    "change_case:capital_word_frequency": Kind(
        _capital_words, {"capital_frequency": WHOLE, "capital_relation": TEXT}
    ),
    "change_case:english_capital": Kind(_english_capital, {}, language=True),
    "change_case:english_lowercase": Kind(_english_lowercase, {}, language=True),
    "punctuation:no_comma": Kind(_no_comma, {}),
}
RELATIONS = ("relation", "let_relation", "capital_relation")


def loose_forms(answer: str) -> list[str]:
    """The answer as it is, and without its first line, its last and both; all four also without
    asterisks. It follows an instruction loosely if one of them does.
    """
    lines = answer.split("\n")
    forms = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*forms, *(form.replace("*", "") for form in forms)]


def language_of(text: str) -> str | None:
    """The language's code as langdetect says; None where it finds no letters: then an instruction
    counts as followed, as in the reference. ModuleNotFoundError: langdetect is not installed.
    """
    from langdetect import LangDetectException, detect  # pyright: ignore[reportMissingImports]

    _seeded()
    try:
        return detect(text)
    except LangDetectException:
        return None


@cache
def _seeded() -> None:
    """langdetect draws, and would answer a text now so, now so."""
    from langdetect import DetectorFactory  # pyright: ignore[reportMissingImports]

    DetectorFactory.seed = 0
