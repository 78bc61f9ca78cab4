"""Contexts and continuations as ids, encoded and cut as lm-eval does."""

from __future__ import annotations

from collections.abc import Sequence

from pocketlm.eval.suites.suite import Prefix
from pocketlm.inference.continuations import Pair
from pocketlm.model.tokenizer import Tokenizer


def encoded_pairs(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], prefix: Prefix
) -> list[Pair]:
    """(context ids, continuation ids) of each (context, continuation).

    lm-eval's rule (api/model.py, `_encode_pair`): spaces at a context's end move to its
    continuation; both are encoded together and cut after as many ids as the context has alone.
    Where no id would be left, because one spans the join, the last id is the continuation (our
    choice: lm-eval stops). What stands before a text stands there once; before an empty context
    stands at least the token that ends texts.
    """
    start = prefix_ids(tokenizer, prefix)
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + rest) for context, rest in texts]
    wholes = tokenizer.encode_batch([context + rest for context, rest in moved])
    contexts = list(dict.fromkeys(context for context, _ in moved))
    alone = dict(zip(contexts, map(len, tokenizer.encode_batch(contexts)), strict=True))
    pairs = []
    for (context, _), ids in zip(moved, wholes, strict=True):
        before = start or ([] if context else [tokenizer.eos_id])
        cut = min(alone[context], len(ids) - 1) if context else 0
        if not before and not cut:  # nothing would predict the first id
            before = [tokenizer.eos_id]
        pairs.append(([*before, *ids[:cut]], ids[cut:]))
    return pairs


def prefix_ids(tokenizer: Tokenizer, prefix: Prefix) -> list[int]:
    """What stands before a plain text (suites/suite.py's Prefix)."""
    return tokenizer.document_start if prefix == "document" or tokenizer.adds_bos else []


def shortened(pair: Pair, max_length: int) -> Pair:
    """The pair, cut on the left to what the model reads: max_length ids and the one they predict
    last.
    """
    context, ids = pair
    whole, scored = (context + ids)[-(max_length + 1) :], min(len(ids), max_length)
    return whole[:-scored], whole[-scored:]
