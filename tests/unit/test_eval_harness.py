"""The harness on models whose answers are known beforehand."""

import json
import threading
from dataclasses import replace

import pytest

from pocketlm.eval.figures import best_constant_answer, figures_of
from pocketlm.eval.harness import run_suite
from pocketlm.eval.prompts import prompt_ids, requests_of
from pocketlm.eval.scorers import final_answer, match_answer
from pocketlm.eval.suites.protocols import POCKET
from pocketlm.eval.suites.suite import Problem
from pocketlm.model.tokenizer import CHATML, train_tokenizer
from tests.unit.silent_runtime import SilentRuntime

PROBLEMS = tuple(
    Problem(id=f"{family}-{n}", family=family, prompt=f"{family} {n}?", answer=str(n % 3))
    for family in ("sums", "words")
    for n in range(6)
)


def solve(model, problems=PROBLEMS, *, max_new_tokens=50, batch_size=32, **fields):
    """(figures, rows) of the pocket suite's form with these problems."""
    suite = replace(POCKET, name="six", max_new_tokens=max_new_tokens, **fields)
    rows = run_suite(model, suite, problems, batch_size=batch_size)
    return figures_of(suite, rows), rows


class AnswersLast(SilentRuntime):
    """A scripted model that reads shots too: the last question is what it answers."""

    def __init__(self, model):
        self.model, self.tokenizer, self.max_length = model, model.tokenizer, model.max_length

    def generate(self, prompts, **options):
        self.model.read = [list(ids) for ids in prompts]
        last = [
            self.tokenizer.encode(self.tokenizer.decode(ids).rpartition("Question:")[2])
            for ids in prompts
        ]
        return self.model.generate(last, **options)


@pytest.fixture()
def tokenizer():
    return train_tokenizer([f"Question: {p.prompt}\nAnswer: {p.answer}" for p in PROBLEMS], 270)


class Scripted(SilentRuntime):
    """A model that completes each prompt with what `reply` makes of the problem asked."""

    def __init__(self, tokenizer, reply, max_length=200):
        self.tokenizer, self.reply, self.max_length = tokenizer, reply, max_length
        self.batches, self.read = [], []

    def generate(self, prompts, *, max_new_tokens, stop_ids, stop_strings=(), **options):
        assert ("\nQuestion:" in stop_strings) is (self.tokenizer.chat_template is None)
        self.batches.append(len(prompts))
        assert stop_ids == {self.tokenizer.eos_id, self.tokenizer.end_of_turn_id}
        answers = []
        for ids in prompts:
            (problem,) = (p for p in PROBLEMS if p.prompt in self.tokenizer.decode(ids))
            room = min(max_new_tokens, self.max_length - len(ids))
            answers.append(self.tokenizer.encode(self.reply(problem))[:room])
        return answers


def test_a_model_that_is_right_solves_all_and_one_that_is_wrong_none(tokenizer):
    right, _ = solve(Scripted(tokenizer, lambda p: f" 1+1\n#### {p.answer}"))
    assert right["problems"] == {
        "sums": {"solved": 6, "total": 6},
        "words": {"solved": 6, "total": 6},
    }
    assert right["value"] == 1.0 and right["n"] == 12 and right["standard_error"] == 0.0
    wrong, _ = solve(Scripted(tokenizer, lambda p: " #### 7"))
    assert wrong["problems"]["sums"] == {"solved": 0, "total": 6}
    assert wrong["value"] == 0.0


def test_results_stay_with_their_problems_whatever_the_batch(tokenizer):
    def reply(problem):
        return f"#### {problem.answer if problem.id.endswith('3') else 9}"

    model = Scripted(tokenizer, reply)
    _, rows = solve(model, batch_size=5)
    assert model.batches == [5, 5, 2]
    assert [row["id"] for row in rows] == [p.id for p in PROBLEMS]
    assert [row["id"] for row in rows if row["correct"]] == ["sums-3", "words-3"]
    assert rows[3]["completion"] == "#### 0"


def test_running_on_to_another_problem_changes_nothing(tokenizer):
    model = Scripted(tokenizer, lambda p: f" #### {p.answer}\nQuestion: 1?\nAnswer: #### 8")
    assert solve(model, max_new_tokens=80)[0]["value"] == 1.0


def test_a_chat_model_is_asked_through_its_template_and_a_base_model_in_plain_text(tokenizer):
    plain = prompt_ids(tokenizer, "sums 1?")
    assert plain[0] == tokenizer.bos_id
    assert tokenizer.decode(plain) == "Question: sums 1?\nAnswer:"
    tokenizer.chat_template = CHATML
    chat = tokenizer.decode(prompt_ids(tokenizer, "sums 1?"), keep_special=True)
    assert chat == "<|im_start|>user\nsums 1?<|im_end|>\n<|im_start|>assistant\n"
    assert solve(Scripted(tokenizer, lambda p: f"#### {p.answer}"))[0]["value"] == 1.0


@pytest.mark.parametrize(
    "reply", ["so it is\nAnswer: {}", "\nAnswer: {}", "\n\n\n#### {}", "\nQuestion: what?\n{}"]
)
def test_a_chat_models_whole_answer_counts_whatever_texts_are_in_it(tokenizer, reply):
    tokenizer.chat_template = CHATML
    figures, rows = solve(Scripted(tokenizer, lambda p: reply.format(p.answer)), max_new_tokens=80)
    assert figures["value"] == 1.0 and figures["answers_cut"] == 0
    assert {row["completion"] for row in rows} == {reply.format(n).strip() for n in range(3)}


def test_answers_that_reach_max_new_tokens_and_empty_ones_are_counted(tokenizer):
    def reply(problem):
        if problem.id == "words-0":
            return " "
        return (
            " ".join("abcdefghijkl")
            if problem.family == "sums"
            else "4\nQuestion: on and on and on"
        )

    figures, rows = solve(Scripted(tokenizer, reply), max_new_tokens=15)
    assert figures["answers_cut"] == 6  # a text that ends an answer was there before the limit
    assert {row["family"] for row in rows if row["cut"]} == {"sums"}
    assert figures["answers_empty"] == 1


def test_the_room_for_an_answer_does_not_depend_on_who_is_beside_it(tokenizer):
    problems = (PROBLEMS[0], replace(PROBLEMS[6], prompt=PROBLEMS[6].prompt + " x" * 40))
    longest = max(len(prompt_ids(tokenizer, p.prompt)) for p in problems)
    model = Scripted(tokenizer, lambda p: "1 2 3 4 5 6", max_length=longest + 4)
    short, long = solve(model, problems)[1]
    assert short["completion"] == "1 2 3 4 5 6" and not short["cut"]
    assert long["cut"] and long["completion"] in "1 2 3"


def test_new_tokens_stay_within_the_models_length(tokenizer):
    longest = max(len(prompt_ids(tokenizer, p.prompt)) for p in PROBLEMS)
    model = Scripted(tokenizer, lambda p: f"#### {p.answer}", max_length=longest + 3)
    assert {len(row["completion"]) for row in solve(model)[1]} <= set(range(8))
    with pytest.raises(ValueError, match=r"problem \S+: \d+ prompt tokens leave no room"):
        solve(Scripted(tokenizer, lambda p: "", max_length=longest))


def test_shots_are_cut_on_the_left_where_they_leave_no_room_and_counted(tokenizer):
    suite = replace(POCKET, name="six", shots=3, shots_from=POCKET.problems, max_new_tokens=9)
    model = Scripted(tokenizer, lambda p: f"#### {p.answer}")
    shots = {family: PROBLEMS[9:] for family in ("sums", "words")}
    asked = PROBLEMS[:2]
    whole = requests_of(tokenizer, suite, asked, shots)
    assert whole[0].text.count("Answer: 0\n\n") == 1 and "words 3?" in whole[0].text
    model.max_length = len(whole[0].prompt) - 5
    # the scripted model answers the one question it reads whole
    figures = figures_of(suite, run_suite(AnswersLast(model), suite, asked, shots))
    assert figures["contexts_truncated"] == 2 and figures["value"] == 1.0
    assert {len(ids) for ids in model.read} == {model.max_length - 9}


def test_the_suites_scorer_decides(tokenizer):
    model = Scripted(tokenizer, lambda p: "#### 1")
    figures, _ = solve(
        model, scorer=lambda problem, answer: {"accuracy": float(problem.family == "sums")}
    )
    assert figures["problems"] == {
        "sums": {"solved": 6, "total": 6},
        "words": {"solved": 0, "total": 6},
    }


def test_an_empty_suite_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no problems"):
        solve(Scripted(tokenizer, lambda p: ""), ())


def test_the_best_constant_answer_is_the_most_frequent_one():
    assert best_constant_answer(PROBLEMS) == {
        "sums": pytest.approx(1 / 3),
        "words": pytest.approx(1 / 3),
    }


def test_thinking_is_no_part_of_an_answer_and_thinking_cut_short_is_none(tokenizer):
    replies = {"sums": "<think>\n#### 9\n</think>\n#### {}", "words": "<think>#### {}"}
    tokenizer.chat_template = CHATML
    figures, _ = solve(
        Scripted(tokenizer, lambda p: replies[p.family].format(p.answer), max_length=400),
        max_new_tokens=200,
    )
    assert figures["problems"]["sums"]["solved"] == 6
    assert figures["problems"]["words"]["solved"] == 0


class Interrupted(Exception):
    """What ends a run in the middle."""


def test_a_run_ended_anywhere_goes_on_with_the_answers_it_kept(tokenizer, tmp_path):
    suite = replace(POCKET, name="six", max_new_tokens=50)
    whole = tmp_path / "whole.jsonl"
    model = Scripted(tokenizer, lambda p: f"#### {p.answer}")
    expected = run_suite(model, suite, PROBLEMS, batch_size=2, path=whole)
    assert len(model.batches) == 6

    def stop_at(batches):
        def progress(answered):
            if answered == 2 * batches:
                raise Interrupted

        return progress

    for batches in range(1, 6):
        path = tmp_path / f"{batches}.jsonl"
        with pytest.raises(Interrupted):
            run_suite(model, suite, PROBLEMS, batch_size=2, path=path, progress=stop_at(batches))
        with open(path, "a") as file:
            file.write('{"id": "half a li')
        model.batches = []
        assert run_suite(model, suite, PROBLEMS, batch_size=2, path=path) == expected
        assert len(model.batches) == 6 - batches
        assert path.read_bytes() == whole.read_bytes()
    # another question, limit or way of asking is another answer
    model.batches = []
    limited = replace(suite, max_new_tokens=40)
    run_suite(model, limited, PROBLEMS, batch_size=2, path=whole)
    assert len(model.batches) == 6


def test_a_damaged_kept_answer_is_named_by_file_and_line(tokenizer, tmp_path):
    path = tmp_path / "kept.jsonl"
    model = Scripted(tokenizer, lambda p: f"#### {p.answer}")
    run_suite(model, POCKET, PROBLEMS, path=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"kept\.jsonl:2:\d+: not JSON.*delete the file"):
        run_suite(model, POCKET, PROBLEMS, path=path)
    path.write_text(json.dumps({"id": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"kept\.jsonl:1: not a kept answer"):
        run_suite(model, POCKET, PROBLEMS, path=path)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("1+1=2\n#### 2", "2"),
        ("#### 1\n#### 2\nbye", "2"),
        ("so it is\n42", "42"),
        ("", ""),
        ("####", ""),
        ("12 and 30 is\nAnswer: Rome", "Rome"),
    ],
)
def test_the_answer_stands_after_the_last_mark_or_is_the_last_line(completion, answer):
    assert final_answer(completion) == answer


def test_run_ons_are_cut(tokenizer):
    """A model that stops for nothing, and one that goes on to the next problem."""
    for reply in (" #### 4\nQuestion: next", " #### 4 ", " #### 4\n\n\n#### 5"):
        _, rows = solve(Scripted(tokenizer, lambda problem, reply=reply: reply), max_new_tokens=60)
        assert {row["completion"] for row in rows} == {"#### 4"}


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ("12", "12.0", True),
        ("12", "24/2", True),
        ("12", "$12$", True),
        ("12", "13", False),
        ("12", "", False),
        ("12", "9^9^9^9", False),
        ("12 13", "12  13", True),
        ("12 13", "13 12", False),
        ("4-9i", "4-9i", True),
        ("none", "12", False),
    ],
)
def test_numbers_match_by_value_and_other_answers_by_text(expected, given, same):
    assert match_answer(expected, given) is same


def test_answers_are_matched_outside_the_main_thread_too():
    matched = []
    thread = threading.Thread(target=lambda: matched.append(match_answer("1200", "1,200.0")))
    thread.start()
    thread.join()
    assert matched == [True]
