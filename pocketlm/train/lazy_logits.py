"""Logits that are not computed yet: of a model's head, block by block of the vocabulary, or of a
teacher's distributions of which few entries are stored.

Shapes: N tokens, D hidden, V vocabulary, W words of a block, E entries that a cached teacher stores
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pocketlm.inference.stock_network import StockNetwork
from pocketlm.model.kernels.linear import linear
from pocketlm.model.transformer import Transformer


@dataclass(frozen=True)
class LazyLogits:
    """Logits [N, V] that are not computed yet: x [N, D] times weight [V, D], in `dtype` or (None)
    their own. No weight: x is logits.
    """

    x: Tensor
    weight: Tensor | None = None
    dtype: torch.dtype | None = None

    @property
    def vocab_size(self) -> int:
        return self.x.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def itemsize(self) -> int:
        """Bytes of a logit as it is kept between the passes over a vocabulary."""
        return (self.dtype or self.x.dtype).itemsize

    def rows(self, chosen: Tensor | slice) -> "LazyLogits":
        """Those of the chosen tokens."""
        return replace(self, x=self.x[chosen])

    def block(self, words: slice) -> Tensor:
        """Logits [N, W] of these words."""
        return (
            self.x[:, words]
            if self.weight is None
            else linear(self.x, self.weight[words], self.dtype)
        )


@dataclass(frozen=True)
class SparseScores:
    """Log-probabilities [N, V] of which few are stored; every other word has the level of the
    token plus its own share.

    Of entry e: owners [E], its token; ids [E], its word, ascending; values [E], its
    log-probability. levels [N, 1] plus shares [V], logs both, are the log-probability of a word
    that has no entry. They need not sum to 1 exactly.
    """

    owners: Tensor
    ids: Tensor
    values: Tensor
    levels: Tensor
    shares: Tensor
    itemsize = 0  # nothing is kept: a block costs an addition

    @property
    def vocab_size(self) -> int:
        return len(self.shares)

    def rows(self, chosen: Tensor | slice) -> "SparseScores":
        """Those of the chosen tokens."""
        levels = self.levels[chosen]
        number = self.owners.new_full((len(self.levels),), -1)
        number[chosen] = torch.arange(len(levels), device=number.device)
        owners = number[self.owners]
        here = owners >= 0
        return replace(
            self, owners=owners[here], ids=self.ids[here], values=self.values[here], levels=levels
        )

    def block(self, words: slice) -> Tensor:
        """Log-probabilities [N, W] of these words."""
        log_probs = self.levels + self.shares[words]
        first, last = torch.searchsorted(
            self.ids, self.ids.new_tensor([words.start, words.stop])
        ).tolist()
        words_in_block = self.ids[first:last] - words.start
        log_probs[self.owners[first:last], words_in_block] = self.values[first:last]
        return log_probs


@dataclass(frozen=True)
class StockLogits:
    """Logits [N, V] of a network that transformers computes, not computed yet: x [N, D] times its
    head, and what the family does to the products.
    """

    x: Tensor
    network: StockNetwork

    @property
    def vocab_size(self) -> int:
        return self.network.config.vocab_size

    @property
    def itemsize(self) -> int:
        """Bytes of a logit as it is kept between the passes over a vocabulary."""
        return 4

    def rows(self, chosen: Tensor | slice) -> "StockLogits":
        """Those of the chosen tokens."""
        return replace(self, x=self.x[chosen])

    def block(self, words: slice) -> Tensor:
        """Logits [N, W], float32, of these words."""
        return self.network.head(self.x, words)


TeacherScores = LazyLogits | SparseScores | StockLogits


def teacher_scores(model: Transformer | StockNetwork, hidden: Tensor) -> TeacherScores:
    """The logits of hidden states [N, D] at the head of a frozen network, ours or the library's."""
    return scores(model, hidden) if isinstance(model, Transformer) else StockLogits(hidden, model)


def scores(model: Transformer, hidden: Tensor) -> LazyLogits:
    """The logits of hidden states [N, D] at the model's head, on its grid if it has one."""
    layer = model.model.embed_tokens if model.lm_head is None else model.lm_head
    return LazyLogits(*layer.operands(hidden, model.compute.dtype), model.compute.dtype)
