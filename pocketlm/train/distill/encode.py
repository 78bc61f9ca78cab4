"""Run a teacher over whole documents once, and encode its distributions for the cache.

A document is read by itself from its beginning. One longer than the window is read in windows that
overlap by a quarter (our choice): each token but the first window's has at least that much before
it, for a third more work.

Shapes: B windows read together, T tokens, V vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.stock_network import StockNetwork
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.codec import Encoded, concatenate, encode, tail_mass, tail_prior

LOGITS_AT_ONCE = 2**21  # 8 MiB in float32, which stay in the processor's cache


@dataclass(frozen=True)
class Window:
    """Tokens start..stop of a document, of which those from `first` on are new."""

    document: int
    start: int
    first: int
    stop: int


def windows(document: int, tokens: int, window: int) -> Iterator[Window]:
    """How a document of `tokens` tokens is read."""
    stop = min(tokens, window)
    yield Window(document, 0, 0, stop)
    while stop < tokens:
        start = stop - window // 4
        first, stop = stop, min(tokens, start + window)
        yield Window(document, stop - min(window, stop), first, stop)


def read_windows(
    model: Transformer | StockNetwork,
    documents: Sequence[np.ndarray],
    window: int,
    batch_tokens: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """(document, number of the first token, logits [n, V]) of each token of all documents, once, in
    any order.

    Windows of similar lengths are one batch, of at most batch_tokens tokens; the causal mask hides
    the padding past a window's end.
    """
    all_windows = [
        part for number, ids in enumerate(documents) for part in windows(number, len(ids), window)
    ]
    all_windows.sort(key=lambda part: part.stop - part.start)
    where = next(model.parameters()).device
    at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    while all_windows:
        longest = all_windows[-1].stop - all_windows[-1].start
        size = max(1, batch_tokens // longest)
        chosen, all_windows = all_windows[-size:], all_windows[:-size]
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, part in zip(ids, chosen, strict=True):
            row[: part.stop - part.start] = torch.from_numpy(
                documents[part.document][part.start : part.stop].astype(int)
            )
        with torch.no_grad():
            hidden = model.hidden(ids.to(where), None)  # [B, T, D]
            for states, part in zip(hidden, chosen, strict=True):
                for first in range(part.first, part.stop, at_once):
                    stop = min(first + at_once, part.stop)
                    logits = model.head(states[first - part.start : stop - part.start])
                    yield part.document, first, logits


def estimate_tail_prior(
    model: Transformer | StockNetwork,
    documents: Sequence[np.ndarray],
    window: int,
    batch_tokens: int,
) -> Tensor:
    """The teacher's tail prior [V], in logs, from these documents."""
    mass = torch.zeros(model.config.vocab_size, device=next(model.parameters()).device)
    for _, _, logits in read_windows(model, documents, window, batch_tokens):
        mass += tail_mass(logits)
    return tail_prior(mass)


def encode_documents(
    model: Transformer | StockNetwork,
    documents: Sequence[np.ndarray],
    prior: Tensor,
    *,
    window: int,
    batch_tokens: int,
    min_gain: float,
) -> list[tuple[Encoded, float]]:
    """For each document the teacher's encoded distributions, and the sum over its tokens of the KL
    error in nats.
    """
    parts: list[list[tuple[int, Encoded]]] = [[] for _ in documents]
    errors = [0.0] * len(documents)
    for document, first, logits in read_windows(model, documents, window, batch_tokens):
        coded, kl = encode(logits, prior, min_gain)
        parts[document].append((first, coded))
        errors[document] += float(kl.sum())
    whole = [
        concatenate([coded for _, coded in sorted(pieces, key=lambda piece: piece[0])])
        for pieces in parts
    ]
    return list(zip(whole, errors, strict=True))
