"""A run folder of an earlier version, where a field of a config has another name now."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketlm.model.files import write_json
from pocketlm.runner.run import Run
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    name: str
    optim: OptimConfig

    def summary(self) -> str:
        return self.optim.summary()


def training(config: TrainingConfig, out: Path) -> Path:
    write_json(out / "done.json", {"steps": config.optim.num_steps})
    return out


OPTIM = OptimConfig(lr=1e-3, num_steps=2, warmup_steps=0, final_lr_share=0.1)


def earlier(folder: Path, recompute_every: int) -> None:
    """Rewrites the folder's record as versions before 0.2 wrote it."""
    record = json.loads((folder / "stage.json").read_text())
    optim = record["config"]["optim"]
    del optim["checkpoint_every_n_blocks"], optim["attention"]
    optim["recompute_every"] = recompute_every
    write_json(folder / "stage.json", record)


def test_a_finished_folder_whose_record_has_a_field_s_earlier_name_is_finished(
    tmp_path: Path,
) -> None:
    config = TrainingConfig(name="base", optim=OPTIM)
    folder = Run(tmp_path)(training, config)
    earlier(folder, 0)
    before = (folder / "stage.json").read_bytes()
    assert Run(tmp_path)(training, config) == folder
    assert (folder / "stage.json").read_bytes() == before  # not run again


def test_another_value_under_the_earlier_name_stops_and_says_today_s_name(tmp_path: Path) -> None:
    config = TrainingConfig(name="base", optim=OPTIM)
    folder = Run(tmp_path)(training, config)
    earlier(folder, 2)
    with pytest.raises(ValueError, match="stage base is finished with another config") as error:
        Run(tmp_path)(training, config)
    message = str(error.value)
    assert "optim.checkpoint_every_n_blocks: 2 -> 0" in message
    assert "attention" not in message
    assert f"rm -r {folder}" in message
