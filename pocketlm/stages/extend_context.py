"""Context extension by implicit positional distillation: short documents packed into a long window,
trained on a teacher's logits.

Pro, section 5: after phase 1 the student trains at the long window on the same short documents, and
the only long-range signal is the teacher's whole distribution. The packed documents may look at one
another here: with a strict document mask and pure RoPE a teacher's logits cannot depend on where in
the window a document stands, so nothing would be taught.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pocketlm.data.corpus_folder import chosen_shares, text_rows
from pocketlm.data.mixture import Shares, shares_summary
from pocketlm.data.rows import Packing
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.quant import prepare, scheme_of
from pocketlm.model.transformer import Transformer
from pocketlm.stages.training import save_first, train_stage
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_shape
from pocketlm.train.losses import Distillation
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class ExtendConfig:
    """seq_len: the long window. rope_theta_factor: R1 multiplies theta by 8 for 4k -> 32k; Pro's
    value is not known.

    separate_documents: packed documents see only themselves. A teacher of RoPE alone then cannot
    tell where in the window a document stands, so nothing of a long range is taught: a control
    (recipes/claims.py). packing: how documents become rows (data/rows.py). distillation: with a
    teacher, how the model learns from it. A teacher from disk has read each document by itself, so
    packed short ones teach no long range: that comes from documents that are long themselves. optim
    None: a longer window without training, as R1 has it before its reasoning SFT.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    optim: OptimConfig | None
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    rope_theta_factor: float
    shares: Shares | None = None
    separate_documents: bool = False
    packing: Packing = "document_heads"
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=25)

    def summary(self) -> str:
        window = f"windows of {self.seq_len:,}, rope_theta x {self.rope_theta_factor:g}"
        if self.optim is None:
            return f"{window}, nothing trained"
        steps, rows = self.optim.num_steps, self.rows_per_step
        tokens = (
            f"{steps * rows * self.seq_len:,} tokens: {steps:,} steps x {rows:,} {window}, "
            f"{self.optim.summary()}"
        )
        return tokens + (f"; {shares_summary(self.shares)}" if self.shares else "")


def extend_context(
    config: ExtendConfig,
    out: Path,
    *,
    corpus: Path,
    model: Path,
    teacher: Path | None = None,
    mix: Path | None = None,
) -> Path:
    """A checkpoint in `out` whose window is config.seq_len tokens, distilled from a teacher with
    such a window.

    Without a teacher the loss is cross-entropy: so the teacher itself gets its long window.
    """
    check_memory(
        config, shape_of(model), teacher=live_shape(teacher), masked=config.separate_documents
    )
    student, tokenizer = load_checkpoint(model)
    if config.seq_len <= student.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.seq_len {config.seq_len} does not extend the model's "
            f"{student.config.max_position_embeddings} positions"
        )
    student = with_longer_context(student, config.seq_len, config.rope_theta_factor)
    if config.optim is None:
        return save_first(out, student, tokenizer)
    shares = chosen_shares(config.shares, corpus, config.name, mix)
    sources = text_rows(corpus, shares, config.seq_len, tokenizer.eos_id, config.packing)
    return train_stage(
        config,
        config.optim,
        out,
        student,
        tokenizer,
        sources,
        shares,
        separate_documents=config.separate_documents,
        teacher=teacher,
        teacher_window=config.seq_len,
    )


def with_longer_context(model: Transformer, positions: int, theta_factor: float) -> Transformer:
    """The same weights in a network of `positions` positions, whose RoPE base is multiplied by
    theta_factor.
    """
    config = replace(
        model.config,
        max_position_embeddings=positions,
        rope_theta=model.config.rope_theta * theta_factor,
    )
    longer = Transformer(config)
    scheme = scheme_of(model)
    if scheme is not None:
        prepare(longer, scheme)
    longer.load_state_dict(model.state_dict())
    return longer
