"""Losses: each maps (model, batch) to the float32 SUM over labels that count; the loop divides once, by the global count.

Shapes: B batch, T tokens, V vocabulary, N labels that count
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.teacher import Teacher

LossFn = Callable[[Transformer, Batch], Tensor]


def next_token_loss(model: Transformer, batch: Batch) -> Tensor:
    """Cross-entropy with the labels, in nats. Logits are worked out for the labels that count alone."""
    counted = batch.labels != IGNORE_INDEX
    hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    return F.cross_entropy(model.head(hidden[counted]), batch.labels[counted], reduction="sum")


def distillation_loss(teacher: Teacher, *, label_share: float = 0.0) -> LossFn:
    """Forward KL from the teacher over the whole vocabulary, KL(p_T || p_S), temperature 1 (Pro, section on KD; R1, mid-training).

    label_share mixes in that share of cross-entropy with the labels. Neither paper names one, so it is 0 by default.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        counted = batch.labels != IGNORE_INDEX
        hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
        logits = model.head(hidden[counted])  # [N, V]
        total = forward_kl(teacher(batch)[counted], logits)
        if label_share:
            labelled = F.cross_entropy(logits, batch.labels[counted], reduction="sum")
            total = (1 - label_share) * total + label_share * labelled
        return total

    return loss


def forward_kl(teacher_logits: Tensor, logits: Tensor) -> Tensor:
    """Sum over rows of KL(softmax(teacher) || softmax(student)), both [N, V], in nats."""
    log_student = F.log_softmax(logits.float(), -1)
    log_teacher = F.log_softmax(teacher_logits.float(), -1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
