"""A folder of small inputs, and one finished run of tiny.py for the whole session."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

TINY = Path(__file__).with_name("tiny.py")
REPOSITORY = Path(__file__).parents[2]
VERBS = ("returns", "reads", "writes", "keeps", "counts", "drops", "sorts", "joins")
NOUNS = ("line", "file", "list", "table", "number", "name", "folder", "value", "record", "key")


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """texts/ with files of every plain kind, and exam.jsonl, a suite of six problems."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "texts").mkdir()
    words = Random(1)

    def sentence() -> str:
        return (
            f"It {words.choice(VERBS)} the {words.choice(NOUNS)} of each {words.choice(NOUNS)} {words.randrange(99)}."
        )

    def text() -> str:
        return "\n".join(" ".join(sentence() for _ in range(4)) for _ in range(3))

    (folder / "texts" / "notes.txt").write_text(text())
    (folder / "texts" / "readme.md").write_text(f"# Notes\n\n{text()}")
    code = "\n\n".join(f'def f{n}(x):\n    """{sentence()}"""\n    return x + {n}' for n in range(12))
    (folder / "texts" / "code.py").write_text(code)
    (folder / "texts" / "rows.jsonl").write_text("".join(json.dumps({"text": text()}) + "\n" for _ in range(40)))
    exam = [{"prompt": f"What is {n} plus {n + 4}?", "answer": str(2 * n + 4)} for n in range(6)]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    return folder


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's, with the repository importable and one thread, so that runs are equal to the bit."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def finished(documents: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run of tiny.py. Tests copy what they change."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    command = [sys.executable, "-m", "pocketlm.cli", "run", str(TINY), str(documents), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return out
