"""What a sample does to a probe set: the inner product of their gradients, without ever holding a
sample's gradient.

MobileLLM-R1 scores samples by influence with the gradients of the embedding and output layers alone
(as AutoMixer, section 3). With tied weights these are one matrix [V, D], else two of that shape:
the first gets a gradient where a token is read, the last where one is predicted. Either gradient on
a sample is a sum over tokens of outer products, so its inner product with a given matrix needs one
forward and one backward pass for a whole batch of samples.

The papers' sign makes good samples negative yet keeps the positive; here positive means: learning
it lowers the probe's loss. The inverse Hessian is replaced by Adam's diagonal, 1 / (sqrt(mean
squared gradient) + eps): our choice, as LESS does.

Shapes: B samples, T tokens, V vocabulary, D hidden, C probes, M matrices (1 tied, 2 untied:
embedding, output)
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer


def token_gradients(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [B, T, D], output error [B, T, V], input gradient [B, T, D]) of the mean loss of each
    sample.
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
    # a sample's loss is a mean: long ones do not shout
    weight = counted.float() / counted.sum(1, keepdim=True).clamp(min=1)
    labels = batch.labels.clamp(min=0)
    logits = model.head(hidden)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * weight
    (input_gradient,) = torch.autograd.grad(losses.sum(), embeddings[0])
    with torch.no_grad():
        error = logits.softmax(-1)
        error.scatter_add_(2, labels[..., None], -torch.ones_like(error[..., :1]))
        error *= weight[..., None]
    return hidden.detach(), error.detach(), input_gradient


def table_gradient(model: Transformer, batch: Batch) -> Tensor:
    """Sum over the batch's samples of the gradient of their mean loss in the embedding and output
    layers, [M, V, D].
    """
    hidden, error, input_gradient = token_gradients(model, batch)
    total = hidden.new_zeros(1 if model.lm_head is None else 2, error.shape[-1], hidden.shape[-1])
    total[-1] += torch.einsum("btv,btd->vd", error, hidden)
    total[0].index_add_(0, batch.input_ids.flatten(), input_gradient.flatten(0, 1))
    return total


def influence(model: Transformer, batch: Batch, directions: Tensor) -> Tensor:
    """[B, C]: for each sample and each direction [C, M, V, D], how far learning the sample lowers
    that probe's loss.
    """
    hidden, error, input_gradient = token_gradients(model, batch)
    scores = []
    for direction in directions:
        output_part = (error * F.linear(hidden, direction[-1])).sum((1, 2))
        input_part = (input_gradient * F.embedding(batch.input_ids, direction[0])).sum((1, 2))
        scores.append(output_part + input_part)
    return torch.stack(scores, 1)


def probe_directions(
    model: Transformer, probes: Mapping[str, Sequence[Batch]], eps: float = 1e-8
) -> Tensor:
    """[C, M, V, D]: each probe's mean gradient, divided by the root mean square over all probe
    batches, at norm 1.

    Norm 1 lets every capability count the same, as R1's equal weights over its three probe sets
    intend.
    """
    means, square, count = [], None, 0
    for batches in probes.values():
        mean = None
        samples = 0
        for batch in batches:
            gradient = table_gradient(model, batch) / batch.input_ids.shape[0]
            square = gradient.square() if square is None else square + gradient.square()
            mean = gradient if mean is None else mean + gradient
            count += 1
            samples += 1
        if mean is None:
            raise ValueError("a probe set is empty; raise probe_share in curate or add text")
        means.append(mean / samples)
    assert square is not None
    scale = (square / count).sqrt() + eps
    preconditioned = torch.stack(means) / scale
    return preconditioned / preconditioned.flatten(1).norm(dim=1)[:, None, None, None]
