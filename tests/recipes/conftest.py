"""A folder of small inputs, and one finished run of tiny.py for the whole session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import write_documents

TINY = Path(__file__).with_name("tiny.py")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's, with the repository importable and one thread, so that runs are equal to the
    bit.
    """
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def finished(
    documents: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of one whole run of tiny.py. Tests copy what they change."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "run",
        str(TINY),
        str(documents),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return out
