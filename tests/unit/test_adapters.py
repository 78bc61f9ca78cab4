"""LoRA adapters: merged by the formula, from where peft looks for the model beneath, or refused by
name.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

SHAPE = small(
    vocab_size=288,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
RANK = 4
TARGETS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head")
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "r": RANK,
    "lora_alpha": 6,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "down_proj", "lm_head"],
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "inference_mode": True,
    "layers_to_transform": None,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog", "12 + 30 = 42"] * 4, 280)


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in the layout with interleaved RoPE, whose rows are turned while it is read."""
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    save_checkpoint(Path("base"), Transformer(SHAPE, seed=1), tokenizer, layout="llama4_text")
    return Path("base")


def factors(base: Path) -> dict[str, torch.Tensor]:
    weights, made = load_file(base / "model.safetensors"), {}
    for number, target in enumerate(TARGETS):
        name = target.replace(".mlp.", ".feed_forward.")
        outputs, inputs = weights[f"{name}.weight"].shape
        generator = torch.Generator().manual_seed(number)
        made[f"base_model.model.{name}.lora_A.weight"] = torch.randn(
            RANK, inputs, generator=generator
        )
        made[f"base_model.model.{name}.lora_B.weight"] = torch.randn(
            outputs, RANK, generator=generator
        )
    return made


def write_adapter(folder: Path, made: dict[str, torch.Tensor], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(made, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA | fields))
    return folder


def pocketlm(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("rooted", [False, True])
def test_an_adapter_alone_is_merged_into_the_model_it_names_by_the_formula(
    rooted: bool, base: Path
) -> None:
    made = factors(base)
    write_adapter(Path("lora"), made, use_rslora=rooted)
    status, shown = pocketlm("import", "lora", "--out", "in")
    assert status == 0 and "merged into base (made for base), 3 matrices" in shown, shown
    expected = load_file(base / "model.safetensors")
    scale = 6 / (math.sqrt(RANK) if rooted else RANK)
    for name in [name for name in made if "lora_A" in name]:
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        expected[weight] = (
            expected[weight] + scale * made[name.replace("lora_A", "lora_B")] @ made[name]
        )
    by_hand = Path("by-hand")
    by_hand.mkdir()
    for file in base.iterdir():
        (by_hand / file.name).write_bytes(file.read_bytes())
    save_file(expected, by_hand / "model.safetensors", metadata={"format": "pt"})
    (want, _), (got, _) = load_checkpoint(by_hand), load_checkpoint(Path("in"))
    for name, tensor in want.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)
    ids = torch.arange(20)[None]
    assert (got(ids) - load_checkpoint(base)[0](ids)).abs().max() > 0.1


def test_an_adapter_beside_weights_is_merged_into_those_and_never_passed_over(base: Path) -> None:
    write_adapter(base, factors(base), base_model_name_or_path="somewhere/else")
    with pytest.raises(
        ValueError, match=r"adapter_config\.json is there.*`pocketlm import base` merges"
    ):
        load_checkpoint(base)
    status, shown = pocketlm("import", "base", "--out", "in")
    assert status == 0 and "merged into the weights beside it (made for somewhere/else)" in shown, (
        shown
    )
    assert not Path("in/adapter_config.json").exists() and load_checkpoint(Path("in"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora true"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out true"),
        ({"bias": "all"}, "bias the text 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save a list of 1"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern an object"),
        ({"peft_type": "IA3"}, "peft_type the text 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights the text 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication a list of 1"),
        ({"new_trick": 1}, "new_trick 1"),
        ({"r": "4"}, "field r is the text '4', a whole number is needed"),
        ({"r": 0}, "field r is 0, at least 1"),
        ({"r": 8}, "do not make the"),
        ({"lora_alpha": None}, "field lora_alpha is null"),
        (
            {"base_model_name_or_path": "no where"},
            "is no folder here; give the model it was made for with --base",
        ),
        (
            {"base_model_name_or_path": None},
            "no model is named; give the model it was made for with --base",
        ),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_its_name(
    fields: dict[str, Any], message: str, base: Path
) -> None:
    write_adapter(Path("lora"), factors(base), **fields)
    status, shown = pocketlm("import", "lora", "--out", "in")
    assert status == 2 and message in shown, shown
    assert not Path("in").exists() and "Traceback" not in shown


def spoil_name(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(RANK, 64)
    made["base_model.model.model.layers.7.mlp.up_proj.lora_B.weight"] = torch.zeros(96, RANK)


def spoil_partner(made: dict[str, torch.Tensor]) -> None:
    made.pop("base_model.model.lm_head.lora_B.weight")


def spoil_embedding(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(RANK, 288)


def spoil_shape(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.lm_head.lora_A.weight"] = torch.zeros(RANK, 65)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_name, "has no matrix model.layers.7.mlp.up_proj.weight in the model beneath"),
        (
            spoil_partner,
            "lm_head.lora_B.weight is no factor of a linear layer, or lacks its partner",
        ),
        (spoil_embedding, "lora_embedding_A is no factor of a linear layer"),
        (spoil_shape, "do not make the (288, 64) of lm_head.weight at rank 4"),
        (dict.clear, "no factors at all"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_their_name(spoil, message: str, base: Path) -> None:
    made = factors(base)
    spoil(made)
    write_adapter(Path("lora"), made)
    status, shown = pocketlm("import", "lora", "--out", "in")
    assert status == 2 and message in shown, shown


def test_the_model_beneath_is_the_one_given_and_full_precision(
    base: Path, tokenizer: Tokenizer
) -> None:
    write_adapter(Path("lora"), factors(base), base_model_name_or_path=None)
    assert pocketlm("import", "lora", "--base", "base", "--out", "in")[0] == 0
    status, shown = pocketlm("import", "base", "--base", "base", "--out", "other")
    assert status == 2 and "base is for adapters" in shown
    Path("int4").mkdir()
    save_checkpoint(
        Path("int4"), prepare(Transformer(SHAPE, seed=1), CPU), tokenizer, layout="llama4_text"
    )
    status, shown = pocketlm("import", "lora", "--base", "int4", "--out", "other")
    assert status == 2 and "int4 is quantized" in shown, shown
    Path("lora/adapter_model.safetensors").rename("lora/adapter_model.bin")
    status, shown = pocketlm("import", "lora", "--base", "base", "--out", "other")
    assert status == 2 and "adapter_model.bin is a pickle" in shown, shown
