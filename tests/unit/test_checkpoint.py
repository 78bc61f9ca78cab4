"""A checkpoint folder: written whole, read back exactly, and refused with the reason when it does
not fit.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small

from pocketlm.model import checkpoint
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.files import write_folder, write_json, write_text
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import SCHEMES, FakeQuantEmbedding, FakeQuantLinear, prepare
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

QWEN3 = small(vocab_size=310, rope_theta=12345.0, rms_norm_eps=1e-6, initializer_range=0.03)
CONFIGS = {
    "weightless QK-norm": QWEN3,
    "learned QK-norm": replace(QWEN3, qk_norm_weight=True),
    "llama": replace(QWEN3, use_qk_norm=False, tie_word_embeddings=False),
    "windows": replace(QWEN3, layer_types=(LOCAL, GLOBAL), sliding_window=8),
}
IDS = torch.randint(300, (1, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


@pytest.fixture()
def folder(tokenizer, tmp_path) -> Path:
    save_checkpoint(tmp_path, Transformer(QWEN3), tokenizer)
    return tmp_path


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_saved_checkpoint_loads_as_itself(layout, tokenizer, tmp_path):
    model = Transformer(CONFIGS[layout], seed=3)
    save_checkpoint(tmp_path, model, Tokenizer(tokenizer.backend, chat_template=CHATML))
    loaded, own_tokenizer = load_checkpoint(tmp_path)
    assert loaded.config == model.config
    for (name, tensor), (other, read) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(tensor, read)
    assert own_tokenizer.chat_template == CHATML
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_saving_over_a_checkpoint_replaces_it(folder, tokenizer):
    model = Transformer(QWEN3, seed=8)
    save_checkpoint(folder, model, tokenizer)
    assert torch.equal(load_checkpoint(folder)[0](IDS), model(IDS))


@pytest.mark.parametrize("name", [None, *SCHEMES])
def test_the_quantization_of_a_checkpoint_comes_back_with_it(name, tokenizer, tmp_path):
    model = Transformer(QWEN3)
    if name:
        prepare(model, SCHEMES[name])
    latent = {key: value.clone() for key, value in model.state_dict().items()}
    save_checkpoint(tmp_path, model, tokenizer)
    assert quantization_of(tmp_path) == name
    loaded, _ = load_checkpoint(tmp_path)
    assert all(torch.equal(value, latent[key]) for key, value in loaded.state_dict().items())
    assert any(isinstance(m, FakeQuantLinear) for m in loaded.modules()) == bool(name)
    assert isinstance(loaded.model.embed_tokens, FakeQuantEmbedding) == bool(name)
    assert torch.equal(loaded(IDS), model(IDS))


def test_weights_in_bfloat16_and_in_shards_are_read_in_float32(folder):
    tensors = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors").unlink()
    model, _ = load_checkpoint(folder)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, tensors[name].float())
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the weights file b\.safetensors"):
        load_checkpoint(folder)


def test_a_tied_checkpoint_that_repeats_its_embedding_as_the_head_is_read(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    load_checkpoint(folder)
    save_file(
        tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"ties the embeddings, but lm_head\.weight differs"):
        load_checkpoint(folder)


def test_a_missing_folder_or_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder at .*nowhere"):
        load_checkpoint(folder / "nowhere")
    (folder / "model.safetensors").rename(folder / "other")
    with pytest.raises(FileNotFoundError, match=r"lacks the weights file model\.safetensors"):
        load_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a checkpoint: it holds no config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("length", [0, 7, 100, -1000, -1])
def test_a_truncated_weights_file_is_named_as_damaged(length, folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or not a safetensors file"):
        load_checkpoint(folder)


def test_a_config_that_is_not_json_is_named_with_the_line(folder):
    (folder / "config.json").write_text('{"model_type": "qwen3",\n "vocab_size": }')
    with pytest.raises(ValueError, match=r"config\.json:2: not JSON"):
        load_checkpoint(folder)


def test_a_tokenizer_larger_than_the_embedding_belongs_to_another_checkpoint(folder):
    edit(folder, vocab_size=279)
    with pytest.raises(
        ValueError, match=r"the tokenizer has 280 tokens .*, the embedding only 279 rows"
    ):
        load_checkpoint(folder)


def test_tensors_that_do_not_fit_are_listed_by_name(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(60, 32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "the weights do not fit config.json" in message and str(folder) in message
    assert "missing model.norm.weight" in message
    assert "unexpected model.layers.0.self_attn.q_proj.bias" in message
    assert "model.layers.1.mlp.up_proj.weight is (60, 32), the config asks for (64, 32)" in message
    assert len(message.splitlines()) == 4


def test_a_long_list_of_tensors_that_do_not_fit_is_cut(folder):
    edit(folder, num_hidden_layers=4, layer_types=[GLOBAL] * 4)
    with pytest.raises(ValueError, match="and 6 more"):
        load_checkpoint(folder)


def test_a_learned_qk_norm_is_not_taken_for_a_weightless_one(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_norm.weight"] *= 2
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_norm\.weight is not all ones"):
        load_checkpoint(folder)
    edit(folder, pocketlm=None)  # as another project's qwen3 checkpoint: its QK-norm has weights
    assert load_checkpoint(folder)[0].config.qk_norm_weight


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not read here; known: llama, qwen2"),
        ({"model_type": None}, "model_type None is not read here"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope type 'yarn' cannot be honoured",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope type 'linear' cannot be honoured",
        ),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "llama3"}}, "llama3 lacks factor"),
        ({"attention_bias": True, "mlp_bias": True}, "cannot honour attention_bias, mlp_bias"),
        ({"hidden_act": "gelu"}, "cannot honour hidden_act"),
        ({"quantization_config": {"bits": 4}}, "cannot honour quantization_config"),
        (
            {"use_sliding_window": True, "sliding_window": 0, "layer_types": [LOCAL] * 2},
            "sliding_window must be set",
        ),
        ({"intermediate_size": None}, "field intermediate_size is missing"),
        ({"num_key_value_heads": 3}, "num_attention_heads 2 is not a multiple"),
        (
            {"layer_types": [LOCAL, "chunked_attention"], "sliding_window": 8},
            "'chunked_attention'; known are",
        ),
        (
            {"pocketlm": {"qk_norm_weight": False, "quantization": "int3"}},
            "unknown quantization scheme 'int3'; known:",
        ),
    ],
)
def test_a_config_this_network_cannot_honour_is_refused_by_field(fields, message, folder):
    edit(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_older_configs_that_spell_theta_and_heads_apart_are_read(folder):
    edit(folder, rope_parameters=None, rope_theta=777.0, head_dim=16, initializer_range=None)
    assert load_checkpoint(folder)[0].config.rope_theta == 777.0


def test_a_head_dim_left_out_is_what_the_class_takes_for_it(tokenizer, tmp_path):
    save_checkpoint(tmp_path, Transformer(CONFIGS["llama"]), tokenizer)
    edit(tmp_path, head_dim=None)
    assert load_checkpoint(tmp_path)[0].config.head_dim == 16  # hidden_size / heads
    save_checkpoint(tmp_path, Transformer(replace(QWEN3, head_dim=128)), tokenizer)
    edit(tmp_path, head_dim=None)
    assert load_checkpoint(tmp_path)[0].config.head_dim == 128  # Qwen3's own default


def test_a_pickle_in_place_of_the_weights_is_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"pytorch_model\.bin is a pickle, which may run code"
    ):
        load_checkpoint(folder)


def test_weights_that_could_not_be_written_leave_the_old_ones_whole(folder, tokenizer, monkeypatch):
    def torn(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, Transformer(QWEN3, seed=1), tokenizer)
    monkeypatch.undo()
    assert (folder / "model.safetensors").read_bytes() == before
    load_checkpoint(folder)


def test_a_text_that_could_not_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    file = write_text(tmp_path / "a.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new, and longer")
    assert file.read_text() == "old"


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "shards"
    with write_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), write_folder(target) as folder:
        (folder / "b").write_text("2")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["shards", "a"]
    with write_folder(target) as folder:
        (folder / "c").write_text("3")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "shards"]
