"""Damaged states of training, and a corrupt index of tokens: one message each, and the state before
is used.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import TINY, assert_plain, pocketlm
from test_bad_input import begun as begun  # a fixture
from tiny import WIDE

from pocketlm.model.transformer import Transformer
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig, StateWriter
from pocketlm.train.optim import OptimConfig, make_optimizers


@pytest.fixture
def stopped(documents: Path, begun: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run with "base" stopped after step 3 of 4; states of steps 2 and 3 are there."""
    shutil.rmtree(begun / "base")
    whole = loop.train_step

    def train_step(*arguments: object, **options: object) -> tuple[float, float, int]:
        if arguments[6] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", train_step)
        status, shown = pocketlm("run", TINY, documents, "--out", begun, "--only", "base")
    assert status == 130, shown
    assert sorted(state.name for state in (begun / "base" / "resume").iterdir()) == [
        "step-00000002",
        "step-00000003",
    ]
    return begun


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def test_a_flipped_state_is_named_and_the_one_before_used(
    documents: Path, stopped: Path, finished: Path
) -> None:
    flip(stopped / "base" / "resume" / "step-00000003" / "rank-00000.safetensors")
    status, shown = pocketlm("run", TINY, documents, "--out", stopped, "--only", "base")
    assert status == 0 and "its SHA-256 differs" in shown and "training goes on from" in shown, (
        shown
    )
    weights = "base/model.safetensors"
    assert (stopped / weights).read_bytes() == (finished / weights).read_bytes()


def test_states_that_are_all_damaged_do_not_begin_anew_by_themselves(
    documents: Path, stopped: Path
) -> None:
    states = stopped / "base" / "resume"
    flip(states / "step-00000003" / "rank-00000.safetensors")
    (states / "step-00000002" / "state.json").unlink()
    status, shown = pocketlm("run", TINY, documents, "--out", stopped, "--only", "base")
    assert status == 2
    assert_plain(
        shown,
        "no state in",
        "its SHA-256 differs",
        "state.json is missing",
        "Delete that folder",
        "in stage base",
    )


def test_the_state_of_another_model_is_told(documents: Path, stopped: Path, finished: Path) -> None:
    shutil.rmtree(stopped / "base" / "resume")
    model = Transformer(WIDE)
    optim = OptimConfig(lr=1e-3, num_steps=4, warmup_steps=0, final_lr_share=0.1)
    with StateWriter(stopped / "base", SaveConfig(every_steps=1)) as states:
        states.write(model, make_optimizers(model, optim), 2)
    status, shown = pocketlm("run", TINY, documents, "--out", stopped, "--only", "base")
    assert status == 2
    assert_plain(
        shown,
        "is the state of another model or optimizer",
        "embed_tokens",
        "there and",
        "in the model",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not an index", ["train.offsets.npy: not a whole .npy file"]),
        (np.array([0, 5, 3, 9]), ["train.offsets.npy: does not fit the"]),
        (np.array([0.0, 1.0]), ["train.offsets.npy: holds float64"]),
    ],
)
def test_a_corrupt_shard_index_is_named(
    documents: Path, begun: Path, content: bytes | np.ndarray, words: list[str]
) -> None:
    shutil.rmtree(begun / "base")
    index = begun / "corpus" / "shards" / "problems" / "train.offsets.npy"
    if isinstance(content, bytes):
        index.write_bytes(content)
    else:
        np.save(index, content)
    record = json.loads((begun / "corpus" / "stage.json").read_text())
    # the size alone would be told first
    record["files"][str(index.relative_to(begun / "corpus"))] = index.stat().st_size
    (begun / "corpus" / "stage.json").write_text(json.dumps(record))
    status, shown = pocketlm("run", TINY, documents, "--out", begun, "--only", "base")
    assert status == 2
    assert_plain(shown, *words, "curate again", "in stage base")
