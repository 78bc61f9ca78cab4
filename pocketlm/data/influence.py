"""What a sample does to a probe set: the inner product of their gradients, without ever holding a
sample's gradient, or the logits of a batch.

MobileLLM-R1 scores samples by influence with the gradients of the embedding and output layers alone
(as AutoMixer, section 3). With tied weights these are one matrix [V, D], else two of that shape:
the first gets a gradient where a token is read, the last where one is predicted. Either gradient on
a sample is a sum over tokens of outer products, so its inner product with a given matrix needs one
forward and one backward pass for a whole batch of samples. The output part is an expectation under
the softmax of each token, summed over blocks of the vocabulary: model/softmax_blocks.py.

The papers' sign makes good samples negative yet keeps the positive; here positive means: learning
it lowers the probe's loss. The inverse Hessian is replaced by Adam's diagonal, 1 / (sqrt(mean
squared gradient) + eps): our choice, as LESS does.

Matrix products run in the model's compute dtype (`model.compute`), all else in float32.

Shapes: B samples, T tokens, N labels that count, V vocabulary, D hidden, C probes, M matrices (1
tied, 2 untied: embedding, output), W words of a block
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.softmax_blocks import softmax_expectation, softmax_outer
from pocketlm.model.transformer import Transformer


@dataclass(frozen=True)
class OutputLayer:
    """One batch at the output layer. x [N, D]: what the layer reads at each label that counts;
    labels [N]; scale [N]: of the token in its sample's mean loss; rows [N]: its sample. weight
    [V, D]: the layer's. log_norm [N] and values [N, C]: softmax_blocks.Expectation.
    """

    x: Tensor
    labels: Tensor
    scale: Tensor
    rows: Tensor
    weight: Tensor
    dtype: torch.dtype | None
    log_norm: Tensor
    values: Tensor


def output_and_input(
    model: Transformer, batch: Batch, directions: Tensor
) -> tuple[OutputLayer, Tensor]:
    """(the output layer, with its expectations for directions [C, V, D]; the gradient [B, T, D] of
    the sum of the samples' mean losses by the embeddings of their tokens).
    """
    embeddings: list[Tensor] = []

    def catch(module: torch.nn.Module, args: tuple, output: Tensor) -> Tensor:
        embeddings.append(output.detach().requires_grad_(True))
        return embeddings[0]

    handle = model.model.embed_tokens.register_forward_hook(catch)
    try:
        hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    finally:
        handle.remove()
    counted = batch.labels != IGNORE_INDEX
    # a sample's loss is a mean, so that a long one has no more weight than a short one
    scale = counted.float() / counted.sum(1, keepdim=True).clamp(min=1)
    layer = model.model.embed_tokens if model.lm_head is None else model.lm_head
    with torch.no_grad():
        x, weight = layer.operands(hidden[counted], model.compute.dtype)
        x, weight = x.float(), weight.detach()
        labels, scale = batch.labels[counted], scale[counted]
        expected = softmax_expectation(x, weight, directions, model.compute.dtype)
        hidden_gradient = torch.zeros_like(hidden)
        hidden_gradient[counted] = (
            (expected.weight - weight[labels]).mul_(scale[:, None]).to(hidden.dtype)
        )
    (input_gradient,) = torch.autograd.grad(hidden, embeddings[0], hidden_gradient)
    output = OutputLayer(
        x,
        labels,
        scale,
        counted.nonzero()[:, 0],
        weight,
        model.compute.dtype,
        expected.log_norm,
        expected.values,
    )
    return output, input_gradient


def table_gradient(model: Transformer, batch: Batch) -> Tensor:
    """Sum over the batch's samples of the gradient of their mean loss in the embedding and output
    layers, [M, V, D].
    """
    num_matrices = 1 if model.lm_head is None else 2
    ones = model.model.embed_tokens.weight.new_ones(len(batch.labels), 1, num_matrices)
    return weighted_gradients(model, batch, ones)[0]


def weighted_gradients(model: Transformer, batch: Batch, weights: Tensor) -> Tensor:
    """[C, M, V, D]: C sums over the batch's samples of their gradients, each sample and matrix
    weighted as weights [B, C, M] says.
    """
    table = model.model.embed_tokens.weight
    output, input_gradient = output_and_input(model, batch, table.new_zeros(0, *table.shape))
    totals = table.new_zeros(*weights.shape[1:], *table.shape)
    scales = output.scale[:, None] * weights[output.rows, :, -1]
    for words, block in softmax_outer(
        output.x, output.weight, output.log_norm, scales, output.dtype
    ):
        totals[:, -1, words] += block
    tokens = batch.input_ids.flatten()
    for number, total in enumerate(totals):
        total[-1].index_add_(0, output.labels, output.x * -scales[:, number, None])
        weighted = input_gradient * weights[:, number, 0, None, None]
        total[0].index_add_(0, tokens, weighted.flatten(0, 1))
    return totals


def influence(model: Transformer, batch: Batch, directions: Tensor) -> Tensor:
    """[B, C]: for each sample and each direction [C, M, V, D], how far learning the sample lowers
    that probe's loss.

    The score of the mean of some directions is the mean of their scores: to filter, one will do.
    """
    output, input_gradient = output_and_input(model, batch, directions[:, -1])
    scores = []
    for number, direction in enumerate(directions):
        of_labels = (output.x * direction[-1][output.labels]).sum(1)
        of_tokens = (output.values[:, number] - of_labels).mul_(output.scale)
        output_part = of_tokens.new_zeros(len(batch.labels)).index_add_(0, output.rows, of_tokens)
        input_part = (input_gradient * F.embedding(batch.input_ids, direction[0])).sum((1, 2))
        scores.append(output_part + input_part)
    return torch.stack(scores, 1)


def probe_directions(
    model: Transformer,
    probes: Mapping[str, Sequence[Batch]],
    eps: float = 1e-8,
    *,
    part: slice = slice(None),
    all_reduce: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """[C, M, V, D]: each probe's mean gradient, divided by the root mean square over all probe
    batches, at norm 1.

    Norm 1 lets every capability count the same, as R1's equal weights over its three probe sets
    intend. part, all_reduce: of each probe's batches those that this rank computes, and what sums a
    tensor over the ranks, in place.
    """
    if not all(probes.values()):
        raise ValueError("a probe set is empty; raise probe_share in curate or add text")
    table = model.model.embed_tokens.weight
    shape = (1 if model.lm_head is None else 2, *table.shape)
    # the mean gradient of each probe, and last the mean of all squares
    sums = table.new_zeros(len(probes) + 1, *shape)
    num_batches = sum(map(len, probes.values()))
    for number, batches in enumerate(probes.values()):
        for batch in batches[part]:
            gradient = table_gradient(model, batch) / batch.input_ids.shape[0]
            sums[number].add_(gradient, alpha=1 / len(batches))
            sums[-1].addcmul_(gradient, gradient, value=1 / num_batches)
    if all_reduce is not None:
        all_reduce(sums)
    preconditioned = sums[:-1].div_(sums[-1].sqrt_().add_(eps))
    return preconditioned.div_(preconditioned.flatten(1).norm(dim=1)[:, None, None, None])
