"""RULER: tasks drawn at a length in tokens, and texts scored by ROUGE-L and last words."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from pocketlm.eval.harness import run_suite
from pocketlm.eval.prompts import requests_of
from pocketlm.eval.rouge import longest_common, rouge_l
from pocketlm.eval.scorers import last_word
from pocketlm.eval.suites.loaded import loaded
from pocketlm.eval.suites.named import load_problems, named_suites, needs_tokenizer
from pocketlm.eval.suites.protocols import BY_NAME
from pocketlm.eval.suites.ruler import (
    COUNTED,
    HIDDEN,
    NEEDLE,
    NOISE,
    TASKS,
    TRACKED,
    RulerProblems,
    string_match,
)
from pocketlm.eval.suites.suite import Problem
from pocketlm.model.tokenizer import CHATML, train_tokenizer
from tests.unit.silent_runtime import SilentRuntime

ESSAY = "The first thing is to work. Then rest a while! Is that all? It may be so, or not."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([ESSAY, NOISE, NEEDLE, HIDDEN, TRACKED, COUNTED], 440)


@pytest.fixture()
def data(tmp_path):
    (tmp_path / "ruler_essays.jsonl").write_text(json.dumps({"text": ESSAY}) + "\n")
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chat", [False, True])
def test_a_task_fills_its_length_and_hides_what_it_asks_for(tokenizer, data, task, chat):
    tokenizer.chat_template = CHATML if chat else None
    (suite,) = named_suites([f"ruler.{task}@2500"])
    problems = load_problems(suite, data, 3, tokenizer)
    requests = requests_of(tokenizer, suite, problems, {"": []})
    tokenizer.chat_template = None
    assert needs_tokenizer(suite) == 500
    for problem, request in zip(problems, requests, strict=True):
        assert 2100 < request.num_tokens + suite.max_new_tokens <= 2500
        assert all(value in problem.prompt for value in problem.accepted)
        assert string_match(problem, f"so: {problem.answer.upper()}") == {"string_match": 1.0}
        assert string_match(problem, "none")["string_match"] == 0.0
    assert len({problem.prompt for problem in problems}) == 3
    again = load_problems(suite, data, 3, tokenizer)
    assert chat or again == problems


def test_each_needle_task_hides_and_asks_for_as_many_as_its_name_says(tokenizer, data):
    counts = {}
    for task in TASKS:
        (suite,) = named_suites([f"ruler.{task}@2500"])
        (problem,) = load_problems(suite, data, 1, tokenizer)
        hidden = len(re.findall("One of the special magic", problem.prompt))
        counts[task] = (hidden, len(problem.accepted))
    assert counts.pop("niah_multikey_2")[0] > 20 and counts.pop("niah_multikey_3")[0] > 5
    assert counts == {
        "niah_single_1": (1, 1),
        "niah_single_2": (1, 1),
        "niah_single_3": (1, 1),
        "niah_multikey_1": (4, 1),
        "niah_multivalue": (4, 4),
        "niah_multiquery": (4, 4),
        "vt": (0, 5),
        "cwe": (0, 10),
    }


def test_the_question_is_in_the_singular_for_one_value_and_in_the_plural_for_several(
    tokenizer, data
):
    ends = {}
    for task in ("niah_single_1", "niah_multiquery"):
        (suite,) = named_suites([f"ruler.{task}@1500"])
        (problem,) = load_problems(suite, data, 1, tokenizer)
        ends[task] = problem.prompt
    assert ends["niah_single_1"].startswith("A special magic number is hidden within")
    assert ends["niah_single_1"].endswith(" mentioned in the provided text is")
    assert ends["niah_multiquery"].startswith("Some special magic numbers are hidden within")
    assert ends["niah_multiquery"].endswith(" mentioned in the provided text are")


def test_the_chain_and_the_common_words_can_be_read_from_the_prompt(tokenizer, data):
    (suite,) = named_suites(["ruler.vt@2500"])
    (problem,) = load_problems(suite, data, 1, tokenizer)
    asked = problem.prompt.rpartition("Memorize and track")[2]
    value, *_ = re.findall(r"assigned the value (\d+)", asked)
    holding = {value}
    for name, given in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", asked):
        if given in holding:
            holding.add(name)
    assert holding == {value, *problem.accepted}
    (suite,) = named_suites(["ruler.cwe@2500"])
    (problem,) = load_problems(suite, data, 1, tokenizer)
    listed = re.findall(r"\d+\. (\S+)", problem.prompt.rpartition("Below is")[2])
    counts = {word: listed.count(word) for word in listed}
    assert sorted(word for word, count in counts.items() if count == 6) == sorted(problem.accepted)
    assert set(counts.values()) == {1, 6}


def test_problems_are_drawn_when_a_models_tokenizer_is_known(tokenizer, data):
    (suite,) = named_suites(["ruler.niah_single_1@600"])
    waiting = loaded(suite, data, 2)
    assert waiting.problems == () and waiting.described()["n"] == waiting.count == 2
    assert loaded(suite, data, None).count == 500
    test = waiting.drawn_for(tokenizer)
    assert len(test.problems) == 2 and set(test.shots) == {""}
    other = train_tokenizer([NOISE], 280)  # fewer words fit in as many of its tokens
    assert len(waiting.drawn_for(other).problems[0].prompt) < len(test.problems[0].prompt)


def test_the_cards_needles_have_ten_lengths_and_stand_by_turns(tokenizer, data):
    suite = BY_NAME["pro-base.needles"]
    drawn = suite.problems
    assert isinstance(drawn, RulerProblems)
    assert drawn.lengths[0] == 2000 and drawn.lengths[-1] == 131_072 and len(drawn.lengths) == 10
    assert {b - a for a, b in pairwise(drawn.lengths)} == {14341, 14342}
    assert needs_tokenizer(suite) == 50 and suite.max_new_tokens == 256
    short = replace(suite, problems=replace(drawn, lengths=(700, 1200), trials=2))
    problems = loaded(short, data, None).drawn_for(tokenizer).problems
    assert [problem.family for problem in problems] == ["700 tokens", "1200 tokens"] * 2
    for problem in problems:
        assert len(re.findall("One of the special magic", problem.prompt)) == 4
        assert len(problem.accepted) == 2
        (request,) = requests_of(tokenizer, short, [problem], {problem.family: []})
        assert request.num_tokens + 256 <= int(problem.family.split()[0])


class Short(SilentRuntime):
    """Reads 900 tokens, and answers with one."""

    max_length = 900

    def generate(self, prompts, **options):
        assert all(len(prompt) < self.max_length for prompt in prompts)
        return [[5] for _ in prompts]


def test_needles_beyond_what_a_model_reads_lose_their_beginning_and_are_counted(tokenizer, data):
    suite = replace(
        BY_NAME["pro-base.needles"],
        problems=RulerProblems(task="four_needles", lengths=(700, 1200), trials=1),
        max_new_tokens=8,
    )
    test = loaded(suite, data, None).drawn_for(tokenizer)
    model = Short()
    model.tokenizer = tokenizer
    rows = run_suite(model, test.suite, test.problems, test.shots)
    assert [row["truncated"] for row in rows] == [False, True]
    with pytest.raises(ValueError, match="leave no room to answer"):
        run_suite(model, replace(test.suite, shortened=False), test.problems, test.shots)


def test_essays_that_are_not_there_are_said_before_a_model_is_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ruler_essays"):
        loaded(BY_NAME["pro-base.needles"], tmp_path, None)


def test_a_length_or_task_that_cannot_be_is_refused(tokenizer, data):
    assert len(named_suites(["ruler@512"])) == len(TASKS)
    for name in ("ruler", "ruler@", "ruler@0", "ruler.qa@4096", "ruler@-3"):
        with pytest.raises(ValueError, match=r"RULER's suites are ruler@LENGTH"):
            named_suites([name])
    (suite,) = named_suites(["ruler.vt@100"])
    with pytest.raises(ValueError, match="in 100 tokens nothing can be hidden"):
        load_problems(suite, data, 1, tokenizer)
    with pytest.raises(ValueError, match="drawn for a model's tokenizer"):
        load_problems(suite, data)


# ---- ROUGE-L, last words ----


def scored(answer, completion):
    return rouge_l(Problem(id="", family="", prompt="", answer=answer), completion)["rouge_l"]


def test_rouge_l_is_the_f_of_the_longest_common_subsequence():
    # the example of the rouge-score package's README: five words in common, of eight and nine
    given = scored(
        "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    )
    assert given == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    assert scored("testing one two", "testing") == pytest.approx(0.5)
    assert scored("a b c", "A, B... C!") == 1.0 and scored("a b", "c d") == 0.0
    assert scored("a", "") == 0.0 and scored("é", "é") == 0.0  # no word of a-z or 0-9
    assert scored("it's", "it s") == 1.0
    assert longest_common("abcbdab", "bdcaba") == 4 and longest_common("", "a") == 0


@pytest.mark.parametrize(
    ("completion", "right"),
    [("signs.", 1.0), ('"signs" he', 1.0), ("sign", 0.0), ("the signs", 0.0), ("", 0.0)],
)
def test_the_first_word_written_is_compared(completion, right):
    assert last_word(Problem(id="", family="", prompt="", answer="signs"), completion) == {
        "acc": right
    }
