"""Learn preferences: DPO or IPO on pairs of answers, after fine-tuning. MobileLLM-Pro's last stage
is such a one, for safety and self-identification (section on instruction tuning); its settings are
not published.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

from pocketlm.data.batches import BatchPlan, collate, make_batches
from pocketlm.data.conversation_store import is_store_of, write_store
from pocketlm.data.conversations import Tally
from pocketlm.data.padding import trim_padding, trimmed
from pocketlm.data.preferences import PairRows, PairTally, read_pairs, split_pairs
from pocketlm.inference.digest import sha256_of
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.files import write_json
from pocketlm.model.json_shape import read_object
from pocketlm.model.tokenizer import Tokenizer, teach_chat_template
from pocketlm.model.transformer import Transformer
from pocketlm.stages.training import check_seq_len, save_first
from pocketlm.train.checkpoint import RESUME, SaveConfig
from pocketlm.train.distill.cache import tokenizer_digest
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import add_over_ranks, on_first_rank, ranks, wait_for_ranks
from pocketlm.train.loop import train
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig, compute_settings, computing
from pocketlm.train.preference_loss import (
    CHOSEN,
    REJECTED,
    Preference,
    answer_log_probs,
    counted_as_pairs,
    preference_loss,
)

STORE, TALLY, REFERENCE = "pairs", "pairs.json", "reference.npy"


@dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """seq_len: tokens that both answers of a pair, each with the prompt, take together; longer
    pairs are left out. rows_per_step: pairs. preference: the loss. held_out: the share of the pairs
    on which it is measured before and after, and which is not trained on; 0 measures on those it
    learnt.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    preference: Preference = Preference()
    held_out: float = 0.05
    save: SaveConfig = SaveConfig(every_steps=50)

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"{self.name}.held_out {self.held_out} must be in [0, 1)")

    def summary(self) -> str:
        return (
            f"{self.optim.num_steps:,} steps x {self.rows_per_step:,} pairs, "
            f"{self.preference.loss}, {self.optim.summary()}"
        )


def prefer(config: PreferConfig, out: Path, *, model: Path, pairs: Path) -> Path:
    """A checkpoint in `out` that prefers the chosen answers, and preferences.json: of the held-out
    pairs, before and after, the share in which the chosen answer is the likelier one, the mean
    log-probability of both, and how far the margin grew.

    pairs: a JSON-lines file, packed or not, in one of the hub's forms (data/preferences.py). The
    reference is the model as it comes in; its log-probabilities are computed once and kept, so that
    a stage that goes on has them. ValueError: no row is a pair that can be learnt.
    """
    check_memory(config, shape_of(model), teacher=None, masked=True)
    student, tokenizer = load_checkpoint(model)
    teach_chat_template(tokenizer)
    check_seq_len(config, student)
    folder = out / RESUME / "preferences"
    on_first_rank(partial(_keep_to, config, folder, model, pairs))
    _write_pairs(config, out, folder / STORE, pairs, tokenizer)
    count = int(read_object(folder / STORE / TALLY)["pairs"])
    learnt, held = split_pairs(count, config.held_out)
    rows = partial(PairRows, folder / STORE, config.seq_len, tokenizer.eos_id)
    before = _reference(config, student, rows(range(count)), folder / REFERENCE)
    measured = rows(held or learnt)
    plan = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=ranks().rank,
        world_size=ranks().world_size,
    )
    batches = make_batches({"pairs": rows(learnt)}, {"pairs": 1.0}, plan, separate_documents=True)
    numbers = torch.tensor(learnt)

    def reference(batch: Batch) -> torch.Tensor:
        return before[numbers[[row for _, row in batch.rows]]]

    student = train(
        student,
        counted_as_pairs(trimmed(batches)),
        preference_loss(reference, config.preference),
        config.optim,
        out,
        label=config.name,
        save=config.save,
    )
    if ranks().first:
        after = log_probs_of(config, student, measured, share=(0, 1))
        figures = compared(before[torch.tensor(measured.numbers)], after)
        _report(config, out, figures, held_out=bool(held))
    return save_first(out, student, tokenizer)


def _keep_to(config: PreferConfig, folder: Path, model: Path, pairs: Path) -> None:
    """Nothing, or a ValueError where what is kept here is of other pairs or of another model."""
    with open(pairs, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    made_of = {"pairs": digest, "model": sha256_of(model), "seq_len": config.seq_len}
    file = folder / "made_of.json"
    if file.is_file() and read_object(file) != made_of:
        raise ValueError(
            f"{config.name}: {folder.parent.parent} was begun with other pairs, another model or "
            "seq_len; delete it, or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, made_of)


def _write_pairs(
    config: PreferConfig, out: Path, store: Path, pairs: Path, tokenizer: Tokenizer
) -> None:
    """The tokenised pairs, which the first rank writes unless they are there; what is left out is
    printed.
    """
    made_of = {
        "file": [pairs.name, pairs.stat().st_size],
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": tokenizer.chat_template,
        "seq_len": config.seq_len,
    }

    def tokenise() -> None:
        if is_store_of(store, made_of) and (store / TALLY).is_file():
            return
        tally = PairTally()
        write_store(
            store,
            read_pairs(pairs, tokenizer, config.seq_len, tally),
            Tally(),
            seq_len=config.seq_len,
            vocab_size=tokenizer.vocab_size,
            packed=False,
            made_of=made_of,
        )
        write_json(store / TALLY, tally.as_json())
        console = Console(stderr=True, highlight=False)
        style = "yellow" if tally.left_out else "dim"
        for line in tally.lines():
            console.print(f"  {config.name}: {line}", style=style, soft_wrap=True, markup=False)

    on_first_rank(tokenise)


def _reference(
    config: PreferConfig, model: Transformer, rows: PairRows, file: Path
) -> torch.Tensor:
    """[pairs, 2], float32: the log-probabilities of both answers by the model as it came in, which
    all ranks compute together once.
    """
    wait_for_ranks()  # until all have looked, nobody writes it
    there = file.is_file()
    wait_for_ranks()
    if not there:
        values = log_probs_of(config, model, rows, share=(ranks().rank, ranks().world_size))
        add_over_ranks(values)

        def keep() -> None:
            temporary = file.with_name(f".{file.name}.partial")
            with open(temporary, "wb") as content:
                np.save(content, values.numpy())
            temporary.replace(file)

        on_first_rank(keep)
    return torch.from_numpy(np.load(file, allow_pickle=False))


@torch.no_grad()
def log_probs_of(
    config: PreferConfig, model: Transformer, rows: PairRows, *, share: tuple[int, int]
) -> torch.Tensor:
    """[pairs, 2], float32, on the processor: log-probabilities of both answers of every
    `share[1]`-th micro-batch from `share[0]` on, 0 elsewhere; computed as in training.
    """
    values = torch.zeros(len(rows), 2)
    where, size = next(model.parameters()).device, config.micro_batch_size
    training = model.training
    model.eval()
    with computing(model, compute_settings(model, config.optim)):
        for number, first in enumerate(range(0, len(rows), size)):
            if number % share[1] != share[0]:
                continue
            chosen = range(first, min(first + size, len(rows)))
            batch = trim_padding(collate([rows[row] for row in chosen], True))
            values[first : chosen.stop] = answer_log_probs(
                model, to_device(batch, where)
            ).log_probs.cpu()
    model.train(training)
    return values


def compared(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """Of log-probabilities [pairs, 2] before and after: how often the chosen answer is the likelier
    one, their means, and of the growth of the margin its mean and how often there is one.
    """
    grown = (after - before)[:, CHOSEN] - (after - before)[:, REJECTED]
    sides = {"before": before, "after": after}
    figures = {
        name: {
            "chosen_likelier": float((x[:, CHOSEN] > x[:, REJECTED]).double().mean()),
            "chosen_log_prob": float(x[:, CHOSEN].double().mean()),
            "rejected_log_prob": float(x[:, REJECTED].double().mean()),
        }
        for name, x in sides.items()
    }
    return {
        "pairs": len(before),
        **figures,
        "margin_growth": float(grown.double().mean()),
        "margin_grew": float((grown > 0).double().mean()),
    }


def _report(config: PreferConfig, out: Path, figures: dict[str, Any], *, held_out: bool) -> None:
    """Writes preferences.json and prints a line."""
    write_json(out / "preferences.json", {"held_out": held_out, **figures})
    before, after = figures["before"], figures["after"]
    which = "held-out" if held_out else "learnt"
    line = (
        f"  {config.name}: of {figures['pairs']:,} {which} pairs the chosen answer is the likelier "
        f"in {before['chosen_likelier']:.1%} before, {after['chosen_likelier']:.1%} after; its "
        f"log-probability {before['chosen_log_prob']:.2f} -> {after['chosen_log_prob']:.2f}, the "
        f"rejected one's {before['rejected_log_prob']:.2f} -> {after['rejected_log_prob']:.2f}"
    )
    Console(stderr=True, highlight=False).print(line, soft_wrap=True, markup=False)
