"""A teacher is a function from a batch to scores of all words. It is frozen, has no optimizer and is never checkpointed."""

from collections.abc import Callable

import torch

from pocketlm.model.batch import Batch
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer, set_compute_dtype
from pocketlm.train.optim import OptimConfig, product_dtype
from pocketlm.train.parallel import spread
from pocketlm.train.vocabulary import TeacherScores, scores

Teacher = Callable[[Batch], TeacherScores]


def live_teacher(model: Transformer, optim: OptimConfig) -> Teacher:
    """Scores [B x T, V] by running `model`, without gradients, on the student's very batch, in the student's compute dtype."""
    model = spread(model.eval().requires_grad_(False), optim.shard_over)
    set_compute_dtype(model, product_dtype(optim, next(model.parameters()).device))

    def teach(batch: Batch) -> TeacherScores:
        with torch.no_grad():
            return scores(model, model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids).flatten(0, 1))

    return teach


def check_teacher(student: Tokenizer, teacher: Tokenizer) -> None:
    """Stop before training when the two vocabularies differ: a full-vocabulary KL needs one meaning for each id."""
    if student.backend.get_vocab() != teacher.backend.get_vocab():
        raise ValueError(
            f"teacher and student have different vocabularies ({teacher.vocab_size} and {student.vocab_size} tokens); "
            "full-vocabulary distillation needs the same tokenizer"
        )
