"""States on disk: found damaged and replaced by the one before, kept by count and milestone,
refused for another model.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small

from pocketlm.model.model_config import ModelConfig
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import open_safetensors
from pocketlm.train import checkpoint as state
from pocketlm.train.checkpoint import SaveConfig, StateWriter, saved_states
from pocketlm.train.distributed import sharded_tensors as pieces
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.resume import load_state

CONFIG = small()
OPTIM = OptimConfig(lr=1e-2, num_steps=6, warmup_steps=2, final_lr_share=0.1, optimizer="muon")
EACH = SaveConfig(every_steps=1)
FILE = "rank-00000.safetensors"


class Training:
    """A model and its optimizers, moved by gradients that only the step decides."""

    def __init__(self, config: ModelConfig = CONFIG, optim: OptimConfig = OPTIM) -> None:
        self.model = Transformer(config)
        self.optimizers = make_optimizers(self.model, optim)

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in self.optimizers:
            optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor.detach().clone()
            for name, tensor in state.named_tensors(self.model, self.optimizers)
        }

    def resumed(self, out: Path) -> int:
        return load_state(self.model, self.optimizers, out)


def written(out: Path, steps: int, config: SaveConfig = EACH) -> list[dict[str, torch.Tensor]]:
    """What was true after each step of a training that wrote every state; its first entry is the
    start.
    """
    training = Training()
    tensors_at = [training.tensors()]
    with StateWriter(out, config) as states:
        for step in range(steps):
            training.step(step)
            tensors_at.append(training.tensors())
            if (step + 1) % config.every_steps == 0:
                states.write(training.model, training.optimizers, step + 1)
    return tensors_at


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def names(out: Path) -> list[str]:
    return sorted(folder.name for folder in (out / "resume").iterdir())


def test_what_was_written_is_what_is_read_while_training_went_on(tmp_path: Path) -> None:
    tensors_at = written(tmp_path, 4)
    for folder, step in zip(reversed(saved_states(tmp_path)), (4, 3), strict=True):
        fresh = Training()
        assert fresh.resumed(tmp_path) == step and same(fresh.tensors(), tensors_at[step])
        (folder / FILE).unlink()


def test_a_state_is_what_it_was_when_training_goes_on_before_it_is_on_disk(
    tmp_path: Path, monkeypatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(
        state, "write_pieces", lambda *rest: gate.wait(30) and pieces.write_pieces(*rest)
    )
    training = Training()
    training.step(0)
    before = training.tensors()
    with StateWriter(tmp_path, EACH) as states:
        states.write(training.model, training.optimizers, 1)
        training.step(1)
        assert saved_states(tmp_path) == []  # it is not on disk yet
        gate.set()
    fresh = Training()
    assert fresh.resumed(tmp_path) == 1 and same(fresh.tensors(), before)


def test_two_states_are_never_written_at_once(tmp_path: Path, monkeypatch) -> None:
    inside: list[int] = []
    most: list[int] = []

    def watched(*rest):
        inside.append(1)
        most.append(len(inside))
        entries = pieces.write_pieces(*rest)
        inside.pop()
        return entries

    monkeypatch.setattr(state, "write_pieces", watched)
    written(tmp_path, 5)
    assert most == [1] * 5


def flip(folder: Path) -> None:
    """One bit, in the last weight."""
    content = bytearray((folder / FILE).read_bytes())
    content[-3] ^= 16
    (folder / FILE).write_bytes(content)


def tear(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-10])


def lose(folder: Path) -> None:
    (folder / FILE).unlink()


def change_manifest(folder: Path) -> None:
    """One digit of where a piece begins: no file shows it."""
    manifest = json.loads((folder / "state.json").read_text())
    next(iter(manifest["tensors"].values()))["pieces"][0]["offsets"][0] = 1
    (folder / "state.json").write_text(json.dumps(manifest))


def tear_manifest(folder: Path) -> None:
    (folder / "state.json").write_text((folder / "state.json").read_text()[:-40])


def lose_manifest(folder: Path) -> None:
    (folder / "state.json").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit": (flip, f"{FILE} is not what was written: its SHA-256 differs"),
    "torn": (tear, f"{FILE} has "),
    "missing": (lose, f"{FILE} is missing"),
    "index": (change_manifest, "state.json is not what was written"),
    "torn index": (tear_manifest, "state.json:"),
    "missing index": (lose_manifest, "state.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_named_and_the_one_before_it_used(
    kind: str, tmp_path: Path, capsys
) -> None:
    spoil, message = DAMAGE[kind]
    tensors_at = written(tmp_path, 3)
    spoil(tmp_path / "resume" / "step-00000003")
    fresh = Training()
    assert fresh.resumed(tmp_path) == 2 and same(fresh.tensors(), tensors_at[2])
    output = capsys.readouterr().err
    assert message in output and "training goes on from" in output and "step-00000002" in output
    assert names(tmp_path) == ["damaged-step-00000003", "step-00000002"]
    fresh.step(2)
    with StateWriter(tmp_path, EACH) as states:  # step 3 again: its name is free
        states.write(fresh.model, fresh.optimizers, 3)
    assert Training().resumed(tmp_path) == 3 and same(fresh.tensors(), tensors_at[3])


def test_when_no_state_is_whole_nothing_starts_anew_by_itself(tmp_path: Path) -> None:
    written(tmp_path, 3)
    for folder in saved_states(tmp_path):
        tear(folder)
    with pytest.raises(
        ValueError,
        match=r"no state in .*resume is whole:\n.*step-00000003.*\n.*step-00000002.*\nDelete",
    ):
        Training().resumed(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_state_torn_while_it_was_written_is_no_state(tmp_path: Path, monkeypatch) -> None:
    def torn(*rest):
        pieces.write_pieces(*rest)
        raise OSError(28, "No space left on device", str(rest[0]))

    tensors_at = written(tmp_path, 1)
    monkeypatch.setattr(state, "write_pieces", torn)
    training = Training()
    with (
        pytest.raises(OSError, match="No space left on device") as failed,
        StateWriter(tmp_path, EACH) as states,
    ):
        states.write(training.model, training.optimizers, 2)
    assert "while the state of step 2 was written" in failed.value.__notes__[0]
    assert names(tmp_path) == ["partial-00000002", "step-00000001"]
    assert training.resumed(tmp_path) == 1 and same(training.tensors(), tensors_at[1])
    assert names(tmp_path) == ["step-00000001"]


def test_a_writer_that_failed_is_heard_at_the_next_step(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(state, "publish", lambda *_: 1 / 0)
    training = Training()
    with pytest.raises(ZeroDivisionError), StateWriter(tmp_path, EACH) as states:
        states.write(training.model, training.optimizers, 1)
        assert states.thread
        states.thread.join()
        states.check()
        raise AssertionError("not heard")


def test_a_published_state_is_never_written_over(tmp_path: Path) -> None:
    tensors_at = written(tmp_path, 2)
    with pytest.raises(OSError), StateWriter(tmp_path, EACH) as states:
        states.write(Training().model, [], 2)
    fresh = Training()
    assert fresh.resumed(tmp_path) == 2 and same(fresh.tensors(), tensors_at[2])


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (SaveConfig(every_steps=1), [8, 9]),
        (SaveConfig(every_steps=1, keep_last=1), [9]),
        (SaveConfig(every_steps=1, keep_last=3, keep_every_steps=3), [3, 6, 7, 8, 9]),
        (SaveConfig(every_steps=2, keep_last=1, keep_every_steps=4), [4, 8]),
    ],
)
def test_the_newest_states_and_the_milestones_are_kept(
    config: SaveConfig, kept: list[int], tmp_path: Path
) -> None:
    tensors_at = written(tmp_path, 9, config)
    assert names(tmp_path) == [f"step-{step:08}" for step in kept]
    fresh = Training()
    assert fresh.resumed(tmp_path) == kept[-1] and same(fresh.tensors(), tensors_at[kept[-1]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every_steps": 0}, "every_steps 0 must be at least 1"),
        ({"every_steps": 4, "keep_last": 0}, "keep_last 0 must be at least 1"),
        (
            {"every_steps": 4, "keep_every_steps": 6},
            "keep_every_steps 6 must be a multiple of every_steps 4",
        ),
    ],
)
def test_a_retention_that_cannot_be_says_which_field(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaveConfig(**fields)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(CONFIG, num_hidden_layers=1), r"model/model\.layers\.1\..* is not in the model"),
        (replace(CONFIG, num_hidden_layers=3), r"model/model\.layers\.2\..* is not in it"),
        (
            replace(CONFIG, intermediate_size=96),
            r"gate_proj\.weight is \[64, 32\] there and \[96, 32\] in the model",
        ),
    ],
)
def test_the_state_of_another_model_is_refused(
    other: ModelConfig, message: str, tmp_path: Path
) -> None:
    written(tmp_path, 1)
    with pytest.raises(
        ValueError,
        match=f"step-00000001 is the state of another model or optimizer:\n(.*\n)*.*{message}",
    ):
        Training(other).resumed(tmp_path)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with pytest.raises(ValueError, match=r"Muon/.*momentum_buffer is not in the model"):
        Training(optim=replace(OPTIM, optimizer="adamw")).resumed(tmp_path)


def test_a_state_is_safetensors_and_json_alone(tmp_path: Path) -> None:
    tensors_at = written(tmp_path, 1)
    folder = tmp_path / "resume" / "step-00000001"
    assert sorted(file.name for file in folder.iterdir()) == [FILE, "state.json"]
    assert same(load_file(folder / FILE), tensors_at[1])
    manifest = json.loads((folder / "state.json").read_text())
    assert (
        manifest["step"] == 1
        and manifest["world_size"] == 1
        and manifest["tensors"].keys() == tensors_at[1].keys()
    )


def test_pieces_that_leave_a_gap_are_not_taken_for_a_tensor(tmp_path: Path) -> None:
    saved = {
        "w": {
            "shape": [4, 2],
            "dtype": "float32",
            "pieces": [{"file": "a", "offsets": [0, 0], "sizes": [3, 2]}],
        }
    }
    save_file({"w": torch.ones(3, 2)}, tmp_path / "a")
    with (
        open_safetensors(tmp_path / "a") as opened,
        pytest.raises(ValueError, match="hold 6 of its 8 values"),
    ):
        pieces.fill(torch.zeros(4, 2), "w", saved, {"a": opened})
