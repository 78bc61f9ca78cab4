"""Losses: each maps (model, batch) to the float32 SUM over labels that count; the loop divides
once, by the global count.

None holds the logits of a whole batch: see vocab_loss.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pocketlm.model.batch import Batch, laid_out
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.teacher import Teacher
from pocketlm.train.divergences import FORWARD_KL, JENSEN_SHANNON, REVERSE_KL
from pocketlm.train.head_kernels import is_ours, library_loss, refusal
from pocketlm.train.lazy_logits import LazyLogits, scores
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
    logits, labels, weights, _ = _counted(model, batch)
    how = model.compute.head_loss
    if not is_ours(how):
        return library_loss(how, logits, labels, weights)
    return head_loss(logits, labels=labels, weights=weights)


def distillation_loss(teacher: Teacher, how: Distillation = Distillation()) -> LossFn:
    """The divergence of the model from the teacher, live or from disk, over the whole vocabulary,
    and a share of labels.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        name = model.compute.head_loss
        problem = refusal(name, batch.labels.device, weights=False, teacher=True)
        if problem:
            raise ValueError(f"head_loss={name} {problem}")
        logits, labels, weights, places = _counted(model, batch)
        return head_loss(
            logits,
            labels=labels,
            weights=weights,
            teacher=teacher(batch).rows(places),
            divergence=DIVERGENCES[how.divergence],
            temperature=how.temperature,
            label_share=how.label_share,
        )

    return loss


def _counted(model: Transformer, batch: Batch) -> tuple[LazyLogits, Tensor, Tensor | None, Tensor]:
    """(logits, labels [N], weights [N], where they lie in the rows [N]) of the labels that count
    alone.
    """
    batch = laid_out(batch)
    places, weights = batch.label_places, batch.weights
    assert places is not None
    hidden = model.hidden(
        batch.input_ids, batch.positions, doc_ids=batch.doc_ids, documents=batch.documents
    )
    return (
        scores(model, hidden.flatten(0, 1).index_select(0, places)),
        batch.labels.flatten()[places],
        None if weights is None else weights.flatten()[places],
        places,
    )
