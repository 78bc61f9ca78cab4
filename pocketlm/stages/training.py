"""What all stages that train share: a batch plan, batches, a loss with or without a teacher, the
loop, and a checkpoint at the end.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from pocketlm.data.batches import BatchPlan, Rows, make_batches
from pocketlm.data.conversation_store import StoredRows, is_store_of, read_tally, write_store
from pocketlm.data.conversations import (
    Limits,
    Tally,
    TooLong,
    conversation_files,
    learnable_pairs,
    report_tally,
)
from pocketlm.data.mixture import Shares, check_shares
from pocketlm.data.padding import trimmed
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.lora import LoRA, add_lora, merge_lora
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import RESUME, SaveConfig
from pocketlm.train.distill.cache import tokenizer_digest
from pocketlm.train.distill.teacher import is_cached, open_teacher
from pocketlm.train.distributed.ranks import on_first_rank, ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, distillation_loss, next_token_loss
from pocketlm.train.milestones import Milestones
from pocketlm.train.optim import OptimConfig

ALL = "conversations"  # the rows of all sources together


class RowFields(Protocol):
    """The fields that say how long a row is."""

    @property
    def name(self) -> str: ...
    @property
    def seq_len(self) -> int: ...


class TrainingConfig(Protocol):
    """The fields that every config of a stage that trains has."""

    @property
    def name(self) -> str: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def rows_per_step(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def distillation(self) -> Distillation: ...
    @property
    def save(self) -> SaveConfig: ...


class ConversationFields(Protocol):
    """The fields that say which conversations a stage learns."""

    @property
    def name(self) -> str: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def conversation_shares(self) -> Shares | None: ...
    @property
    def max_conversations(self) -> dict[str, int]: ...
    @property
    def too_long(self) -> TooLong: ...


def train_stage(
    config: TrainingConfig,
    optim: OptimConfig,
    out: Path,
    student: Transformer,
    tokenizer: Tokenizer,
    sources: Mapping[str, Rows],
    shares: Mapping[str, float],
    *,
    separate_documents: bool,
    teacher: Path | None = None,
    teacher_window: int | None = None,
    milestones: int = 0,
    lora: LoRA | None = None,
) -> Path:
    """`out`, with a checkpoint of `student` after optim.num_steps steps on rows of `sources`, drawn
    in these shares.

    Loss: cross-entropy with the labels, or with `teacher` as config.distillation says.
    teacher_window: tokens that it must read at once. milestones: how many checkpoints to keep.
    lora: what is trained beside frozen weights, and merged at the end.
    """
    plan = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=ranks().rank,
        world_size=ranks().world_size,
    )
    batches = make_batches(
        sources,
        shares,
        plan,
        separate_documents=separate_documents,
        name_documents=is_cached(teacher),
    )
    loss_fn = next_token_loss
    if teacher is not None:
        scores = open_teacher(teacher, tokenizer, sources, optim, reads=teacher_window)
        loss_fn = distillation_loss(scores, config.distillation)
    if lora is not None:
        student = add_lora(student, lora, seed=config.seed)
    student = train(
        student,
        trimmed(batches),
        loss_fn,
        optim,
        out,
        label=config.name,
        save=config.save,
        milestones=Milestones(milestones, tokenizer) if milestones else None,
    )
    if lora is not None and ranks().first:
        student = merge_lora(student)
    return save_first(out, student, tokenizer)


def conversation_sources(
    config: ConversationFields, out: Path, corpus: Path, tokenizer: Tokenizer, *, packed: bool
) -> tuple[dict[str, Rows], Shares]:
    """(rows by source, their shares) of a corpus's training conversations: all packed together, or
    each source by itself where the config has conversation_shares.
    """
    shares = config.conversation_shares
    if shares is not None:
        shares = check_shares(shares, list(shares), f"{config.name}.conversation_shares")
        shares = {name: share for name, share in shares.items() if share > 0}
    files = conversation_files(corpus, config.sources or tuple(shares or ()))
    known = files.keys() | (config.conversation_shares or {}).keys()
    if unknown := sorted(set(config.max_conversations) - known):
        raise ValueError(
            f"{config.name}.max_conversations names {', '.join(unknown)}, which the stage does not "
            f"train on; it has {', '.join(files)}"
        )
    rows = conversation_rows(
        config.name,
        out,
        corpus,
        files,
        tokenizer,
        limits_of(config),
        packed=packed,
        by_source=shares is not None,
    )
    return dict(rows), shares or {ALL: 1.0}


def conversation_rows(
    name: str,
    out: Path,
    corpus: Path,
    files: Mapping[str, Sequence[Path]],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    packed: bool = True,
    by_source: bool = False,
) -> dict[str, StoredRows]:
    """Rows of the conversations in these files of each source, packed or one a row: of all
    together, {"conversations": rows}, or by source.

    The first rank tokenises them once, into out/resume/conversations, which every rank maps and a
    resumed stage finds again; it prints what is left out, and writes conversations.json.
    """
    folder = out / RESUME / "conversations"
    stores = {ALL: (folder, files)}
    if by_source:
        stores = {source: (folder / source, {source: parts}) for source, parts in files.items()}
    for store, parts in stores.values():
        write_conversations(store, corpus, parts, tokenizer, limits, packed=packed)
    if ranks().first:
        tally = Tally()
        for store, _ in stores.values():
            tally.add(read_tally(store))
        report_tally(tally, tokenizer, out, name)
    return {
        source: StoredRows(store, limits.seq_len, tokenizer.eos_id)
        for source, (store, _) in stores.items()
    }


def write_conversations(
    store: Path,
    corpus: Path,
    files: Mapping[str, Sequence[Path]],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    packed: bool,
) -> None:
    """The store of these sources' conversations, which the first rank writes unless it is there."""
    paths = [file for parts in files.values() for file in parts]
    made_of = {
        "files": [[str(file.relative_to(corpus)), file.stat().st_size] for file in paths],
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": tokenizer.chat_template,
        "seq_len": limits.seq_len,
        "packed": packed,
    }
    # where they change nothing they are not named: stores of earlier versions stay valid
    if limits.too_long != "drop":
        made_of["too_long"] = limits.too_long
    if caps := {name: most for name, most in limits.max_conversations.items() if name in files}:
        made_of["max_conversations"] = caps

    def tokenise() -> None:
        if not is_store_of(store, made_of):
            tally = Tally()
            pairs = learnable_pairs(files, tokenizer, limits, tally)
            write_store(
                store,
                pairs,
                tally,
                seq_len=limits.seq_len,
                vocab_size=tokenizer.vocab_size,
                packed=packed,
                made_of=made_of,
            )

    on_first_rank(tokenise)


def limits_of(config: ConversationFields) -> Limits:
    """The limits of a config. ValueError names the field that is wrong, or two that contradict."""
    if config.sources and config.conversation_shares is not None:
        raise ValueError(
            f"{config.name}: conversation_shares name the sources; leave `sources` empty"
        )
    try:
        return Limits(
            seq_len=config.seq_len,
            too_long=config.too_long,
            max_conversations=config.max_conversations,
        )
    except ValueError as error:
        raise ValueError(f"{config.name}.{error}") from None


def save_first(out: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """`out`, with the checkpoint, which the first rank writes."""
    if ranks().first:
        save_checkpoint(out, model, tokenizer)
    return out


def pass_through(name: str, out: Path, model: Path | None, reason: str) -> Path:
    """`out`, with the checkpoint `model` as it is, and a line that says why."""
    if model is None:
        raise ValueError(f"{name}: nothing is trained ({reason}), and there is no input `model`")
    if ranks().first:
        line = f"  {name}: not trained, {model.name} goes on unchanged. {reason}"
        Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    return save_first(out, *load_checkpoint(model))


def check_seq_len(config: RowFields, model: Transformer) -> None:
    """Nothing, or a ValueError where a row is longer than the model's window."""
    if config.seq_len > model.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.seq_len {config.seq_len} exceeds max_position_embeddings "
            f"{model.config.max_position_embeddings}; lower it or run extend_context first"
        )
