"""Over which pieces a loss over a large vocabulary goes: chunks of tokens, and blocks of words.

Logits of 8,192 tokens over 202,048 words take 6.6 GB in float32, and their gradients as much again.
Here those of as many tokens as fit in KEPT_BYTES exist at a time, in the dtype of the products.

Shapes: N tokens, V vocabulary, W words of a block
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# of the logits of a chunk of tokens, the model's and a live teacher's. On a GPU products want
# thousands of tokens: 2,092 of R1's vocabulary in bfloat16 (our choice, not tuned)
KEPT_BYTES = {"cpu": 400 * 2**20, "cuda": 2**29}
# of a block's logits in float32. On a processor the passes over them stay in its cache; a GPU wants
# few kernels, and eight blocks are alive at once (our choice, not tuned)
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**27}


def block_bytes(where: torch.device) -> int:
    """Of a block of logits in float32 on this kind of device."""
    return BLOCK_BYTES.get(where.type, BLOCK_BYTES["cpu"])


def tokens_at_a_time(num_tokens: int, bytes_each: int, where: torch.device) -> int:
    """Tokens in each of the fewest even chunks whose logits, of bytes_each, fit in KEPT_BYTES."""
    kept = KEPT_BYTES.get(where.type, KEPT_BYTES["cpu"])
    chunks = math.ceil(num_tokens / max(1, kept // bytes_each))
    return math.ceil(num_tokens / max(1, chunks))


def token_slices(num_tokens: int, bytes_each: int, where: torch.device) -> Iterator[slice]:
    size = tokens_at_a_time(num_tokens, bytes_each, where)
    firsts = range(0, num_tokens, max(1, size))
    return (slice(first, min(first + size, num_tokens)) for first in firsts)


def word_slices(vocab_size: int, num_tokens: int, where: torch.device) -> list[slice]:
    """Blocks of words; logits [num_tokens, W] of each take BLOCK_BYTES in float32."""
    width = max(1, block_bytes(where) // (4 * num_tokens))
    return [slice(first, min(first + width, vocab_size)) for first in range(0, vocab_size, width)]


def accurate_dtype(x: Tensor) -> torch.dtype:
    """Of sums and exponentials: float32, or float64 where x is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def logsumexp(logits: Tensor) -> Tensor:
    """[N] of logits [N, W], which are written over."""
    highest = logits.amax(-1, keepdim=True)
    return logits.sub_(highest).exp_().sum(-1).log_().add_(highest[:, 0])


@dataclass(frozen=True)
class LabelPlaces:
    """Where labels lie in logits [N, W] of a block of words. tokens [M] and columns [M], with
    `inside` [M] None; or all N tokens, and `inside` says which of them have their label here.
    """

    tokens: Tensor
    columns: Tensor
    inside: Tensor | None = None

    def of(self, logits: Tensor) -> Tensor:
        """[M], the labels' own; 0 where a label is not inside."""
        chosen = logits[self.tokens, self.columns]
        return chosen if self.inside is None else chosen.masked_fill(~self.inside, 0.0)

    def take_one(self, logits: Tensor) -> Tensor:
        """`logits`, less 1 at the labels."""
        if self.inside is None:
            logits[self.tokens, self.columns] -= 1
            return logits
        ones = self.inside.to(logits.dtype)[:, None]
        return logits.scatter_add_(1, self.columns[:, None], -ones)


def label_places(labels: Tensor, words: slice) -> LabelPlaces:
    """Places of labels [N] among these words. On a processor only those that lie there; a GPU would
    be waited for to know how many those are.
    """
    inside = (labels >= words.start) & (labels < words.stop)
    if labels.is_cpu:
        tokens = inside.nonzero()[:, 0]
        return LabelPlaces(tokens, labels[tokens] - words.start)
    columns = (labels - words.start).clamp(0, words.stop - words.start - 1)
    return LabelPlaces(torch.arange(len(labels), device=labels.device), columns, inside)
