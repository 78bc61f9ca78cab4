"""Facts to look up: how their documents and trials are made."""

import importlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import FactSource
from pocketlm.eval.look_up import fact_trials
from pocketlm.eval.retrieval import find_needles
from pocketlm.problems.look_up_facts import SYLLABLES, draw_facts, generate_facts, names
from pocketlm.stages.evaluate import EvaluateConfig

TOLD = re.compile(r"(\w\w) (\w\w)=(\d\d)\.")
WORDS = [f"word{number}" for number in range(50)]


class Syllables:
    """A tokenizer to whom a syllable with its space, a digit or a sign is one token."""

    document_start = (0,)
    stop_ids: tuple[int, ...] = ()
    vocabulary = (
        "<s>",
        *(f" {syllable}" for syllable in SYLLABLES),
        *"0123456789=.",
        *(f" {word}" for word in WORDS),
    )

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary.index(piece) for piece in re.findall(r" \w+|\d|[=.]", text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[token] for token in ids)


class Reader:
    """A model that looks the value up in its prompt, if the fact lies among the last `reach`
    tokens.
    """

    tokenizer = Syllables()

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def generate(self, prompts: list[list[int]], *, max_new_tokens: int, stop_ids) -> list:
        answers = []
        for ids in prompts:
            question, seen = ids[-3:], ids[max(0, len(ids) - 3 - self.reach) : -3]
            places = [i for i in range(len(seen) - 4) if seen[i : i + 3] == question]
            answers.append(seen[places[0] + 3 : places[0] + 5] if places else [])
        assert max_new_tokens == 2
        return answers


SYLLABIC: Any = Syllables()


def reader(reach: int) -> Any:
    return Reader(reach)


def test_no_name_is_both_trained_on_and_asked() -> None:
    assert not set(names()) & set(names(held_out=True))
    assert len(names()) + len(names(held_out=True)) == len(SYLLABLES) ** 2 == 1024


def test_in_a_document_a_name_keeps_its_value_and_in_another_it_gets_a_new_one() -> None:
    rows = list(generate_facts(200, 1, (2, 5), (0, 3), 120, WORDS, num_names=8))
    values: dict[str, set[str]] = {}
    for row in rows:
        told = [(first + second, value) for first, second, value in TOLD.findall(row["text"])]
        by_name = dict(told)
        assert all(by_name[name] == value for name, value in told)
        assert 1 <= len(by_name) <= 5 and len(row["text"]) >= 119
        for name, value in by_name.items():
            values.setdefault(name, set()).add(value)
    assert len(values) == 8 and all(len(of_name) > 20 for of_name in values.values())
    assert any("word" in row["text"] for row in rows)
    assert any("word" not in row["text"] for row in rows)


def test_a_trial_fills_the_context_and_asks_for_the_one_fact_that_its_end_begins() -> None:
    tokenizer: Any = Syllables()
    trials = fact_trials(tokenizer, 100, 20, 7, [" ".join(WORDS)], distractors=3)
    places = []
    for ids, value in trials:
        text = tokenizer.decode(ids[1:])
        facts = {first + second: number for first, second, number in TOLD.findall(text)}
        asked = "".join(text.split()[-2:]).removesuffix("=")
        assert len(ids) + 2 == 100 and len(facts) == 4 and facts[asked] == value
        assert {tuple(name) for name in [(asked[:2], asked[2:])]} <= set(names(held_out=True))
        places.append(text.index(f"={value}."))
    assert places[0] < 40 and places[-1] > 250 and places == sorted(places)
    assert trials == fact_trials(tokenizer, 100, 20, 7, [" ".join(WORDS)], distractors=3)


def test_what_is_found_is_counted_by_depth() -> None:
    trials = fact_trials(SYLLABIC, 200, 25, 3, [" ".join(WORDS)], distractors=2)
    everywhere = find_needles(reader(400), trials, 2)
    assert everywhere == {"found": 25, "of": 25, "cut": 0, "by_depth": [5, 5, 5, 5, 5]}
    near = find_needles(reader(90), trials, 2)
    assert near["by_depth"][0] == 0 and near["by_depth"][-1] == 5
    assert near["found"] == sum(near["by_depth"]) < 15


def test_a_tokenizer_that_splits_syllables_makes_another_task_and_is_refused() -> None:
    class Letters(Syllables):
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

    letters: Any = Letters()
    with pytest.raises(ValueError, match=r"is 10 tokens, .* not six: train the tokenizer"):
        fact_trials(letters, 100, 2, 1, ["some text"], 1)
    with pytest.raises(ValueError, match="hold no word"):
        fact_trials(SYLLABIC, 100, 2, 1, ["  "], 1)
    with pytest.raises(ValueError, match="too short for 3 facts and a question"):
        fact_trials(SYLLABIC, 20, 2, 1, ["word1"], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts_range": (3, 2)}, "the least and the most facts"),
        ({"num_names": 2, "facts_range": (3, 3)}, "2 names for 3 facts a document"),
        ({"gap_words": ()}, "give numbers of words"),
    ],
)
def test_documents_that_cannot_be_made_are_refused(change, message) -> None:
    fields = {"count": 2, "seed": 1, "facts_range": (1, 2), "gap_words": (1,), "chars": 50}
    with pytest.raises(ValueError, match=message):
        list(generate_facts(**{**fields, "running_words": WORDS, **change}))


def test_a_source_of_facts_is_these_documents_with_words_of_the_standard_library() -> None:
    how: dict[str, Any] = {"count": 3, "facts_range": (1, 2), "gap_words": (9,), "chars": 200}
    source = FactSource(name="facts", domain="knowledge", **how)
    texts = [document.text for document in source.documents(None, Reading())]
    assert len(set(texts)) == 3 and all(TOLD.search(text) for text in texts)
    with pytest.raises(ValueError, match="chars is 0; it must be at least 1"):
        FactSource(name="facts", domain="knowledge", **{**how, "chars": 0})


def test_facts_of_one_document_have_different_names() -> None:
    facts = draw_facts(Random(1), 60, names(held_out=True))
    assert len({(fact.first, fact.second) for fact in facts}) == 60


def test_needles_are_searched_with_the_models_that_are_named_or_with_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage, searched = importlib.import_module("pocketlm.stages.evaluate"), {}

    def measure(config: Any, path: Path, *rest: object, needles: bool) -> dict[str, Any]:
        searched[path.name] = needles
        return {"suites": {}}

    monkeypatch.setattr(stage, "measure", measure)
    models = [tmp_path / name for name in ("a", "b")]
    for model in models:
        model.mkdir()
    config = EvaluateConfig(name="needles", suites=(), needle_tokens=(64,), needle_labels=("b",))
    out = tmp_path / "out"
    out.mkdir()
    wanted_by_labels = ((("b",), (False, True)), ((), (True, True)))
    for labels, wanted in wanted_by_labels:
        shutil.rmtree(out)
        (out / "transcripts").mkdir(parents=True)
        stage.evaluate(replace(config, needle_labels=labels), out, models=models, corpus=tmp_path)
        assert tuple(searched.values()) == wanted
    with pytest.raises(ValueError, match=r"needles.needle_labels: c is none of a, b"):
        stage.evaluate(replace(config, needle_labels=("c",)), out, models=models, corpus=tmp_path)
