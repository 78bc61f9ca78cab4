"""Bits per byte, needles and speed, on models whose numbers follow by hand."""

import time
from itertools import islice

import numpy as np
import pytest

from pocketlm.corpus.recall_notes import FILLER, draw_notes
from pocketlm.eval.latency import measure_speed
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.eval.retrieval import ANSWER_TOKENS, find_needles, needle_trials
from pocketlm.model.tokenizer import CHATML, train_tokenizer
from tests.unit.silent_runtime import SilentRuntime

TEXT = "the cat sat on the mat. the dog sat on the cat. "
NOTES = list(islice(draw_notes(1, held_out=True), 20))


@pytest.fixture()
def tokenizer():
    return train_tokenizer([TEXT, *FILLER, *(f"{n['note']} {n['question']}" for n in NOTES)], 320)


class Uniform(SilentRuntime):
    """Every token is equally likely, whatever came before."""

    def __init__(self, tokenizer, max_length=64):
        self.tokenizer, self.max_length = tokenizer, max_length

    def log_probs(self, ids):
        assert len(ids) <= self.max_length
        return np.full(len(ids) - 1, -np.log(self.tokenizer.vocab_size), dtype=np.float32)


class Remembering(Uniform):
    """Log-probabilities that say where in its window a token stood: -1 for the second, and so
    on.
    """

    def log_probs(self, ids):
        assert len(ids) <= self.max_length
        return -np.arange(1, len(ids), dtype=np.float32)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token(tokenizer):
    documents = [TEXT * 9, "the cat", "été"]
    tokens = sum(len(tokenizer.encode(d)) for d in documents)
    expected = tokens * np.log2(tokenizer.vocab_size) / sum(len(d.encode()) for d in documents)
    for window in (2, 3, 16, 64):
        assert bits_per_byte(Uniform(tokenizer), documents, window) == pytest.approx(expected)


class WithoutStart:
    """A tokenizer that offers nothing to begin a document with."""

    document_start: tuple[int, ...] = ()

    def __init__(self, tokenizer):
        self.encode, self.decode, self.vocab_size = (
            tokenizer.encode,
            tokenizer.decode,
            tokenizer.vocab_size,
        )


def test_without_a_document_start_the_first_token_is_given_and_its_bytes_do_not_count(tokenizer):
    ids = tokenizer.encode(TEXT)
    rest = len(TEXT.encode()) - len(tokenizer.decode(ids[:1]).encode())
    found = bits_per_byte(Uniform(WithoutStart(tokenizer)), [TEXT], 64)
    assert found == pytest.approx((len(ids) - 1) * np.log2(tokenizer.vocab_size) / rest)
    with pytest.raises(ValueError, match="each document is one token"):
        bits_per_byte(Uniform(WithoutStart(tokenizer)), [tokenizer.decode(ids[:1])], 64)


def test_tokens_past_the_first_window_see_at_least_half_a_window(tokenizer):
    document = TEXT * 3
    predicted = len(tokenizer.encode(document))
    window, costs = 16, []
    while len(costs) < predicted:  # the first window counts 1 to 15, each later one 8 to 15
        costs += range(8 if costs else 1, window)
    expected = sum(costs[:predicted]) / np.log(2) / len(document.encode())
    assert bits_per_byte(Remembering(tokenizer), [document], window) == pytest.approx(expected)


def test_bits_per_byte_refuses_no_text_and_windows_the_model_does_not_have(tokenizer):
    with pytest.raises(ValueError, match="no text"):
        bits_per_byte(Uniform(tokenizer), [""], 16)
    for window in (1, 65):
        with pytest.raises(ValueError, match=f"window {window}: give 2 to 64"):
            bits_per_byte(Uniform(tokenizer), [TEXT], window)


class Reader(SilentRuntime):
    """Finds the note in its prompt, when `sees` says it may, and answers with its value."""

    def __init__(self, tokenizer, sees=lambda text, place: True):
        self.tokenizer, self.sees = tokenizer, sees

    def generate(self, prompts, *, max_new_tokens, stop_ids, **options):
        return [self.answer(prompt)[:max_new_tokens] for prompt in prompts]

    def answer(self, prompt):
        text = self.tokenizer.decode(prompt)
        place = text.index("Note: ")
        name, value = text[place:].split(".")[0].split(" is ")
        assert text.rindex(f"What is {name.removeprefix('Note: ')}?") > place
        answer = f" {value}" if self.sees(text, place) else " 0000"
        return self.tokenizer.encode(answer)


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("context", [80, 256, 500])
def test_needle_prompts_fill_the_context_and_never_exceed_it(tokenizer, template, context):
    tokenizer.chat_template = template
    trials = needle_trials(tokenizer, context, 9, 0, FILLER, NOTES)
    assert len(trials) == 9
    longest = max(len(tokenizer.encode(" " + sentence)) for sentence in FILLER)
    for ids, answer in trials:
        assert len(tokenizer.encode(f"The code of a name is {answer}.")) <= ANSWER_TOKENS
        total = len(ids) + ANSWER_TOKENS
        assert context - longest - 1 <= total <= context
    assert find_needles(Reader(tokenizer), trials) == {
        **{"found": 9, "of": 9, "cut": 0},
        "by_depth": [1, 2, 2, 2, 2],
    }


def test_depths_spread_from_the_start_to_the_end(tokenizer):
    trials = needle_trials(tokenizer, 400, 11, 0, FILLER, NOTES)
    texts = [tokenizer.decode(ids) for ids, _ in trials]
    depths = [text.index("Note: ") / text.index("\nQuestion:") for text in texts]
    assert depths == sorted(depths)
    assert depths[0] == 0.0
    assert depths[-1] > 0.9
    assert len(set(texts)) == 11
    half_blind = Reader(tokenizer, sees=lambda text, place: place > len(text) / 2)
    assert 4 <= find_needles(half_blind, trials)["found"] <= 6


def test_answers_that_go_on_without_the_value_are_counted(tokenizer):
    class Talker(Reader):
        def answer(self, prompt):
            value = super().answer(prompt)
            long = self.tokenizer.encode(" well " * ANSWER_TOKENS)
            return value if self.sees(self.tokenizer.decode(prompt), 0) else long

    trials = needle_trials(tokenizer, 200, 6, 3, FILLER, NOTES)
    asked = iter(range(100))
    talker = Talker(tokenizer, sees=lambda text, place: next(asked) // 2 % 2 == 0)
    assert find_needles(talker, trials) == {
        **{"found": 3, "of": 6, "cut": 3},
        "by_depth": [1, 0, 1, 0, 1],
    }


def test_the_same_seed_gives_the_same_trials(tokenizer):
    first = needle_trials(tokenizer, 200, 4, 3, FILLER, NOTES)
    assert first == needle_trials(tokenizer, 200, 4, 3, FILLER, NOTES)
    assert first != needle_trials(tokenizer, 200, 4, 4, FILLER, NOTES)


def test_too_little_context_filler_or_notes_is_refused(tokenizer):
    with pytest.raises(ValueError, match="context_tokens 20 is too short"):
        needle_trials(tokenizer, 20, 1, 0, FILLER, NOTES)
    with pytest.raises(ValueError, match="filler"):
        needle_trials(tokenizer, 200, 1, 0, ["\n"], NOTES)
    with pytest.raises(ValueError, match="2 notes for 3 trials"):
        needle_trials(tokenizer, 200, 3, 0, FILLER, NOTES[:2])


class Clock(SilentRuntime):
    """Streams a token every 10 ms after 40 ms of prefill."""

    max_length = 64

    def __init__(self, tokenizer, given=None):
        self.tokenizer, self.given, self.prompts = tokenizer, given, []

    def stream(self, prompt, *, max_new_tokens, stop_ids, **options):
        assert stop_ids == set()
        self.prompts.append(len(prompt))
        time.sleep(0.03)
        for _ in range(self.given or max_new_tokens):
            time.sleep(0.01)
            yield 5


def test_speed_is_what_the_clock_says(tokenizer):
    model = Clock(tokenizer)
    speed = measure_speed(model, prompt_tokens=20, new_tokens=5, repeats=3)
    assert model.prompts == [20] * 4
    assert 0.04 <= speed["time_to_first_token_seconds"] < 0.2
    assert speed["prefill_tokens_per_second"] == pytest.approx(
        20 / speed["time_to_first_token_seconds"]
    )
    assert 20 < speed["decode_tokens_per_second"] <= 100


def test_speed_refuses_what_it_cannot_measure(tokenizer):
    with pytest.raises(ValueError, match="exceed the model's 64"):
        measure_speed(Clock(tokenizer), 60, 5, 1)
    with pytest.raises(ValueError, match="at least"):
        measure_speed(Clock(tokenizer), 4, 1, 1)
    with pytest.raises(ValueError, match="gave 2 of 5 tokens"):
        measure_speed(Clock(tokenizer, given=2), 4, 5, 1)
