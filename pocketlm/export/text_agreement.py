"""Is text the same ids to llama.cpp as to us, and are ids the same text? Asked of a .gguf's own
tokenizer.

Logits are compared on ids, which says nothing of the words they stand for: a turn's end that is
written at another id shows here alone.
"""

import itertools
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import tokenizers

from pocketlm.export.gguf_vocab import (
    AFTER_SPECIAL,
    COMPOSED,
    LEADING_SPACE,
    NEARLY_SPLIT,
    PLAIN,
    UNMERGED,
    Vocabulary,
    vocabulary_of,
)
from pocketlm.inference.gguf_splits import WAYS
from pocketlm.inference.libllama import LoadedModel
from pocketlm.model.tokenizer import Tokenizer

HARD_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "It's we'll I'VE they'd you'RE o'clock 'twas don''t",
    "0 1 12 123 1234 12345 1234567 3.14159 1,000,000 1e-5 0x1F ½ ² ٣ Ⅷ",
    "a  b   c    d     e      f\tg\t\th\n\ni\n\n\nj\r\nk\r\n\r\nl \n m\n  n\t\n",
    "   three before, three behind   ",
    "\n",
    "\n\n  \n",
    "def f(x):\n    if x != 0 and not y[i]:\n\t\treturn {'a': x**2, \"b\": [1, 2]}  # ok\n",
    '<div class="a">&amp; $x_{i}^{2}$ \\frac{1}{2} </div>',
    "naïve café Ünïcödé ÇA été ß ﬁ straße İstanbul ǅ",
    "e\u0301 a\u030a o\u0308\u0301 \u1e9b\u0323",
    "Привет, мир! Ελλάδα שלום עולם مرحبا بالعالم नमस्ते दुनिया ภาษาไทย ქართული",
    "日本語のテキスト。漢字かな交じり文、カタカナ。한국어 텍스트 中文字符：你好，世界！",
    "🙂 👍🏽 👨‍👩‍👧 🇩🇪 ❤️ ✈️ ①②③ ™ © € £ ¥ § ¶ † ‡ … — – “q” ‘q’ «q»",
    "x\u200bx\u200dx\ufeffx\u00a0x\u2003x\u3000x\u2028x",
    "ALLCAPS CamelCase snake_case kebab-case mixedUP iPhone NASA's HTTPServer",
    "!!! ??? ... ,,, ;;; --- ___ *** ### ((())) [[[]]] {{{}}} <<<>>> //\\\\ ~~~ ``` @@@ %%% ^^^ "
    "&&& ===",
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\path\\file.txt",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb abababababababab",
    " ".join(str(n * 37 % 1009) for n in range(60)),
)
MIXTURES, MIXED_WORDS = 300, 12  # texts of the tokenizer's own words, in any order
CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 3 + 4?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there!\n\nWho are you?"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. What can I do?"},
        {"role": "user", "content": "Count to 3, naïvely: 1, 2"},
    ],
)
SHOWN = 3  # differences that a message lists


def refuse_other_text(path: Path, tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """What of the text is unlike and cannot be helped, each in words; a ValueError where ids or
    their texts differ else.
    """
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    model = LoadedModel(path, vocab_only=True)
    try:
        unlike = list(itertools.islice(differences(tokenizer, vocabulary, model), SHOWN))
        if unlike:
            raise ValueError(
                f"llama.cpp does not read {path.name} as this tokenizer does, so it would run on "
                "other tokens than were "
                f"trained:\n  "
                + "\n  ".join(unlike)
                + "\nExport to hf or pte, which keep the tokenizer itself"
            )
        return [
            *(f"llama.cpp gives other ids for {limit}" for limit in vocabulary.limits),
            *unlike_ends(tokenizer, model),
        ]
    finally:
        model.close()


def refuse_other_folder(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Nothing, or a ValueError where the tokenizer beside a .pte, which its runner reads, is not
    this one.
    """
    from pocketlm.inference.executorch import tokenizer_folder

    beside = Tokenizer.load(tokenizer_folder(path))
    texts = list(hard_texts(tokenizer))
    words = [[i] for i in range(tokenizer.vocab_size)]
    special = [text for text in special_texts(added_words(tokenizer))]
    reading, read = parser_of(tokenizer), parser_of(beside)
    pairs = {
        "plain texts": [made.encode_batch(texts) for made in (tokenizer, beside)],
        "texts with special words": [
            [made.encode(text).ids for text in special] for made in (reading, read)
        ],
        "prompts": [
            [made.encode_chat(messages) for messages, _ in chat_texts(tokenizer)]
            for made in (tokenizer, beside)
        ],
        "words": [
            made.backend.decode_batch(words, skip_special_tokens=False)
            for made in (tokenizer, beside)
        ],
        "ends of an answer": [sorted(made.stop_ids) for made in (tokenizer, beside)],
    }
    for what, (expected, written) in pairs.items():
        if expected != written:
            raise ValueError(
                f"{tokenizer_folder(path).name}: the tokenizer that was written gives other "
                f"{what}; please report it"
            )


def added_words(tokenizer: Tokenizer) -> list[str]:
    """The texts of the tokens that stand outside the model's own vocabulary: special ones and words
    added to it.
    """
    return [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]


def differences(tokenizer: Tokenizer, vocabulary: Vocabulary, model: LoadedModel) -> Iterator[str]:
    """Each text whose ids, and each id whose text, is not the same to llama.cpp, in words."""
    special = added_words(tokenizer)
    texts = itertools.chain(hard_texts(tokenizer), unmerged_texts(vocabulary))
    plain = [text for text in texts if comparable(text, vocabulary, special, parsed=False)]
    for text, ids in zip(plain, tokenizer.encode_batch(plain), strict=True):
        llama_ids = model.tokenize(text, add_special=False, parse_special=False)
        if llama_ids != ids:
            yield (
                f"{text!r} is {_shown(ids, tokenizer)} here, {_shown(llama_ids, tokenizer)} to "
                "llama.cpp"
            )
    parsing = parser_of(tokenizer)
    for text in special_texts(special):
        if comparable(text, vocabulary, special, parsed=True):
            ids = parsing.encode(text, add_special_tokens=False).ids
            llama_ids = model.tokenize(text, add_special=False, parse_special=True)
            if llama_ids != ids:
                yield (
                    f"{text!r}, its special words read, is {_shown(ids, tokenizer)} here, "
                    f"{_shown(llama_ids, tokenizer)} there"
                )
    yield from _other_prompts(tokenizer, vocabulary, model)
    yield from _other_words(tokenizer, model)


def unlike_ends(tokenizer: Tokenizer, model: LoadedModel) -> list[str]:
    """Where llama.cpp ends an answer and we do not, and the other way round, in words."""
    llama_ends = model.end_ids()
    more, fewer = llama_ends - tokenizer.stop_ids, tokenizer.stop_ids - llama_ends
    notes = []
    if more:
        notes.append(f"llama.cpp ends an answer at {_words(more, tokenizer)} too, for their texts")
    if fewer:
        notes.append(
            f"llama.cpp does not end an answer at {_words(fewer, tokenizer)}: a .gguf names three "
            "ends at most"
        )
    return notes


def hard_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that tokenizers are known to disagree on, every special word as text, and mixtures of
    the vocabulary's words.
    """
    yield from HARD_TEXTS
    for word in added_words(tokenizer):
        yield f"{word} as text, {word}x, and twice:{word}{word}"
    drawn = random.Random(0)
    ids = sorted(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
    words = tokenizer.backend.decode_batch(
        [[i] for i in drawn.choices(ids, k=MIXTURES * MIXED_WORDS)]
    )
    for start in range(0, len(words), MIXED_WORDS):
        yield "".join(words[start : start + MIXED_WORDS]).replace("\ufffd", "")


def unmerged_texts(vocabulary: Vocabulary) -> Iterator[str]:
    """The words of a SentencePiece kind that no merge makes, and that llama.cpp might."""
    for word, score in zip(vocabulary.tokens, vocabulary.scores, strict=False):
        if score == UNMERGED and len(word) > 1:
            yield word.replace("▁", " ")


def special_texts(special: Sequence[str]) -> Iterator[str]:
    """Texts with special words in all places, for a reader of special words."""
    for word in special:
        yield f"{word}user\nHi, there{word}\n{word}{word}"
        yield f"a {word} b{word}  c"
    yield "".join(special)


def comparable(text: str, vocabulary: Vocabulary, special: Sequence[str], *, parsed: bool) -> bool:
    """Whether no limit of llama.cpp is met: parsed tells that special words are read as tokens."""
    if not vocabulary.limits:
        return True
    between = _between(tuple(special)).split(text)
    pieces = between if parsed else [text]
    met = {
        COMPOSED: lambda: not unicodedata.is_normalized("NFC", text),
        NEARLY_SPLIT: lambda: not all(WAYS[vocabulary.pre].is_the_same(piece) for piece in pieces),
        LEADING_SPACE: lambda: any(piece.startswith((" ", "▁")) for piece in pieces),
        AFTER_SPECIAL: lambda: parsed and any(between[1:]),
        PLAIN: lambda: not parsed or bool(between[0]),
    }
    return not any(met[limit]() for limit in vocabulary.limits)


@cache
def _between(special: tuple[str, ...]) -> re.Pattern[str]:
    """What the text between special words is split by."""
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")


def parser_of(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer as one that reads special words as tokens."""
    parsing = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    parsing.encode_special_tokens = False
    return parsing


def chat_texts(tokenizer: Tokenizer) -> Iterator[tuple[list[dict[str, str]], str]]:
    """(conversation, prompt) of each of CHATS that the template takes: some take no system turn."""
    if tokenizer.chat_template is None:
        return
    for messages in CHATS:
        try:
            yield messages, tokenizer.render(messages, add_generation_prompt=True)
        except ValueError:
            continue


def _other_prompts(
    tokenizer: Tokenizer, vocabulary: Vocabulary, model: LoadedModel
) -> Iterator[str]:
    for messages, text in chat_texts(tokenizer):
        ids = tokenizer.encode_chat(messages)
        bos = tokenizer.bos_token
        # llama.cpp takes the template's away, and puts its own
        if vocabulary.add_bos and bos is not None:
            text = text.removeprefix(bos)
        llama_ids = model.tokenize(text, add_special=True, parse_special=True)
        if llama_ids != ids:
            yield (
                f"the chat prompt {text!r} is {_shown(ids, tokenizer)} here, "
                f"{_shown(llama_ids, tokenizer)} to llama.cpp"
            )


def _other_words(tokenizer: Tokenizer, model: LoadedModel) -> Iterator[str]:
    """Ids whose text differs; a leading space, which a decoder of whole texts takes away, is not
    counted.
    """
    ids = range(tokenizer.vocab_size)
    for i, word in zip(
        ids,
        tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=False),
        strict=True,
    ):
        llama_word = model.piece(i).decode("utf-8", "replace")
        if word not in (llama_word, llama_word.removeprefix(" ")):
            yield f"id {i} is {word!r} here, {llama_word!r} to llama.cpp"


def _shown(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    words = [tokenizer.backend.id_to_token(i) or f"<{i}>" for i in ids[:12]]
    return f"{list(ids[:12])} {' '.join(words)}{' ...' if len(ids) > 12 else ''}"


def _words(ids: set[int], tokenizer: Tokenizer) -> str:
    return ", ".join(f"{tokenizer.backend.id_to_token(i)} ({i})" for i in sorted(ids))
