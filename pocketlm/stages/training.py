"""What all stages that train share: a batch plan, batches, a loss with or without a teacher, the
loop, and a checkpoint at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pocketlm.data.batches import BatchPlan, ConversationRows, Rows, make_batches
from pocketlm.data.conversation_store import StoredRows, is_store_of, read_tally, write_store
from pocketlm.data.conversations import Tally, conversation_files, learnable_pairs, report_tally
from pocketlm.data.padding import trimmed
from pocketlm.model.checkpoint import save_checkpoint
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
) -> Path:
    """`out`, with a checkpoint of `student` after optim.num_steps steps on rows of `sources`, drawn
    in these shares.

    Loss: cross-entropy with the labels, or with `teacher` as config.distillation says.
    teacher_window: tokens that it must read at once. milestones: how many checkpoints to keep.
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
    return save_first(out, student, tokenizer)


def conversation_rows(
    name: str,
    out: Path,
    corpus: Path,
    sources: tuple[str, ...],
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    packed: bool = True,
) -> ConversationRows:
    """Rows of the training conversations of these sources of a corpus, packed or one a row.

    The first rank tokenises them once, into out/resume/conversations, which every rank maps and a
    resumed stage finds again; it prints what is left out, and writes conversations.json.
    """
    store, files = out / RESUME / "conversations", conversation_files(corpus, sources)
    made_of = {
        "files": [[str(file.relative_to(corpus)), file.stat().st_size] for file in files],
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": tokenizer.chat_template,
        "seq_len": seq_len,
        "packed": packed,
    }

    def tokenise() -> None:
        if not is_store_of(store, made_of):
            tally = Tally()
            pairs = learnable_pairs(files, tokenizer, seq_len, tally)
            write_store(
                store,
                pairs,
                tally,
                seq_len=seq_len,
                vocab_size=tokenizer.vocab_size,
                packed=packed,
                made_of=made_of,
            )

    on_first_rank(tokenise)
    if ranks().first:
        report_tally(read_tally(store), tokenizer, out, name)
    return StoredRows(store, seq_len, tokenizer.eos_id)


def save_first(out: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """`out`, with the checkpoint, which the first rank writes."""
    if ranks().first:
        save_checkpoint(out, model, tokenizer)
    return out


def check_seq_len(config: TrainingConfig, model: Transformer) -> None:
    """Nothing, or a ValueError where a row is longer than the model's window."""
    if config.seq_len > model.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.seq_len {config.seq_len} exceeds max_position_embeddings "
            f"{model.config.max_position_embeddings}; lower it or run extend_context first"
        )
