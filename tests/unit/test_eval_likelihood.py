"""Log-likelihoods: the same whatever is shared, batched or shortened, and by lm-eval's cut."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.eval.harness import run_suite
from pocketlm.eval.likelihood import encoded_pairs, shortened
from pocketlm.eval.scorers import bits_per_byte, multiple_choice
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.eval.suites.suite import Problem
from pocketlm.inference.continuations import Scored, Tree
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import teach_chat_template, train_tokenizer
from pocketlm.model.transformer import Transformer

SENTENCE = "the rain falls on the road and the cat sits by the door in the sun all day"
WORDS = SENTENCE.split()
TOLERANCE = 2e-5  # nats, float32, sums over up to ten tokens (docs/numerics.md)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 3, 290)


def network(vocab_size: int, window: int | None) -> Transformer:
    torch.manual_seed(3)
    return Transformer(
        small(
            vocab_size=vocab_size,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=96,
            initializer_range=0.3,
            layer_types=()
            if window is None
            else ("sliding_attention", "full_attention", "sliding_attention"),
            sliding_window=window,
        )
    )


@pytest.fixture(scope="module", params=[None, 4], ids=["global layers", "a window of 4"])
def model(request, tokenizer) -> LanguageModel:
    return LanguageModel(network(tokenizer.vocab_size, request.param), tokenizer)


def expected(model: LanguageModel, context: list[int], ids: list[int]) -> Scored:
    """From one forward pass of the whole text, by torch's own log_softmax."""
    whole = torch.tensor([context + ids])
    with torch.no_grad():
        log_probs = torch.log_softmax(model.model(whole)[0].double(), -1)
    places = range(len(context) - 1, whole.shape[1] - 1)
    nats = sum(log_probs[place, token].item() for place, token in zip(places, ids, strict=True))
    greedy = all(
        log_probs[place].argmax() == token for place, token in zip(places, ids, strict=True)
    )
    return Scored(nats, greedy)


def assert_scored(found: list[Scored], wanted: list[Scored]) -> None:
    assert [pair.log_prob for pair in found] == pytest.approx(
        [pair.log_prob for pair in wanted], abs=TOLERANCE
    )
    assert [pair.greedy for pair in found] == [pair.greedy for pair in wanted]


def random_problems(seed: int, shared: list[int]) -> list[list[tuple[list[int], list[int]]]]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(3, 280, rng.integers(low, high)).tolist()

    problems = []
    for number in range(7):
        context = [*shared, *ids(1, 20)]
        pairs = [(context, ids(1, 8)) for _ in range(4)]
        if number == 2:  # one token each: the four share one pass
            pairs = [(context, [token]) for token in (5, 6, 7, 8)]
        if number == 4:  # a context for each choice
            pairs = [([*context, *ids(1, 3)], [9, 8, 7]) for _ in range(2)]
        problems.append(pairs)
    return problems


@pytest.mark.parametrize("shared", [[], [9, 4, 7, 11, 30, 2, 8]], ids=["no shots", "shots"])
@pytest.mark.parametrize("pass_ids", [512, 40, 8], ids=["one pass", "several", "many"])
def test_sums_are_those_of_one_pass_over_each_whole_text(model, shared, pass_ids, monkeypatch):
    monkeypatch.setattr("pocketlm.inference.continuations.PASS_IDS", pass_ids)
    monkeypatch.setattr("pocketlm.inference.continuations.PART_IDS", pass_ids)
    for seed in range(3):
        problems = random_problems(seed, shared)
        problems[5][0] = likeliest(model, problems[5][0][0])
        score = model.scorer()
        found = score(problems, shared)
        for pairs, scored in zip(problems, found, strict=True):
            assert_scored(scored, [expected(model, context, ids) for context, ids in pairs])
        assert found[5][0].greedy
        # from the kept beginning; and what was kept of another is not taken for it
        again = score(problems[:3], shared)
        for scored, before in zip(again, found[:3], strict=True):
            assert_scored(scored, before)
        other = random_problems(seed, [5, *shared])
        for pairs, scored in zip(other, score(other, [5, *shared]), strict=True):
            assert_scored(scored, [expected(model, context, ids) for context, ids in pairs])


def likeliest(model: LanguageModel, context: list[int]) -> tuple[list[int], list[int]]:
    """A continuation whose every id is the likeliest."""
    return context, model.generate([context], max_new_tokens=3, stop_ids=set())[0]


def test_what_texts_have_in_common_is_one_branch():
    pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [4, 6]), ([1, 2], [3, 4, 7]), ([1, 9], [9])]
    tree = Tree.of(pairs, shared=1)
    assert tree.ids == [2, 3, 4, 9] and tree.parents == [-1, 0, 1, -1]
    assert tree.depths == [0, 1, 2, 0]
    # 2 predicts 3, 3 predicts 4, 4 predicts 5, 6 and 7
    assert tree.queried == [0, 1, 2, 3]
    assert tree.targets == [[(1, 4), (2, 5)], [(1, 4), (2, 6)], [(0, 3), (1, 4), (2, 7)], [(3, 9)]]
    assert tree.rows() == [[0, 1, 2], [3]]
    seen = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert tree.sees().astype(int).tolist() == seen


def test_a_problem_of_many_choices_is_scored_in_parts(model, monkeypatch):
    monkeypatch.setattr("pocketlm.inference.continuations.PAIRS", 5)
    context = [7, 3, 9]
    problems = [[(context, [token, token + 1]) for token in range(20, 33)], [([4, 5], [6])]]
    for pairs, scored in zip(problems, model.scorer()(problems, []), strict=True):
        assert_scored(scored, [expected(model, context, ids) for context, ids in pairs])


def test_a_context_of_one_token_and_one_as_long_as_the_model_are_scored(model):
    longest = [3] * (model.max_length - 1)
    problems = [[([5], [6, 7]), ([5], [8])], [(longest, [4, 9])]]
    found = model.scorer()(problems, [])
    assert_scored(found[0], [expected(model, context, ids) for context, ids in problems[0]])
    assert np.isfinite(found[1][0].log_prob)


def test_what_is_too_long_loses_its_beginning_as_in_lm_eval():
    """lm-eval: (context + continuation)[-(max_length + 1):], the last id not read."""
    assert shortened(([1, 2, 3, 4], [5, 6]), 5) == ([1, 2, 3, 4], [5, 6])
    assert shortened(([1, 2, 3, 4], [5, 6]), 4) == ([2, 3, 4], [5, 6])
    assert shortened(([1, 2, 3], [4, 5, 6, 7]), 3) == ([4], [5, 6, 7])


def test_both_are_encoded_together_and_cut_after_the_contexts_own_ids(tokenizer):
    """The rule of lm-eval's `_encode_pair`, written out."""
    texts = [("the rain ", "falls"), ("the cat", " sits by"), ("the", " door"), ("", "the road")]
    pairs = encoded_pairs(tokenizer, texts, "document")
    for (context, rest), (before, ids) in zip(texts, pairs, strict=True):
        whole = tokenizer.encode(context + rest)
        assert [*before, *ids] == [tokenizer.bos_id, *whole]  # one bos, once
        if context:
            assert len(before) == 1 + len(tokenizer.encode(context.rstrip()))
    assert tokenizer.decode(pairs[0][1]) == " falls"  # the space went over
    without = encoded_pairs(tokenizer, texts, "tokenizer")
    assert without[1] == (pairs[1][0][1:], pairs[1][1])
    assert without[3][0] == [tokenizer.eos_id]  # something must predict the first id


def test_where_one_id_spans_the_join_it_is_the_continuation(tokenizer):
    context, rest = "the ra", "in"
    assert len(tokenizer.encode(context + rest)) < len(tokenizer.encode(context)) + 1
    ((before, ids),) = encoded_pairs(tokenizer, [(context, rest)], "document")
    assert [*before[1:], *ids] == tokenizer.encode(context + rest) and len(ids) == 1


def choices(count: int) -> list[Problem]:
    rng = np.random.default_rng(1)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS, words))

    problems = []
    for number in range(count):
        answers = tuple(text(int(rng.integers(1, 4))) for _ in range(3))
        problems.append(
            Problem(
                id=str(number),
                family=f"family {number % 2}",
                prompt=text(int(rng.integers(2, 9))),
                answer=answers[number % 3],
                choices=answers,
                gold=number % 3,
            )
        )
    return problems


@pytest.mark.parametrize("shots", [0, 2])
def test_a_suite_of_choices_scores_each_by_the_whole_text(model, monkeypatch, shots):
    monkeypatch.setattr("pocketlm.eval.harness.ROW_TOKENS", 150)  # several batches
    problems, examples = choices(12), choices(2)
    suite = replace(
        SUITES["arc_easy"], shots=shots, shots_by_family=True, prompt_format="Q: {prompt}\nA:"
    )
    by_family = {f"family {n}": examples[:shots] for n in range(2)}
    rows = run_suite(model, suite, problems, by_family)
    before = "".join(f"Q: {shot.prompt}\nA: {shot.answer}\n\n" for shot in examples[:shots])
    encode, start = model.tokenizer.encode, model.tokenizer.document_start
    for problem, row in zip(problems, rows, strict=True):
        context = f"{before}Q: {problem.prompt}\nA:"
        sums = [
            expected(
                model,
                [*start, *encode(context)],
                encode(f"{context} {choice}")[len(encode(context)) :],
            ).log_prob
            for choice in problem.choices
        ]
        if not row["truncated"]:
            assert row["log_probs"] == pytest.approx(sums, abs=TOLERANCE)
        assert len(row["ids"]) == 8
        assert row["scores"] == multiple_choice(problem, row["log_probs"])
        assert row["correct"] == (row["scores"]["acc"] == 1.0)


def test_of_a_chat_model_the_answer_is_the_assistants_turn(model):
    tokenizer = copy.deepcopy(model.tokenizer)
    teach_chat_template(tokenizer)
    chat = LanguageModel(network(tokenizer.vocab_size, None), tokenizer)
    problems = [replace(problem, answer="the sun") for problem in choices(3)]
    suite = replace(SUITES["pocket.solutions"], name="three")
    rows = run_suite(chat, suite, problems)
    for problem, row in zip(problems, rows, strict=True):
        asked = [{"role": "user", "content": problem.prompt}]
        before = tokenizer.encode_chat(asked, add_generation_prompt=True)
        turns = [*asked, {"role": "assistant", "content": problem.answer}]
        whole = tokenizer.encode_chat(turns, add_generation_prompt=False)
        nats = -row["scores"]["bits_per_byte"] * row["weight"] * np.log(2)
        wanted = expected(chat, before, whole[len(before) :]).log_prob
        assert nats == pytest.approx(wanted, abs=TOLERANCE)
    # a base model has no turns
    assert run_suite(model, suite, problems)[0]["request"] != rows[0]["request"]


def test_bits_per_byte_of_the_right_answer_are_weighed_by_its_bytes(model):
    problems = choices(5)
    suite = replace(
        SUITES["arc_easy"], kind="bits_per_byte", scorer=bits_per_byte, metric="bits_per_byte"
    )
    rows = run_suite(model, suite, problems)
    compared = run_suite(model, SUITES["arc_easy"], problems)
    for problem, row, other in zip(problems, rows, compared, strict=True):
        assert row["weight"] == len(problem.answer) + 1 and "correct" not in row
        nats = -row["scores"]["bits_per_byte"] * row["weight"] * np.log(2)
        assert nats == pytest.approx(other["log_probs"][problem.gold], abs=TOLERANCE)
