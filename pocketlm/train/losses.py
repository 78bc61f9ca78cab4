"""Losses: each maps (model, batch) to the float32 SUM over labels that count; the loop divides once, by the global count.

None holds the logits of a whole batch: see vocabulary.py.
"""

from collections.abc import Callable

from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.teacher import Teacher
from pocketlm.train.vocabulary import FORWARD_KL, Divergence, head_loss, scores

LossFn = Callable[[Transformer, Batch], Tensor]


def next_token_loss(model: Transformer, batch: Batch) -> Tensor:
    """Cross-entropy with the labels, in nats. Logits are worked out for the labels that count alone."""
    counted = batch.labels != IGNORE_INDEX
    hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    return head_loss(scores(model, hidden[counted]), labels=batch.labels[counted])


def distillation_loss(
    teacher: Teacher, *, label_share: float = 0.0, divergence: Divergence = FORWARD_KL, temperature: float = 1.0
) -> LossFn:
    """Forward KL from the teacher over the whole vocabulary, KL(p_T || p_S), temperature 1 (Pro, section on KD; R1, mid-training).

    label_share mixes in that share of cross-entropy with the labels. Neither paper names one, so it is 0 by default.
    divergence, temperature: others of vocabulary.py, for those who compare.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        counted = batch.labels != IGNORE_INDEX
        hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
        return head_loss(
            scores(model, hidden[counted]),
            labels=batch.labels[counted],
            teacher=teacher(batch).rows(counted.flatten()),
            divergence=divergence,
            temperature=temperature,
            label_share=label_share,
        )

    return loss
