"""llama.cpp reads text from our .gguf files as we do, for each kind of tokenizer, and ends answers
where we do.
"""

import json
import random
from pathlib import Path

import pytest
import tokenizers

from pocketlm.export.gguf import write_gguf
from pocketlm.export.gguf_vocab import (
    AFTER_SPECIAL,
    COMPOSED,
    LEADING_SPACE,
    NEARLY_SPLIT,
    PLAIN,
    vocabulary_of,
)
from pocketlm.export.gguf_vocab_file import vocabulary_file
from pocketlm.export.llamacpp_template import unlike_prompts
from pocketlm.export.text_agreement import (
    comparable,
    differences,
    hard_texts,
    refuse_other_text,
    unlike_ends,
)
from pocketlm.inference import gguf_stop_tokens
from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.gguf_splits import WAYS
from pocketlm.inference.gguf_tokenizer import tokenizer_of
from pocketlm.inference.libllama import LoadedModel
from pocketlm.inference.open import opened
from pocketlm.model.tokenizer import CHATML, Tokenizer
from pocketlm.stages.evaluate import check_text
from tests.unit.tokenizer_kinds import LLAMA2, NAMES, byte_level, sentencepiece, tiny, with_gap

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")

PIECES = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "'s",
    "'LL",
    "a",
    "Word",
    "THE",
    "é",
    "Ω",
    "1",
    "23",
    "½",
    "٣",
    "日本",
    "🙂",
    "ß",
]
PIECES += [
    "!",
    "...",
    "_",
    "<|im_end|>",
    "</s>",
    "<s>",
    "<tool_call>",
    "return x",
    "नि",
    "\u200d",
    "\u00a0",
    "\x00",
]
KINDS = {
    **{way: lambda way=way: byte_level(way) for way in WAYS},
    "ids with a gap": with_gap,
    **{
        f"llama, {before}": lambda before=before: sentencepiece(before)
        for before in ("legacy", "gemma", "never")
    },
    **{
        f"llama, {before}": lambda before=before: sentencepiece(before)
        for before in ("first", "always")
    },
    **{
        f"llama, chats, {before}": lambda before=before: sentencepiece(before, LLAMA2)
        for before in ("legacy", "first")
    },
}
LIMITS = {  # what llama.cpp cannot be told of each kind; of the others nothing
    "llama4": {NEARLY_SPLIT},
    "tekken": {NEARLY_SPLIT},
    "llama, first": {LEADING_SPACE, AFTER_SPECIAL},
    "llama, always": {LEADING_SPACE},
    "llama, chats, first": {LEADING_SPACE, PLAIN},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def random_texts(count: int) -> list[str]:
    drawn = random.Random(3)
    return ["".join(drawn.choices(PIECES, k=drawn.randint(1, 30))) for _ in range(count)]


def test_ids_and_words_are_the_same_to_llama_cpp(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    rows = tokenizer.vocab_size + 9
    path = write_gguf(tiny(rows), tokenizer, tmp_path / "m.gguf", "f16")
    vocabulary = vocabulary_of(tokenizer, rows)
    assert set(vocabulary.limits) == LIMITS.get(kind, set())
    file = LoadedModel(path)
    assert list(differences(tokenizer, vocabulary, file)) == []
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    texts = [
        text for text in random_texts(400) if comparable(text, vocabulary, special, parsed=False)
    ]
    assert len(texts) > 50 or PLAIN in vocabulary.limits
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert file.tokenize(text, add_special=False, parse_special=False) == ids, repr(text)
    assert file.end_ids() == tokenizer.stop_ids and unlike_ends(tokenizer, file) == []
    file.close()


def test_the_file_alone_gives_the_same_ids_again(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    path = write_gguf(tiny(tokenizer.vocab_size + 9), tokenizer, tmp_path / "m.gguf", "f16")
    read = tokenizer_of(read_header(path))
    vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)
    texts = [*hard_texts(tokenizer), *random_texts(200)]
    texts = [text for text in texts if comparable(text, vocabulary, [], parsed=False)]
    assert read.encode_batch(texts) == tokenizer.encode_batch(texts)
    for text, ids in zip(texts, read.encode_batch(texts), strict=True):
        assert read.decode(ids) == tokenizer.decode(ids), repr(text)
    same = (
        "bos_id",
        "eos_id",
        "end_of_turn_id",
        "stop_ids",
        "special_ids",
        "chat_template",
        "vocab_size",
    )
    assert [getattr(read, name) for name in same] == [getattr(tokenizer, name) for name in same]


def test_each_limit_of_llama_cpp_is_one(tmp_path: Path) -> None:
    """A text that each limit leaves out does get other ids: a limit that is none would hide
    faults.
    """
    texts = {
        COMPOSED: (byte_level("qwen2"), "e\u0301te\u0301"),
        NEARLY_SPLIT: (byte_level("llama4"), "ve\u0301lo e\u0301te\u0301"),
        LEADING_SPACE: (sentencepiece("always"), "  The quick"),
        PLAIN: (sentencepiece("first", LLAMA2), "The quick"),
    }
    composing = json.loads(texts[COMPOSED][0].backend.to_str()) | {"normalizer": {"type": "NFC"}}
    texts[COMPOSED] = (
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(composing))),
        texts[COMPOSED][1],
    )
    for limit, (tokenizer, text) in texts.items():
        vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)
        assert limit in vocabulary.limits and not comparable(text, vocabulary, [], parsed=False)
        with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
            file = LoadedModel(path, vocab_only=True)
            assert file.tokenize(text, add_special=False, parse_special=False) != tokenizer.encode(
                text
            ), limit
            file.close()
            assert any(
                limit in note for note in refuse_other_text(path, tokenizer, tokenizer.vocab_size)
            )


def test_words_at_other_ids_are_refused_and_named() -> None:
    """As when ids with a gap were closed up: the turn's words are letters to llama.cpp."""
    tokenizer, other = with_gap(), byte_level()
    with (
        vocabulary_file(other, 800) as path,
        pytest.raises(
            ValueError, match=r"llama\.cpp does not read vocabulary\.gguf as this tokenizer does"
        ),
    ):
        refuse_other_text(path, tokenizer, 320)


def test_an_evaluation_stops_where_llama_cpp_reads_other_ids_than_it_is_given(tmp_path) -> None:
    tokenizer = byte_level()
    model = tiny(tokenizer.vocab_size)
    path = write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    with opened(path) as file:
        check_text(path, file)
        words = json.loads(tokenizer.backend.to_str())
        names = sorted(words["model"]["vocab"], key=words["model"]["vocab"].__getitem__)[-2:]
        for name, other in zip(names, names[::-1], strict=True):
            words["model"]["vocab"][name] = tokenizer.backend.token_to_id(other)
        file.tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(words)))
        with pytest.raises(ValueError, match=r"llama\.cpp does not read m\.gguf as this tokenizer"):
            check_text(path, file)


def test_the_texts_that_end_an_answer_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Each of them alone, and others that look like one: llama.cpp itself is asked."""
    looks = (
        "<|eot|>",
        "<|end_of_turn|>",
        "<|user|>",
        "<repo_name>",
        "<file_sep>",
        "<pad>",
        "[/INST]",
        "</think>",
        "<|eom|>",
    )
    fillers = [word for words in gguf_stop_tokens.FILLERS.values() for word in words]
    base = byte_level()
    for word in (*sorted(gguf_stop_tokens.ENDS), *fillers, *looks):
        backend = tokenizers.Tokenizer.from_str(base.backend.to_str())
        backend.add_special_tokens([word])
        tokenizer = Tokenizer(
            backend, eos_token="<think>", bos_token="<think>", end_of_turn_token="<think>"
        )
        with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
            file = LoadedModel(path, vocab_only=True)
            tokens = vocabulary_of(tokenizer, tokenizer.vocab_size).tokens
            by_text = gguf_stop_tokens.ends_by_text(tokens)
            assert file.end_ids() == by_text | tokenizer.stop_ids, word
            assert (backend.token_to_id(word) in by_text) == (word not in looks)
            file.close()


@pytest.mark.parametrize(
    "words",
    [
        ("<|return|>", "<|call|>", "<|end|>"),
        ("<|flush|>", "<|calls|>", "<|end|>"),
        ("<|tool_response>", "</s>"),
        ("<|end|>", "<|return|>"),
    ],
)
def test_words_that_together_end_nothing_are_known_too(words: tuple[str, ...]) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level().backend.to_str())
    backend.add_special_tokens(list(words))
    tokenizer = Tokenizer(backend)
    with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
        file = LoadedModel(path, vocab_only=True)
        tokens = vocabulary_of(tokenizer, tokenizer.vocab_size).tokens
        assert file.end_ids() == gguf_stop_tokens.ends_by_text(tokens) | tokenizer.stop_ids
        file.close()


def test_a_third_end_has_a_key_and_a_fourth_is_told() -> None:
    for more in (("<think>",), ("<think>", "<tool_call>")):
        tokenizer = byte_level(stop_tokens=dict.fromkeys(more, ("a file",)))
        with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
            file = LoadedModel(path, vocab_only=True)
            told = unlike_ends(tokenizer, file)
            file.close()
        if len(more) == 1:
            assert told == []
        else:
            assert len(told) == 1 and "does not end an answer at <tool_call>" in told[0]


def test_an_end_that_llama_cpp_adds_for_its_text_is_told() -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level().backend.to_str())
    backend.add_special_tokens(["<|file_sep|>"])
    tokenizer = Tokenizer(backend, chat_template=CHATML)
    with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
        (told,) = refuse_other_text(path, tokenizer, tokenizer.vocab_size)
    assert "ends an answer at <|file_sep|>" in told


def test_a_base_model_s_beginning_is_put_by_llama_cpp_and_a_chat_s_is_its_template_s(
    tmp_path: Path,
) -> None:
    base, chat = sentencepiece(), sentencepiece("legacy", LLAMA2)
    adds = Tokenizer(chat.backend, chat_template=LLAMA2, adds_bos=True, **NAMES)
    for tokenizer, begins in (
        (base, True),
        (chat, False),
        (adds, True),
        (byte_level(adds_bos=True), False),
    ):
        with vocabulary_file(tokenizer, tokenizer.vocab_size) as path:
            file = LoadedModel(path, vocab_only=True)
            found = file.tokenize("The quick", add_special=True, parse_special=True)
            file.close()
        assert found == [tokenizer.bos_id] * begins + tokenizer.encode("The quick")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHATML, None),
        (CHATML.replace("message['content']", "message['content'] | trim"), None),
        (
            CHATML.replace("message['content']", "'%s' % message['content']"),
            "cannot run the chat template",
        ),
        (CHATML.replace("message['content']", "(message['content'] | pprint)"), ""),
    ],
)
def test_llama_cpp_s_own_rendering_is_compared(
    template: str, told: str | None, tmp_path: Path
) -> None:
    tokenizer = byte_level(chat_template=template)
    path = write_gguf(tiny(tokenizer.vocab_size), tokenizer, tmp_path / "m.gguf", "f16")
    notes = unlike_prompts(path, tokenizer)
    assert (notes == []) == (told is None)
    assert told is None or all(told in note for note in notes), notes


def test_another_template_than_the_file_s_is_told_with_both_prompts(tmp_path: Path) -> None:
    tokenizer = byte_level()
    path = write_gguf(tiny(tokenizer.vocab_size), tokenizer, tmp_path / "m.gguf", "f16")
    other = byte_level(chat_template=CHATML.replace("assistant", "model"))
    notes = unlike_prompts(path, other)
    assert len(notes) == 3 and all("model" in note and "assistant" in note for note in notes)
