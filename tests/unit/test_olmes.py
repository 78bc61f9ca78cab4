"""OLMES's rows: normalisation by what a choice is worth without the question, and its shots."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pocketlm.eval.harness import run_suite
from pocketlm.eval.prompts import requests_of
from pocketlm.eval.scorers import choice_of, multiple_choice
from pocketlm.eval.suites import olmes_shots
from pocketlm.eval.suites.named import load_problems, shots_of
from pocketlm.eval.suites.olmes_shots import CuratedShots, curated_shots
from pocketlm.eval.suites.protocols import BY_NAME, PROTOCOLS, SUITES
from pocketlm.eval.suites.rows import Rows
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


def test_every_row_takes_the_five_curated_shots_and_says_that_a_form_is_missing():
    assert len(PROTOCOLS["olmes"]) == 9
    for suite in PROTOCOLS["olmes"]:
        assert suite.shots == 5 and isinstance(suite.shots_from, CuratedShots)
        assert len(set(suite.shots_from.names)) == 5
        assert suite.sources["metric"].startswith("differs")
        assert bool(suite.unconditional) == (suite.metric == "acc_pmi")
        assert ("unconditional" in suite.protocol()) == bool(suite.unconditional)
        assert ("sampled" in suite.protocol()) == suite.sources.get("problems", "").endswith(
            "1,000"
        )


def write_rows(folder: Path, file: str, rows: list[dict[str, object]]) -> None:
    (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curated_shots_are_read_from_the_train_split_in_the_lists_order(tmp_path: Path):
    suite = BY_NAME["olmes.arc_easy"]
    names = olmes_shots.NAMES["arc_easy"][1]
    rows: list[dict[str, object]] = [
        {"id": name, "query": f"Question: {name}?\nAnswer:", "choices": ["no", "yes"], "gold": 1}
        for name in ("other", *reversed(names), "more")
    ]
    write_rows(tmp_path, "arc_easy_train", rows)
    (shots,) = shots_of(suite, tmp_path, {""}).values()
    assert [shot.prompt for shot in shots] == [f"{name}?" for name in names]
    write_rows(tmp_path, "arc_easy_train", rows[:-2])
    with pytest.raises(ValueError, match=f"curated examples {names[0]} "):
        shots_of(suite, tmp_path, {""})


def test_a_shot_without_an_id_is_known_by_the_digest_of_its_texts(tmp_path: Path):
    texts = ("how do you stab something?", "stick a sharp object through it.")
    row: dict[str, object] = {"goal": texts[0], "sol1": texts[1], "label": 0}
    other = row | {"sol2": "push."}
    chosen = row | {"sol2": "pin  it with a sharp object. "}  # blanks do not count
    write_rows(tmp_path, "piqa_train", [other, chosen])
    train = SUITES["piqa"].shots_from
    assert isinstance(train, Rows)
    shots = replace(curated_shots("piqa", train), names=(olmes_shots.NAMES["piqa"][1][0],))
    (shot,) = shots.load(tmp_path)
    assert shot.prompt == texts[0] and shot.choices[1].startswith("pin")


@pytest.mark.parametrize("count", [1500, 1501])
def test_of_many_documents_a_thousand_are_drawn_as_olmes_draws_them(count: int, tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"id": str(n), "query": f"Question: {n}?\nAnswer:", "choices": ["no", "yes"], "gold": 1}
        for n in range(count)
    ]
    write_rows(tmp_path, "arc_easy_test", rows)
    ids = [problem.id for problem in load_problems(BY_NAME["olmes.arc_easy"], tmp_path)]
    everything = [str(n) for n in range(count)]
    assert ids == (everything if count == 1500 else Random(1234).sample(everything, 1000))
    few = load_problems(BY_NAME["olmes.arc_easy"], tmp_path, 3)
    assert [problem.id for problem in few] == ids[:3]
