"""Milestones: evenly spaced checkpoints of a training, exact however it was interrupted."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import tokenizers
import torch
from rank_processes import on_ranks
from test_train_loop import CONFIG, OPTIM, Stopped, batches, failing_at, run
from tokenizers import models, pre_tokenizers

from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.milestones import Milestones, open_optimizers
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers


def some_tokenizer() -> Tokenizer:
    """Of 256 bytes and two special tokens, within the 300 of CONFIG."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", "<|im_end|>", *alphabet]
    vocab = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(words[:2])
    return Tokenizer(backend)


def weights_of(out: Path) -> dict[str, bytes]:
    return {
        file.parent.name: file.read_bytes()
        for file in sorted(out.glob("milestones/*/model.safetensors"))
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("milestones") / "unbroken"
    run(out, milestones=Milestones(3, some_tokenizer()))
    return out


@pytest.mark.parametrize(
    ("count", "num_steps", "steps"),
    [
        (1, 5, [5]),
        (3, 6, [2, 4, 6]),
        (10, 500_000, list(range(50_000, 500_001, 50_000))),
        (4, 10, [3, 5, 8, 10]),
        (5, 5, [1, 2, 3, 4, 5]),
    ],
)
def test_milestones_are_evenly_spaced_and_the_last_is_the_end(count, num_steps, steps) -> None:
    milestones = Milestones(count, some_tokenizer())
    candidates = range(1, num_steps + 1) if num_steps < 100 else [*steps, 1, 49_999, 499_999]
    due = [step for step in sorted(candidates) if milestones.is_due(step, num_steps)]
    assert due == steps


def test_a_milestone_has_the_weights_after_its_step(tmp_path: Path) -> None:
    model = Transformer(CONFIG)
    after: dict[int, dict[str, torch.Tensor]] = {}

    def drawn(step: int) -> list[Batch]:
        after[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return batches(step)

    kept = Milestones(3, some_tokenizer())
    run(tmp_path, drawn, model=model, prefetch=False, milestones=kept)
    after[6] = model.state_dict()
    for step in (2, 4, 6):
        saved, _ = load_checkpoint(tmp_path / "milestones" / f"step-{step:08d}")
        assert saved.config == CONFIG
        assert all(torch.equal(saved.state_dict()[name], after[step][name]) for name in after[step])


@pytest.mark.parametrize("stop", range(6))
def test_a_resumed_training_has_the_same_milestones(
    stop: int, unbroken: Path, tmp_path: Path
) -> None:
    for draw in (failing_at(stop), batches):
        try:
            run(tmp_path, draw, save_every_steps=2, milestones=Milestones(3, some_tokenizer()))
        except Stopped:
            assert draw is not batches
    assert len(weights_of(unbroken)) == 3 and weights_of(tmp_path) == weights_of(unbroken)
    assert len(list((tmp_path / "milestones").iterdir())) == 3  # and nothing half written


def test_a_milestone_that_was_being_written_is_written_again(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a folder, as a kill leaves it; test_killed.py kills."""
    leftover = tmp_path / "milestones" / ".step-00000004.partial"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    run(tmp_path, milestones=Milestones(3, some_tokenizer()))
    assert not leftover.exists() and weights_of(tmp_path) == weights_of(unbroken)


def train_on_rank(out: Path, optim: OptimConfig = OPTIM) -> None:
    def share(step: int) -> list[Batch]:
        return [batches(step)[ranks().rank]]

    run(out, share, optim, milestones=Milestones(3, some_tokenizer(), optimizer=True))


def test_several_ranks_keep_the_milestones_that_one_keeps(unbroken: Path, tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, train_on_rank, tmp_path / "run") == [None, None]
    for step in (2, 4, 6):
        name = Path("milestones") / f"step-{step:08d}"
        one, several = (load_checkpoint(out / name)[0] for out in (unbroken, tmp_path / "run"))
        for key, tensor in one.state_dict().items():
            # docs/numerics.md, as in test_parallel.py
            assert (several.state_dict()[key] - tensor).abs().max() <= 1e-5, (step, key)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_milestone_has_the_optimizers_state_when_asked_on_any_number_of_ranks(
    optimizer: Literal["adamw", "muon"], world_size: int, tmp_path: Path
) -> None:
    """Beside a plain loop's; Adam's momentum is not kept."""
    optim = replace(OPTIM, optimizer=optimizer)
    if world_size == 1:
        run(tmp_path / "run", optim=optim, milestones=Milestones(3, some_tokenizer(), True))
    else:
        assert on_ranks(2, tmp_path, train_on_rank, tmp_path / "run", optim) == [None, None]
    model = Transformer(CONFIG)
    plain = make_optimizers(model, optim)
    for step in range(4):
        train_step(model, plain, batches(step), next_token_loss, lr_at(optim, step), 1.0, step)
    folder = tmp_path / "run" / "milestones" / "step-00000004"
    opened, _ = load_checkpoint(folder)
    ours = open_optimizers(folder, opened, optim)
    kept = 0
    for mine, other in zip(ours, plain, strict=True):
        for p, q in zip(opened.parameters(), model.parameters(), strict=True):
            expected = {k: v for k, v in other.state.get(q, {}).items() if k != "exp_avg"}
            state = mine.state.get(p, {})
            assert set(state) == set(expected)
            for key, value in expected.items():
                kept += 1
                # docs/numerics.md, as in test_parallel.py, of squared gradients too
                assert (state[key] - value).abs().max() <= 1e-3 * value.abs().max(), key
    assert kept >= len(list(model.parameters()))
