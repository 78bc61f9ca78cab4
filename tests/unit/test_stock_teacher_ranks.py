"""A teacher that transformers computes, on two ranks: each holds a part of it, and the scores are
those that one rank computes.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rank_processes import on_ranks
from shapes import small
from stock_families import BATCH, save_family
from torch import Tensor
from torch.distributed.tensor import DTensor

from pocketlm.inference.stock_network import load_stock_network
from pocketlm.model.batch import Batch
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import distillation_loss
from pocketlm.train.optim import OptimConfig

OPTIM = OptimConfig(
    lr=1e-2, num_steps=2, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)
STUDENT = small(vocab_size=300, max_position_embeddings=128, initializer_range=0.2)


def trained(folder: Path, out: Path) -> list[tuple[float, ...]] | None:
    """Losses of two steps of two micro-batches on these ranks; the weights held here, and all."""
    place = ranks()
    network = load_stock_network(folder, None)

    def batches(step: int) -> list[Batch]:
        two = [replace(BATCH, input_ids=(BATCH.input_ids + 11 * step + n) % 300) for n in (0, 1)]
        return two[place.rank :: place.world_size]

    loss_fn = distillation_loss(live_teacher(network, OPTIM))
    save = SaveConfig(every_steps=1000)
    out.mkdir(exist_ok=True)
    losses: list[tuple[float, ...]] = []

    def logged(model: Transformer, batch: Batch) -> Tensor:
        loss = loss_fn(model, batch)
        losses.append((loss.item(),))
        return loss

    train(Transformer(STUDENT), batches, logged, OPTIM, out, label="ranks", save=save)
    held = sum(p.to_local().numel() for p in network.parameters() if isinstance(p, DTensor))
    return [*losses, (held, sum(p.numel() for p in network.parameters()))]


def test_two_ranks_score_what_one_scores_and_share_the_teacher(tmp_path: Path) -> None:
    folder = tmp_path / "gemma2"
    text = ["the quick brown fox jumps over the lazy dog"] * 4
    save_family("gemma2", train_tokenizer(text, 280), folder)
    (alone,) = on_ranks(1, tmp_path, partial(trained, folder, tmp_path / "one"))
    pair = on_ranks(2, tmp_path, partial(trained, folder, tmp_path / "two"))
    assert len(alone) == 5 and [len(one) for one in pair] == [3, 3]
    for step in range(2):
        for rank, figures in enumerate(pair):
            assert figures[step] == pytest.approx(alone[2 * step + rank], rel=1e-6)
    (held, whole), total = pair[0][-1], alone[-1][1]
    assert 0 < held < 0.7 * total and whole == total
