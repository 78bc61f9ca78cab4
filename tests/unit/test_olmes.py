"""OLMES's rows: normalisation by what a choice is worth without the question."""

from dataclasses import replace

import pytest

from pocketlm.eval.harness import run_suite
from pocketlm.eval.prompts import requests_of
from pocketlm.eval.scorers import choice_of, multiple_choice
from pocketlm.eval.suites.protocols import BY_NAME, PROTOCOLS
from pocketlm.eval.suites.suite import Problem
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.transformer import Transformer
from pocketlm.rehearsal.stand_ins import SHAPE, make_tokenizer

PROBLEM = Problem(id="1", family="", prompt="Where?", answer="sun", choices=("rain", "sun"), gold=1)


def test_a_choice_counts_by_what_the_question_adds_to_it():
    log_probs = [-4.0, -5.0, -3.0, -9.0]  # with the question, and without
    assert multiple_choice(PROBLEM, log_probs) == {
        "acc": 0.0,
        "acc_norm": 1.0 if -5 / 3 > -4 / 4 else 0.0,
        "acc_bytes": 0.0,
        "acc_pmi": 1.0,
    }
    assert [choice_of(name, PROBLEM, log_probs) for name in ("acc", "acc_pmi")] == [0, 1]
    assert "acc_pmi" not in multiple_choice(PROBLEM, log_probs[:2])


def test_the_choices_are_scored_without_the_question_too():
    tokenizer = make_tokenizer()
    suite = replace(BY_NAME["olmes.arc_challenge"], shots=0)
    (request,) = requests_of(tokenizer, suite, [PROBLEM], {"": []})
    texts = [
        tokenizer.decode(context[len(tokenizer.document_start) :]) + tokenizer.decode(ids)
        for context, ids in request.pairs
    ]
    assert texts == [
        "Question: Where?\nAnswer: rain",
        "Question: Where?\nAnswer: sun",
        "Answer: rain",
        "Answer: sun",
    ]
    model = LanguageModel(Transformer(SHAPE, seed=0), tokenizer)
    (row,) = run_suite(model, suite, [PROBLEM])
    plain = replace(suite, unconditional="", metric="acc")
    (other,) = run_suite(model, plain, [PROBLEM])
    assert row["log_probs"][:2] == pytest.approx(other["log_probs"], abs=1e-4)
    assert len(row["log_probs"]) == 4
    gains = [row["log_probs"][place] - row["log_probs"][place + 2] for place in (0, 1)]
    assert row["completion"] == PROBLEM.choices[gains.index(max(gains))]
    assert row["correct"] == (row["completion"] == "sun") == (row["scores"]["acc_pmi"] == 1.0)


def test_every_row_takes_five_shots_and_says_that_they_are_not_the_curated_ones():
    assert len(PROTOCOLS["olmes"]) == 9
    for suite in PROTOCOLS["olmes"]:
        assert suite.shots == 5 and suite.sources["shots"].startswith("differs")
        assert bool(suite.unconditional) == (suite.metric == "acc_pmi")
        assert ("unconditional" in suite.protocol()) == bool(suite.unconditional)
