"""Supervised fine-tuning on conversations: loss on the assistant's tokens, packed rows, no
attention across conversations.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pocketlm.data.batches import BatchPlan, make_batches
from pocketlm.data.conversations import conversation_rows, told
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint, shape_of
from pocketlm.model.tokenizer import teach_chat_template
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import is_cached, live_shape, open_teacher
from pocketlm.train.distributed.fsdp import on_all_ranks
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, distillation_loss, next_token_loss
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One stage of SFT. sources: which of the corpus's sources hold the conversations; empty means
    all that do.

    distillation: with a teacher, how the model learns from it. packed: several conversations share
    a row; R1's script gives each a row of its own, so a step is as many samples.
    """

    name: str
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    sources: tuple[str, ...] = field(default=())
    packed: bool = True
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=50)

    def summary(self) -> str:
        rows = f"{self.rows_per_step:,} {'rows' if self.packed else 'samples'}"
        return f"{self.optim.num_steps:,} steps x {rows} x {self.seq_len:,}, {self.optim.summary()}"


@on_all_ranks
def finetune(
    config: FinetuneConfig, out: Path, *, corpus: Path, model: Path, teacher: Path | None = None
) -> Path:
    """A chat checkpoint in `out`. A base model's tokenizer gets a chat template here; one it
    already has is kept.

    With `teacher`, a checkpoint or a cache that teach wrote, the answers are learnt from its
    distributions.
    """
    check_memory(config, shape_of(model), teacher=live_shape(teacher), masked=True)
    own = ranks()
    student, tokenizer = load_checkpoint(model)
    teach_chat_template(tokenizer)
    if config.seq_len > student.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.seq_len {config.seq_len} exceeds max_position_embeddings "
            f"{student.config.max_position_embeddings}; lower it or run extend_context first"
        )
    rows, tally = conversation_rows(
        corpus, config.sources, tokenizer, config.seq_len, packed=config.packed
    )
    if own.first:
        told(tally, tokenizer, out, config.name)
    layout = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=own.rank,
        world_size=own.world_size,
    )
    sources, shares = {"conversations": rows}, {"conversations": 1.0}
    batches = make_batches(
        sources, shares, layout, separate_documents=True, name_documents=is_cached(teacher)
    )
    loss_fn = next_token_loss
    if teacher is not None:
        loss_fn = distillation_loss(
            open_teacher(teacher, tokenizer, sources, config.optim), config.distillation
        )
    student = train(
        student, batches, loss_fn, config.optim, out, label=config.name, save=config.save
    )
    if own.first:
        save_checkpoint(out, student, tokenizer)
    return out
