"""MLX and compressed-tensors folders: the bytes by their formats' formulas, and by the packages
themselves where present.

`pip install 'pocketlm[dev]'` brings compressed-tensors; MLX is asked only where `pip install
'mlx[cpu]' mlx-lm` was done.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shapes import small

from pocketlm.export import packed_folders as repack
from pocketlm.export.packed_folders import write_repacked
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import SCALE, SCHEMES, FakeQuantized, prepare
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import ExportConfig, dequantized_model, export

QWEN3 = small(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    initializer_range=0.1,
)
LLAMA = replace(QWEN3, use_qk_norm=False)
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
MODELS = {
    "weightless QK-norm": (QWEN3, "int4_group32"),
    "learned QK-norm, untied": (
        replace(QWEN3, qk_norm_weight=True, tie_word_embeddings=False),
        "int4_group32",
    ),
    "llama": (LLAMA, "int4_group32_weight_only"),
    "llama 3's rope, learned ranges, untied": (
        replace(LLAMA, tie_word_embeddings=False, rope_scaling=SCALING),
        "int4_channel",
    ),
}
IDS = torch.randint(280, (1, 120), generator=torch.Generator().manual_seed(1))
PROMPT = IDS[0, :12].tolist()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


def network(name: str) -> Transformer:
    """A model on its grid; norms are not all ones, but float16 values; learned ranges clip."""
    config, scheme = MODELS[name]
    model = prepare(Transformer(config, seed=2), SCHEMES[scheme]).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(
                    (1 + 0.1 * torch.randn(parameter.shape, generator=generator)).half()
                )
            elif key.endswith(SCALE):
                parameter.mul_(0.7)
    return model


def layers(model: Transformer) -> dict[str, FakeQuantized]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, FakeQuantized)
    }


def nibbles(words: torch.Tensor) -> np.ndarray:
    """[O, I] from [O, I / 8]: bit by bit, lowest first."""
    octets = words.numpy().astype("<u4").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little").reshape(words.shape[0], -1, 4)
    return (bits * [1, 2, 4, 8]).sum(-1)


@pytest.mark.parametrize("name", MODELS)
def test_an_mlx_folder_holds_the_grid_by_mlx_s_formula(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = network(name)
    stored = load_file(
        write_repacked(model, tokenizer, tmp_path / "mlx", "mlx") / "model.safetensors"
    )
    for key, layer in layers(model).items():
        scale, bias = (
            stored.pop(f"{key}.{kind}").numpy().astype(np.float32) for kind in ("scales", "biases")
        )
        assert scale.shape == (layer.weight.shape[0], layer.weight.shape[1] // 32)
        values = nibbles(stored.pop(f"{key}.weight")) * scale.repeat(32, 1) + bias.repeat(32, 1)
        np.testing.assert_array_equal(
            values.astype(np.float32), layer.grid_weight().detach().numpy()
        )
    assert all("norm" in key and tensor.dtype == torch.float16 for key, tensor in stored.items())
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {"group_size": 32, "bits": 4}


@pytest.mark.parametrize("name", MODELS)
def test_a_compressed_tensors_folder_holds_the_grid_by_its_formula(
    name, tokenizer, tmp_path: Path
) -> None:
    model = network(name)
    folder = write_repacked(model, tokenizer, tmp_path / "vllm", "compressed-tensors")
    stored = load_file(folder / "model.safetensors")
    for key, layer in layers(model).items():
        grid = layer.grid_weight().detach().numpy()
        if key in ("model.embed_tokens", "lm_head"):
            assert stored[f"{key}.weight"].dtype == torch.float16
            np.testing.assert_array_equal(stored[f"{key}.weight"].float().numpy(), grid)
            continue
        assert stored[f"{key}.weight_packed"].dtype == torch.int32
        assert stored[f"{key}.weight_shape"].tolist() == list(layer.weight.shape)
        scale = stored[f"{key}.weight_scale"].float().numpy()
        values = (nibbles(stored[f"{key}.weight_packed"]) - 8) * scale.repeat(
            grid.shape[1] // scale.shape[1], 1
        )
        np.testing.assert_array_equal(values.astype(np.float32), grid)
    weights = json.loads((folder / "config.json").read_text())["quantization_config"][
        "config_groups"
    ]["group_0"]
    channel = MODELS[name][1] == "int4_channel"
    assert weights["weights"]["strategy"] == ("channel" if channel else "group")


@pytest.mark.parametrize("name", MODELS)
def test_stock_transformers_opens_a_compressed_tensors_folder_as_our_grid(
    name, tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    model = network(name)
    folder = write_repacked(model, tokenizer, tmp_path / "vllm", "compressed-tensors")
    dense = CompressedTensorsConfig(dequantize=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=dense
    )
    for key, tensor in dequantized_model(model).state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor), key
    with torch.no_grad():
        assert (theirs(IDS).logits - dequantized_model(model)(IDS)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_mlx_lm_opens_an_mlx_folder_and_answers_as_our_grid(
    name, tokenizer, tmp_path: Path
) -> None:
    mx: Any = pytest.importorskip("mlx.core", reason="pip install 'pocketlm[mlx]'")
    utils: Any = pytest.importorskip("mlx_lm.utils", reason="pip install 'pocketlm[mlx]'")
    model = network(name)
    theirs, _ = utils.load_model(write_repacked(model, tokenizer, tmp_path / "mlx", "mlx"))
    plain = LanguageModel(dequantized_model(model), tokenizer)
    half = np.array(theirs(mx.array(IDS.numpy())).astype(mx.float32))[0]
    assert (half.argmax(-1) == plain.logits(IDS[0].tolist()).argmax(-1)).mean() >= 0.9
    theirs.set_dtype(mx.float32)
    logits = np.array(theirs(mx.array(IDS.numpy())))[0]
    assert np.abs(logits - plain.logits(IDS[0].tolist())).max() <= 1e-4
    ids = list(PROMPT)
    for _ in range(64):
        ids.append(int(mx.argmax(theirs(mx.array([ids]))[0, -1]).item()))
    assert ids[len(PROMPT) :] == plain.generate([PROMPT], max_new_tokens=64, stop_ids=set())[0]


# ---- the stage ----


def saved(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    save_checkpoint(folder, model, tokenizer)
    return folder


def test_both_leave_the_export_stage_with_their_sizes_and_shared_blocks_unrolled(
    tokenizer, tmp_path: Path
) -> None:
    shared = prepare(Transformer(replace(LLAMA, layer_repeats=2), seed=2), SCHEMES["int4_channel"])
    (tmp_path / "out").mkdir()
    config = ExportConfig(name="files", formats=("mlx", "compressed-tensors"))
    export(config, tmp_path / "out", model=saved(shared, tokenizer, tmp_path / "m"))
    sizes = json.loads((tmp_path / "out" / "export.json").read_text())["bytes"]
    assert set(sizes) == {"mlx", "compressed-tensors"}
    for name, size in sizes.items():
        assert size == sum(file.stat().st_size for file in (tmp_path / "out" / name).iterdir())
        assert (
            json.loads((tmp_path / "out" / name / "config.json").read_text())["num_hidden_layers"]
            == 4
        )
        assert (tmp_path / "out" / name / "tokenizer.json").is_file()


@pytest.mark.parametrize("container", ["mlx", "compressed-tensors"])
@pytest.mark.parametrize(
    ("change", "scheme", "message"),
    [
        ({}, None, "holds four-bit models; quantize this one first"),
        (
            {"layer_types": (LOCAL, GLOBAL), "sliding_window": 8},
            "int4_group32",
            "this model has sliding windows",
        ),
        (
            {"intermediate_size": 80},
            "int4_channel",
            r"down_proj\.weight has rows of 80, not a multiple of 32",
        ),
    ],
)
def test_what_a_container_cannot_hold_is_refused(
    container, change, scheme, message, tokenizer, tmp_path
) -> None:
    model = Transformer(replace(QWEN3, **change))
    if scheme:
        prepare(model, SCHEMES[scheme])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=f"{container}: .*{message}|{container} {message}"):
        export(
            ExportConfig(name="files", formats=(container,)),
            tmp_path / "out",
            model=saved(model, tokenizer, tmp_path / "m"),
        )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("container", ["mlx", "compressed-tensors"])
def test_a_slip_in_packing_leaves_no_folder(
    container: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch
) -> None:
    pack = repack.pack_nibbles
    monkeypatch.setattr(repack, "pack_nibbles", lambda qweight: pack(qweight.flip(1)))
    with pytest.raises(
        ValueError, match=f"{container}: .*weight is not what was trained; nothing was written"
    ):
        write_repacked(network("llama"), tokenizer, tmp_path / "out", container)
    assert not list(tmp_path.iterdir())


def test_a_scale_beyond_float16_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = network("llama 3's rope, learned ranges, untied")
    with torch.no_grad():
        model.get_parameter(f"model.layers.1.mlp.up_proj.{SCALE}")[3] = 1e5
    for container, kind in (("mlx", "scales"), ("compressed-tensors", "weight_scale")):
        with pytest.raises(
            ValueError, match=rf"layers\.1\.mlp\.up_proj\.{kind} holds values up to .*float16"
        ):
            write_repacked(model, tokenizer, tmp_path / "out", container)
