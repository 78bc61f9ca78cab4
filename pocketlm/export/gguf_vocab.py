"""What a .gguf says of a tokenizer: each word at its own id, how text is split and merged, where it
begins and ends.

llama.cpp knows two kinds that ours meet. "gpt2": byte-level BPE, its merges in order and a named
way to split. "llama": SentencePiece's BPE, where the score of a word is its place in that order,
and any two neighbours whose texts together are a word may be merged. Anything else is refused by
name: its ids would be others.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers

from pocketlm.inference.gguf_splits import WAYS, Split, ways_of
from pocketlm.inference.gguf_tokens import (
    BYTE,
    BYTE_LEVEL,
    BYTES,
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from pocketlm.model.tokenizer import Tokenizer

UNMERGED = -1e9  # the score of a word that no merge makes: the last that llama.cpp would merge


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All of a tokenizer that a .gguf holds, but the chat template.

    kind: BYTE_LEVEL, with `pre` (llama.cpp's name of the way to split) and `merges`, or
    SENTENCEPIECE, with `scores`. tokens, types: of every row of the embedding. limits: in which
    texts llama.cpp's ids must differ, and why.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    pre: str = "default"
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    add_space_prefix: bool = False
    add_bos: bool = False
    unknown_id: int | None = None
    limits: tuple[str, ...] = ()


# The limits: what llama.cpp cannot be told. `text_agreement` leaves such texts out, and says so.
COMPOSED = (
    "text whose letters and accents are apart: this tokenizer composes them first (NFC), llama.cpp "
    "does not"
)
NEARLY_SPLIT = (
    "words with accents apart or with capital letters beyond A to Z, which it splits otherwise"
)
LEADING_SPACE = "text that begins with a space, which llama.cpp takes as one space more"
AFTER_SPECIAL = "text after a special token, before which llama.cpp puts a space"
PLAIN = "plain text outside a chat, before which llama.cpp puts no space"


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The vocabulary of a model with `vocab_size` rows. ValueError for a tokenizer that llama.cpp
    has no kind for.
    """
    content = json.loads(tokenizer.backend.to_str())
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is "
            f"{vocab_size}; its embedding has "
            "no row for the last of them"
        )
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(
            f"a .gguf cannot hold this tokenizer: its model is {model['type']}, and llama.cpp "
            "gives our ids for BPE alone "
            "(its Unigram knows no byte fallback); export to hf or pte"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ValueError(
                f"a .gguf cannot hold this tokenizer: llama.cpp's BPE has no {option}; export to "
                "hf or pte"
            )
    make = _sentencepiece if model.get("byte_fallback") else _byte_level
    return make(tokenizer, content, *_tokens(tokenizer, vocab_size))


def begins_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether llama.cpp is to put the beginning of text before a text.

    Before a base model's, if documents were separated by it. Before a chat only if its template
    writes it too: llama.cpp then takes one of the two away.
    """
    if tokenizer.bos_id is None:
        return False
    if tokenizer.chat_template is None:
        return tokenizer.adds_bos or tokenizer.document_start == [tokenizer.bos_id]
    return tokenizer.adds_bos and _first_of_chat(tokenizer) == tokenizer.bos_id


def _first_of_chat(tokenizer: Tokenizer) -> int:
    return tokenizer.encode_chat([{"role": "user", "content": "x"}])[0]


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """(words, types) of every id; an id without a word gets a name of its own that is marked as
    unused.
    """
    words = {i: word for word, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    for i, word in words.items():
        if not word or "\0" in word:
            raise ValueError(f"a .gguf cannot hold token {i}, {word!r}; export to hf or pte")
    taken = set(words.values())
    tokens, types = [], []
    for i in range(vocab_size):
        word = words.get(i) or f"<|unused_{i}|>"
        while i not in words and word in taken:
            word = f"<{word}>"
        tokens.append(word)
        types.append(NORMAL if i in words else UNUSED)
    for i, token in tokenizer.backend.get_added_tokens_decoder().items():
        tokens[i], types[i] = token.content, CONTROL if token.special else USER_DEFINED
    return tokens, types


def _byte_level(
    tokenizer: Tokenizer, content: dict[str, Any], tokens: list[str], types: list[int]
) -> Vocabulary:
    limits: tuple[str, ...] = ()
    kinds = [step["type"] for step in _steps(content["normalizer"], "normalizers")]
    if kinds == ["NFC"]:
        limits = (COMPOSED,)
    elif kinds:
        raise ValueError(
            f"a .gguf cannot hold this tokenizer: it normalizes text ({', '.join(kinds)}), and "
            "llama.cpp does not; "
            "export to hf or pte"
        )
    split = _split(content)
    if split.nearly is not None:
        limits = (*limits, NEARLY_SPLIT)
    return Vocabulary(
        kind=BYTE_LEVEL,
        tokens=tokens,
        types=types,
        pre=split.name,
        merges=tuple(" ".join(pair) for pair in _merges(content)),
        add_bos=begins_with_bos(tokenizer),
        limits=limits,
    )


def _split(content: dict[str, Any]) -> Split:
    """llama.cpp's way to split text as this tokenizer does, or a ValueError."""
    ways = ways_of(content)
    if not ways:
        raise ValueError(
            f"this tokenizer splits text in none of the ways known here ({', '.join(WAYS)}), so "
            "llama.cpp would give "
            "other ids than the model was trained on; add its rule to WAYS in gguf_splits.py, or "
            "export to hf or pte"
        )
    ignores = bool(content["model"].get("ignore_merges"))
    if ways[0].ignores_merges != ignores and not _merges_reach_every_word(content):
        raise ValueError(
            f"this tokenizer {'takes' if ignores else 'does not take'} a word that is a token "
            "whole, and llama.cpp's "
            f"{ways[0].name!r} does otherwise, so ids would differ; export to hf or pte"
        )
    return ways[0]


def _merges_reach_every_word(content: dict[str, Any]) -> bool:
    """Whether each word, merged step by step, becomes itself: then it is the same to take it
    whole.
    """
    plain = content | {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
    }
    plain["model"] = content["model"] | {"ignore_merges": False}
    backend = tokenizers.Tokenizer.from_str(
        json.dumps(plain | {"truncation": None, "padding": None})
    )
    words = content["model"]["vocab"]
    added = {token["content"] for token in content["added_tokens"]}
    merged = backend.encode_batch_fast(list(words), add_special_tokens=False)
    return all(
        e.ids == [i] or word in added for (word, i), e in zip(words.items(), merged, strict=True)
    )


def _sentencepiece(
    tokenizer: Tokenizer, content: dict[str, Any], tokens: list[str], types: list[int]
) -> Vocabulary:
    prefix, limits = _space_prefix(content)
    missing = [word for word in BYTES if word not in content["model"]["vocab"]]
    if missing:
        raise ValueError(
            f"a .gguf cannot hold this tokenizer: it has no token {missing[0]}, and llama.cpp "
            "needs one for each byte; "
            "export to hf or pte"
        )
    every_byte = set(BYTES)
    for i, word in enumerate(tokens):
        if word in every_byte:
            types[i] = BYTE
    unknown = tokens.index(word) if (word := content["model"]["unk_token"]) in tokens else None
    if unknown is not None:
        types[unknown] = UNKNOWN
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(_merges(content)):
        rank.setdefault(left + right, place)
    # llama.cpp's is before the first text and after each special token, or nowhere
    if prefix == "first":
        never = (
            tokenizer.chat_template is not None
            and _first_of_chat(tokenizer) in tokenizer.special_ids
        )
        limits = (*limits, PLAIN if never else AFTER_SPECIAL)
        prefix = "never" if never else "always"
    return Vocabulary(
        kind=SENTENCEPIECE,
        tokens=tokens,
        types=types,
        scores=tuple(float(-rank[word]) if word in rank else UNMERGED for word in tokens),
        add_space_prefix=prefix == "always",
        add_bos=begins_with_bos(tokenizer),
        unknown_id=unknown,
        limits=limits,
    )


def _space_prefix(content: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """("always", "first" or "never": where a space is put before a text; the limits) of a
    SentencePiece-like tokenizer.
    """
    before = [_step(step) for step in _steps(content["normalizer"], "normalizers")]
    after = _steps(content["pre_tokenizer"], "pretokenizers")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    # of transformers' own reader
    doubled = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": SPACE * 2}
    metaspace = after[0] if [step["type"] for step in after] == ["Metaspace"] else None
    if metaspace is not None and metaspace["replacement"] == SPACE and metaspace["split"] is False:
        scheme = metaspace["prepend_scheme"]
        if before in ([], [spaces]):  # it puts no second space before a text that begins with one
            return scheme, () if scheme == "never" else (LEADING_SPACE,)
        if before in ([doubled], [spaces, doubled]) and scheme == "always":
            return scheme, ()
    # no space is there
    elif all(step["type"] == "Split" and step["pattern"] == {"String": " "} for step in after):
        if before in ([prepend, spaces], [spaces, prepend]):
            return "always", ()
        if before == [spaces]:
            return "never", ()
    kinds = ", ".join(str(step.get("type")) for step in (*before, *after)) or "nothing"
    raise ValueError(
        f"a .gguf cannot hold this tokenizer: what it does to text before its merges ({kinds}) is "
        "not what llama.cpp's "
        "SentencePiece does; export to hf or pte"
    )


def _steps(described: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, whether it is a sequence, one step or none."""
    if described is None:
        return []
    if described["type"] == "Sequence":
        return [step for inner in described[name] for step in _steps(inner, name)]
    return [described]


def _step(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if value is not None}


def _merges(content: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair for pair in content["model"]["merges"]
    )
    return [(left, right) for left, right in pairs]
