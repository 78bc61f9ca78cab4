"""The files of cluster/, run with stand-ins for Slurm and torchrun: what they would start, and how
they stop.
"""

import inspect
import os
import re
import shlex
import signal
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from pocketlm.runner.recipe_file import load_recipe
from recipes.r1 import GPUS

ROOT = Path(__file__).parents[2]
SLURM, SKYPILOT = ROOT / "cluster" / "slurm.sh", ROOT / "cluster" / "skypilot.yaml"
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; '
    'else echo "$@" > "$TOLD/scontrol"; fi',
    "torchrun": 'trap "echo state > $TOLD/saved; exit 130" TERM\n'
    'printf "%s\\0" "$@" > "$TOLD/partial"; mv "$TOLD/partial" "$TOLD/torchrun"\n'
    '[ -z "${RUNS:-}" ] || while true; do sleep 0.05; done',
}
WORDS = [
    "recipes/r1.py",
    "--size",
    "950m",
    "--tokenizer",
    "t",
    "--teacher",
    "t",
    "--out",
    "/shared/a folder",
]


@pytest.fixture()
def environment(tmp_path: Path) -> dict[str, str]:
    """With the stand-ins first on PATH; they tell what they were called with in $TOLD."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "77"}
    asked = {
        "SLURM_JOB_NUM_NODES": directives()["nodes"],
        "SLURM_GPUS_ON_NODE": directives()["gpus-per-node"],
    }
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "TOLD": str(tmp_path),
        **slurm,
        **asked,
    }


def directives() -> dict[str, str]:
    """The #SBATCH lines."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SLURM.read_text(), re.M))


def started(folder: Path) -> tuple[Namespace, list[str]]:
    """(torchrun's arguments as torchrun reads them, the words after `pocketlm run`); every flag of
    both is a known one.
    """
    words = (folder / "torchrun").read_text().split("\0")[:-1]
    arguments = get_args_parser().parse_args(words)
    assert arguments.module and arguments.training_script == "pocketlm.cli"
    verb, recipe, *rest = arguments.training_script_args
    assert verb == "run" and (ROOT / recipe).is_file()
    known = {f"--{name}" for name in inspect.signature(load_recipe(ROOT / recipe)).parameters} | {
        "--out",
        "--only",
        "--set",
    }
    assert {word for word in rest if word.startswith("--")} <= known
    return arguments, [recipe, *rest]


def test_the_slurm_script_starts_the_published_number_of_ranks(
    environment: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(["bash", str(SLURM), *WORDS], env=environment, check=True, timeout=60)
    arguments, words = started(tmp_path)
    assert words == WORDS
    assert int(arguments.nnodes) * int(arguments.nproc_per_node) == GPUS
    assert arguments.rdzv_endpoint == "node-a:29500" and arguments.rdzv_id == "77-0"
    assert not (tmp_path / "scontrol").exists()  # what has finished is not queued again


def test_the_slurm_script_passes_on_a_request_to_stop_waits_and_queues_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(["bash", str(SLURM), *WORDS], env=environment | {"RUNS": "yes"})
    deadline = time.monotonic() + 30
    while not (tmp_path / "torchrun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) != 0
    assert (tmp_path / "saved").read_text() == "state\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_slurm_asks_before_it_kills_and_longer_before_than_torchrun_waits(
    environment, tmp_path: Path
) -> None:
    subprocess.run(["bash", str(SLURM), *WORDS], env=environment, check=True, timeout=60)
    signal_asked, seconds = directives()["signal"].split("@")
    assert signal_asked == "B:TERM" and int(seconds) > started(tmp_path)[0].shutdown_timeout
    assert "requeue" in directives()


def test_the_skypilot_file_starts_the_published_number_of_ranks(
    environment: dict[str, str], tmp_path: Path
) -> None:
    task: dict[str, Any] = yaml.safe_load(SKYPILOT.read_text())
    gpus = task["resources"]["accelerators"].partition(":")[2]
    told = {"SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NUM_GPUS_PER_NODE": gpus}
    told |= {"SKYPILOT_NODE_RANK": "3", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", **task["envs"]}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", task["run"]],
        env=environment | told,
        check=True,
        timeout=60,
    )
    arguments, words = started(tmp_path)
    assert int(arguments.nnodes) * int(arguments.nproc_per_node) == GPUS
    assert (arguments.master_addr, arguments.node_rank) == ("10.0.0.1", 3)
    assert words[:3] == ["recipes/r1.py", "--size", "950m"] and words[-1] == "/shared/r1-950m"
    volume = yaml.safe_load((ROOT / "cluster" / "volume.yaml").read_text())
    assert task["volumes"] == {"/shared": volume["name"]}
    assert shlex.split(task["setup"])[:2] == ["pip", "install"]
