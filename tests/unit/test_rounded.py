"""Four-bit values saved as floats are recognised; what would round them once more, otherwise, is
refused.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shapes import small
from torch import Tensor

from pocketlm.export.gguf import write_gguf
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.grid_check import is_rounded
from pocketlm.model.quant import (
    SCHEMES,
    fake_quantize_weight,
    group_scales,
    prepare,
    quantize_weight,
)
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.importing import ImportConfig, import_model
from pocketlm.stages.quantize import QuantizeConfig, quantize

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")

INT4 = SCHEMES["int4_group32"]
CONFIG = small(
    vocab_size=288, hidden_size=64, intermediate_size=96, head_dim=32, initializer_range=0.1
)
IDS = torch.arange(3, 60)[None]
PTQ = QuantizeConfig(name="ptq", scheme="int4_group32", optim=None)
# random weights agree little
LENIENT = ExportConfig(name="files", formats=("gguf",), min_agreement=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog", "12 + 30 = 42"] * 4, 280)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def on_torchao_grid(weight: Tensor, group: int = 32) -> Tensor:
    """torchao's symmetric range: the largest absolute value / 7.5, float32."""
    groups = weight.unflatten(-1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True) / 7.5
    return ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)


def on_channel_grid(weight: Tensor) -> Tensor:
    scale = group_scales(weight, SCHEMES["int4_channel"]).float() * 0.6
    return fake_quantize_weight(weight, SCHEMES["int4_channel"], scale)


GRIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "ours": lambda w: fake_quantize_weight(w, INT4),
    "ours, in bfloat16": lambda w: fake_quantize_weight(w, INT4).bfloat16().float(),
    "torchao's": on_torchao_grid,
    "torchao's, groups of 128": lambda w: on_torchao_grid(w, 128),
    "torchao's, per channel, in bfloat16": lambda w: (
        on_torchao_grid(w, w.shape[1]).bfloat16().float()
    ),
    "a learned range": on_channel_grid,
    "asymmetric": lambda w: ((w - w.min()) / (w.max() - w.min()) * 15).round() * 0.003 - 0.02,
    "ternary": lambda w: (w / w.abs().mean()).round().clamp(-1, 1) * 0.01,
}


@pytest.mark.parametrize("name", GRIDS)
def test_weights_on_a_four_bit_grid_are_recognised(name: str) -> None:
    assert is_rounded(GRIDS[name](drawn(64, 256)))


OTHERS: dict[str, Tensor] = {
    "random": drawn(64, 256),
    "random in bfloat16": drawn(64, 256).bfloat16().float(),
    "random in float8": drawn(64, 256).to(torch.float8_e4m3fn).float(),
    "rounded to eight bits": (drawn(64, 256) / 0.0006).round() * 0.0006,
    "seven in ten pruned": drawn(64, 256)
    * (torch.rand(64, 256, generator=torch.Generator().manual_seed(1)) > 0.7),
    "half of the rows on a grid": torch.cat(
        [fake_quantize_weight(drawn(32, 256), INT4), drawn(32, 256, seed=1)]
    ),
    "zero": torch.zeros(64, 256),
    "one value": torch.full((64, 256), 0.1),
    "rows shorter than a group": torch.ones(64, 24),
    "one number": torch.ones(1, 1),
    "a table whose unused rows are zero": torch.cat([drawn(8, 64), torch.zeros(500, 64)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_nobody_rounded_to_four_bits_are_not(name: str) -> None:
    assert not is_rounded(OTHERS[name])


def checkpoint(folder: Path, tokenizer: Tokenizer, grid: Callable[[Tensor], Tensor] | None) -> Path:
    """A checkpoint without a scheme, its matrices on a grid or as they were drawn."""
    model = Transformer(CONFIG, seed=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if grid is not None and parameter.dim() == 2:
                parameter.copy_(grid(parameter))
    folder.mkdir()
    save_checkpoint(folder, model, tokenizer)
    return folder


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", [None, "ours"])
def test_ordinary_weights_and_weights_on_our_grid_are_quantized_and_exported(
    name, tokenizer, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer, GRIDS[name] if name else None)
    float_model, _ = load_checkpoint(model)
    four_bit, _ = load_checkpoint(quantize(PTQ, new(tmp_path / "ptq"), model=model))
    for key, tensor in four_bit.state_dict().items():
        grid = fake_quantize_weight(tensor, INT4) if tensor.dim() == 2 else tensor
        assert torch.equal(grid, float_model.state_dict()[key]) == (
            name == "ours" or tensor.dim() == 1
        )
    for dtype in ("q4_0", *(["q8_0"] if name is None else [])):
        export(replace(LENIENT, gguf_dtype=dtype), new(tmp_path / dtype), model=model)


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "ours"])
def test_values_of_another_grid_are_not_rounded_again(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    grid = GRIDS[name] if "128" not in name else lambda w: on_torchao_grid(w, w.shape[1])
    model = checkpoint(tmp_path / "m", tokenizer, grid)
    message = (
        r"model\.embed_tokens\.weight holds values that were rounded to four bits before .* "
        r"would round them"
    )
    with pytest.raises(ValueError, match=message) as told:
        quantize(PTQ, new(tmp_path / "ptq"), model=model)
    assert "ptq (int4_group32)" in str(told.value) and "full-precision parent" in str(told.value)
    for dtype in ("q4_0", "q8_0"):
        with pytest.raises(ValueError, match=message):
            export(replace(LENIENT, gguf_dtype=dtype), new(tmp_path / dtype), model=model)
        assert not list((tmp_path / dtype).iterdir())
    assert not list((tmp_path / "ptq").iterdir())


def test_the_error_that_is_told_is_that_of_the_second_rounding(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer, on_torchao_grid)
    weight = load_checkpoint(model)[0].model.embed_tokens.weight.detach()
    error = float((fake_quantize_weight(weight, INT4) - weight).norm() / weight.norm())
    assert 0.005 < error < 0.1
    with pytest.raises(ValueError, match=f"by {error:.2g} of their size"):
        quantize(PTQ, new(tmp_path / "ptq"), model=model)


def test_a_four_bit_model_saved_as_floats_returns_to_the_very_same_file(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Latent checkpoint -> Hugging Face folder of values -> import -> Q4_0: the blocks of the
    direct way.
    """
    latent = new(tmp_path / "latent")
    save_checkpoint(latent, prepare(Transformer(CONFIG, seed=2), INT4), tokenizer)
    out = export(replace(LENIENT, formats=("gguf", "hf")), new(tmp_path / "out"), model=latent)
    back = import_model(ImportConfig(name="back", source=str(out / "hf")), new(tmp_path / "back"))
    assert json.loads((back / "config.json").read_text())["pocketlm"]["quantization"] is None
    again = export(replace(LENIENT, gguf_dtype="q4_0"), new(tmp_path / "again"), model=back)
    assert (again / "model.gguf").read_bytes() == (out / "model.gguf").read_bytes()


def test_a_four_bit_model_is_not_written_as_eight_bits(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_checkpoint(new(tmp_path / "m"), prepare(Transformer(CONFIG, seed=2), INT4), tokenizer)
    with pytest.raises(ValueError, match="q8_0 would round them once more"):
        export(replace(LENIENT, gguf_dtype="q8_0"), new(tmp_path / "out"), model=tmp_path / "m")


def test_an_imported_q4_0_file_of_ours_may_be_quantized_and_one_with_other_scales_may_not(
    tokenizer, tmp_path
) -> None:
    model = prepare(Transformer(CONFIG, seed=2), INT4)
    write_gguf(model, tokenizer, tmp_path / "ours.gguf", "q4_0")
    ours = import_model(
        ImportConfig(name="i", source=str(tmp_path / "ours.gguf")), new(tmp_path / "ours")
    )
    grid = quantize_weight(model.model.embed_tokens.weight, INT4)[0]
    found, _ = load_checkpoint(quantize(PTQ, new(tmp_path / "ptq"), model=ours))
    assert torch.equal(quantize_weight(found.model.embed_tokens.weight, INT4)[0], grid)
    learned = prepare(Transformer(CONFIG, seed=2), SCHEMES["int4_channel"])
    write_gguf(learned, tokenizer, tmp_path / "learned.gguf", "q4_0")
    other = import_model(
        ImportConfig(name="i", source=str(tmp_path / "learned.gguf")), new(tmp_path / "other")
    )
    with pytest.raises(ValueError, match="rounded to four bits before"):
        quantize(PTQ, new(tmp_path / "no"), model=other)
