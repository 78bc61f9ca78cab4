"""Texts to arrays of ids, each word looked up where it was met before: many times the pace of
encoding every text whole.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from pocketlm.data.shards import token_dtype
from pocketlm.model.tokenizer import Tokenizer

TEXTS_AT_ONCE = 1000  # the tokenizer spreads new words of them over the cores
KNOWN_WORDS = 2**19  # some 100 MB; then the memory begins anew
# white space as Unicode has it
SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# and what of ASCII is not printed: marks to the splitter
WIDE = "\x00-\x08\x0e-\x1f\x7f-\U0010ffff"
MARK = "!-&(-/:-@\\[-`{-~"  # of ASCII, without the apostrophe, which may begin "'s"
# GPT-2's splitter cuts between each of these and the next, whether or not digits were cut off
# first. Other white space, and what is not ASCII, goes with all that follows it up to the next
# white space.
GPT2_PIECES = re.compile(
    f" ?[A-Za-z]+(?![A-Za-z{WIDE}])| ?[{MARK}]+(?![{MARK}'{WIDE}])| ?[0-9]+(?![0-9{WIDE}])"
    f"|[{SPACE}]+(?=[{SPACE}][!-/:-~])|[\\t\\n\\r](?=[!-/:-~])|[{SPACE}]*[^{SPACE}]+|[{SPACE}]+"
)
# where Llama 3's cuts, which keeps line breaks
BEFORE_ONE_SPACE = re.compile(f"(?<=[^{SPACE}])(?= [^{SPACE}])")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """For each text its ids, after those that begin a document, as a shard keeps them (uint16 or
    uint32).

    They are those of Tokenizer.encode_batch.

    Words are encoded apart and remembered where the tokenizer is known never to look past the space
    before a word.
    """
    dtype, remaining = token_dtype(tokenizer.vocab_size), iter(texts)
    start = np.asarray(tokenizer.document_start, dtype=dtype)
    known: dict[str, bytes] = {}
    cut = pieces_of(tokenizer)
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        if cut is None:
            yield from (
                np.concatenate([start, np.asarray(ids, dtype=dtype)])
                for ids in tokenizer.encode_batch(batch)
            )
            continue
        words = [cut(text) for text in batch]
        new = list({word for text in words for word in text if word not in known})
        if len(known) + len(new) > KNOWN_WORDS:
            known.clear()
            new = list({word for text in words for word in text})
        for word, ids in zip(new, tokenizer.encode_batch(new), strict=True):
            known[word] = np.asarray(ids, dtype=dtype).tobytes()
        look_up = known.__getitem__
        for text in words:
            yield np.frombuffer(start.tobytes() + b"".join(map(look_up, text)), dtype=dtype)


def pieces_of(tokenizer: Tokenizer) -> Callable[[str], list[str]] | None:
    """Cuts a text so that the ids of its pieces, one after the other, are its own; None where
    nobody knows where to cut.

    Known for byte-level BPE behind the splitters of GPT-2 and Llama 3, as long as nothing is put
    before a text, no text is rewritten first, and no token is found before splitting.
    """
    content = json.loads(tokenizer.backend.to_str())
    first = content["pre_tokenizer"] or {}
    steps = first["pretokenizers"] if first.get("type") == "Sequence" else [first]
    known = [cut for step in steps if (cut := _cut(step))]
    whole = (
        content["normalizer"] is None
        and content["model"]["type"] == "BPE"
        and not content["model"]["dropout"]
    )
    plain = not any(not token["special"] for token in content["added_tokens"])
    rest = all(_cut(step) or _harmless(step) for step in steps)
    return known[0] if whole and plain and rest and len(known) == 1 else None


def _cut(step: dict) -> Callable[[str], list[str]] | None:
    if step.get("type") == "ByteLevel" and step["use_regex"] and not step["add_prefix_space"]:
        return GPT2_PIECES.findall
    if step.get("type") != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    return {GPT2: GPT2_PIECES.findall, LLAMA3: BEFORE_ONE_SPACE.split}.get(
        step["pattern"].get("Regex")
    )


def _harmless(step: dict) -> bool:
    """What cuts further, or not at all, whatever stands around."""
    if step.get("type") == "ByteLevel":
        return not step["use_regex"] and not step["add_prefix_space"]
    return step.get("type") == "Digits"
