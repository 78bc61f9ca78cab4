"""A teacher is a function from a batch to scores of all words. It is frozen, has no optimizer and
is never checkpointed.

Live, it reads the student's very batch. From disk (`teach` made it), it has read each document by
itself from its beginning: the same where documents of a row do not see each other, the papers'
loader being otherwise (our choice: what a document's distributions are must not depend on what it
was packed with). The loss cannot tell the two apart.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console

from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.same_tokens import vocabulary_differences
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ComputeSettings, ModelConfig, Transformer
from pocketlm.train.distill.cache import (
    DONE,
    Cache,
    cached_scores,
    missing,
    open_cache,
    tokenizer_digest,
)
from pocketlm.train.distributed.fsdp import spread
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.lazy_logits import TeacherScores, scores
from pocketlm.train.optim import OptimConfig, product_dtype

Teacher = Callable[[Batch], TeacherScores]
# of each source, evenly spread, are looked for in a cache before training starts
CHECKED_DOCUMENTS = 1000


class Documents(Protocol):
    """What can be asked, before training, for the documents that its rows are made of."""

    def documents(self) -> int: ...
    def key(self, document: int) -> bytes: ...


def is_cached(teacher: Path | None) -> bool:
    """Whether this teacher is one on disk, whose batches must name their documents."""
    return teacher is not None and (teacher / DONE).is_file()


def live_shape(teacher: Path | None) -> ModelConfig | None:
    """The network of a teacher that will be held in memory; None without a teacher, or with one on
    disk.
    """
    return None if teacher is None or is_cached(teacher) else shape_of(teacher)


def open_teacher(
    teacher: Path,
    tokenizer: Tokenizer,
    sources: Mapping[str, Documents],
    optim: OptimConfig,
    *,
    reads: int | None = None,
) -> Teacher:
    """The teacher in a folder: from disk where it holds teacher.json, live where it holds a
    checkpoint.

    ValueError before training starts: other tokens than the student's, less than `reads` tokens at
    once, or a cache without the documents of `sources`.
    """
    cached = is_cached(teacher)
    if cached:
        cache = open_cache(teacher)
        check_cache(cache, tokenizer, sources)
        window = cache.made_of["window"]
        facts = (
            f"from disk, {cache.told['bytes_per_token']:.1f} bytes a token, KL error "
            f"{cache.told['kl']:.3g}"
        )
    else:
        network, own = load_checkpoint(teacher)
        check_teacher(tokenizer, own)
        window, facts = network.config.max_position_embeddings, "live"
    if reads is not None and window < reads:
        raise ValueError(f"the teacher {teacher} reads {window} tokens, not the {reads} asked for")
    if ranks().first:
        Console(stderr=True, highlight=False).print(
            f"  teacher {teacher} ({facts})", style="dim", soft_wrap=True
        )
    return (lambda batch: cached_scores(cache, batch)) if cached else live_teacher(network, optim)


def live_teacher(model: Transformer, optim: OptimConfig) -> Teacher:
    """Scores [B x T, V] by running `model`, without gradients, on the student's very batch, in the
    student's compute dtype.
    """
    model = spread(model.eval().requires_grad_(False), optim.shard_over)
    model.compute = ComputeSettings(dtype=product_dtype(optim, next(model.parameters()).device))

    def teach(batch: Batch) -> TeacherScores:
        with torch.no_grad():
            return scores(
                model,
                model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids).flatten(0, 1),
            )

    return teach


def check_teacher(student: Tokenizer, teacher: Tokenizer) -> None:
    """Stop before training when the two vocabularies differ: a divergence needs one meaning for
    each id.

    Embeddings padded to different sizes do not matter (vocabulary.py).
    """
    differences = vocabulary_differences(teacher, student)
    if differences:
        raise ValueError(
            f"teacher and student have different vocabularies ({teacher.vocab_size} and "
            f"{student.vocab_size} tokens): "
            f"{'; '.join(differences)} (teacher first); full-vocabulary distillation needs the "
            "same tokenizer"
        )


def check_cache(cache: Cache, student: Tokenizer, sources: Mapping[str, Documents]) -> None:
    """Stop before training when a cache is of another tokenizer, or lacks some of CHECKED_DOCUMENTS
    of a source.
    """
    if cache.made_of["tokenizer"] != tokenizer_digest(student):
        raise ValueError(
            f"the teacher cached in {cache.folder} has another vocabulary "
            f"({cache.made_of['tokens']} tokens) than the "
            f"student ({student.vocab_size}); full-vocabulary distillation needs the same tokenizer"
        )
    for name, documents in sources.items():
        for number in _spread(documents.documents(), CHECKED_DOCUMENTS):
            if cache.find(documents.key(number)) is None:
                raise ValueError(missing(cache, f"document {number} of {name}"))


def _spread(count: int, most: int) -> Iterable[int]:
    """At most about `most` numbers below count, evenly apart."""
    return range(0, count, max(1, count // most))
