"""Supervised fine-tuning on conversations: loss on the assistant's tokens, packed rows, and an
attention mask between conversations.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pocketlm.data.conversations import TooLong
from pocketlm.data.mixture import Shares, shares_summary
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.lora import LoRA, num_lora_parameters
from pocketlm.model.tokenizer import teach_chat_template
from pocketlm.stages.training import check_seq_len, conversation_sources, limits_of, train_stage
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_shape
from pocketlm.train.losses import Distillation
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One stage of SFT. sources: which of the corpus's sources hold the conversations; empty means
    all that do.

    conversation_shares: of the rows, by source; None draws all conversations equally. Packed rows
    are full, so these are shares of tokens; unpacked, of conversations. max_conversations: at most
    so many of a source, evenly spaced. too_long: what does not fit in seq_len is left out, or keeps
    its beginning. packed: several conversations share a row; R1's script gives each a row of its
    own, so a step is as many samples. distillation: with a teacher, how the model learns from it.
    lora: train small factors beside frozen weights, merged into them at the end; for AdamW.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    sources: tuple[str, ...] = field(default=())
    conversation_shares: Shares | None = None
    max_conversations: dict[str, int] = field(default_factory=dict)
    too_long: TooLong = "drop"
    packed: bool = True
    distillation: Distillation = Distillation()
    lora: LoRA | None = None
    save: SaveConfig = SaveConfig(every_steps=50)

    def __post_init__(self) -> None:
        limits_of(self)
        if self.lora is not None and self.optim.optimizer != "adamw":
            raise ValueError(
                f"{self.name}: factors of LoRA are trained by adamw; {self.optim.optimizer} would "
                "orthogonalise each of them for itself"
            )

    def summary(self) -> str:
        rows = f"{self.rows_per_step:,} {'rows' if self.packed else 'samples'}"
        steps = f"{self.optim.num_steps:,} steps x {rows} x {self.seq_len:,}, "
        shares = self.conversation_shares
        mix = f", {shares_summary(shares)}" if shares else ""
        lora = f", LoRA of rank {self.lora.rank}" if self.lora else ""
        return f"{steps}{self.optim.summary()}{mix}{lora}"


def finetune(
    config: FinetuneConfig, out: Path, *, corpus: Path, model: Path, teacher: Path | None = None
) -> Path:
    """A chat checkpoint in `out`. A base model's tokenizer gets a chat template here; one it
    already has is kept.

    With `teacher`, a checkpoint or a cache that teach wrote, the loss is the divergence from its
    distributions over the assistant's tokens.
    """
    shape = shape_of(model)
    trained = None if config.lora is None else num_lora_parameters(shape, config.lora)
    check_memory(config, shape, teacher=live_shape(teacher), masked=True, trained=trained)
    student, tokenizer = load_checkpoint(model)
    teach_chat_template(tokenizer)
    check_seq_len(config, student)
    rows, shares = conversation_sources(config, out, corpus, tokenizer, packed=config.packed)
    return train_stage(
        config,
        config.optim,
        out,
        student,
        tokenizer,
        rows,
        shares,
        separate_documents=True,
        teacher=teacher,
        lora=config.lora,
    )
