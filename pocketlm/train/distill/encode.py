"""What a teacher says of whole documents, read once each and encoded, to be written to a cache.

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

from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.codec import Encoded, encode, joined, tail_mass, tail_prior

LOGITS_AT_ONCE = 2**21  # worked on together: 8 MiB in float32, which stay in the processor's cache


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
    model: Transformer, documents: Sequence[np.ndarray], window: int, batch_tokens: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(document, number of the first token, logits [n, V]) of each token of all documents, once, in
    any order.

    Windows of like lengths are read together, at most batch_tokens tokens; what is past a window's
    end no token of it sees.
    """
    all_windows = [
        each for number, ids in enumerate(documents) for each in windows(number, len(ids), window)
    ]
    all_windows.sort(key=lambda each: each.stop - each.start)
    where = next(model.parameters()).device
    at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    while all_windows:
        longest = all_windows[-1].stop - all_windows[-1].start
        size = max(1, batch_tokens // longest)
        chosen, all_windows = all_windows[-size:], all_windows[:-size]
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, each in zip(ids, chosen, strict=True):
            row[: each.stop - each.start] = torch.from_numpy(
                documents[each.document][each.start : each.stop].astype(int)
            )
        with torch.no_grad():
            hidden = model.hidden(ids.to(where), None)  # [B, T, D]
            for states, each in zip(hidden, chosen, strict=True):
                for first in range(each.first, each.stop, at_once):
                    stop = min(first + at_once, each.stop)
                    yield (
                        each.document,
                        first,
                        model.head(states[first - each.start : stop - each.start]),
                    )


def estimate_tail_prior(
    model: Transformer, documents: Sequence[np.ndarray], window: int, batch_tokens: int
) -> Tensor:
    """Log shares [V] that the teacher gives words without entry, over these documents."""
    tails = torch.zeros(model.config.vocab_size, device=next(model.parameters()).device)
    for _, _, logits in read_windows(model, documents, window, batch_tokens):
        tails += tail_mass(logits)
    return tail_prior(tails)


def encode_documents(
    model: Transformer,
    documents: Sequence[np.ndarray],
    shares: Tensor,
    *,
    window: int,
    batch_tokens: int,
    min_gain: float,
) -> list[tuple[Encoded, float]]:
    """Of each document the teacher's distributions, and the sum over its tokens of the KL error in
    nats.
    """
    parts: list[list[tuple[int, Encoded]]] = [[] for _ in documents]
    errors = [0.0] * len(documents)
    for document, first, logits in read_windows(model, documents, window, batch_tokens):
        coded, kl = encode(logits, shares, min_gain)
        parts[document].append((first, coded))
        errors[document] += float(kl.sum())
    whole = [joined([coded for _, coded in sorted(own, key=lambda part: part[0])]) for own in parts]
    return list(zip(whole, errors, strict=True))
