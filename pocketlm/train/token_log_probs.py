"""The log-probability of each label of a batch, chunked as the losses are (vocab_blocks.py).

Shapes: B rows, T tokens of a row, N tokens, D hidden, V vocabulary
"""

from typing import Any

import torch
from torch import Tensor

from pocketlm.model.batch import Batch, laid_out
from pocketlm.model.transformer import Transformer
from pocketlm.train.lazy_logits import LazyLogits, scores
from pocketlm.train.vocab_blocks import (
    accurate_dtype,
    label_places,
    logsumexp,
    token_slices,
    word_slices,
)


def token_log_probs(model: Transformer, batch: Batch) -> Tensor:
    """Float32 [B, T]: the log-probability of each label after its token; 0 where the label is
    IGNORE_INDEX.

    Differentiable in the model's weights by any function of it (preference and policy losses). The
    backward pass computes the logits once more, for no gradient is known before.
    """
    batch = laid_out(batch)
    places, labels = batch.label_places, batch.labels
    assert places is not None
    hidden = model.hidden(
        batch.input_ids, batch.positions, doc_ids=batch.doc_ids, documents=batch.documents
    )
    logits = scores(model, hidden.flatten(0, 1).index_select(0, places))
    values: Tensor = _LabelLogProbs.apply(  # type: ignore[assignment]
        logits.x, logits.weight, labels.flatten()[places], logits.dtype
    )
    return values.new_zeros(labels.numel()).index_copy(0, places, values).view(labels.shape)


class _LabelLogProbs(torch.autograd.Function):
    """[N] of x [N, D], weight [V, D] and labels [N]; products in `dtype`, or their own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        logits = LazyLogits(x, weight, dtype)
        norms = torch.empty(len(x), dtype=accurate_dtype(x), device=x.device)
        values = torch.zeros_like(norms)
        for tokens in token_slices(len(x), logits.vocab_size * logits.itemsize, x.device):
            chunk, parts = logits.rows(tokens), []
            for words in word_slices(logits.vocab_size, tokens.stop - tokens.start, x.device):
                block = chunk.block(words).to(norms.dtype, copy=True)
                places = label_places(labels[tokens], words)
                values[tokens].index_add_(0, places.tokens, places.of(block))
                parts.append(logsumexp(block))
            norms[tokens] = torch.stack(parts).logsumexp(0)
        ctx.save_for_backward(x, weight, labels, norms)
        ctx.dtype = dtype
        return values.sub_(norms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, labels, norms = ctx.saved_tensors
        logits = LazyLogits(x, weight, ctx.dtype)
        narrow = ctx.dtype or x.dtype
        grad_x = torch.zeros_like(x, dtype=norms.dtype)
        grad_weight = torch.zeros_like(weight, dtype=norms.dtype)
        for tokens in token_slices(len(x), logits.vocab_size * logits.itemsize, x.device):
            chunk, inputs = logits.rows(tokens), x[tokens].to(narrow)
            for words in word_slices(logits.vocab_size, tokens.stop - tokens.start, x.device):
                block = chunk.block(words).to(norms.dtype, copy=True)
                places = label_places(labels[tokens], words)
                p = places.take_one(block.sub_(norms[tokens, None]).exp_())
                gradient = p.mul_(-upstream[0][tokens, None]).to(narrow)
                grad_x[tokens] += gradient @ weight[words].to(narrow)
                grad_weight[words] += gradient.T @ inputs
        return grad_x, grad_weight, None, None
