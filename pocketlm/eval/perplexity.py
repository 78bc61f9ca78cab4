"""Bits per byte: how well a model predicts text, comparable between tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.inference.runtime import Runtime

LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Predicted:
    """Documents that a model predicted: their negative log likelihood, and their size without what
    stands first and is given.
    """

    nats: float
    num_bytes: int
    num_tokens: int


def bits_per_byte(model: Runtime, documents: Sequence[str], window: int) -> float:
    """Negative log2 likelihood of the documents over their UTF-8 bytes, as `predict` reads them."""
    predicted = predict(model, documents, window)
    return predicted.nats / LN2 / predicted.num_bytes


def predict(model: Runtime, documents: Sequence[str], window: int) -> Predicted:
    """The likelihood of the documents.

    Each document is encoded with the tokenizer's document start in front and predicted by itself; a
    tokenizer without one leaves the first token unpredicted, whose bytes then do not count. One
    longer than `window` tokens is cut into pieces that overlap by half a window: every token is
    predicted once and, past the first window, from at least window // 2 tokens before it.
    ValueError: no text, or a window the model does not have.
    """
    if not 2 <= window <= model.max_length:
        raise ValueError(
            f"window {window}: give 2 to {model.max_length} tokens, the model's longest input"
        )
    if not any(documents):
        raise ValueError("no text to measure bits per byte on: the documents are empty")
    nats, total_bytes, total_tokens = 0.0, 0, 0
    for document in documents:
        start_ids, ids = model.tokenizer.document_start, model.tokenizer.encode(document)
        total_bytes += len(document.encode())
        if not start_ids and ids:
            total_bytes -= len(model.tokenizer.decode(ids[:1]).encode())
        ids = [*start_ids, *ids]
        total_tokens += max(0, len(ids) - 1)
        scored = 1  # ids[:scored] are predicted already; the first is given
        while scored < len(ids):
            start = max(0, scored - (window // 2 if scored > 1 else 1))
            piece = ids[start : start + window]
            nats -= float(model.log_probs(piece)[scored - start - 1 :].sum(dtype=np.float64))
            scored = start + len(piece)
    if not total_bytes:
        raise ValueError(
            "no text to measure bits per byte on: each document is one token, and nothing is "
            "before it"
        )
    return Predicted(nats, total_bytes, total_tokens)
