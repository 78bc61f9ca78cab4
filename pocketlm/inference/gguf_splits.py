"""How a byte-level tokenizer splits text before its merges, and the name that llama.cpp has for
each way.

llama.cpp keeps no regular expression in a file: `tokenizer.ggml.pre` names one that it knows. A
name also says whether a whole word that is a token is taken as that token, without merges
(`ignore_merges`).
"""

import json
from functools import cache
from typing import Any, NamedTuple

import tokenizers
from tokenizers import pre_tokenizers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4 = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {  # one regular expression, then bytes
    "llama-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "llama4": LLAMA4,  # gpt-4o's, too
    # Qwen 2 and 3, DeepSeek-R1's: each digit alone
    "qwen2": LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
    "qwen35": LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
    .replace(r"\p{L}+", r"[\p{L}\p{M}]+")
    .replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),
    "tekken": LLAMA4.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}"),
}
IGNORES_MERGES = ("llama-bpe", "tekken")
# llama.cpp writes the letters of these two as "not a to z" and "not A to Z", and leaves marks out.
BIG_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SMALL_LETTERS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NEARLY = {
    name: SPLITS[name]
    .replace(BIG_LETTERS, r"(?:(?=\p{L})[^a-z])")
    .replace(SMALL_LETTERS, r"(?:(?=\p{L})[^A-Z])")
    for name in ("llama4", "tekken")
}


class Split(NamedTuple):
    """A way to split: llama.cpp's name for it, whether it ignores merges, and the steps as
    tokenizer.json has them.

    nearly: the steps that llama.cpp takes instead, where it has no more than nearly the same.
    """

    name: str
    ignores_merges: bool
    steps: list[dict[str, Any]]
    nearly: list[dict[str, Any]] | None = None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The steps as `tokenizers` runs them."""
        return _made(json.dumps(self.steps))

    def is_the_same(self, text: str) -> bool:
        """Whether llama.cpp splits this text so, too."""
        if self.nearly is None:
            return True
        both = (_made(json.dumps(steps)) for steps in (self.steps, self.nearly))
        exactly, nearly = (made.pre_tokenize_str(text) for made in both)
        return exactly == nearly


@cache
def _made(steps: str) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer of the steps, JSON as in tokenizer.json."""
    content = {"type": "Sequence", "pretokenizers": json.loads(steps)}
    empty: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": content, "model": empty}
    pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(whole)).pre_tokenizer
    assert isinstance(pre_tokenizer, pre_tokenizers.PreTokenizer)
    return pre_tokenizer


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _regex(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


WAYS = {
    way.name: way
    for way in (
        # each digit alone, then GPT-2's expression: SmolLM's, StarCoder's, and what
        # `train_tokenizer` makes
        Split("smollm", False, [{"type": "Digits", "individual_digits": True}, _byte_level(True)]),
        Split("gpt-2", False, [_byte_level(True)]),
        Split(
            "deepseek-v3",
            False,
            [
                _regex(r"\p{N}{1,3}"),
                _regex("[一-龥぀-ゟ゠-ヿ]+"),
                _regex(DEEPSEEK3),
                _byte_level(False),
            ],
        ),
        *(
            Split(
                name,
                name in IGNORES_MERGES,
                [_regex(how), _byte_level(False)],
                [_regex(NEARLY[name]), _byte_level(False)] if name in NEARLY else None,
            )
            for name, how in SPLITS.items()
        ),
    )
}


def ways_of(content: dict[str, Any]) -> list[Split]:
    """llama.cpp's ways to split as this tokenizer.json does, one that treats merges alike first; []
    if it has none.
    """
    described = content["pre_tokenizer"] or {}
    steps = [_plain(step) for step in described.get("pretokenizers", [described])]
    ways = [way for way in WAYS.values() if [_plain(step) for step in way.steps] == steps]
    ignores = bool(content["model"].get("ignore_merges"))
    return sorted(ways, key=lambda way: way.ignores_merges != ignores)


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """A step without what changes no split here: offsets, and which of two ways keeps the pieces
    that match.

    The expressions match every character, so what lies between matches, which "Removed" with
    `invert` drops, is empty.
    """
    kept = {key: value for key, value in step.items() if key != "trim_offsets"}
    if kept.get("type") == "ByteLevel":
        kept.setdefault("use_regex", True)
    if kept.get("type") == "Split" and (kept["behavior"], kept["invert"]) == ("Removed", True):
        kept |= {"behavior": "Isolated", "invert": False}
    return kept
