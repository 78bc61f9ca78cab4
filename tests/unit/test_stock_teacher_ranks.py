"""A teacher on two ranks, computed by transformers or by our own network: the first alone reads its
weights, each holds a part of them, and the scores are those that one rank computes.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rank_processes import on_ranks
from shapes import small
from stock_families import BATCH, save_family
from torch import Tensor
from torch.distributed.tensor import DTensor

from pocketlm.inference.stock_network import StockNetwork, load_stock_network
from pocketlm.model import checkpoint
from pocketlm.model.batch import Batch
from pocketlm.model.quant import ACCELERATOR, prepare
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill.teacher import live_teacher, load_network
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
    network, _ = load_network(folder, None, to_shard=True)
    assert isinstance(network, StockNetwork)

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


# a soft cap and a local mask; experts; one matrix for table and head; biases
KINDS = ("gemma2", "mixtral", "cohere", "phi")


def read_by_first(folder: Path) -> list[tuple[bool, Tensor]]:
    """Of each kind whether this rank read its weights, and the scores [B x T, V]."""
    found = []
    for kind in KINDS:
        network, _ = load_network(folder / kind, None, to_shard=True)
        assert isinstance(network, StockNetwork)
        read = {not tensor.is_meta for tensor in (*network.parameters(), *network.buffers())}
        scores = live_teacher(network, OPTIM)(BATCH).block(slice(0, 300))
        assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
        (here,) = read
        found.append((here, scores))
    return found


def test_the_first_rank_alone_reads_the_weights_whatever_the_family(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    for kind in KINDS:
        save_family(kind, tokenizer, tmp_path / kind)
    first, other = on_ranks(2, tmp_path, partial(read_by_first, tmp_path))
    assert isinstance(first, list) and isinstance(other, list), (first, other)
    for kind, (read, scores), (read_too, the_same) in zip(KINDS, first, other, strict=True):
        network = load_stock_network(tmp_path / kind, None)
        expected = live_teacher(network, OPTIM)(BATCH).block(slice(0, 300))
        assert read and not read_too and torch.equal(scores, the_same)
        assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max()


OURS = {  # a vocabulary padded beyond the tokenizer's
    "tied": (small(vocab_size=320, initializer_range=0.2), None),
    "untied": (small(vocab_size=320, tie_word_embeddings=False, initializer_range=0.2), None),
    "four bits": (small(vocab_size=320, initializer_range=0.2), ACCELERATOR),
}


def our_scores_read_by_first(folder: Path) -> list[Tensor]:
    """Of each network of ours the scores [B x T, V]; another rank cannot read weights."""
    if not ranks().first:
        checkpoint.read_tensors = None  # type: ignore[assignment]
    scores = []
    for name in OURS:
        network, _ = load_network(folder / name, None, to_shard=True)
        assert all(p.is_meta is not ranks().first for p in network.parameters())
        scores.append(live_teacher(network, OPTIM)(BATCH).block(slice(0, 320)))
    return scores


def test_of_our_own_networks_too_the_first_rank_alone_reads_the_weights(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    for seed, (name, (shape, scheme)) in enumerate(OURS.items()):
        (tmp_path / name).mkdir()
        network = Transformer(shape, seed=seed)
        if scheme:
            prepare(network, scheme)
        checkpoint.save_checkpoint(tmp_path / name, network, tokenizer)
    first, other = on_ranks(2, tmp_path, our_scores_read_by_first, tmp_path)
    assert isinstance(first, list) and isinstance(other, list), (first, other)
    for name, scores, the_same in zip(OURS, first, other, strict=True):
        network, _ = checkpoint.load_checkpoint(tmp_path / name)
        expected = live_teacher(network, OPTIM)(BATCH).block(slice(0, 320))
        assert torch.equal(scores, the_same)
        assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max()


def other_than_the_first(folder: Path) -> None:
    """Each rank a network of its own."""
    kind = KINDS[0] if ranks().first else KINDS[3]
    live_teacher(load_stock_network(folder / kind, None), OPTIM)


def test_ranks_that_name_other_networks_stop_in_one_message(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    for kind in (KINDS[0], KINDS[3]):
        save_family(kind, tokenizer, tmp_path / kind)
    _, other = on_ranks(2, tmp_path, partial(other_than_the_first, tmp_path))
    assert isinstance(other, ValueError) and "other weights than this rank's" in str(other)
