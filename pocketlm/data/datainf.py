"""DataInf (Kwon and others, arXiv 2310.00902) on the embedding and output layers, as MobileLLM-R1
takes it from AutoMixer: influence with a closed form in place of the inverse Hessian.

For each matrix by itself (one when tied, two untied), with g_i the gradient of sample i's mean
loss, v a probe's mean gradient, n samples and d = V D numbers:

    lambda = damping / (n d) x sum_i ||g_i||^2
    h = 1 / (n lambda) x sum_i (v - <v, g_i> / (lambda + ||g_i||^2) g_i)

h is the mean over samples of (g_i g_i^T + lambda)^-1 v: DataInf's approximation is to take the mean
of the inverses for the inverse of the mean. The score of a sample k is <h, g_k>, which
`influence` computes with h as its direction; positive means that learning k lowers the probe's
loss.

No sample's gradient is held whole. Pass 1 makes it a block of the vocabulary at a time, and keeps
of it its squared norm and its products with the probes. h is linear in the g_i, so pass 2 is a
gradient of weighted samples. Pass 3 is `influence`.

Memory: C probes of [M, V, D] twice, and one block of softmax_blocks.BLOCK_BYTES. Cost of pass 1, a
sample of T tokens: forward and backward to the embedding, four products of T V D multiplications
(logits, expected rows, logits again, outer products), and reading C + 1 tables; pass 2 has C
outer products in place of one. A Gram matrix of the tokens' softmaxes would cost T^2 V in place of
T V D: more where T > D, as at R1's 4,096 tokens and 1,536 hidden.

Shapes: B samples, T tokens, V vocabulary, D hidden, C probes, M matrices, W words of a block
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pocketlm.data.influence import (
    OutputLayer,
    output_and_input,
    probe_directions,
    table_gradient,
    weighted_gradients,
)
from pocketlm.model.batch import Batch
from pocketlm.model.softmax_blocks import softmax_outer
from pocketlm.model.transformer import Transformer

Score = Literal["datainf", "adam"]
SCORES = ("datainf", "adam")
DAMPING = 0.1  # of the reference code
AllReduce = Callable[[Tensor], object]  # sums a tensor over the ranks, in place


def score_directions(
    score: Score,
    model: Transformer,
    probes: Mapping[str, Sequence[Batch]],
    samples: Sequence[Batch],
    *,
    damping: float = DAMPING,
    part: slice = slice(None),
    all_reduce: AllReduce | None = None,
) -> Tensor:
    """[C, M, V, D]: the directions of `influence` for each probe, by name of the score.

    "datainf": h, in its own size, as the papers add scores up. "adam": `probe_directions`, of norm
    1, which needs neither samples nor damping. part: of each list of batches those that this rank
    computes.
    """
    if score == "adam":
        return probe_directions(model, probes, part=part, all_reduce=all_reduce)
    gradients = mean_gradients(model, probes, part=part, all_reduce=all_reduce)
    return datainf_directions(
        model, samples, gradients, damping=damping, part=part, all_reduce=all_reduce
    )


def mean_gradients(
    model: Transformer,
    probes: Mapping[str, Sequence[Batch]],
    *,
    part: slice = slice(None),
    all_reduce: AllReduce | None = None,
) -> Tensor:
    """[C, M, V, D]: of each probe the mean over its rows of the gradient of a row's mean loss.

    ValueError where a probe has no rows.
    """
    if not all(probes.values()):
        raise ValueError("a probe set is empty; raise probe_share in curate or add text")
    table = model.model.embed_tokens.weight
    sums = table.new_zeros(len(probes), 1 if model.lm_head is None else 2, *table.shape)
    for total, batches in zip(sums, probes.values(), strict=True):
        num_rows = sum(len(batch.labels) for batch in batches)
        for batch in batches[part]:
            total.add_(table_gradient(model, batch), alpha=1 / num_rows)
    if all_reduce is not None:
        all_reduce(sums)
    return sums


def datainf_directions(
    model: Transformer,
    samples: Sequence[Batch],
    gradients: Tensor,
    *,
    damping: float = DAMPING,
    part: slice = slice(None),
    all_reduce: AllReduce | None = None,
) -> Tensor:
    """h of each probe [C, M, V, D], for the probes' mean gradients [C, M, V, D] and the samples
    whose Hessian is approximated.

    ValueError where no sample has a gradient.
    """
    samples = samples[part]
    measured = [sample_products(model, batch, gradients) for batch in samples]
    # sum of squared norms of each matrix, and last the number of samples
    sums = gradients.new_zeros(gradients.shape[1] + 1)
    for squares, _ in measured:
        sums[:-1] += squares.sum(0)
        sums[-1] += len(squares)
    if all_reduce is not None:
        all_reduce(sums)
    num_samples, numbers = float(sums[-1]), gradients[0, 0].numel()
    if num_samples == 0 or not bool((sums[:-1] > 0).all()):
        raise ValueError("DataInf: no sample has a gradient in the embedding and output layers")
    damped = damping / (num_samples * numbers) * sums[:-1]  # lambda [M]
    total = torch.zeros_like(gradients)
    for batch, (squares, products) in zip(samples, measured, strict=True):
        weights = products / (damped + squares)[:, None]
        total += weighted_gradients(model, batch, weights)
    if all_reduce is not None:
        all_reduce(total)
    return total.mul_(-1 / num_samples).add_(gradients).div_(damped[:, None, None])


def sample_products(model: Transformer, batch: Batch, directions: Tensor) -> tuple[Tensor, Tensor]:
    """(squared norm [B, M] of each sample's gradient in each matrix, its inner products [B, C, M]
    with directions [C, M, V, D]).
    """
    num_rows, (num_probes, num_matrices) = len(batch.labels), directions.shape[:2]
    squares = directions.new_zeros(num_rows, num_matrices)
    products = directions.new_zeros(num_rows, num_probes, num_matrices)
    output, input_gradient = output_and_input(model, batch, directions[:0, -1])
    for row in range(num_rows):
        # the gradient where tokens are read: the rows of those that occur
        ids, places = batch.input_ids[row].unique(return_inverse=True)
        read = input_gradient.new_zeros(len(ids), input_gradient.shape[-1])
        read.index_add_(0, places, input_gradient[row])
        if num_matrices == 2:
            squares[row, 0] = read.square().sum()
            products[row, :, 0] = (directions[:, 0, ids] * read).sum((1, 2))
            read, ids = read[:0], ids[:0]
        for words, block in _gradient_blocks(output, row, ids, read):
            squares[row, -1] += block.square().sum()
            products[row, :, -1] += directions[:, -1, words].flatten(1) @ block.flatten()
    return squares, products


def _gradient_blocks(
    output: OutputLayer, row: int, ids: Tensor, read: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """(words, block [W, D]) of one sample's gradient in the output layer, to which the rows `read`
    of the tokens `ids` are added.
    """
    mine = output.rows == row
    x, labels, scale = output.x[mine], output.labels[mine], output.scale[mine]
    for words, blocks in softmax_outer(
        x, output.weight, output.log_norm[mine], scale[:, None], output.dtype
    ):
        block = blocks[0]
        for tokens, rows in ((labels, x * -scale[:, None]), (ids, read)):
            inside = (tokens >= words.start) & (tokens < words.stop)
            block.index_add_(0, tokens[inside] - words.start, rows[inside])
        yield words, block
