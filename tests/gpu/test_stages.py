"""A small recipe of every stage on a CUDA device, through the command."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "recipes"
TRAINED = ("teacher", "phase1", "mid", "long", "branch-maths", "chat", "int4")


def write_documents(folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("documents", RECIPES / "documents.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_documents(folder)


def test_every_stage_of_a_recipe_runs_and_its_losses_are_finite(tmp_path: Path) -> None:
    texts = write_documents(tmp_path)
    command = [sys.executable, "-m", "pocketlm.cli", "run", str(RECIPES / "tiny.py"), str(texts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bfloat16" in done.stderr and "varlen" in done.stderr
    for stage in TRAINED:
        lines = (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()
        assert lines and all(math.isfinite(json.loads(line)["loss"]) for line in lines), stage
