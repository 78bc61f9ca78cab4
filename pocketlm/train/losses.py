"""Losses: each maps (model, batch) to the float32 SUM over labels that count; the loop divides
once, by the global count.

None holds the logits of a whole batch: see vocab_loss.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.teacher import Teacher
from pocketlm.train.divergences import FORWARD_KL, JENSEN_SHANNON, REVERSE_KL
from pocketlm.train.lazy_logits import scores
from pocketlm.train.vocab_loss import head_loss

LossFn = Callable[[Transformer, Batch], Tensor]
DIVERGENCES = {"forward_kl": FORWARD_KL, "reverse_kl": REVERSE_KL, "jensen_shannon": JENSEN_SHANNON}


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a model learns from a teacher. The defaults are the papers' (Pro, section on KD; R1,
    mid-training).

    label_share: of cross-entropy with the labels in the loss; neither paper names one. divergence:
    forward_kl is
    KL(p_T || p_S) over the whole vocabulary; the others are for those who compare. temperature: of
    both distributions.
    """

    label_share: float = 0.0
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_share <= 1:
            raise ValueError(
                f"label_share {self.label_share} is no share; give 0 (the teacher alone) to 1 "
                "(labels alone)"
            )
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"divergence {self.divergence!r} is unknown; known: {', '.join(DIVERGENCES)}"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature {self.temperature} must be positive; 1 takes the distributions as "
                "they are"
            )


def next_token_loss(model: Transformer, batch: Batch) -> Tensor:
    """Cross-entropy with the labels, in nats, each times its weight. Logits are computed for the
    labels that count alone.
    """
    counted = batch.labels != IGNORE_INDEX
    hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    return head_loss(
        scores(model, hidden[counted]),
        labels=batch.labels[counted],
        weights=_counted(batch.weights, counted),
    )


def distillation_loss(teacher: Teacher, how: Distillation = Distillation()) -> LossFn:
    """The divergence of the model from the teacher, live or from disk, over the whole vocabulary,
    and a share of labels.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        counted = batch.labels != IGNORE_INDEX
        hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
        return head_loss(
            scores(model, hidden[counted]),
            labels=batch.labels[counted],
            weights=_counted(batch.weights, counted),
            teacher=teacher(batch).rows(counted.flatten()),
            divergence=DIVERGENCES[how.divergence],
            temperature=how.temperature,
            label_share=how.label_share,
        )

    return loss


def _counted(weights: Tensor | None, counted: Tensor) -> Tensor | None:
    return None if weights is None else weights[counted]
