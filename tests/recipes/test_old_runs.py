"""A run that an earlier version began goes on with this one.

run_013bce2 was written at commit 013bce2 and killed in its seventh step of eight; unbroken.json
holds the figures of the same run left alone there.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from shapes import small

from pocketlm.model.arithmetic import on_threads
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.run import Run
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig

OLD = Path(__file__).with_name("run_013bce2")
BASE = PretrainConfig(
    name="base",
    model=small(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=32,
    ),
    optim=OptimConfig(
        lr=1e-2, num_steps=8, warmup_steps=1, final_lr_share=0.1, compute_dtype="float32"
    ),
    seq_len=32,
    rows_per_step=4,
    micro_batch_size=2,
    seed=1,
    shares={"texts": 1.0},
    save=SaveConfig(every_steps=2, keep_last=1),
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_a_run_of_an_earlier_version_is_resumed_and_ends_as_it_would_have(old: Path) -> None:
    def recipe(run) -> None:
        run(pretrain, BASE, corpus=old / "corpus")

    assert [call.state() for call in dry_run(recipe, old / "run").calls] == ["unfinished"]
    with on_threads(1), Run(old / "run") as run:
        recipe(run)
    assert [call.state() for call in dry_run(recipe, old / "run").calls] == ["done"]
    lines = (old / "run" / "base" / "metrics.jsonl").read_text().splitlines()
    before = (OLD / "run" / "base" / "metrics.jsonl").read_text().splitlines()
    assert len(before) == 6 and lines[:6] == before  # it went on, and did not begin anew
    expected = json.loads((OLD / "unbroken.json").read_text())
    rows = [json.loads(line) for line in lines]
    assert [row["token_digest"] for row in rows] == [row["token_digest"] for row in expected]
    for key in ("loss", "grad_norm"):
        # docs/numerics.md: other processors sum in another order
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in expected], rel=1e-5)


def test_a_run_of_an_earlier_version_with_another_value_stops_in_one_message(old: Path) -> None:
    changed = replace(BASE, milestones=2)  # a field that version did not have, not at its default
    with Run(old / "run") as run, pytest.raises(ValueError) as stopped:
        run(pretrain, changed, corpus=old / "corpus")
    assert "stage base was begun with another configuration" in str(stopped.value)
    assert "\n  milestones: (not there) -> 2\n" in str(stopped.value)
