"""The replay of published runs, on a small generated one: whole files in, a verdict out."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mix_replay.py"
SOURCES, DOMAINS = ("arxiv", "github", "pile_cc"), ("github", "pile_cc")
SLOPES = np.array([[0.2, -1.5, 0.3], [0.4, 0.6, -1.2]])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mix_replay", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mix_replay"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def write_runs(folder: Path, mixes: str, losses: str, runs: int, seed: int, sign: float) -> None:
    """Losses of the law that `sign` 1 says; -1 orders mixes the other way round."""
    shares = np.random.default_rng(seed).dirichlet(np.ones(3), runs).round(3)
    values = 2 + np.exp(sign * shares @ SLOPES.T)
    for name, columns, rows in (
        (mixes, [f"train_the_pile_{source}" for source in SOURCES], shares),
        (losses, [f"metric/the_pile_{domain}_val_loss" for domain in DOMAINS], values),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", *columns])
            writer.writerows([number, *row] for number, row in enumerate(rows.tolist()))


def write_replay(folder: Path, large_sign: float) -> Path:
    folder.mkdir()
    write_runs(folder, "train_mixture_1m.csv", "train_pile_loss_1m.csv", 80, 0, 1)
    for number, (name, sign) in enumerate((("1m", 1), ("60m", 1), ("1B", large_sign)), start=1):
        files = (f"test_mixture_{name}.csv", f"test_pile_loss_{name}.csv")
        write_runs(folder, *files, 20, number, sign)
    return folder


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mix_replay.py", *arguments])
    try:
        script.main()
    except SystemExit as end:
        assert isinstance(end.code, int), end.code
        return end.code
    return 0


def test_a_law_that_holds_at_every_size_is_accepted(script, tmp_path, monkeypatch, capsys):
    folder = write_replay(tmp_path / "runs", 1)
    assert run(script, monkeypatch, str(folder), "--runs", "16", "64", "--seeds", "2") == 0
    printed = capsys.readouterr().out
    assert "80 runs to fit on, to predict 20 of 1M, 20 of 60M, 20 of 1B; 3 sources" in printed
    assert printed.count("met: ") == 2 and "MISSED" not in printed
    assert printed.count("| 64 | auto |") == 2


def test_a_law_that_larger_models_contradict_is_not(script, tmp_path, monkeypatch, capsys):
    folder = write_replay(tmp_path / "runs", -1)
    assert run(script, monkeypatch, str(folder), "--runs", "64", "--seeds", "1") == 1
    assert "MISSED: Pile-CC, log_linear, N = 64, 1B: rho -" in capsys.readouterr().out


def test_regret_is_the_loss_above_the_pool_s_best(script):
    rho, regret = script.judge(np.array([3.0, 1.0, 2.0]), np.array([2.5, 2.2, 2.0]))
    assert regret == pytest.approx(0.2) and rho == pytest.approx(0.5)


def test_files_that_are_no_replay_are_refused(script, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=r"no .*train_mixture_1m\.csv"):
        run(script, monkeypatch, str(tmp_path))
    folder = write_replay(tmp_path / "runs", 1)
    (folder / "test_mixture_1B.csv").write_text("index,other\n0,1\n")
    with pytest.raises(AssertionError, match=r"columns must be index and train_the_pile_"):
        run(script, monkeypatch, str(folder))
