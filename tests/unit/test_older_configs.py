"""What a run folder of an earlier version says where a field of the optimizer's config has another
name now.
"""

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


def test_a_folder_with_a_field_of_an_earlier_name_stops_and_names_both(tmp_path: Path) -> None:
    config = TrainingConfig(name="base", optim=OPTIM)
    folder = Run(tmp_path)(training, config)
    record = json.loads((folder / "stage.json").read_text())
    optim = record["config"]["optim"]
    optim["recompute_every"] = optim.pop(
        "checkpoint_every_n_blocks"
    )  # as earlier versions wrote it
    del optim["attention"]
    write_json(folder / "stage.json", record)
    with pytest.raises(ValueError, match="stage base is finished with another config") as error:
        Run(tmp_path)(training, config)
    message = str(error.value)
    assert "optim.recompute_every: 0 -> (not there)" in message
    assert "optim.checkpoint_every_n_blocks: (not there) -> 0" in message
    assert 'optim.attention: (not there) -> "auto"' in message
    assert f"rm -r {folder}" in message
