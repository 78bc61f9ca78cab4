"""Preferences: a model learns that one answer is better than another, from pairs and without a
reward model.

A row of a batch is a pair: document 0 is the chosen conversation, document 1 the rejected one.

Shapes: B pairs, T tokens of both conversations
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.losses import LossFn
from pocketlm.train.token_log_probs import token_log_probs

Reference = Callable[[Batch], Tensor]  # [B, 2], what `answer_log_probs` gave before training
CHOSEN, REJECTED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How a model learns from pairs.

    loss: dpo (Rafailov et al. 2023, arXiv 2305.18290, equation 7), or ipo (Azar et al. 2023,
    arXiv 2310.12036, equation 17, on mean log-probabilities as TRL computes it). beta: how much the
    model may move from where it began; smaller moves it further. label_smoothing: the share of
    pairs taken to be the wrong way round (dpo alone). sft_weight: of the chosen answer's own
    cross-entropy a token beside it (arXiv 2404.19733, where it is 1): dpo alone lowers the
    probability of both answers.
    """

    loss: Literal["dpo", "ipo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in ("dpo", "ipo"):
            raise ValueError(f"preference loss {self.loss!r} is unknown; known: dpo, ipo")
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing {self.label_smoothing} must be in [0, 0.5)")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("label_smoothing is of dpo; ipo has none")
        if self.sft_weight < 0:
            raise ValueError(f"sft_weight {self.sft_weight} must not be below 0")


class Answers(NamedTuple):
    """Of each pair: log_probs [B, 2], the sums over the tokens of each answer, and counts [B, 2] of
    those tokens.
    """

    log_probs: Tensor
    counts: Tensor


def answer_log_probs(model: Transformer, batch: Batch) -> Answers:
    """The natural log-probability of the chosen and the rejected answer of each pair, float32;
    differentiable. No logits of a whole batch are held.
    """
    assert batch.doc_ids is not None
    values = token_log_probs(model, batch)  # [B, T], 0 where no label counts
    counted = batch.labels != IGNORE_INDEX
    sides = [counted & (batch.doc_ids == side) for side in (CHOSEN, REJECTED)]
    sums = torch.stack([torch.where(side, values, 0.0).sum(1) for side in sides], 1)
    return Answers(sums, torch.stack([side.sum(1) for side in sides], 1))


def preference_loss(reference: Reference, how: Preference) -> LossFn:
    """A loss, summed over pairs: the loop divides by their number (`Batch.units`)."""

    def loss(model: Transformer, batch: Batch) -> Tensor:
        answers = answer_log_probs(model, batch)
        before = reference(batch).to(answers.log_probs.device)
        moved = answers.log_probs - before
        if how.loss == "ipo":
            moved = moved / answers.counts
        margin = moved[:, CHOSEN] - moved[:, REJECTED]
        if how.loss == "ipo":
            losses = (margin - 1 / (2 * how.beta)) ** 2
        else:
            wrong = how.label_smoothing
            right = -F.logsigmoid(how.beta * margin) * (1 - wrong)
            losses = right - F.logsigmoid(-how.beta * margin) * wrong
        nll = -answers.log_probs[:, CHOSEN] / answers.counts[:, CHOSEN]
        return (losses + how.sft_weight * nll).sum()

    return loss


def counted_as_pairs(batches: Callable[[int], list[Batch]]) -> Callable[[int], list[Batch]]:
    """The same batches, each of as many units as it has pairs."""
    return lambda step: [replace(batch, units=len(batch.input_ids)) for batch in batches(step)]
