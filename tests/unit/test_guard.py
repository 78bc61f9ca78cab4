"""A loss or gradient that is not finite never reaches the weights; its rows are named; spikes are
told as OLMo-core tells them.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from shapes import small
from torch import Tensor

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.shards import Shard
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.health import MOST_SKIPPED, WINDOW, LossMonitor, sigmas_above, token_digest
from pocketlm.train.loop import train
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig

CONFIG = small(intermediate_size=32, num_hidden_layers=1)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=6, warmup_steps=2, final_lr_share=0.1, compute_dtype="float32"
)
SKIP = replace(OPTIM, on_nonfinite="skip")
SOURCES = {"code": 0.5, "texts": 0.5}


def rows_of(seed: int) -> TextRows:
    tokens = np.random.default_rng(seed).integers(300, size=900).astype(np.uint16)
    return TextRows(
        Shard(tokens, np.arange(0, 901, 30), Path("train.tokens.npy")), seq_len=16, eos_id=0
    )


def drawn(
    rows_per_step: int = 4, micro_batch_size: int = 2, **ranks: int
) -> Callable[[int], list[Batch]]:
    layout = BatchPlan(
        seq_len=16, rows_per_step=rows_per_step, micro_batch_size=micro_batch_size, seed=1, **ranks
    )
    return make_batches(
        {"code": rows_of(1), "texts": rows_of(2)}, SOURCES, layout, separate_documents=False
    )


def poisoned(*steps: int, where: int = 1) -> Callable[[Transformer, Batch], Tensor]:
    """The usual loss, but not a number for one micro-batch of these steps."""
    bad = [drawn()(step)[where].rows for step in steps]

    def loss_fn(model: Transformer, batch: Batch) -> Tensor:
        return next_token_loss(model, batch) * (math.nan if batch.rows in bad else 1.0)

    return loss_fn


def run(
    out: Path, optim: OptimConfig = OPTIM, loss_fn: Any = next_token_loss, batches: Any = None
) -> Transformer:
    out.mkdir(exist_ok=True)
    save = SaveConfig(every_steps=2)
    return train(
        Transformer(CONFIG), batches or drawn(), loss_fn, optim, out, label="test", save=save
    )


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_bits(one: Transformer, other: Transformer) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_rows_whose_loss_is_not_finite_are_named(tmp_path: Path) -> None:
    rows = drawn()(3)[1].rows
    with pytest.raises(FloatingPointError) as stopped:
        run(tmp_path, loss_fn=poisoned(3))
    named = ", ".join(f"{source} {number}" for source, number in rows)
    assert "step 3: loss nan" in str(stopped.value) and "the weights are untouched" in str(
        stopped.value
    )
    assert f"Rows with such a loss (source, number): {named}\n" in str(stopped.value)


def test_a_named_row_is_the_row_that_was_read() -> None:
    sources = {"code": rows_of(1), "texts": rows_of(2)}
    seen = set()
    for step in range(8):
        for batch in drawn()(step):
            for (source, number), ids in zip(batch.rows, batch.input_ids, strict=True):
                assert ids.tolist() == sources[source][number][0].tolist()
                seen.add(source)
    assert seen == SOURCES.keys()


def test_a_gradient_that_is_not_finite_names_all_rows_of_the_step(tmp_path: Path) -> None:
    def steep(model: Transformer, batch: Batch) -> Tensor:
        # slope infinite
        return next_token_loss(model, batch) + (model.model.norm.weight - 1).abs().sqrt().sum()

    with pytest.raises(
        FloatingPointError, match=r"gradient norm nan.*Rows of the batch"
    ) as stopped:
        run(tmp_path, loss_fn=steep)
    assert all(
        f"{source} {number}" in str(stopped.value) for b in drawn()(0) for source, number in b.rows
    )


def test_a_skipped_step_leaves_the_weights_and_is_told(tmp_path: Path, capsys) -> None:
    model, spoil = Transformer(CONFIG), poisoned(3)
    firsts = [drawn()(step)[0].rows for step in range(6)]
    before: dict[int, list[Tensor]] = {}

    def watched(model: Transformer, batch: Batch) -> Tensor:
        if batch.rows in firsts:
            before[firsts.index(batch.rows)] = [p.detach().clone() for p in model.parameters()]
        return spoil(model, batch)

    train(model, drawn(), watched, SKIP, tmp_path, label="test", save=SaveConfig(every_steps=9))
    moved = [not all(map(torch.equal, before[step], before[step + 1])) for step in range(5)]
    assert moved == [True, True, True, False, True]
    lines = logged(tmp_path)
    assert [line.get("skipped") for line in lines] == [None, None, None, 1, None, None]
    assert lines[3]["loss"] is None and lines[3]["grad_norm"] is None and lines[4]["loss"] > 0
    assert "step 3: loss nan" in capsys.readouterr().err


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_training_that_skips_resumes_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    def failing(step: int) -> list[Batch]:
        if step == stop:
            raise InterruptedError
        return drawn()(step)

    whole = run(tmp_path / "whole", SKIP, poisoned(1, 3))
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", SKIP, poisoned(1, 3), failing)
    assert same_bits(run(tmp_path / "broken", SKIP, poisoned(1, 3)), whole)
    notes = [[line.get(key) for key in ("loss", "skipped")] for line in logged(tmp_path / "broken")]
    assert notes == [
        [line.get(key) for key in ("loss", "skipped")] for line in logged(tmp_path / "whole")
    ]


def test_too_many_skipped_steps_in_a_row_stop() -> None:
    monitor = LossMonitor([])
    for step in range(MOST_SKIPPED - 1):
        assert monitor.record(step, math.nan, 1.0) == {"skipped": step + 1}
    assert monitor.record(20, 2.0, 1.0) == {}  # one good step, and the count in a row begins anew
    for step in range(MOST_SKIPPED - 1):
        monitor.record(step, 1.0, math.inf)
    with pytest.raises(
        FloatingPointError,
        match=f"step 30: no loss and gradient was finite in {MOST_SKIPPED} steps",
    ):
        monitor.record(30, math.nan, math.nan)


def olmo_core(losses: list[float]) -> list[bool]:
    """OLMo-core's SkipStepOptimizer.get_step_factor, asked of the loss alone: which steps are
    beyond six sigma.
    """
    spikes = []
    for n in range(len(losses)):
        window = torch.tensor(losses[max(0, n - 128) : n + 1], dtype=torch.float64)
        if len(window) < 64 + 1:
            spikes.append(False)
            continue
        std, mean = torch.std_mean(window[:-1])
        spikes.append(bool((window[-1] - mean) > 6 * std))
    return spikes


def some_losses() -> list[float]:
    random = Random(1)
    losses = [3 - n / 2000 + random.gauss(0, 0.05) for n in range(400)]
    for place, height in ((20, 0.2), (70, 0.25), (100, 1.0), (101, 1.0), (230, 0.9), (350, 0.2)):
        losses[place] += height
    return losses


def test_spikes_are_those_of_olmo_core(capsys) -> None:
    losses, monitor = some_losses(), LossMonitor([])
    notes = [monitor.record(step, loss, 1.0) for step, loss in enumerate(losses)]
    expected = olmo_core(losses)
    assert ["spike" in note for note in notes] == expected and 2 <= sum(expected) < 6
    assert capsys.readouterr().err.count("sigma above the last") == sum(expected)


@pytest.mark.parametrize("start", [1, 65, 101, 231, 399])
def test_a_watch_made_from_the_lines_before_sees_what_an_unbroken_one_sees(start: int) -> None:
    losses, whole = some_losses(), LossMonitor([])
    losses[99] = losses[250] = math.nan
    rows = [
        {"loss": None if math.isnan(x) else x} | whole.record(n, x, 1.0)
        for n, x in enumerate(losses)
    ]
    later = LossMonitor(json.loads(json.dumps(rows[:start])))
    for n in range(start, len(losses)):
        assert {"loss": rows[n]["loss"]} | later.record(n, losses[n], 1.0) == rows[n]


def test_equal_losses_are_no_spikes() -> None:
    assert sigmas_above(9.0, [3.0] * WINDOW) == 0.0


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_a_token_digest_is_the_same_on_any_ranks_and_micro_batches(micro: int, world: int) -> None:
    for step in range(3):
        parts = [
            drawn(micro_batch_size=micro, rank=rank, world_size=world)(step)
            for rank in range(world)
        ]
        assert sum(token_digest(part) for part in parts) == token_digest(drawn()(step))


def test_a_token_digest_tells_one_token_and_one_label() -> None:
    digests = {token_digest(drawn()(step)) for step in range(20)}
    for name in ("input_ids", "labels"):
        batches = drawn()(0)
        getattr(batches[1], name)[1, 7] += 1
        digests.add(token_digest(batches))
    assert len(digests) == 22
