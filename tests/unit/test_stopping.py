"""Answers end at stop strings, wherever in tokens and characters these begin: against a search of
the whole text.
"""

from pathlib import Path
from random import Random

import pytest
from shapes import small

from pocketlm.export.gguf import write_gguf
from pocketlm.export.pte import write_pte
from pocketlm.inference.executorch import PteModel
from pocketlm.inference.llamacpp import GgufModel
from pocketlm.inference.stop_strings import StopMatcher, before_stop, text_pieces
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

TEXT = "the quick brown fox jumps over the lazy dog, in the end; naïve ☃ and 🦊 \nQuestion: what?\n"
CONFIG = small(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=96,
    initializer_range=0.3,
)
PROMPTS = [[40, 41, 42], [77], [5, 90, 120, 200, 7, 8, 9]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 8, 300)


def first_stop(text: str, stops: tuple[str, ...]) -> str:
    """Character by character, until one of the strings is complete: the reference."""
    for end in range(1, len(text) + 1):
        if complete := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, complete))]
    return text


def some_stops(text: str, random: Random) -> tuple[str, ...]:
    """Pieces of the text, pieces with another end, and strings that are not there."""
    stops = []
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(text))
        piece = text[start : start + random.randint(1, 9)]
        stops.append(
            random.choice(
                (piece, piece + "x", piece[:-1] + "q" if len(piece) > 1 else piece, "never")
            )
        )
    return tuple(stops)


def cases(tokenizer: Tokenizer, count: int) -> list[tuple[list[int], tuple[str, ...]]]:
    """Random ids (bytes that are no characters too), texts in tokens, and texts in single bytes;
    with stop strings.
    """
    random, found = Random(1), []
    single = [
        next(i for i in range(300) if tokenizer.backend.id_to_token(i) == c)
        for c in byte_tokens(tokenizer)
    ]
    for n in range(count):
        text = "".join(
            random.choice(TEXT.split(" ")) + random.choice((" ", "", "☃", "🦊", "é"))
            for _ in range(8)
        )
        if n % 3 == 0:
            ids = [random.randrange(300) for _ in range(random.randint(1, 40))]
        elif n % 3 == 1:
            ids = tokenizer.encode(text)
        else:
            ids = [single[byte] for byte in text.encode()]
        found.append((ids, some_stops(tokenizer.decode(ids) or "a", random)))
    return found


def byte_tokens(tokenizer: Tokenizer) -> list[str]:
    """The token of each byte, in the byte-level alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + other.index(byte)) for byte in range(256)]


def test_pieces_of_text_are_the_whole_text_up_to_the_first_stop_string(tokenizer):
    cut = characters = 0
    for ids, stops in cases(tokenizer, 3000):
        whole = tokenizer.decode(ids)
        expected = first_stop(whole, stops)
        assert before_stop(whole, stops) == expected
        pieces = list(text_pieces(ids, tokenizer, stops))
        assert "".join(pieces) == expected and "" not in pieces
        cut += expected != whole
        characters += "☃" in whole and "☃" in "".join(stops)
    assert cut > 500 and characters > 50


def ids_to_stop(ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> list[int]:
    """The ids up to the one that completes a stop string, as a runtime's loop ends them."""
    matcher = StopMatcher(tokenizer, stops)
    end = next((n for n, token in enumerate(ids) if matcher.reached(token)), len(ids))
    return ids[: end + 1]


def test_ids_end_with_the_one_that_completes_a_stop_string(tokenizer):
    """At the first id with which the whole text so far holds a stop string, whole characters
    only.
    """
    for ids, stops in cases(tokenizer, 1500):
        texts = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
        reference = [
            n for n, text in enumerate(texts) if any(s in text.rstrip("\ufffd") for s in stops)
        ]
        if any("\ufffd" in stop for stop in stops):
            continue
        expected = ids[: reference[0] + 1] if reference else ids
        assert ids_to_stop(ids, tokenizer, stops) == expected


def test_nothing_after_a_stop_string_is_asked_for(tokenizer):
    asked: list[int] = []
    ids = tokenizer.encode("one two END three four")
    answer = text_pieces((asked.append(i) or i for i in ids), tokenizer, ("END",))
    assert "".join(answer) == "one two " and "three" not in tokenizer.decode(asked)


def test_only_what_may_begin_a_stop_string_waits(tokenizer):
    ending = StopMatcher(tokenizer, ("abc", "bd"))
    shown = [ending.add(i) for i in (tokenizer.encode(c)[0] for c in "xabaabd")]
    assert shown == ["x", "", "", "ab", "a", "", "a"] and ending.stopped


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopMatcher(tokenizer, ("a", ""))


@pytest.mark.parametrize("runtime", ["checkpoint", "gguf", "pte"])
def test_every_runtime_ends_its_answers_there(runtime, tokenizer, tmp_path: Path):
    network = Transformer(CONFIG, seed=3)
    if runtime == "gguf":
        write_gguf(network, tokenizer, tmp_path / "model.gguf", dtype="f32")
        model = GgufModel(tmp_path / "model.gguf", cache_type="f32")
    elif runtime == "pte":
        model = PteModel(write_pte(network, tokenizer, tmp_path / "model.pte", context_length=96))
    else:
        model = LanguageModel(network, tokenizer)
    options = {"max_new_tokens": 24, "stop_ids": set()}
    free = model.generate(PROMPTS, **options)
    random, ended = Random(2), set()
    for _ in range(12):
        texts = [tokenizer.decode(ids) for ids in free]
        pieces = [
            t[i : i + n]
            for t in texts
            for n in (2, 3, 4)
            for i in range(len(t))
            if "\ufffd" not in t[i : i + n]
        ]
        stops = tuple(random.sample(pieces, 2))
        expected = [ids_to_stop(ids, tokenizer, stops) for ids in free]
        assert model.generate(PROMPTS, stop_strings=stops, **options) == expected
        texts = [
            "".join(text_pieces(model.stream(p, **options), tokenizer, stops)) for p in PROMPTS
        ]
        assert texts == [first_stop(tokenizer.decode(ids), stops) for ids in free]
        ended |= {len(ids) for ids in expected}
    assert len(ended) > 3
    model.close()
