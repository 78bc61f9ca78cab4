"""The tokenizer that a .gguf carries, as ours: the same ids for the same text as llama.cpp
gives.
"""

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from pocketlm.inference.gguf_file import GgufHeader
from pocketlm.inference.gguf_splits import WAYS
from pocketlm.inference.gguf_stop_tokens import ends_by_text, ends_of_file
from pocketlm.inference.gguf_tokens import (
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

ALIASES = {  # other names by which llama.cpp means the same way to split
    **dict.fromkeys(
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"
    ),
    **dict.fromkeys(("smaug-bpe", "glm4", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(("gpt-4o", "kanana2"), "llama4"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), "qwen2"),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"
    ),
    **dict.fromkeys(
        ("phi-2", "mpt", "olmo", "jais", "gigachat", "exaone4", "trillion", "granite-docling"),
        "gpt-2",
    ),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm"), "deepseek-v3"),
}
ADDS_BOS = ("llama-bpe", "tekken")  # unless the file says otherwise; so does the SentencePiece kind
# never control tokens to llama.cpp
SHOWN = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}


def tokenizer_of(header: GgufHeader) -> Tokenizer:
    """The tokenizer a file carries. ValueError for a kind that is not read here, or one that is
    damaged.
    """
    kind = header.text("tokenizer.ggml.model")
    pre = header.text("tokenizer.ggml.pre", "default")
    pre = ALIASES.get(pre, pre)
    if kind not in (BYTE_LEVEL, SENTENCEPIECE) or (kind == BYTE_LEVEL and pre not in WAYS):
        raise ValueError(
            f"{header.path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not read here; "
            f"known: {SENTENCEPIECE}, and {BYTE_LEVEL} with {', '.join((*WAYS, *ALIASES))}"
        )
    tokens = header.array("tokenizer.ggml.tokens", str)
    types = _types(header, tokens)
    is_sentencepiece = kind == SENTENCEPIECE
    special = (
        {"bos": 1, "eos": 2, "unknown": 0} if is_sentencepiece else {"bos": None, "unknown": None}
    )
    ids = {
        role: _special_id(header, role, special.get(role), tokens)
        for role in ("bos", "eos", "unknown")
    }
    eos = ids["eos"]
    if eos is None:
        raise ValueError(
            f"{header.path}: key tokenizer.ggml.eos_token_id is missing; nothing says where a text "
            "ends"
        )
    kept = {i for i in ids.values() if i is not None}
    words = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED or i in kept}
    if is_sentencepiece:
        backend = _sentencepiece(header, words, types, tokens[ids["unknown"] or 0])
    else:
        backend = _byte_level(header, words, pre)
    for is_special, numbers in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
        chosen = [
            t for t, number in zip(tokens, types, strict=True) if number in numbers and t in words
        ]
        backend.add_tokens([AddedToken(t, special=is_special, normalized=False) for t in chosen])
    template = header.text("tokenizer.chat_template", None)
    ends = ends_of_file(header.metadata, tokens) | {eos}
    turn_end = _special_id(header, "eot", None, tokens)
    bos, unknown = ids["bos"], ids["unknown"]
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unknown}
    adds_bos = header.flag("tokenizer.ggml.add_bos_token", is_sentencepiece or pre in ADDS_BOS)
    try:
        return Tokenizer(
            backend,
            bos_token=None if bos is None else tokens[bos],
            eos_token=tokens[eos],
            end_of_turn_token=None if turn_end is None else tokens[turn_end],
            chat_template=template,
            stop_tokens={tokens[i]: ("the .gguf",) for i in sorted(ends)},
            adds_bos=bos is not None and adds_bos,
            special_tokens={name: tokens[i] for name, i in named.items() if i is not None},
        )
    except ValueError as error:  # a chat template that is no jinja, for one
        raise ValueError(f"{header.path}: {error}") from None


def left_out(header: GgufHeader) -> list[str]:
    """What a file says of its tokenizer that is not taken over, each in words."""
    notes = []
    others = sorted(key for key in header.metadata if key.startswith("tokenizer.chat_template."))
    if others:
        names = ", ".join(key.removeprefix("tokenizer.chat_template.") for key in others)
        notes.append(f"chat templates beside the one that is used: {names}")
    if header.flag("tokenizer.ggml.add_eos_token", False):
        notes.append("add_eos_token: llama.cpp puts the end of text after every text")
    return notes


def _types(header: GgufHeader, tokens: list[str]) -> list[int]:
    """The type of each token, as llama.cpp has it in the end."""
    types = list(header.array("tokenizer.ggml.token_type", int, [NORMAL] * len(tokens)))
    rows = header.tensors["token_embd.weight"][0]
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise ValueError(
            f"{header.path}: the vocabulary is damaged (a token twice, or not one type for each "
            "token)"
        )
    if len(tokens) != rows:
        raise ValueError(
            f"{header.path}: {len(tokens)} tokens, but the embedding has {rows} rows; fetch the "
            "file again"
        )
    for i in ends_by_text(tokens):
        types[i] = CONTROL
    return [
        USER_DEFINED if token in SHOWN else kind for token, kind in zip(tokens, types, strict=True)
    ]


def _special_id(
    header: GgufHeader, role: str, default: int | None, tokens: list[str]
) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in header.metadata:
        return default if default is None or default < len(tokens) else None
    i = header.integer(key, least=0)
    if i >= len(tokens):
        raise ValueError(f"{header.path}: {key} is {i}, beyond the vocabulary of {len(tokens)}")
    return i


def _byte_level(header: GgufHeader, words: dict[str, int], pre: str) -> tokenizers.Tokenizer:
    merges = [tuple(pair.split(" ")) for pair in header.array("tokenizer.ggml.merges", str)]
    backend = _backend(header, vocab=words, merges=merges, ignore_merges=WAYS[pre].ignores_merges)
    backend.pre_tokenizer = WAYS[pre].pre_tokenizer()  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _sentencepiece(
    header: GgufHeader, words: dict[str, int], types: list[int], unknown: str
) -> tokenizers.Tokenizer:
    """Any two neighbours that make a word may be merged, the word of the highest score first."""
    from transformers.tokenization_utils_base import generate_merges

    scores = header.array("tokenizer.ggml.scores", (float, int))
    if len(scores) != len(types):
        raise ValueError(
            f"{header.path}: {len(scores)} scores for {len(types)} tokens; fetch the file again"
        )
    if missing := [byte for byte in BYTES if byte not in words]:
        raise ValueError(
            f"{header.path}: the tokenizer has no token {missing[0]} for that byte; it is not read "
            "here"
        )
    normal = {word: scores[i] for word, i in words.items() if types[i] == NORMAL}
    backend = _backend(
        header,
        vocab=words,
        merges=generate_merges(words, normal, skip_tokens=words.keys() - normal.keys()),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    spaces, prefix = (
        normalizers.Replace(" ", SPACE),
        header.flag("tokenizer.ggml.add_space_prefix", True),
    )
    steps = [normalizers.Prepend(SPACE), spaces] if prefix else [spaces]
    backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(pieces + [decoders.Strip(" ", 1, 0)] * prefix)  # type: ignore[assignment]
    return backend


def _backend(header: GgufHeader, **model: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(**model))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{header.path}: the merges do not fit the vocabulary ({error})") from None
