"""Log-likelihoods: the same whatever is shared, batched or shortened, and by lm-eval's cut."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.eval.harness import run_suite
from pocketlm.eval.likelihood import encoded_pairs, scorer_of, shortened
from pocketlm.eval.scorers import bits_per_byte, multiple_choice
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.eval.suites.suite import Problem
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import teach_chat_template, train_tokenizer
from pocketlm.model.transformer import Transformer
from tests.unit.silent_runtime import SilentRuntime

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


class Plain(SilentRuntime):
    """The same model, of which only `logits` of one text can be asked."""

    def __init__(self, model: LanguageModel) -> None:
        self.tokenizer, self.max_length, self.logits = (
            model.tokenizer,
            model.max_length,
            model.logits,
        )


def expected(model: LanguageModel, context: list[int], ids: list[int]) -> float:
    """From one forward pass of the whole text, by torch's own log_softmax."""
    whole = torch.tensor([context + ids])
    with torch.no_grad():
        log_probs = torch.log_softmax(model.model(whole)[0].double(), -1)
    places = range(len(context) - 1, whole.shape[1] - 1)
    return sum(log_probs[place, token].item() for place, token in zip(places, ids, strict=True))


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
def test_sums_are_those_of_one_pass_over_each_whole_text(model, shared):
    for seed in range(3):
        problems = random_problems(seed, shared)
        score = scorer_of(model)
        found = score(problems, shared)
        again = score(problems[:3], shared)  # from the kept cache of the shots
        plain = scorer_of(Plain(model))(problems, shared)
        for pairs, sums, others in zip(problems, found, plain, strict=True):
            wanted = [expected(model, context, ids) for context, ids in pairs]
            assert sums == pytest.approx(wanted, abs=TOLERANCE)
            assert others == pytest.approx(wanted, abs=TOLERANCE)
        assert again == [pytest.approx(sums, abs=TOLERANCE) for sums in found[:3]]


def test_a_context_of_one_token_and_one_as_long_as_the_model_are_scored(model):
    longest = [3] * (model.max_length - 1)
    problems = [[([5], [6, 7]), ([5], [8])], [(longest, [4, 9])]]
    found = scorer_of(model)(problems, [])
    for pairs, sums in zip(problems, found, strict=True):
        wanted = [expected(model, context, ids) for context, ids in pairs if len(context) < 9]
        if wanted:
            assert sums == pytest.approx(wanted, abs=TOLERANCE)
    assert np.isfinite(found[1]).all()


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
            )
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
        assert nats == pytest.approx(expected(chat, before, whole[len(before) :]), abs=TOLERANCE)
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
