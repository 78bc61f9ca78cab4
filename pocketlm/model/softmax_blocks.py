"""Sums over a softmax of a whole vocabulary, block by block: no more than a block of logits is ever
held.

Tokens are taken some at a time, and of those a block of the vocabulary at a time. A running maximum
and sum of exponentials make one pass over the vocabulary enough for an expectation.

Shapes: N tokens, n of them at a time, D hidden, V vocabulary, W words of a block, C value tables
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# tokens at a time, and the bytes of a block of their logits in float32: on a processor the passes
# over a block stay in its cache, on a GPU products want to be larger (our choice, not tuned)
TOKENS = {"cpu": 1024, "cuda": 8192}
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**28}


@dataclass(frozen=True)
class Expectation:
    """Of each token, under the softmax of its logits. log_norm [N]: the log of the sum of their
    exponentials; weight [N, D]: the expected row of the head's weight; values [N, C]: the expected
    product of the token's hidden state with a row of each table. All float32.
    """

    log_norm: Tensor
    weight: Tensor
    values: Tensor


@torch.no_grad()
def softmax_expectation(
    x: Tensor, weight: Tensor, tables: Tensor, dtype: torch.dtype | None
) -> Expectation:
    """Hidden states x [N, D] at a head of weight [V, D]; tables [C, V, D]. Products in `dtype`,
    None for float32.
    """
    out = Expectation(x.new_zeros(len(x)), torch.zeros_like(x), x.new_zeros(len(x), len(tables)))
    for tokens in token_slices(x):
        part = x[tokens]
        highest = part.new_full((len(part), 1), -torch.inf)
        total = part.new_zeros(len(part), 1)
        for words in word_slices(part, len(weight)):
            logits = _product(part, weight[words], dtype)
            new_highest = torch.maximum(highest, logits.amax(1, keepdim=True))
            decay = (highest - new_highest).exp_()
            highest = new_highest
            exponentials = logits.sub_(highest).exp_()
            total.mul_(decay).add_(exponentials.sum(1, keepdim=True))
            expected_rows = _product(exponentials, weight[words].T, dtype)
            out.weight[tokens] = out.weight[tokens].mul_(decay).add_(expected_rows)
            out.values[tokens] *= decay
            for number, table in enumerate(tables):
                scores = _product(part, table[words], dtype)
                out.values[tokens, number] += scores.mul_(exponentials).sum(1)
        out.log_norm[tokens] = (total.log() + highest)[:, 0]
        out.weight[tokens] /= total
        out.values[tokens] /= total
    return out


@torch.no_grad()
def softmax_outer(
    x: Tensor, weight: Tensor, log_norm: Tensor, scales: Tensor, dtype: torch.dtype | None
) -> Iterator[tuple[slice, Tensor]]:
    """(words, block [C, W, D]) of all blocks of the vocabulary, in order: for each of C scales [N,
    C] those rows of the sum over tokens of scale x (softmax [V] outer x [D]), the softmax by its
    log_norm [N]. A block is the caller's to change.
    """
    first = next(token_slices(x), slice(0))
    for words in word_slices(x[first], len(weight), num_sums=scales.shape[1]):
        block = x.new_zeros(scales.shape[1], len(weight[words]), x.shape[1])
        for tokens in token_slices(x):
            part = x[tokens]
            logits = _product(part, weight[words], dtype)
            shares = logits.sub_(log_norm[tokens, None]).exp_()
            for number in range(len(block)):
                scaled = shares * scales[tokens, number, None]
                block[number] += _product(scaled.T, part.T, dtype)
        yield words, block


def token_slices(x: Tensor) -> Iterator[slice]:
    size = TOKENS.get(x.device.type, TOKENS["cpu"])
    return (slice(first, first + size) for first in range(0, len(x), size))


def word_slices(x: Tensor, vocab_size: int, num_sums: int = 0) -> Iterator[slice]:
    """Blocks of the vocabulary whose logits for all tokens of x, and whose rows of so many sums [V,
    D], each fit in BLOCK_BYTES.
    """
    numbers = max(1, len(x), num_sums * x.shape[1])  # of each word
    width = max(1, BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cpu"]) // (4 * numbers))
    return (slice(first, first + width) for first in range(0, vocab_size, width))


def _product(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x [..., I] times weight [O, I], in float32, its factors in `dtype`."""
    if dtype is None:
        return F.linear(x, weight)
    return F.linear(x.to(dtype), weight.to(dtype)).float()
