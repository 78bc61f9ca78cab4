"""A .gguf has each word at its own id, and a tokenizer that it cannot hold is refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers

from pocketlm.export.gguf import write_gguf
from pocketlm.export.gguf_vocab import Vocabulary, vocabulary_of
from pocketlm.inference.gguf_tokens import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from pocketlm.model.tokenizer import Tokenizer
from tests.unit.tokenizer_kinds import (
    NAMES,
    TURN,
    TURN_END,
    byte_level,
    sentencepiece,
    tiny,
    unigram,
    with_gap,
)


def types_of(vocabulary: Vocabulary) -> dict[str, int]:
    return dict(zip(vocabulary.tokens, vocabulary.types, strict=True))


def test_words_beyond_a_gap_stay_at_their_ids_and_unused_ids_get_names() -> None:
    vocabulary = vocabulary_of(with_gap(), 320)
    assert len(vocabulary.tokens) == 320 and len(set(vocabulary.tokens)) == 320
    assert vocabulary.tokens[310:312] == [TURN, TURN_END] and vocabulary.types[310:312] == [
        CONTROL,
        CONTROL,
    ]
    assert vocabulary.tokens[309] == "<|unused_309|>"
    words = set(with_gap().backend.get_vocab().values())
    assert {i for i, kind in enumerate(vocabulary.types) if kind == UNUSED} == set(
        range(320)
    ) - words


def test_a_name_for_an_unused_id_is_no_word_of_the_tokenizer() -> None:
    content = json.loads(with_gap().backend.to_str())
    content["model"]["vocab"]["<|unused_305|>"] = 300
    made = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    tokens = vocabulary_of(made, 320).tokens
    assert (
        tokens[300] == "<|unused_305|>"
        and tokens[305] == "<<|unused_305|>>"
        and len(set(tokens)) == 320
    )


def test_types_are_what_the_tokenizer_says() -> None:
    found = types_of(vocabulary_of(byte_level(), 705))
    assert (
        found["<|im_end|>"] == CONTROL
        and found["<tool_call>"] == USER_DEFINED
        and found["a"] == NORMAL
    )
    found = types_of(vocabulary_of(sentencepiece(), 520))
    assert [found[word] for word in ("<unk>", "<s>", "</s>", "a")] == [
        UNKNOWN,
        CONTROL,
        CONTROL,
        NORMAL,
    ]
    assert all(found[word] == BYTE for word in BYTES)


def test_scores_fall_in_the_order_of_merges() -> None:
    vocabulary = vocabulary_of(sentencepiece(), 500)
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    merges = json.loads(sentencepiece().backend.to_str())["model"]["merges"]
    made = [score[left + right] for left, right in merges]
    assert made[0] == 0.0 and made == sorted(made, reverse=True)


def test_a_tokenizer_without_a_beginning_is_written_without_its_key(tmp_path: Path) -> None:
    tokenizer = byte_level(bos_token=None)
    path = write_gguf(tiny(tokenizer.vocab_size), tokenizer, tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(path).fields
    assert "tokenizer.ggml.bos_token_id" not in fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_words_that_no_merge_makes_are_only_written_where_the_rule_makes_no_difference() -> None:
    """Llama 3's rule takes them whole, DBRX's merges; a vocabulary whose merges make every word is
    the same to both.
    """
    content = json.loads(byte_level("llama-bpe").backend.to_str())
    content["model"]["vocab"]["Zebra"] = 750
    whole = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    assert vocabulary_of(whole, 760).pre == "llama-bpe"
    content["model"]["ignore_merges"] = False
    assert (
        vocabulary_of(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content))), 760).pre
        == "dbrx"
    )
    content = json.loads(byte_level("qwen2").backend.to_str())
    content["model"]["ignore_merges"] = True  # no name of llama.cpp's says both
    assert (
        vocabulary_of(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content))), 760).pre
        == "qwen2"
    )
    content["model"]["vocab"]["Zebra"] = 750
    with pytest.raises(
        ValueError,
        match=r"takes a word that is a token whole, and llama\.cpp's 'qwen2' does otherwise",
    ):
        vocabulary_of(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content))), 760)


def changed(
    tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None], **names: Any
) -> Tokenizer:
    content = json.loads(tokenizer.backend.to_str())
    change(content)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), **names)


def without_a_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<none>"] = content["model"]["vocab"].pop("<0x7F>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unigram, "its model is Unigram"),
        (
            lambda: changed(byte_level(), lambda c: c.update(normalizer={"type": "Lowercase"})),
            r"normalizes text \(Lowercase\)",
        ),
        (lambda: changed(byte_level(), lambda c: c["model"].update(dropout=0.1)), "no dropout"),
        (
            lambda: changed(byte_level(), lambda c: c.update(pre_tokenizer={"type": "Whitespace"})),
            "WAYS in gguf_splits.py",
        ),
        (lambda: changed(sentencepiece(), without_a_byte, **NAMES), "no token <0x7F>"),
        (
            lambda: changed(
                sentencepiece(), lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), **NAMES
            ),
            r"before its merges \(Prepend, Replace, Whitespace\)",
        ),
        (
            lambda: changed(byte_level(), lambda c: c["model"]["vocab"].update({"a\0b": 705})),
            r"cannot hold token 705",
        ),
    ],
)
def test_what_a_gguf_cannot_hold_is_refused_with_what_can(
    make: Callable[[], Tokenizer], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        vocabulary_of(make(), 800)
    assert "export to hf or pte" in str(caught.value)


def test_more_words_than_rows_are_refused_with_both_counts() -> None:
    with pytest.raises(ValueError, match=r"has 312 tokens, the model's vocab_size is 305"):
        vocabulary_of(with_gap(), 305)
