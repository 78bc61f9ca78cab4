"""Bits per byte: how well a model predicts text, comparable between tokenizers."""

# T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LN2 = float(np.log(2.0))


def bits_per_byte(model: Any, documents: Sequence[str], window: int) -> float:
    """Negative log2 likelihood of the documents over their UTF-8 bytes.

    Each document is encoded with the tokenizer's document start in front and predicted by itself; a
    tokenizer without one leaves the first token unpredicted, whose bytes then do not count. One
    longer than `window` tokens is cut into pieces that overlap by half a window: every token is
    predicted once and, past the first window, from at least window // 2 tokens before it. `model`
    has `tokenizer`, `max_length` and `logits(ids) -> float32 [T, V]`, or `log_probs(ids) -> float32
    [T - 1]`, the natural log of each next token's probability, which is preferred. ValueError: no
    text, or a window the model does not have.
    """
    if not 2 <= window <= model.max_length:
        raise ValueError(
            f"window {window}: give 2 to {model.max_length} tokens, the model's longest input"
        )
    if not any(documents):
        raise ValueError("no text to measure bits per byte on: the documents are empty")
    nats, total_bytes = 0.0, 0
    for document in documents:
        start_ids, ids = model.tokenizer.document_start, model.tokenizer.encode(document)
        total_bytes += len(document.encode())
        if not start_ids and ids:
            total_bytes -= len(model.tokenizer.decode(ids[:1]).encode())
        ids = [*start_ids, *ids]
        scored = 1  # ids[:scored] are predicted already; the first is given
        while scored < len(ids):
            start = max(0, scored - (window // 2 if scored > 1 else 1))
            piece = ids[start : start + window]
            nats -= float(
                next_token_log_probs(model, piece)[scored - start - 1 :].sum(dtype=np.float64)
            )
            scored = start + len(piece)
    if not total_bytes:
        raise ValueError(
            "no text to measure bits per byte on: each document is one token, and nothing is "
            "before it"
        )
    return nats / LN2 / total_bytes


def next_token_log_probs(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Natural log of each next token's probability [T - 1], float32."""
    if hasattr(model, "log_probs"):
        return np.asarray(model.log_probs(ids), dtype=np.float32)
    logits = np.asarray(model.logits(ids), dtype=np.float32)[:-1]  # [T - 1, V]
    highest = logits.max(-1, keepdims=True)
    normalizer = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
    return logits[np.arange(len(ids) - 1), np.asarray(ids[1:])] - normalizer
