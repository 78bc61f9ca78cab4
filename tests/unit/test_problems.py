"""Worked problems: right by reasoning-gym's own verifier, many, and never both trained on and
asked.
"""

import re
from collections import Counter
from itertools import islice

import pytest

from pocketlm.corpus.recall_notes import draw_notes, generate_notes
from pocketlm.eval.scorers import final_answer, match_answer
from pocketlm.problems.digits import add, subtract
from pocketlm.problems.families import FAMILIES
from pocketlm.problems.generated import ANSWER_MARK, _dataset, draw, generate_problems, score_answer

EVERY = sorted(FAMILIES)


@pytest.mark.parametrize("family", EVERY)
def test_the_generators_own_verifier_accepts_where_every_chain_ends(family):
    for entry, problem in islice(draw(family, seed=5), 200):
        answer = final_answer(problem["response"])
        assert problem["response"].splitlines()[-1] == ANSWER_MARK + problem["answer"]
        as_read = FAMILIES[family].verifier_answer(answer)
        assert _dataset(family).score_answer(as_read, entry) == 1.0, problem
        assert score_answer(family, problem, answer)
        assert match_answer(problem["answer"], answer)


@pytest.mark.parametrize("family", EVERY)
def test_an_answer_to_another_problem_is_refused(family):
    first, *others = (problem for _, problem in islice(draw(family, seed=6), 20))
    for other in others:
        if other["answer"] != first["answer"]:
            assert not score_answer(family, first, other["answer"])
            assert not match_answer(first["answer"], other["answer"])
    assert not score_answer(family, first, "")


@pytest.mark.parametrize("family", EVERY)
def test_every_equation_in_a_chain_holds(family):
    for _, problem in islice(draw(family, seed=7), 200):
        for left, right in re.findall(
            r"(?<![\w*/+-])([\d+*/-]+)=(-?\d+)(?!\d)", problem["response"]
        ):
            assert eval(left) == int(right), problem


@pytest.mark.parametrize("family", EVERY)
def test_a_family_has_thousands_of_questions(family):
    """Of n draws from m equally likely questions n(n-1)/2m pairs agree, and more where some are
    likelier.

    So m of 2,000 is a floor for all; the least varied are herds of two animals and triangles.
    """
    prompts = [problem["prompt"] for _, problem in islice(draw(family, seed=8), 1000)]
    pairs = sum(times * (times - 1) / 2 for times in Counter(prompts).values())
    assert pairs < 1000 * 999 / 2 / 2_000


@pytest.mark.parametrize("family", EVERY)
def test_no_answer_is_worth_giving_to_every_problem(family):
    answers = Counter(problem["answer"] for _, problem in islice(draw(family, seed=9), 500))
    assert answers.most_common(1)[0][1] / 500 < 0.55


def test_held_out_questions_are_never_drawn_for_training():
    names = [name for name in EVERY if name != "spiral_matrix"]
    held_out = {p["prompt"] for p in generate_problems(names, 160, seed=0, held_out=True)}
    trained = {p["prompt"] for seed in (0, 1) for p in generate_problems(names, 1600, seed=seed)}
    assert not held_out & trained


def test_an_equation_held_out_is_held_out_in_every_letter():
    def without_letter(held_out, count):
        problems = generate_problems(["simple_equations"], count, seed=0, held_out=held_out)
        return {re.sub("[a-z]", "x", p["prompt"].removeprefix("Solve ")) for p in problems}

    assert not without_letter(True, 20) & without_letter(False, 600)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    first = list(generate_problems(EVERY, 90, seed=3))
    assert first == list(generate_problems(EVERY, 90, seed=3))
    assert not {p["id"] for p in first} & {p["id"] for p in generate_problems(EVERY, 90, seed=4)}


def test_families_take_turns():
    drawn = Counter(p["family"] for p in generate_problems(EVERY, 10 * len(EVERY), seed=0))
    assert drawn == dict.fromkeys(EVERY, 10)


def test_prompts_and_responses_are_short_enough_for_a_window_of_256_tokens():
    for problem in generate_problems(EVERY, 900, seed=2):
        assert len(problem["prompt"]) + len(problem["response"]) < 210


def test_sorting_is_exact_where_the_verifier_would_forgive_a_distance_of_one():
    _, problem = next(draw("number_sorting", seed=0))
    first, *rest = problem["answer"].split()
    assert not score_answer("number_sorting", problem, " ".join([str(int(first) + 1), *rest]))


def test_digit_lines_carry_and_borrow():
    assert add(38, 47) == "38+47: 8+7=15, 1+3+4=8, 85"
    assert add(95, 38) == "95+38: 5+8=13, 1+9+3=13, 133"
    assert subtract(52, 38) == "52-38: 12-8=4, 5-1-3=1, 14"
    assert subtract(58, 32) == "58-32: 8-2=6, 5-3=2, 26"


def test_an_unknown_family_and_a_negative_seed_are_refused():
    with pytest.raises(ValueError, match=r"riddles.*chain_sum"):
        next(generate_problems(["riddles"], 1, seed=0))
    with pytest.raises(ValueError, match="seed -1"):
        next(generate_problems(["chain_sum"], 1, seed=-1))


def test_notes_ask_only_what_their_passage_says():
    for document in generate_notes(50, seed=1, pairs_range=(1, 5)):
        passage, _, questions = document["text"].partition("\nQuestion: ")
        asked = re.findall(
            r"What is the code of (\w+)\?\nAnswer: The code of \1 is (\d{4})\.",
            "Question: " + questions,
        )
        assert 1 <= len(asked) <= 3
        assert 1 <= passage.count("Note:") <= 5
        for name, value in asked:
            assert f"Note: the code of {name} is {value}." in passage
        assert document["prompt"].startswith(passage)
        assert document["response"] == "The code of {} is {}.".format(*asked[0])
        assert document["answer"] == asked[0][1]


def test_no_name_is_both_trained_on_and_held_out():
    trained = {note["question"] for note in islice(draw_notes(0), 5000)}
    held_out = {note["question"] for note in islice(draw_notes(0, held_out=True), 500)}
    assert len(held_out) > 100
    assert not trained & held_out


def test_notes_need_at_least_one_pair():
    with pytest.raises(ValueError, match="pairs_range"):
        next(generate_notes(1, seed=0, pairs_range=(0, 2)))
