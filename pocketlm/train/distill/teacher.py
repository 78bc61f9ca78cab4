"""A teacher: a function from a batch to scores of the whole vocabulary. It is frozen, has no
optimizer and is never checkpointed.

Live, it reads the student's very batch. From disk (`teach` made it), it has read each document by
itself from its beginning: the same where documents of a row do not see each other, the papers'
loader being otherwise (our choice: a document's distributions must not depend on what it was packed
with). The loss is the same function for both.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console

from pocketlm.inference.open import refusal
from pocketlm.inference.stock_network import StockNetwork, empty_stock_network, load_stock_network
from pocketlm.inference.stock_shape import stock_shape
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import check_ids, load_checkpoint, raw_config, shape_of
from pocketlm.model.costs import StockShape
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.same_tokens import vocabulary_differences
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.distill.cache import (
    DONE,
    Cache,
    cached_scores,
    missing,
    open_cache,
    tokenizer_digest,
)
from pocketlm.train.distributed.fsdp import shard_model
from pocketlm.train.distributed.ranks import device, on_first_rank, ranks
from pocketlm.train.lazy_logits import TeacherScores, teacher_scores
from pocketlm.train.optim import OptimConfig, product_dtype

Teacher = Callable[[Batch], TeacherScores]
# of each source, evenly spaced, looked up in a cache before training starts
CHECKED_DOCUMENTS = 1000


class Documents(Protocol):
    """Rows that name, before training, the documents that they are made of."""

    def documents(self) -> int: ...
    def key(self, document: int) -> bytes: ...


def is_cached(teacher: Path | None) -> bool:
    """Whether this teacher is one on disk, whose batches must name their documents."""
    return teacher is not None and (teacher / DONE).is_file()


def live_shape(teacher: Path | None) -> ModelConfig | None:
    """The network of a teacher that will be held in memory; None without a teacher, or with one on
    disk.
    """
    return None if teacher is None or is_cached(teacher) else network_shape(teacher)


def network_shape(folder: Path) -> ModelConfig:
    """The network of a checkpoint folder, from its config.json alone: a StockShape where our
    network does not hold it and stock transformers does. ValueError where neither opens it.
    """
    try:
        return shape_of(folder)
    except ValueError as refused:
        if "pocketlm" in raw_config(folder):
            raise  # a folder that pocketlm wrote
        try:
            return stock_shape(folder)
        except ValueError:
            if refusal(folder) is None:
                raise refused from None  # a family of ours: what is wrong is in its fields
            raise


def load_network(
    folder: Path, dtype: torch.dtype | None, *, to_shard: bool = False
) -> tuple[Transformer | StockNetwork, Tokenizer]:
    """(network, tokenizer) of a checkpoint folder, to be read and not trained.

    Ours has float32 weights and computes products in `dtype`; one of transformers has its weights
    in it, as the library itself would run it. to_shard: it is sharded next (live_teacher), so of
    several ranks the first alone reads the weights; on the others the network is on the meta
    device. ValueError where neither opens the folder.
    """
    shape = network_shape(folder)
    load: Callable[[], Transformer | StockNetwork]
    empty: Callable[[], Transformer | StockNetwork]
    if isinstance(shape, StockShape):
        load = partial(load_stock_network, folder, dtype)
        empty = partial(empty_stock_network, folder, dtype)
    else:
        load = partial(_ours, folder)
        empty = partial(_ours, folder, empty=True)
    tokenizer = Tokenizer.load(folder)
    check_ids(tokenizer, shape, folder)
    network = _read_by_first(load, empty) if to_shard else load()
    if isinstance(network, Transformer):
        network.compute = ComputeSettings(dtype=dtype)
    return network, tokenizer


def _ours(folder: Path, *, empty: bool = False) -> Transformer:
    return load_checkpoint(folder, empty=empty)[0]


def _read_by_first(
    load: Callable[[], Transformer | StockNetwork], empty: Callable[[], Transformer | StockNetwork]
) -> Transformer | StockNetwork:
    """The network with its weights on the first rank, and without on the others: a machine holds it
    once, however many of its ranks are here.
    """
    loaded: list[Transformer | StockNetwork] = []
    on_first_rank(lambda: loaded.append(load()))
    return loaded[0] if loaded else empty()


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
    read: Teacher
    if is_cached(teacher):
        cache = open_cache(teacher)
        check_cache(cache, tokenizer, sources)
        window, read = cache.made_of["window"], partial(cached_scores, cache)
        description = (
            f"from disk, {cache.facts['bytes_per_token']:.1f} bytes a token, KL error "
            f"{cache.facts['kl']:.3g}"
        )
    else:
        check_teacher(tokenizer, Tokenizer.load(teacher))
        network, _ = load_network(teacher, product_dtype(optim, device()), to_shard=True)
        window, description = network.config.max_position_embeddings, "live"
        if isinstance(network, StockNetwork):
            description += ", in transformers"
        read = live_teacher(network, optim)
    if reads is not None and window < reads:
        raise ValueError(f"the teacher {teacher} reads {window} tokens, not the {reads} required")
    if ranks().first:
        Console(stderr=True, highlight=False).print(
            f"  teacher {teacher} ({description})", style="dim", soft_wrap=True
        )
    return read


def live_teacher(model: Transformer | StockNetwork, optim: OptimConfig) -> Teacher:
    """Scores [B x T, V] by running `model`, without gradients, on the student's very batch, in the
    student's compute dtype. Of several ranks the first one's weights count.

    ValueError: a network of transformers that cannot be a teacher (StockNetwork.check).
    """
    frozen = model.eval().requires_grad_(False)
    blocks = frozen.blocks if isinstance(frozen, StockNetwork) else None
    model = shard_model(frozen, optim.shard_over, blocks, from_first=True)
    if isinstance(model, StockNetwork):
        model.check()
    else:
        where = next(model.parameters()).device
        compiled = where.type == "cuda" and optim.compile != "no"
        model.compute = ComputeSettings(dtype=product_dtype(optim, where), compile=compiled)

    def teach(batch: Batch) -> TeacherScores:
        with torch.no_grad():
            hidden = model.hidden(
                batch.input_ids, batch.positions, doc_ids=batch.doc_ids, documents=batch.documents
            )
            return teacher_scores(model, hidden.flatten(0, 1))

    return teach


def check_teacher(student: Tokenizer, teacher: Tokenizer) -> None:
    """Stop before training when the two vocabularies differ: a divergence needs one meaning for
    each id.

    Embeddings padded to different sizes do not matter (vocab_loss.py).
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
        for number in _evenly_spaced(documents.documents(), CHECKED_DOCUMENTS):
            if cache.find(documents.key(number)) is None:
                raise ValueError(missing(cache, f"document {number} of {name}"))


def _evenly_spaced(count: int, most: int) -> Iterable[int]:
    """At most about `most` numbers below count, evenly apart."""
    return range(0, count, max(1, count // most))
