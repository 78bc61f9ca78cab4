"""Quantize to four bits: quantization-aware training (QAT) with the full-precision model as the
teacher, or rounding (PTQ).
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from pocketlm.data.batches import Rows
from pocketlm.data.conversations import TooLong
from pocketlm.data.corpus_folder import chosen_shares, text_rows
from pocketlm.data.mixture import Shares
from pocketlm.data.rows import Packing
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, shape_of
from pocketlm.model.grid_check import refuse_rounding_again
from pocketlm.model.quant import fake_quantize_weight, prepare, scheme
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.stages.training import (
    check_seq_len,
    conversation_sources,
    limits_of,
    save_first,
    train_stage,
)
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_shape
from pocketlm.train.losses import Distillation
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """scheme: a row of model/quant.py. optim None: round the weights (PTQ), train nothing.

    distillation: how the model learns from its full-precision self. sources: whose conversations to
    train on; empty means all. conversation_shares, max_conversations, too_long: as in finetune.
    shares: train on text in these shares instead, as a base model must (Pro quantizes its base).
    packing: how documents become rows of text (data/rows.py).
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    scheme: str
    optim: OptimConfig | None
    seq_len: int = 256
    rows_per_step: int = 8
    micro_batch_size: int = 8
    seed: int = 0
    sources: tuple[str, ...] = ()
    conversation_shares: Shares | None = None
    max_conversations: dict[str, int] = field(default_factory=dict)
    too_long: TooLong = "drop"
    shares: Shares | None = None
    packing: Packing = "document_heads"
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=25)

    def __post_init__(self) -> None:
        scheme(self.scheme)
        limits_of(self)
        if self.shares is not None and (self.conversation_shares or self.max_conversations):
            raise ValueError(
                f"{self.name}: shares train on text, conversation_shares and max_conversations on "
                "conversations; give one of them"
            )

    def summary(self) -> str:
        if self.optim is None:
            return f"{self.scheme}, rounding alone"
        steps, rows = self.optim.num_steps, self.rows_per_step
        tokens = (
            f"{steps * rows * self.seq_len:,} tokens: {steps:,} steps x {rows:,} rows x "
            f"{self.seq_len:,}"
        )
        return f"{self.scheme}, QAT of {tokens}, {self.optim.summary()}"


def quantize(
    config: QuantizeConfig,
    out: Path,
    *,
    model: Path,
    corpus: Path | None = None,
    teacher: Path | None = None,
) -> Path:
    """A checkpoint in `out` whose latent weights were trained for config.scheme by a
    straight-through estimator, with learned or min-max ranges.

    Self-distillation (Pro, phase 4): forward KL from the frozen full-precision model on the
    corpus's conversations, or on its text; `teacher`, another checkpoint or a cache that teach
    wrote, takes its place. ValueError where the weights were rounded to another 4-bit grid before.
    """
    if quantization_of(model):
        raise ValueError(
            f"{model} is quantized already ({quantization_of(model)}); start from its "
            "full-precision parent"
        )
    teacher_shape = live_shape(teacher or model)
    check_memory(
        config, shape_of(model), teacher=teacher_shape, masked=config.shares is None, on_grid=True
    )
    student, tokenizer = load_checkpoint(model)
    grid = scheme(config.scheme)
    refuse_rounding_again(
        student, partial(fake_quantize_weight, scheme=grid), f"{config.name} ({config.scheme})"
    )
    prepare(student, grid)
    if config.optim is None:
        return save_first(out, student, tokenizer)
    if corpus is None:
        raise ValueError(f"{config.name}: quantization-aware training needs a corpus as input")
    check_seq_len(config, student)
    sources, shares = training_rows(config, corpus, tokenizer, out)
    return train_stage(
        config,
        config.optim,
        out,
        student,
        tokenizer,
        sources,
        shares,
        separate_documents=config.shares is None,
        teacher=teacher or model,
    )


def training_rows(
    config: QuantizeConfig, corpus: Path, tokenizer: Tokenizer, out: Path
) -> tuple[dict[str, Rows], Shares]:
    """(rows by source, their shares): of text where the config has shares, else of
    conversations.
    """
    if config.shares is not None:
        shares = chosen_shares(config.shares, corpus, config.name, None)
        rows = text_rows(corpus, shares, config.seq_len, tokenizer.eos_id, config.packing)
        return dict(rows), shares
    return conversation_sources(config, out, corpus, tokenizer, packed=True)
