"""Models to the hub and back, and the card that goes with them."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.report.model_card import WRITTEN_BY, model_card
from tests.unit.hub_server import hub_server


def command(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def record(stage: str, inputs: dict[str, object], **config: object) -> dict[str, object]:
    named = {
        key: [{"path": path} for path in value] if isinstance(value, list) else {"path": value}
        for key, value in inputs.items()
    }
    return {
        "stage": stage,
        "config": config,
        "inputs": named,
        "status": "finished",
        "seconds": 61.0,
        "pocketlm": "0.2.0",
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four stages: a corpus, a model trained on it, its file, and the evaluation."""
    kept = {"train": {"documents": 3, "bytes": 100, "tokens": 1_250}}
    write(
        tmp_path / "corpus",
        stage__json=record("curate", {"texts": "/somewhere/private/texts.jsonl"}),
        curation__json={"sources": {"texts": {"domain": "maths", "kept": kept}}},
    )
    optim = {"num_steps": 10, "lr": 0.02, "optimizer": "muon"}
    write(
        tmp_path / "base",
        stage__json=record(
            "pretrain", {"corpus": "corpus"}, optim=optim, rows_per_step=4, seq_len=256
        ),
        config__json={},
    )
    files = write(
        tmp_path / "files",
        stage__json=record("export", {"model": "base"}),
        export__json={
            "model": "base",
            "quantization": "int4_group32",
            "bytes": {"model.gguf": 8},
            "agreement": {"model.gguf": {"top_token": 0.995, "tokens": 200, "kl": 1e-5}},
        },
    )
    (files / "model.gguf").write_bytes(b"GGUFdata")
    (files / "resume").mkdir()
    (files / "resume" / "state.safetensors").write_bytes(b"x")
    suite = {"metric": "accuracy", "value": 0.75, "standard_error": 0.1, "n": 20}
    exam = {"kind": "generation", "shots": 0, "temperature": 0.0, "max_new_tokens": 8}
    write(
        tmp_path / "evaluation",
        stage__json=record("evaluate", {"models": ["base", "files/model.gguf"]}),
        evaluation__json={
            "suites": {"exam": exam},
            "models": {
                "before": {"suites": {"exam": {**suite, "value": 0.5}}},
                "after": {"suites": {"exam": suite}},
            },
        },
    )
    return tmp_path


def test_a_card_tells_files_figures_stages_and_data_from_what_the_run_wrote(run: Path) -> None:
    card = model_card(run / "files", "me/pocket")
    assert "| `model.gguf` | 8\N{NO-BREAK SPACE}bytes | 99.5\N{NO-BREAK SPACE}% of 200" in card
    assert (
        "| `model.gguf` | exam | accuracy | 75.0 ± 10.0 | 20 | generation, 0 shots, greedy" in card
    )
    assert "50.0 ± 10.0" not in card  # another model's
    assert "| base | `pretrain` | corpus | 10 steps, 10,240 tokens at most" in card
    assert "| texts | maths | 1,250 |" in card
    assert "/somewhere" not in card
    assert "`int4_group32`" in card


def test_a_card_s_metadata_is_what_the_hub_reads(run: Path) -> None:
    metadata = yaml.safe_load(model_card(run / "files", "me/pocket", licence="mit").split("---")[1])
    assert metadata["license"] == "mit"
    assert metadata["tags"] == ["pocketlm", "gguf"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [
        {"type": "accuracy", "value": 0.75, "name": "accuracy of model.gguf"}
    ]


def test_weights_of_meta_s_keep_their_licence(run: Path) -> None:
    origin = {"from": "facebook/MobileLLM-R1-140M", "licence": "Meta's"}
    (run / "base" / "import.json").write_text(json.dumps(origin))
    metadata = yaml.safe_load(model_card(run / "files", "me/pocket").split("---")[1])
    assert metadata["license_name"] == "fair-noncommercial-research-license"
    assert metadata["base_model"] == ["facebook/MobileLLM-R1-140M"]
    with pytest.raises(ValueError, match=r"FAIR Noncommercial.*cannot be mit"):
        model_card(run / "files", "me/pocket", licence="mit")


def test_a_model_pushed_and_pulled_is_the_same_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        status, output = command("push", run / "files", "me/pocket", "--licence", "mit")
        assert status == 0, output
        assert set(hub["me/pocket"]) == {"model.gguf", "export.json", "README.md"}
        assert b"75.0" in hub["me/pocket"]["README.md"]  # measured after the export
        hub["me/pocket"]["modeling.py"] = hub["me/pocket"]["old.bin"] = b"code"
        status, output = command("pull", "me/pocket", "--out", tmp_path / "fetched")
        assert status == 0, output
    assert "not fetched: modeling.py" in output
    assert "not fetched: old.bin" in output
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()}
    assert fetched == {
        name: content
        for name, content in hub["me/pocket"].items()
        if name not in ("modeling.py", "old.bin")
    }


def test_some_files_of_a_repository_are_pulled_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        hub["me/pocket"] = {"a.gguf": b"GGUF", "b.pte": b"pte", "README.md": b"# x"}
        status, output = command("pull", "me/pocket", "*.gguf", "--out", tmp_path / "fetched")
        assert status == 0, output
        assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["a.gguf"]
        status, output = command("pull", "me/pocket", "*.bin", "--out", tmp_path / "none")
    assert status == 2
    assert "it holds a.gguf, b.pte" in " ".join(output.split())
    assert not (tmp_path / "none").exists()


def test_a_readme_of_the_user_s_is_sent_as_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "files" / "README.md").write_text("# mine")
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        assert command("push", run / "files", "me/pocket")[0] == 0
        assert hub["me/pocket"]["README.md"] == b"# mine"
        status, output = command("push", run / "files", "me/pocket", "--licence", "mit")
    assert (status, "README.md is yours" in " ".join(output.split())) == (2, True)
    (run / "files" / "README.md").write_text(f"# ours\n{WRITTEN_BY}")
    assert "75.0" in command("push", run / "files", "me/pocket", "--dry-run")[1]


@pytest.mark.parametrize(
    ("folder", "repository", "says"),
    [
        ("corpus", "me/pocket", "holds no"),
        ("nowhere", "me/pocket", "no such folder"),
        ("files", "pocket", "write OWNER/NAME"),
        ("pickled", "me/pocket", "is a pickle"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_sent(
    run: Path, folder: str, repository: str, says: str
) -> None:
    write(run / "pickled")
    (run / "pickled" / "model.safetensors").write_bytes(b"")
    (run / "pickled" / "optimizer.pt").write_bytes(b"")
    status, output = command("push", run / folder, repository)
    assert status == 2
    assert says in " ".join(output.split())


def test_a_hub_that_refuses_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(monkeypatch, tmp_path / "cache"):
        status, output = command("pull", "me/nothing", "--out", tmp_path / "fetched")
    assert status == 2
    assert "the Hugging Face hub did not give me/nothing" in " ".join(output.split())
    assert "Traceback" not in output
