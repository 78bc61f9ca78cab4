"""Teach: run a teacher over a corpus once, and cache its distributions for any number of students
and runs.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from pocketlm.data.batches import Rows
from pocketlm.data.conversations import Limits, TooLong, conversation_files
from pocketlm.data.corpus_folder import text_rows
from pocketlm.data.shards import list_sources
from pocketlm.inference.stock_network import StockNetwork
from pocketlm.model.batch import document_key
from pocketlm.model.tokenizer import Tokenizer, teach_chat_template
from pocketlm.model.transformer import Transformer
from pocketlm.stages.training import conversation_rows
from pocketlm.train.distill.cache import DONE, CacheWriter, model_digest, tokenizer_digest
from pocketlm.train.distill.codec import size_in_bytes
from pocketlm.train.distill.encode import encode_documents, estimate_tail_prior
from pocketlm.train.distill.teacher import load_network
from pocketlm.train.distributed.ranks import device
from pocketlm.train.optim import dtype_of

# Read first, from documents evenly spaced: for the tail prior, and for the estimate
SAMPLE_TOKENS = 2**14


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """window: tokens the teacher reads at once; longer documents in overlapping windows. sources:
    empty means all.

    conversations: the corpus's conversations as finetune and quantize render them, not its text;
    too_long: as there, of those longer than window. min_gain: nats; a word is stored for a token
    where that lowers the KL error by as much, so a smaller one costs disk and is nearer to the
    whole distribution (docs/benchmarks.md has figures). batch_tokens: read together. shard_tokens:
    written together; an interrupted stage loses no more. compute_dtype: of the teacher's products.
    """

    name: str
    window: int
    sources: tuple[str, ...] = ()
    conversations: bool = False
    too_long: TooLong = "drop"
    min_gain: float = 5e-3
    batch_tokens: int = 8192
    shard_tokens: int = 2**18
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        Limits(seq_len=self.window, too_long=self.too_long)
        if self.min_gain <= 0:
            raise ValueError(
                f"min_gain {self.min_gain} must be above 0: every word of every token would be "
                "stored"
            )
        if self.window < 4:
            raise ValueError(f"window {self.window} is below 4 tokens, a quarter of which overlaps")
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype {self.compute_dtype!r} is unknown; known: auto, float32, bfloat16"
            )

    def summary(self) -> str:
        what = "conversations" if self.conversations else "text"
        return (
            f"{what} in windows of {self.window:,}, words worth {self.min_gain:g} nats of a "
            "token's KL"
        )


def teach(
    config: TeachConfig, out: Path, *, corpus: Path, teacher: Path, selection: Path | None = None
) -> Path:
    """A teacher cache in `out`: give it to pretrain, finetune, extend_context or quantize as their
    `teacher`.

    `selection` replaces the corpus's training shards, as in pretrain. ValueError: a teacher of
    other tokens, a window it does not read, too little room on disk (estimated from what is read
    first), or an `out` begun with another teacher.
    """
    network, tokenizer = load_network(teacher, dtype_of(config.compute_dtype, device()))
    if config.window > network.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.window {config.window} exceeds the teacher's "
            f"{network.config.max_position_embeddings} "
            "positions; lower it"
        )
    documents = training_documents(config, corpus, tokenizer, selection, out)
    made_of = {
        "teacher": model_digest(network),
        "tokenizer": tokenizer_digest(tokenizer),
        "tokens": tokenizer.vocab_size,
        "vocab_size": network.config.vocab_size,
        "window": config.window,
        "min_gain": config.min_gain,
        "compute_dtype": config.compute_dtype,
    }
    network = network.eval().requires_grad_(False).to(device())
    if isinstance(network, StockNetwork):
        network.check()
        network.refuse_mixed(config.window)
    (out / DONE).unlink(missing_ok=True)  # what is there is whole only if nothing is added
    write_cache(config, CacheWriter(out, made_of), network, documents, str(teacher))
    return out


def training_documents(
    config: TeachConfig, corpus: Path, tokenizer: Tokenizer, selection: Path | None, out: Path
) -> dict[bytes, np.ndarray]:
    """Token ids of each different document or conversation, by its key."""
    sources: dict[str, Rows]
    if config.conversations:
        teach_chat_template(tokenizer)
        files = conversation_files(corpus, config.sources)
        limits = Limits(seq_len=config.window, too_long=config.too_long)
        sources = dict(conversation_rows(config.name, out, corpus, files, tokenizer, limits))
    else:
        corpus_tokenizer = Tokenizer.load(corpus / "tokenizer")
        if corpus_tokenizer.backend.get_vocab() != tokenizer.backend.get_vocab():
            raise ValueError(
                f"{corpus} is encoded in {corpus_tokenizer.vocab_size} tokens, the teacher has "
                f"{tokenizer.vocab_size} others; a "
                "teacher reads a corpus that was curated with its tokenizer"
            )
        text = selection or corpus
        wanted = dict.fromkeys(config.sources or list_sources(text), 1.0)
        sources = dict(text_rows(text, wanted, config.window, tokenizer.eos_id))
    documents = (ids for rows in sources.values() for ids in _documents(rows))
    return {document_key(ids): ids for ids in documents}


def _documents(rows: Rows) -> Iterator[np.ndarray]:
    return (rows.document(number) for number in range(rows.documents()))


def write_cache(
    config: TeachConfig,
    cache: CacheWriter,
    network: Transformer | StockNetwork,
    documents: dict[bytes, np.ndarray],
    teacher: str,
) -> None:
    """Everything not yet in the cache, a shard after another, and then teacher.json."""
    missing = {key: ids for key, ids in documents.items() if key not in cache.done}
    reading = {"window": config.window, "batch_tokens": config.batch_tokens}
    sample = spread_sample(list(documents.values()))
    known = cache.tail_prior()
    if known is None:
        prior = estimate_tail_prior(network, sample, **reading)
        cache.write_tail_prior(prior.cpu().numpy())
    else:
        prior = torch.from_numpy(known).to(device())
    tokens = sum(map(len, missing.values()))
    print_estimate(config, cache, network, sample, tokens, prior)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"  {config.name}", total=tokens)
        for shard in _shards(missing, config.shard_tokens):
            coded = encode_documents(
                network, list(shard.values()), prior, **reading, min_gain=config.min_gain
            )
            cache.write_shard(dict(zip(shard, coded, strict=True)))
            progress.advance(task, sum(map(len, shard.values())))
    cache.finish({"teacher": teacher})


def spread_sample(documents: list[np.ndarray]) -> list[np.ndarray]:
    """The beginnings of documents evenly spaced, about SAMPLE_TOKENS tokens."""
    most = SAMPLE_TOKENS // 16
    step = max(1, len(documents) * most // SAMPLE_TOKENS)
    chosen, tokens = [], 0
    for ids in documents[::step]:
        chosen.append(np.asarray(ids[:most]))
        tokens += len(chosen[-1])
        if tokens >= SAMPLE_TOKENS:
            break
    return chosen


def print_estimate(
    config: TeachConfig,
    cache: CacheWriter,
    network: Transformer | StockNetwork,
    sample: list[np.ndarray],
    tokens: int,
    prior: torch.Tensor,
) -> None:
    """Prints what the remaining `tokens` will take, from a part of the sample. ValueError: the disk
    is too small.
    """
    started = time.perf_counter()
    few = sample[: max(1, len(sample) // 4)]
    reading = {"window": config.window, "batch_tokens": config.batch_tokens}
    coded = encode_documents(network, few, prior, **reading, min_gain=config.min_gain)
    seconds = time.perf_counter() - started
    read, error = sum(len(part) for part, _ in coded), sum(kl for _, kl in coded)
    stored = sum(size_in_bytes(len(part), len(part.ids), cache.bits) for part, _ in coded)
    needed, room = int(tokens * stored / read), shutil.disk_usage(cache.folder).free
    estimate = (
        f"{tokens:,} tokens at {stored / read:.1f} bytes (KL error {error / read:.3g} nats): about "
        f"{needed / 1e6:,.1f} MB "
        f"and {tokens * seconds / read / 60:,.1f} minutes"
    )
    Console(stderr=True, highlight=False).print(
        f"  {config.name}: {estimate}", style="dim", soft_wrap=True
    )
    if needed > room:
        raise ValueError(
            f"{config.name}: {estimate}, but {cache.folder} has room for {room / 1e6:,.1f} MB; "
            "raise min_gain, name fewer sources, or choose another --out"
        )


def _shards(
    documents: dict[bytes, np.ndarray], shard_tokens: int
) -> Iterator[dict[bytes, np.ndarray]]:
    """Documents in order, until shard_tokens are together."""
    shard: dict[bytes, np.ndarray] = {}
    tokens = 0
    for key, ids in documents.items():
        shard[key] = ids
        tokens += len(ids)
        if tokens >= shard_tokens:
            yield shard
            shard, tokens = {}, 0
    if shard:
        yield shard
