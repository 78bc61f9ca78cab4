"""Extend the context by implicit positional distillation: short documents packed into a long
window, a teacher's logits.

Pro, section 5: after phase 1 the student trains at the long window on the same short documents, and
the only long-range signal is the teacher's whole distribution. The packed documents may look at one
another here: with a strict document mask and pure RoPE a teacher's logits cannot depend on where in
the window a document stands, so nothing would be taught.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pocketlm.data.batches import BatchPlan, make_batches
from pocketlm.data.corpus_folder import chosen_shares, text_rows
from pocketlm.data.mixture import Shares, shares_summary
from pocketlm.data.rows import Packing
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint, shape_of
from pocketlm.model.quant import prepare, scheme_of
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import is_cached, live_shape, open_teacher
from pocketlm.train.distributed.fsdp import on_all_ranks
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, distillation_loss, next_token_loss
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class ExtendConfig:
    """seq_len: the long window. rope_theta_factor: R1 multiplies theta by 8 for 4k -> 32k; Pro's
    value is not known.

    packing: how documents become rows (data/rows.py). distillation: with a teacher, how the model
    learns from it. A teacher from disk reads each
    document by itself, and so teaches nothing of packed short ones: long range comes from documents
    that are long themselves. optim None: widen and train nothing, as R1 does before its reasoning
    SFT.
    """

    name: str
    optim: OptimConfig | None
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    rope_theta_factor: float
    shares: Shares | None = None
    packing: Packing = "document_heads"
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=25)

    def summary(self) -> str:
        window = f"windows of {self.seq_len:,}, rope_theta x {self.rope_theta_factor:g}"
        if self.optim is None:
            return f"{window}, nothing trained"
        steps, rows = self.optim.num_steps, self.rows_per_step
        told = (
            f"{steps * rows * self.seq_len:,} tokens: {steps:,} steps x {rows:,} {window}, "
            f"{self.optim.summary()}"
        )
        return told + (f"; {shares_summary(self.shares)}" if self.shares else "")


@on_all_ranks
def extend_context(
    config: ExtendConfig,
    out: Path,
    *,
    corpus: Path,
    model: Path,
    teacher: Path | None = None,
    mix: Path | None = None,
) -> Path:
    """A checkpoint in `out` whose window is config.seq_len tokens, taught by a teacher that already
    reads that far.

    Without a teacher the loss is cross-entropy: how the teacher itself comes to read long
    documents.
    """
    check_memory(config, shape_of(model), teacher=live_shape(teacher), masked=False)
    own = ranks()
    student, tokenizer = load_checkpoint(model)
    if config.seq_len <= student.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.seq_len {config.seq_len} does not extend the model's "
            f"{student.config.max_position_embeddings} positions"
        )
    student = widened(student, config.seq_len, config.rope_theta_factor)
    if config.optim is None:
        if own.first:
            save_checkpoint(out, student, tokenizer)
        return out
    shares = chosen_shares(config.shares, corpus, config.name, mix)
    sources = text_rows(corpus, shares, config.seq_len, tokenizer.eos_id, config.packing)
    layout = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=own.rank,
        world_size=own.world_size,
    )
    batches = make_batches(
        sources, shares, layout, separate_documents=False, name_documents=is_cached(teacher)
    )
    loss_fn = next_token_loss
    if teacher is not None:
        reader = open_teacher(teacher, tokenizer, sources, config.optim, reads=config.seq_len)
        loss_fn = distillation_loss(reader, config.distillation)
    student = train(
        student, batches, loss_fn, config.optim, out, label=config.name, save=config.save
    )
    if own.first:
        save_checkpoint(out, student, tokenizer)
    return out


def widened(model: Transformer, positions: int, theta_factor: float) -> Transformer:
    """The same weights in a network that admits `positions` and turns its RoPE more slowly."""
    config = replace(
        model.config,
        max_position_embeddings=positions,
        rope_theta=model.config.rope_theta * theta_factor,
    )
    longer = Transformer(config)
    own = scheme_of(model)
    if own is not None:
        prepare(longer, own)
    longer.load_state_dict(model.state_dict())
    return longer
