"""`pocketlm verify-resume` says that stopping changes nothing where that is so, and finds it where
it is not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.resume_proof.comparison import compare
from pocketlm.resume_proof.kills import PLACES

TINY = Path(__file__).with_name("tiny.py")
FORGETFUL = '''
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str


def forget(config: Config, out: Path) -> Path:
    """Weights that depend on when it was called."""
    save_file({"w": torch.tensor(list(os.urandom(8)))}, out / "model.safetensors")
    return out


def recipe(run):
    """A recipe with a stage that does not resume."""
    return run(forget, Config(name="first"))
'''


def verify(environment: dict[str, str], *words: object) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "verify-resume",
        *(str(word) for word in words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout + done.stderr


def refused(*words: object) -> str:
    """What is shown of a command that begins nothing, and so may run in this process."""
    done = CliRunner().invoke(app, ["verify-resume", *(str(word) for word in words)])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def equal_in(printed: str, stage: str) -> int:
    """How many of token ids, losses and weights the table tells to be equal."""
    return next(line for line in printed.splitlines() if f"│ {stage} " in line).count("equal")


def hits(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "kills.jsonl").read_text().splitlines()]


def test_a_stage_killed_at_random_moments_is_the_stage_left_alone(
    documents: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    words = (TINY, documents, "--short", "--stage", "base", "--out", tmp_path / "proof")
    status, printed = verify(environment, *words, "--kills", 2)
    assert status == 0 and "every bit is that of the unbroken run" in printed, printed
    assert equal_in(printed, "base") == 3 and "DIFFER" not in printed and "│ corpus" not in printed
    assert len(hits(tmp_path / "proof")) == 2
    assert {hit["place"] for hit in hits(tmp_path / "proof")} <= set(PLACES)
    assert not (tmp_path / "proof" / "broken").exists()
    status, printed = verify(environment, *words, "--kills", 3)  # it goes on, and adds one
    assert status == 0 and len(hits(tmp_path / "proof")) == 3, printed
    assert "holds another proof" in refused(*words, "--kills", 3, "--seed", 9)


def test_specialists_side_by_side_killed_at_random_moments_are_those_left_alone(
    documents: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    words = (TINY, documents, "--specialists", "--processes", 2, "--out", tmp_path / "proof")
    status, printed = verify(environment, *words, "--kills", 2)
    assert status == 0 and "every bit is that of the unbroken run" in printed, printed
    for stage in ("base", "branch-problems", "branch-notes", "branch-texts"):
        assert equal_in(printed, stage) == 3, printed
    assert len(hits(tmp_path / "proof")) == 2


def test_a_stage_that_does_not_resume_is_found(environment: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "forgetful.py"
    recipe.write_text(FORGETFUL)
    status, printed = verify(environment, recipe, "--kills", 1, "--out", tmp_path / "proof")
    assert status == 1 and "DIFFER" in printed and "first: model.safetensors differs" in printed, (
        printed
    )
    assert (tmp_path / "proof" / "broken" / "first").is_dir() and (
        tmp_path / "proof" / "unbroken" / "first"
    ).is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "bose"], "--stage bose: the recipe has no such stage; it has corpus, base"),
        (["--kills", "0"], "--kills 0"),
        (["--processes", "0"], "--processes 0"),
    ],
)
def test_what_cannot_be_proved_is_refused(
    words: list[str], message: str, documents: Path, tmp_path: Path
) -> None:
    assert message in refused(TINY, documents, "--short", "--out", tmp_path / "proof", *words)
    assert not (tmp_path / "proof" / "unbroken" / "base").exists()


def finished_stage(out: Path, **changes: object) -> Path:
    """A stage's folder as a run leaves it, with figures of step 1 changed."""
    (out / "base").mkdir(parents=True)
    rows = [
        {"step": n, "token_digest": f"{n}", "loss": 3.0 - n, "grad_norm": 1.0, "lr": 0.1}
        for n in range(3)
    ]
    weight = torch.ones(4) * float(str(changes.pop("weight", 1.0)))
    rows[1] |= changes
    (out / "base" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"w": weight}, out / "base" / "model.safetensors")
    record = {
        "stage": "pretrain",
        "config": {},
        "inputs": {},
        "digest": "",
        "status": "finished",
        "seconds": 1.0,
    }
    (out / "base" / "stage.json").write_text(json.dumps(record))
    return out


@pytest.mark.parametrize(
    ("changes", "equal", "first"),
    [
        ({}, (True, True, True), None),
        ({"token_digest": "x"}, (False, True, True), "token ids differ from step 1 on"),
        ({"loss": 2.0000001}, (True, False, True), "losses differ from step 1 on"),
        ({"grad_norm": 2.0}, (True, False, True), "losses differ from step 1 on"),
        ({"weight": 1.0000001}, (True, True, False), "model.safetensors differs"),
    ],
)
def test_the_smallest_difference_is_told(
    changes: dict, equal: tuple, first: str | None, tmp_path: Path
) -> None:
    (compared,) = compare(
        finished_stage(tmp_path / "a"), finished_stage(tmp_path / "b", **changes), ["base"]
    )
    assert (
        (compared.tokens, compared.losses, compared.weights) == equal
        and compared.first == first
        and compared.same == (not first)
    )


def test_a_stage_that_was_not_finished_or_lost_steps_is_not_alike(tmp_path: Path) -> None:
    one, other = finished_stage(tmp_path / "a"), finished_stage(tmp_path / "b")
    lines = (other / "base" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "base" / "metrics.jsonl").write_text("".join(lines[:2]))
    os.remove(other / "base" / "model.safetensors")
    (compared,) = compare(one, other, ["base"])
    assert (
        compared.first == "token ids differ from step 2 on; losses differ from step 2 on; "
        "model.safetensors differs"
    )


def test_documents_that_are_not_there_end_the_proof_in_one_message(tmp_path: Path) -> None:
    words = [
        "verify-resume",
        str(TINY),
        str(tmp_path),
        "--kills",
        "1",
        "--out",
        str(tmp_path / "p"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pocketlm.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the run failed by itself" in done.stderr and "texts does not exist" in done.stderr
