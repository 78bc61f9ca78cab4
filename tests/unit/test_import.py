"""pocketlm import: folders, .gguf files and hub ids become checkpoints of ours; what fails leaves
nothing.
"""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.export.gguf import write_gguf
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

SHAPE = small(vocab_size=288, hidden_size=64, intermediate_size=96, head_dim=32, rope_theta=1e6)
IDS = torch.arange(3, 40)[None]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog", "12 + 30 = 42"] * 4, 280)


def pocketlm(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture
def r1(here: Path, tokenizer: Tokenizer) -> Transformer:
    """A checkpoint in Meta's layout of R1, in the folder `r1`."""
    model = Transformer(SHAPE, seed=4)
    (here / "r1").mkdir()
    save_checkpoint(here / "r1", model, tokenizer, layout="llama4_text")
    return model


def test_metas_layout_comes_in_as_one_that_stock_runtimes_know(r1: Transformer) -> None:
    status, shown = pocketlm("import", "r1")
    assert status == 0, shown
    assert (
        "llama4_text -> qwen3" in shown and "FAIR Noncommercial" in shown and "models/r1" in shown
    )
    model, _ = load_checkpoint(Path("models/r1"))
    assert torch.equal(model(IDS), r1(IDS))
    told = json.loads(Path("models/r1/import.json").read_text())
    assert told["parameters"] == sum(p.numel() for p in r1.parameters())
    status, shown = pocketlm(
        "export", "models/r1", "--to", "hf", "--layout", "llama4_text", "--out", "back"
    )
    assert status == 0, shown
    assert json.loads(Path("back/hf/config.json").read_text())["model_type"] == "llama4_text"
    assert torch.equal(load_checkpoint(Path("back/hf"))[0](IDS), r1(IDS))


def test_a_gguf_comes_in(here: Path, tokenizer: Tokenizer) -> None:
    model = Transformer(replace(SHAPE, qk_norm_weight=True), seed=5)
    write_gguf(model, tokenizer, here / "small.gguf", "f32")
    status, shown = pocketlm("import", "small.gguf", "--out", "small")
    assert status == 0, shown
    assert "gguf -> qwen3" in shown and "FAIR" not in shown
    assert torch.equal(load_checkpoint(Path("small"))[0](IDS), model(IDS))


def test_a_four_bit_checkpoint_stays_one(here: Path, tokenizer: Tokenizer) -> None:
    (here / "int4").mkdir()
    save_checkpoint(here / "int4", prepare(Transformer(SHAPE), CPU), tokenizer)
    assert pocketlm("import", "int4")[0] == 0
    assert quantization_of(Path("models/int4")) == "int4_group32"


SMALL = ["*.json", "*.jinja", "*.model", "merges.txt", "LICENSE*"]


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, list[str]]]:
    """What the hub was asked for: (repository, revision, patterns). It has what lies in the folder
    of that name.
    """
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        cache = here / "cache" / ("c0ffee" * 7)[:40]
        cache.mkdir(parents=True, exist_ok=True)
        for file in (here / name.split("/")[1]).iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                (cache / file.name).write_bytes(file.read_bytes())
        return str(cache)

    def list_repo_files(name: str, *, revision: str | None) -> list[str]:
        return [file.name for file in (here / name.split("/")[1]).iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    return asked


def test_a_hub_id_is_fetched_without_pickles_or_code_its_small_files_first(
    here: Path, r1: Transformer, hub
) -> None:
    for stray in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors"):
        (here / "r1" / stray).write_bytes(b"not asked for")
    status, shown = pocketlm("import", "them/r1", "--revision", "v2")
    assert status == 0, shown
    assert (here / "models" / "r1" / "model.safetensors").is_file()
    # the weights are of the commit that was looked at, whatever v2 is by then
    commit = ("c0ffee" * 7)[:40]
    assert hub == [("them/r1", "v2", SMALL), ("them/r1", commit, [*SMALL, "model.safetensors"])]
    assert not (here / "cache" / commit / "pytorch_model.bin").exists()


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not read here"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope type 'yarn' cannot be honoured",
        ),
        ({"vocab_size": 200}, "the embedding only 200 rows"),
    ],
)
def test_what_cannot_be_read_is_known_before_its_weights_are_fetched(
    fields, message, r1: Transformer, hub
) -> None:
    edit_config(Path("r1"), **fields)
    status, shown = pocketlm("import", "them/r1")
    assert status == 2 and message in " ".join(shown.split()), shown
    assert len(hub) == 1


def test_the_shards_of_an_index_are_fetched_by_their_names(r1: Transformer, hub) -> None:
    Path("r1/model.safetensors").rename("r1/part.safetensors")
    names = dict.fromkeys(load_file("r1/part.safetensors"), "part.safetensors")
    Path("r1/model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    status, shown = pocketlm("import", "them/r1")
    assert status == 0, shown
    assert hub[1][2] == [*SMALL, "model.safetensors", "part.safetensors"]


def test_a_repository_of_pickles_alone_says_what_to_do(r1: Transformer, hub) -> None:
    Path("r1/model.safetensors").rename("r1/pytorch_model.bin")
    status, shown = pocketlm("import", "them/r1")
    assert (
        status == 2 and "pytorch_model.bin is a pickle" in shown and "save_pretrained" in shown
    ), shown
    status, shown = pocketlm("import", "r1")
    assert (
        status == 2 and "pytorch_model.bin is a pickle" in shown and "save_pretrained" in shown
    ), shown
    assert not Path("cache", ("c0ffee" * 7)[:40], "pytorch_model.bin").exists()


def test_an_import_tells_what_was_read_and_what_was_not(r1: Transformer) -> None:
    edit_config(Path("r1"), temperature=0.6, rope_theta=7.0)
    Path("r1/README.md").write_text("about")
    Path("r1/modeling.py").write_text("code")
    Path("r1/onnx").mkdir()
    Path("r1/onnx/model.onnx").write_text("graph")
    save_file({"a": torch.zeros(1)}, "r1/consolidated.safetensors")
    status, shown = pocketlm("import", "r1")
    assert status == 0, shown
    told = json.loads(Path("models/r1/import.json").read_text())
    assert told["unused_fields"].keys() == {"temperature", "rope_theta"}
    assert told["unused_files"].keys() == {
        "README.md",
        "modeling.py",
        "onnx/model.onnx",
        "consolidated.safetensors",
    }
    for words in (
        "tokenizer: byte-level BPE, 280 tokens; a document begins with <|endoftext|>",
        "chat template: no",
        "an answer ends in <|endoftext|> (0: the tokenizer's eos, by its text), <|im_end|> (2: by "
        "its text)",
        "not used: config.json, temperature: no field of llama4_text; transformers ignores it too",
        "not used: config.json, rope_theta: rope_theta 1000000.0 of the RoPE fields is taken",
        "not used: modeling.py: code, which is never run",
        "not used: consolidated.safetensors: model.safetensors is read",
    ):
        assert words in " ".join(shown.split()), shown


def test_a_hub_that_does_not_answer_is_one_message(monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    status, shown = pocketlm("import", "them/model")
    assert status == 2 and "them/model: there is no such file or folder here" in " ".join(
        shown.split()
    )
    assert not Path("models/model").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", [], "no checkpoint folder at nowhere"),
        ("nowhere.gguf", [], "no .gguf file at nowhere.gguf"),
        ("r1", ["--revision", "v2"], "revision is for models of the hub"),
        ("broken", [], "model_type 'gpt2' is not read here; known: llama, qwen2, smollm3"),
    ],
)
def test_what_cannot_come_in_leaves_nothing(
    source: str, options: list[str], message: str, r1: Transformer
) -> None:
    Path("broken").mkdir()
    Path("broken/config.json").write_text('{"model_type": "gpt2"}')
    status, shown = pocketlm("import", source, *options, "--out", "target")
    assert status == 2 and message in " ".join(shown.split()), shown
    assert (
        "Traceback" not in shown
        and not Path("target").exists()
        and not Path(".target.partial").exists()
    )


def spoil_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )


def spoil_tokenizer(folder: Path) -> None:
    train_tokenizer(["every good boy deserves favour, and then some more words"] * 4, 300).save(
        folder
    )


def spoil_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.feed_forward.up_proj.weight"] = torch.zeros(96, 32)
    save_file(
        tensors | {"model.layers.0.self_attn.sinks": torch.zeros(2)}, folder / "model.safetensors"
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shard, "model-00002-of-00002.safetensors"),
        (spoil_tokenizer, "the embedding only 288 rows"),
        (spoil_tensor, "unexpected model.layers.0.self_attn.sinks"),
        (spoil_tensor, "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_folder_that_does_not_hold_together_comes_not_in(
    spoil, message: str, r1: Transformer
) -> None:
    spoil(Path("r1"))
    status, shown = pocketlm("import", "r1", "--out", "target")
    assert status == 2 and message in " ".join(shown.split()), shown
    assert (
        "Traceback" not in shown
        and not Path("target").exists()
        and not Path(".target.partial").exists()
    )


def test_a_gguf_of_an_architecture_that_is_not_read_here_is_named() -> None:
    writer = gguf.GGUFWriter("strange.gguf", "mamba2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    status, shown = pocketlm("import", "strange.gguf", "--out", "target")
    assert status == 2 and "mamba2" in shown and "qwen3" in shown and not Path("target").exists(), (
        shown
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "gguf", "--dtype", "q4_0"], "rows of 80"),
        (["--to", "gguf", "--dtype", "q3_k"], "q3_k"),
        (
            ["--to", "pte", "--context-length", "65"],
            "context_length 65 exceeds the model's 64 positions",
        ),
        (["--to", "hf", "--layout", "llama"], "it has QK-norm"),
    ],
)
def test_what_a_format_cannot_hold_is_told_and_nothing_is_written(
    options, message, tokenizer
) -> None:
    Path("odd").mkdir()
    save_checkpoint(
        Path("odd"), Transformer(replace(SHAPE, intermediate_size=80), seed=4), tokenizer
    )
    status, shown = pocketlm("export", "odd", *options, "--out", "target")
    assert status == 2 and message in " ".join(shown.split()), shown
    assert "Traceback" not in shown and not Path("target").exists(), shown


def test_a_folder_with_something_in_it_is_not_written_over(r1: Transformer) -> None:
    Path("target").mkdir()
    Path("target/mine.txt").write_text("mine")
    status, shown = pocketlm("import", "r1", "--out", "target")
    assert (
        status == 2
        and "not empty" in shown
        and [p.name for p in Path("target").iterdir()] == ["mine.txt"]
    )
