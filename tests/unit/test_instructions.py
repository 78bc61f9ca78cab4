"""IFEval: each of its 25 instructions with an answer that follows it and one that does not."""

import importlib.util
import json
import sys
import types

import pytest

from pocketlm.eval import instructions
from pocketlm.eval.figures import figures_of, paired_difference
from pocketlm.eval.instructions import KINDS, Instruction, loose_forms
from pocketlm.eval.sentences import count_words, sentences, treebank_words
from pocketlm.eval.suites.instructions import FIGURES, ifeval
from pocketlm.eval.suites.named import load_problems
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.eval.suites.suite import Problem

CASES = [  # instruction, arguments, answers that follow it, answers that do not
    ("keywords:existence", {"keywords": ["sun", "Rain"]}, ["Sunny, rainy"], ["sun alone"]),
    (
        "keywords:frequency",
        {"keyword": "go", "frequency": 2, "relation": "at least"},
        ["go, Going"],
        ["go"],
    ),
    (
        "keywords:frequency",
        {"keyword": "go", "frequency": 2, "relation": "less than"},
        ["go"],
        ["go go"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["war"]}, ["warm"], ["a War."]),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "less than"},
        ["q"],
        ["Qq"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "at least"},
        ["a!!"],
        ["a!"],
    ),
    ("language:response_language", {"language": "de"}, ["der Hund"], ["the dog"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two."],
        ["Mr. One"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a", "a\n***\n***\nb"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["a b"],
        ["a b, c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ['a\n\n"Then, b', "a\n\nthen's b"],
        ["a\n\nb then", "a\n\nthen\n\nc", "a"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]"], ["[a]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\np. s. y"], ["P.S x"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P. P.S a"], ["P.S. a"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n- b"],
        ["* a", "**a**\n- b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["Well: My answer is no."],
        ["my answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "**a** ** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1 a SECTION 2"],
        ["SECTION 1 a Section 2"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[]"], ["{a}", "[" * 10**5]),
    ("detectable_format:title", {}, ["<<a>>"], ["<a>", "<<>>", "<< >>"]),
    ("combination:two_responses", {}, ["a******b"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Do it."}, [" do IT. Done"], ["I do it."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ['x the End."'], ["The end. x"]),
    ("startend:quotation", {}, [' "a" '], ['"', '"a', "a"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NO WAY-OUT", "I'M"],
        ["NO way"],
    ),
    ("change_case:english_capital", {}, ["THE DOG"], ["The dog", "DER HUND"]),
    ("change_case:english_lowercase", {}, ["the dog"], ["The dog", "der hund"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]


@pytest.fixture(autouse=True)
def languages(monkeypatch):
    """langdetect as far as these texts go."""

    class Unknown(Exception):
        pass

    def detect(text):
        if not any(character.isalpha() for character in text):
            raise Unknown
        return "de" if text.lower().startswith("der ") else "en"

    module = types.ModuleType("langdetect")
    vars(module).update(
        detect=detect, LangDetectException=Unknown, DetectorFactory=types.SimpleNamespace(seed=None)
    )
    instructions._seeded.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", module)
    yield module
    instructions._seeded.cache_clear()


@pytest.mark.parametrize(("name", "arguments", "followed", "not_followed"), CASES)
def test_an_answer_follows_an_instruction_or_does_not(name, arguments, followed, not_followed):
    assert set(arguments) == set(KINDS[name].arguments)
    instruction = Instruction(name, arguments)
    assert all(map(instruction.followed, followed))
    assert not any(map(instruction.followed, [*not_followed, "", " \n"]))


def test_every_kind_of_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(KINDS) and len(KINDS) == 25


def test_langdetect_gets_a_seed_and_text_without_letters_counts_as_right(languages):
    assert instructions.language_of("the dog") == "en" and languages.DetectorFactory.seed == 0
    assert Instruction("language:response_language", {"language": "de"}).followed("123")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. J. Smith paid $3.50 at 5 p.m. today. Fine.", 2),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("Wait... what? Wait... What?", 3),
        ("1. Buy milk. 2. Sleep", 4),
        ("no end", 1),
        ("", 0),
        ("pocketlm.org is up. Yes", 2),
        ("a\n\nb", 1),
    ],
)
def test_sentences_end_where_punkt_ends_them(text, expected):
    parts = sentences(text)
    assert parts == expected if isinstance(expected, list) else len(parts) == expected


def test_words_are_counted_as_the_reference_does():
    assert count_words("It's a well-known fact.") == 6
    assert treebank_words("DON'T go, U.S. troops! OK.") == (
        ["DO", "N'T", "go", ",", "U.S.", "troops", "!", "OK", "."]
    )


def test_a_loose_answer_loses_lines_and_asterisks():
    assert loose_forms("a\n*b*\nc") == [
        *("a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b")
    ]


def problem(number, *names):
    expected = tuple(Instruction(name, arguments) for name, arguments, *_ in CASES if name in names)
    return Problem(id=str(number), family="", prompt="p", answer="a", expected=expected)


def row_of(given, answer):
    return {
        "id": given.id,
        "family": "",
        "request": given.id,
        "ids": "",
        "scores": ifeval(given, answer),
        "correct": False,
        "cut": False,
        "empty": False,
        "truncated": False,
    }


def test_the_four_figures_count_prompts_and_instructions_and_their_mean_is_the_metric():
    one = problem(1, "punctuation:no_comma")
    three = problem(2, "punctuation:no_comma", "startend:quotation", "detectable_format:title")
    rows = [row_of(one, "a"), row_of(three, 'Sure:\n"<<b>>"')]
    figures = figures_of(SUITES["ifeval"], rows)
    values = {name: figures["scores"][name]["value"] for name in FIGURES}
    # the quotation holds without the first line alone
    assert values == {
        "prompt_strict": 0.5,
        "instruction_strict": 3 / 4,
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }
    assert figures["value"] == sum(values.values()) / 4 == 0.8125
    assert "instructions" not in figures["scores"]
    # by hand: pulls of the two documents on the mean of two means and two ratios
    pulls = [(0.5 / 2 + (1 - 3 / 4) / 4) / 4, (-0.5 / 2 + 3 * (2 / 3 - 3 / 4) / 4) / 4]
    expected = (sum(pull**2 for pull in pulls) * 2) ** 0.5
    assert figures["standard_error"] == pytest.approx(expected)
    worse = [row_of(one, "a,"), row_of(three, "a,")]
    difference = paired_difference(SUITES["ifeval"], worse, rows)
    assert difference["difference"] == pytest.approx(-0.8125) and difference["worse"] == 2


def rows_file(tmp_path, *ids):
    rows = [
        {"key": n, "prompt": f"p{n}", "instruction_id_list": [name], "kwargs": [dict(arguments)]}
        for n, (name, arguments, *_) in enumerate(case for case in CASES if case[0] in ids)
    ]
    (tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_without_langdetect_the_suite_is_refused_with_counts(tmp_path, monkeypatch):
    rows_file(tmp_path, "punctuation:no_comma", "language:response_language")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match=r"ifeval: 1 of 2 prompts .*\(1 language:response_language\); pip install langdetect, "
        "or measure ifeval_no_language",
    ):
        load_problems(SUITES["ifeval"], tmp_path)
    (kept,) = load_problems(SUITES["ifeval_no_language"], tmp_path)
    assert kept.expected[0].id == "punctuation:no_comma"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    assert len(load_problems(SUITES["ifeval"], tmp_path)) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"instruction_id_list": ["a:b"]}, "names 'a:b', which is none of 25"),
        ({"kwargs": []}, "are 0 for 1 instructions"),
        ({"kwargs": [1]}, "hold no object"),
        ({"kwargs": [{"keyword": "a", "frequency": 1, "relation": "around"}]}, "is 'around', not"),
        ({"kwargs": [{"keyword": "a", "frequency": -1, "relation": "at least"}]}, "is -1"),
        ({"kwargs": [{"keyword": " ", "frequency": 1, "relation": "at least"}]}, "is empty"),
        ({"kwargs": [{"keyword": "a", "relation": "at least"}]}, "frequency is missing"),
    ],
)
def test_a_damaged_instruction_is_named_by_file_and_line(tmp_path, changes, complaint):
    (row, *_) = rows_file(tmp_path, "keywords:frequency")
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(row | changes) + "\n")
    with pytest.raises(ValueError, match=rf"ifeval\.jsonl:1: field .*{complaint}"):
        load_problems(SUITES["ifeval"], tmp_path)
