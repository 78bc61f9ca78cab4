"""The short recipe of tiny.py under torchrun on two ranks: one is killed, all end with a reason,
and a restart finishes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import linalg

TINY = Path(__file__).with_name("tiny.py")
FLOAT32 = [
    f"--set={stage}.optim.compute_dtype=float32" for stage in ("base", "mid", "chat", "int4")
]
# relative, of losses and of each tensor's norm. "mid" begins where its teacher is: its gradient is
# rounding, which Muon makes as long as any other, so that from there on two runs part
# (docs/numerics.md)
TOLERANCES = {"base": (1e-6, 1e-5), "chat": (1e-3, 1e-2), "int4": (0.5, 0.1)}
BROKEN = f"""
import os, sys
sys.path.insert(0, {str(TINY.parent)!r})
from test_killed import install
from pocketlm.cli import app
if os.environ["RANK"] == "1":
    install("kill", "pocketlm.train.loop:train_step", 7)
app(sys.argv[1:])
"""  # the seventh step is the third of "mid"


def shown_by(command: list[str], status: int, environment: dict[str, str]) -> str:
    """What a command shows, which must end with this status."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_recipe_whose_rank_is_killed_ends_soon_and_started_again_gives_what_one_process_gives(
    documents: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    words = ["run", str(TINY), str(documents), "--short", *FLOAT32, "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    shown_by(["-m", "pocketlm.cli", *words, str(alone)], 0, environment)

    shown = shown_by([*torchrun, str(broken), *words, str(together)], 1, environment)
    last_sign = max(file.stat().st_mtime for file in together.rglob("*") if file.is_file())
    assert time.time() - last_sign < 60
    assert "Signal 9 (SIGKILL)" in shown  # torchrun's reason, and ours
    assert "rank 0 of 2 lost the others" in shown or "interrupted in stage mid" in shown

    shown = shown_by([*torchrun, "-m", "pocketlm.cli", *words, str(together)], 0, environment)
    assert (
        "base: done before" in shown and "mid: resumed" in shown and shown.count("int4: ran") == 1
    )
    for stage, (of_losses, of_weights) in TOLERANCES.items():
        expected, found = (
            load_file(out / stage / "model.safetensors") for out in (alone, together)
        )
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert linalg.norm(found[name] - tensor) <= of_weights * linalg.norm(tensor), (
                stage,
                name,
            )
        assert losses(together / stage) == pytest.approx(losses(alone / stage), rel=of_losses)


def losses(stage: Path) -> list[float]:
    lines = stage / "metrics.jsonl"
    return (
        [json.loads(line)["loss"] for line in lines.read_text().splitlines()]
        if lines.exists()
        else []
    )
