"""What each source is worth, from one simulated run: the Scalable Data Mixer in spirit.

MobileLLM-Pro names its mixer, one offline simulated run and static shares, but no formula. This is
ours: every few steps of a run on the uniform mix, the gradient of a fresh batch of each source is
compared with the gradient of each probe set, scaled as Adam scales (a diagonal of root mean
squares), and what a step on that source would lower the probe's loss by is added up.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer


def mean_gradient(model: Transformer, batch: Batch) -> Tensor:
    """The gradient of the batch's mean loss over all parameters, one flat vector. Parameters' own
    .grad stays untouched.
    """
    logits = model(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def second_moment(gradients: Sequence[Tensor]) -> Tensor:
    """The root mean square of some flat gradients, element by element: Adam's denominator, whatever
    optimizer trains.
    """
    return torch.stack([gradient.square() for gradient in gradients]).mean(0).sqrt() + 1e-8


def utilities(
    source_gradients: Mapping[str, Tensor], probe_gradients: Mapping[str, Tensor], lr: float
) -> dict[str, dict[str, float]]:
    """utility[probe][source]: lr x <unit probe gradient, preconditioned source gradient of unit
    length>.

    Both are brought to length 1 after preconditioning, or sources with short, noisy documents would
    win by sheer norm.
    """
    root = second_moment([*source_gradients.values(), *probe_gradients.values()]).rsqrt()
    unit = {
        name: F.normalize(gradient * root, dim=0) for name, gradient in source_gradients.items()
    }
    found = {}
    for probe, gradient in probe_gradients.items():
        direction = F.normalize(gradient * root, dim=0)
        found[probe] = {name: lr * float(direction @ own) for name, own in unit.items()}
    return found


def shares_from_utility(
    utility: Mapping[str, float], prior: Mapping[str, float], temperature: float
) -> dict[str, float]:
    """argmax over shares p of <p, utility> - temperature x KL(p || prior), in closed form: p =
    prior x exp(utility / t).

    The utility is first brought to mean 0 and deviation 1 over sources, so `temperature` has no
    unit. The KL keeps the answer near the prior, for a gradient tells a direction and not how far
    it holds (our choice, after Olmix).
    """
    values = list(utility.values())
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) or 1.0
    highest = max(values)  # its exponent is 0, so a low temperature cannot overflow
    weights = {
        name: prior[name] * math.exp((utility[name] - highest) / deviation / temperature)
        for name in utility
    }
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
