"""Encoding by remembered pieces gives the ids of encoding whole texts, for every splitter it knows
and for any text.
"""

from random import Random

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from pocketlm.data import encoding
from pocketlm.data.encoding import GPT2, LLAMA3, encode_documents, pieces_of
from pocketlm.model.tokenizer import END_OF_TEXT, TURN_END, TURN_START, Tokenizer, train_tokenizer

SPACES = "\t\n\x0b\x0c\r \x1c\x1f\x85\xa0\u1680\u2003\u2028\u200b\u3000"
LETTERS = "abcxyzABC" * 6 + "äßñçЖ漢字한あ\u0301ªº"
REST = (
    "0123456789²½٣Ⅷ" + "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "'" * 6 + "«—…€😀\u200d\ufe0f\x00\x7f"
)
PIECES = [" "] * 12 + [
    "\n",
    "\n",
    "  ",
    "\n\n",
    "    ",
    "'s",
    "'LL",
    "n't",
    "\r\n",
    " 1",
    "\n1",
    " ½",
    *SPACES,
    *LETTERS,
    *REST,
]


def drawn_texts(count: int, seed: int = 0) -> list[str]:
    draw = Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(60))) for _ in range(count)]


def built(*steps: pre_tokenizers.PreTokenizer) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(drawn_texts(2000, seed=1), trainer)
    return Tokenizer(backend)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
KNOWN = {
    "ours": lambda: train_tokenizer(drawn_texts(2000, seed=1), 700),
    "gpt2": lambda: built(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)),
    "gpt2, split": lambda: built(split(GPT2), BYTES),
    "llama3": lambda: built(split(LLAMA3), BYTES),
    "llama3, digits": lambda: built(
        pre_tokenizers.Digits(individual_digits=True), split(LLAMA3), BYTES
    ),
}
UNKNOWN = {
    "a space before": lambda: built(
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    ),
    "another splitter": lambda: built(split(r"\w+|\W"), BYTES),
    "two splitters": lambda: built(
        split(GPT2), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    ),
}


def with_word(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.backend.add_tokens(["b c"])
    return tokenizer


UNKNOWN["a word found first"] = lambda: with_word(KNOWN["gpt2"]())


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_documents_have_the_ids_of_their_whole_texts(name, monkeypatch):
    tokenizer = (KNOWN | UNKNOWN)[name]()
    assert (pieces_of(tokenizer) is not None) == (name in KNOWN)
    monkeypatch.setattr(encoding, "TEXTS_AT_ONCE", 700)
    monkeypatch.setattr(encoding, "KNOWN_WORDS", 2000)  # so that they are forgotten now and then
    texts = [*drawn_texts(4000), "", " ", END_OF_TEXT, f"a{TURN_END} b"]
    expected = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
    found = list(encode_documents(iter(texts), tokenizer))
    wrong = [
        text for text, own, ids in zip(texts, found, expected, strict=True) if own.tolist() != ids
    ]
    assert not wrong
    assert {ids.dtype for ids in found} == {np.dtype(np.uint16)}


@pytest.mark.parametrize("name", KNOWN)
def test_pieces_lose_no_character(name):
    cut = pieces_of(KNOWN[name]())
    assert cut is not None
    for text in drawn_texts(1000, seed=2):
        assert "".join(cut(text)) == text
