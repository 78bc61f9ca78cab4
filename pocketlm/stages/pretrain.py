"""Pre-train: next-token training from nothing or from a checkpoint; phases, mid-training with a
teacher, annealing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pocketlm.data.corpus_folder import chosen_shares, text_rows
from pocketlm.data.mixture import Shares, shares_summary
from pocketlm.data.rows import Packing
from pocketlm.data.selection import stopped
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.layouts import native_layout
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.training import check_seq_len, pass_through, train_stage
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_shape
from pocketlm.train.losses import Distillation
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One phase of training on text.

    model: the shape of a new network; None to go on from the input `model`. shares: of each source;
    None to take those of the input `selection` or `mix` (which may be a selection: its shares, and
    all text). separate_documents: tokens see only their own document; R1's loader lets documents of
    a row see each other. packing: how documents become rows (data/rows.py). distillation: with a
    teacher, how the model learns from it. milestones: how many checkpoints to keep, evenly spaced,
    the last that of the end, as Hugging Face folders milestones/step-N (R1's influence needs
    ten).
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    model: ModelConfig | None = None
    shares: Shares | None = None
    separate_documents: bool = False
    packing: Packing = "document_heads"
    distillation: Distillation = Distillation()
    save: SaveConfig = SaveConfig(every_steps=50)
    milestones: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.milestones <= self.optim.num_steps:
            raise ValueError(
                f"{self.name}.milestones {self.milestones} must be from 0, none, to num_steps "
                f"{self.optim.num_steps}"
            )
        if self.model is not None:
            try:
                native_layout(self.model).config_fields(self.model)
            except ValueError as error:
                raise ValueError(
                    f"{self.name}.model could be trained and not saved: {error}"
                ) from None

    def summary(self) -> str:
        steps, rows = self.optim.num_steps, self.rows_per_step
        shape = (
            f"{self.model.num_hidden_layers} layers of {self.model.hidden_size:,}; "
            if self.model
            else ""
        )
        tokens = (
            f"{shape}{steps * rows * self.seq_len:,} tokens: {steps:,} steps x {rows:,} rows x "
            f"{self.seq_len:,}, "
        )
        shares = f"; {shares_summary(self.shares)}" if self.shares else ""
        kept = f"; {self.milestones} milestones" if self.milestones else ""
        return tokens + self.optim.summary() + shares + kept


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    corpus: Path,
    model: Path | None = None,
    mix: Path | None = None,
    selection: Path | None = None,
    teacher: Path | None = None,
) -> Path:
    """A checkpoint in `out`, trained for config.optim.num_steps steps on `corpus`.

    Loss: cross-entropy, or with `teacher` forward KL over the whole vocabulary (R1's mid-training;
    all of Pro); the teacher is a checkpoint, or a cache that teach wrote. `selection` replaces the
    corpus's training shards by the documents a select stage kept; where it stopped, too little
    being left that helps, the model goes on unchanged.
    """
    if selection and (reason := stopped(selection)):
        return pass_through(config.name, out, model, reason)
    if shape := config.model or (shape_of(model) if model else None):
        check_memory(config, shape, teacher=live_shape(teacher), masked=config.separate_documents)
    student, tokenizer = start(config.model, model, corpus, config.seed)
    check_seq_len(config, student)
    text = selection or corpus
    shares = chosen_shares(config.shares, text, config.name, mix, selection)
    sources = text_rows(text, shares, config.seq_len, tokenizer.eos_id, config.packing)
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
        milestones=config.milestones,
    )


def start(
    shape: ModelConfig | None, model: Path | None, corpus: Path, seed: int
) -> tuple[Transformer, Tokenizer]:
    """A new network with the corpus's tokenizer, or the checkpoint `model`, whose tokenizer must be
    the corpus's.
    """
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    if (shape is None) == (model is None):
        raise ValueError(
            "give either a model shape, to start anew, or an input checkpoint `model`, to go on "
            "from it"
        )
    if model is not None:
        student, its_tokenizer = load_checkpoint(model)
        check_same_tokens(its_tokenizer, tokenizer, model, corpus)
        return student, its_tokenizer
    assert shape is not None
    if shape.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size {shape.vocab_size} is below the tokenizer's {tokenizer.vocab_size} "
            "tokens"
        )
    return Transformer(shape, seed=seed), tokenizer


def check_same_tokens(
    tokenizer: Tokenizer, corpus_tokenizer: Tokenizer, model: Path, corpus: Path
) -> None:
    if tokenizer.backend.get_vocab() != corpus_tokenizer.backend.get_vocab():
        raise ValueError(
            f"the tokenizer of {model} is not the one {corpus} was encoded with; curate with "
            f"tokenizer={model}"
        )
