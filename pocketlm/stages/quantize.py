"""Quantize to four bits: training on the grid with the full-precision model as teacher, or plain
rounding.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketlm.data.batches import BatchPlan, Rows, make_batches
from pocketlm.data.conversations import conversation_rows, told
from pocketlm.data.corpus_folder import chosen_shares, text_rows
from pocketlm.data.mixture import Shares
from pocketlm.data.rows import Packing
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint, shape_of
from pocketlm.model.grid_check import refuse_rounding_again
from pocketlm.model.quant import fake_quantize_weight, prepare, scheme
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import is_cached, live_shape, open_teacher
from pocketlm.train.distributed.fsdp import on_all_ranks
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, distillation_loss
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """scheme: a row of model/quant.py. optim None: round what is there (PTQ), train nothing.

    distillation: how the model learns from its full-precision self. sources: whose conversations to
    train on; empty means all. shares: train on text in these shares instead, as a base model must
    (Pro quantizes its base). packing: how documents become rows of text (data/rows.py).
    """

    name: str
    scheme: str
    optim: OptimConfig | None
    seq_len: int = 256
    rows_per_step: int = 8
    micro_batch_size: int = 8
    seed: int = 0
    sources: tuple[str, ...] = ()
    shares: Shares | None = None
    packing: Packing = "document_heads"
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=25)

    def __post_init__(self) -> None:
        scheme(self.scheme)

    def summary(self) -> str:
        if self.optim is None:
            return f"{self.scheme}, rounding alone"
        steps, rows = self.optim.num_steps, self.rows_per_step
        tokens = (
            f"{steps * rows * self.seq_len:,} tokens: {steps:,} steps x {rows:,} rows x "
            f"{self.seq_len:,}"
        )
        return f"{self.scheme}, QAT of {tokens}, {self.optim.summary()}"


@on_all_ranks
def quantize(
    config: QuantizeConfig,
    out: Path,
    *,
    model: Path,
    corpus: Path | None = None,
    teacher: Path | None = None,
) -> Path:
    """A checkpoint in `out` whose latent weights were trained for `scheme`, straight-through:
    ranges learned, or min-max.

    Self-distillation (Pro, phase 4): forward KL from the frozen full-precision model on the
    corpus's conversations, or on its text; `teacher`, another checkpoint or a cache that teach
    wrote, takes its place. ValueError where the weights were rounded to another 4-bit grid before.
    """
    own, own_scheme = ranks(), scheme(config.scheme)
    if quantization_of(model):
        raise ValueError(
            f"{model} is quantized already ({quantization_of(model)}); start from its "
            "full-precision parent"
        )
    taught_by = live_shape(teacher or model)
    check_memory(
        config, shape_of(model), teacher=taught_by, masked=config.shares is None, on_grid=True
    )
    student, tokenizer = load_checkpoint(model)
    refuse_rounding_again(
        student,
        partial(fake_quantize_weight, scheme=own_scheme),
        f"{config.name} ({config.scheme})",
    )
    prepare(student, own_scheme)
    if config.optim is not None:
        if corpus is None:
            raise ValueError(f"{config.name}: training on the grid needs a corpus as input")
        if config.seq_len > student.config.max_position_embeddings:
            raise ValueError(
                f"{config.name}.seq_len {config.seq_len} exceeds max_position_embeddings "
                f"{student.config.max_position_embeddings}"
            )
        sources, shares = training_rows(config, corpus, tokenizer, out)
        layout = BatchPlan(
            seq_len=config.seq_len,
            rows_per_step=config.rows_per_step,
            micro_batch_size=config.micro_batch_size,
            seed=config.seed,
            rank=own.rank,
            world_size=own.world_size,
        )
        batches = make_batches(
            sources,
            shares,
            layout,
            separate_documents=config.shares is None,
            name_documents=is_cached(teacher),
        )
        reader = open_teacher(teacher or model, tokenizer, sources, config.optim)
        loss_fn = distillation_loss(reader, config.distillation)
        student = train(
            student, batches, loss_fn, config.optim, out, label=config.name, save=config.save
        )
    if own.first:
        save_checkpoint(out, student, tokenizer)
    return out


def training_rows(
    config: QuantizeConfig, corpus: Path, tokenizer: Tokenizer, out: Path
) -> tuple[dict[str, Rows], Shares]:
    """(rows by source, their shares): of text where the config shares it out, else of all
    conversations together.
    """
    if config.shares is not None:
        shares = chosen_shares(config.shares, corpus, config.name, None)
        return dict(
            text_rows(corpus, shares, config.seq_len, tokenizer.eos_id, config.packing)
        ), shares
    rows, tally = conversation_rows(corpus, config.sources, tokenizer, config.seq_len)
    if ranks().first:
        told(tally, tokenizer, out, config.name)
    return {"conversations": rows}, {"conversations": 1.0}
