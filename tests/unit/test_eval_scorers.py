"""Scorers against lm-eval's own rules and answers known beforehand; figures against numpy."""

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, sem

from pocketlm.eval.figures import RESAMPLES, figures_of, mcnemar, paired_difference
from pocketlm.eval.math_judge import MathJudge
from pocketlm.eval.scorers import (
    bits_per_byte,
    exact_match,
    exact_match_without_articles,
    gsm8k,
    math,
    multiple_choice,
    r1_answer,
    r1_math,
)
from pocketlm.eval.suites.protocols import BY_NAME, SUITES
from pocketlm.eval.suites.suite import Problem

CHOICES = Problem(
    id="1", family="", prompt="?", answer="a ß", choices=("abcdefgh", "a ß", "xy"), gold=1
)


@pytest.mark.parametrize(
    ("log_probs", "acc", "acc_norm", "acc_bytes"),
    [
        ((-4.0, -5.0, -6.0), 0, 0, 0),  # for each character: -0.5, -1.67, -3; for each byte: -1.25
        ((-9.0, -3.0, -4.0), 1, 1, 1),
        ((-8.0, -3.1, -2.9), 0, 0, 1),  # 8, 3 and 2 characters: -1, -1.03, -1.45; 4 bytes: -0.775
    ],
)
def test_choices_are_compared_whole_for_each_character_and_for_each_byte(
    log_probs, acc, acc_norm, acc_bytes
):
    assert multiple_choice(CHOICES, log_probs) == {
        "acc": acc,
        "acc_norm": acc_norm,
        "acc_bytes": acc_bytes,
    }


def test_bits_per_byte_counts_the_space_before_the_answer():
    assert bits_per_byte(CHOICES, [-10 * np.log(2)]) == {"bits_per_byte": pytest.approx(2.0)}


GSM = Problem(id="1", family="", prompt="?", answer="1,000 + 200 = 1,200\n#### 1,200")


@pytest.mark.parametrize(
    ("completion", "strict", "flexible"),
    [
        ("so\n#### 1200", 1, 1),
        ("so\n#### 1,200.", 1, 1),
        ("#### 1200 and then 7", 1, 0),  # strict: the first mark; flexible: the last number
        ("it makes $1,200", 0, 1),
        ("#### 1300", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_is_scored_by_lm_evals_two_filters(completion, strict, flexible):
    scores = gsm8k(GSM, completion)
    assert scores["strict_match"] == strict and scores["flexible_extract"] == flexible


@pytest.mark.parametrize(
    ("completion", "plain", "without_articles"),
    [
        ("sunset BLVD", 1, 1),
        ("Sunset Blvd.", 1, 1),
        ("The Sunset Blvd", 0, 1),
        ("Sunset", 0, 0),
        ("", 0, 0),
    ],
)
def test_short_answers_match_an_alias_but_for_case_punctuation_and_in_nq_articles(
    completion, plain, without_articles
):
    problem = replace(GSM, answer="x", accepted=("a Sunset boulevard", "Sunset Blvd."))
    assert exact_match(problem, completion) == {"exact_match": plain}
    assert exact_match_without_articles(problem, completion) == {"exact_match": without_articles}


@pytest.mark.parametrize(
    ("gold", "completion", "same"),
    [
        ("\\frac{1}{2}", "it is $\\boxed{0.5}$", 1),
        ("[2,5)", "The final answer is $[2,5)$. I hope it is correct.", 1),
        ("18", "so she has 18", 1),
        ("18", "so she has 19", 0),
        ("x^2+1", "\\boxed{1+x^2}", 1),
        ("12", "", 0),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", 1),
    ],
)
def test_mathematics_is_compared_by_value(gold, completion, same):
    assert math(replace(GSM, answer=gold), completion) == {"math_verify": same}


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct. \\boxed{3}", "[2,5)"),
        ("\\boxed{1}, no: \\boxed{\\frac{1}{2}} so 7", "\\frac{1}{2}"),
        ("it is $\\boxed 7$ then", "7"),
        ("\\boxed{never closed", "never closed"),
        ("so the answer is: 1,200.\nDone 5", "1,200"),
        ("3 and -1,234.5 dollars", "-1234.5"),
        ("no number", ""),
    ],
)
def test_r1s_rules_find_the_answer_in_their_order(completion, answer):
    assert r1_answer(completion) == answer


def test_gsm8ks_and_maths_answers_are_compared_with_what_r1s_rules_find():
    assert r1_math(GSM, "1000 + 200 = 1200, so \\boxed{1200}") == {"math_verify": 1.0}
    assert r1_math(GSM, "\\boxed{1300} or 1200") == {"math_verify": 0.0}
    assert r1_math(replace(GSM, answer="\\frac{1}{2}"), "\\boxed{0.5}") == {"math_verify": 1.0}


def test_an_answer_that_never_ends_is_wrong_and_the_next_is_judged():
    judge = MathJudge(seconds=1.0)
    try:
        assert judge.same_value("2", "\\boxed{2}")
        began = time.monotonic()
        assert not judge.same_value("2", "$9^{9^{9^{9^{9}}}}$")
        assert time.monotonic() - began < 30
        assert judge.same_value("2", "\\boxed{4/2}")
    finally:
        judge.close()


def test_a_worker_that_dies_is_replaced():
    judge = MathJudge()
    try:
        assert judge.same_value("2", "2")
        worker = judge._worker
        assert worker is not None
        worker.kill()
        worker.wait()
        assert judge.same_value("2", "2")
    finally:
        judge.close()


# ---- figures ----


def rows_of(suite, values, families=None, weights=None):
    families = families or [""] * len(values)
    rows = []
    for number, (value, family) in enumerate(zip(values, families, strict=True)):
        row = {
            "id": str(number),
            "family": family,
            "scores": {suite.metric: value},
            "request": str(number),
            "ids": str(number),
            "truncated": number == 0,
            "correct": value == 1.0,
        }
        rows.append(row if weights is None else {**row, "weight": weights[number]})
    return rows


def test_a_figure_is_the_mean_with_its_standard_error():
    values = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    figures = figures_of(SUITES["arc_easy"], rows_of(SUITES["arc_easy"], values))
    assert figures["value"] == pytest.approx(values.mean())
    assert figures["standard_error"] == pytest.approx(sem(values))
    assert figures["n"] == 50 and figures["contexts_truncated"] == 1
    assert figures["problems"][""] == {"solved": int(values.sum()), "total": 50}


def test_a_macro_average_gives_each_family_the_same_weight():
    suite = BY_NAME["pro-instruct.mmlu"]
    values, families = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0], [*"aaaabb"]
    figures = figures_of(suite, rows_of(suite, values, families))
    assert figures["value"] == pytest.approx((0.75 + 0.5) / 2)
    assert figures_of(SUITES["mmlu"], rows_of(SUITES["mmlu"], values, families))[
        "value"
    ] == pytest.approx(4 / 6)


def test_bits_per_byte_are_all_bits_over_all_bytes_and_their_error_is_the_bootstraps():
    suite = BY_NAME["bpb.arc_easy"]
    rng = np.random.default_rng(1)
    weights = rng.integers(3, 60, 400)
    values = rng.gamma(4.0, 0.4, 400)
    figures = figures_of(suite, rows_of(suite, values, weights=weights.tolist()))
    assert figures["value"] == pytest.approx((values * weights).sum() / weights.sum())
    drawn = rng.integers(400, size=(4000, 400))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    assert figures["standard_error"] == pytest.approx(means.std(), rel=0.1)
    assert "problems" not in figures


def test_a_paired_difference_is_narrower_than_two_figures_and_covers_the_truth():
    suite = SUITES["arc_easy"]
    rng, covered, narrower = np.random.default_rng(2), 0, 0
    for _ in range(20):
        easy = rng.random(200)
        ours = (rng.random(200) < np.where(easy < 0.5, 0.95, 0.1)).astype(float)
        theirs = np.where(rng.random(200) < 0.1, 1 - ours, ours)  # one in ten flipped
        found = paired_difference(suite, rows_of(suite, theirs), rows_of(suite, ours))
        truth = 0.1 * (1 - 2 * 0.525)
        covered += found["low"] <= truth <= found["high"]
        apart = np.hypot(sem(ours), sem(theirs))
        narrower += found["high"] - found["low"] < 2 * 1.96 * apart
    assert covered >= 17 and narrower == 20 and RESAMPLES >= 1000


def test_documents_that_tell_two_models_apart_are_counted_and_tested():
    suite = SUITES["arc_easy"]
    ours, theirs = [1.0] * 9 + [0.0] * 3, [0.0] * 7 + [1.0] * 3 + [0.0] * 2
    found = paired_difference(suite, rows_of(suite, ours), rows_of(suite, theirs))
    assert (found["better"], found["worse"]) == (7, 1)
    assert found["difference"] == pytest.approx(0.5)
    assert found["p_value"] == pytest.approx(binomtest(7, 8).pvalue)
    others = rows_of(suite, theirs)
    assert found["other_ids"] == 0
    others[3]["ids"] = "another tokenizer's"
    assert paired_difference(suite, rows_of(suite, ours), others)["other_ids"] == 1
    others = rows_of(suite, theirs)[::-1]
    with pytest.raises(ValueError, match="answered other documents"):
        paired_difference(suite, rows_of(suite, ours), others)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 5), (3, 17), (900, 1000)])
def test_mcnemars_test_is_the_binomial_test(better, worse):
    wanted = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(wanted)
