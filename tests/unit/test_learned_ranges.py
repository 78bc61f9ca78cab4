"""Per-channel int4 with learned ranges, Pro's accelerator scheme: torchao's numbers, torchao's
names.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shapes import small
from torch import Tensor

from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.quant import (
    SCALE,
    SCHEMES,
    SMALLEST_SCALE,
    FakeQuantized,
    dequantize_weight,
    fake_quantize_weight,
    group_scales,
    prepare,
    quantize_weight,
    round_scale_to_bfloat16,
    scheme_of,
)
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.importing import ImportConfig, import_model
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers

CHANNEL = SCHEMES["int4_channel"]
CONFIG = small(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_qk_norm=False,
    tie_word_embeddings=False,
    initializer_range=0.1,
)
IDS = torch.randint(280, (2, 16), generator=torch.Generator().manual_seed(1))
INT4: Any = torch.int4  # type: ignore[attr-defined]
WEIGHTS = "model.safetensors"
OPTIM = OptimConfig(
    lr=2e-3, num_steps=8, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(model: Transformer, optim: OptimConfig = OPTIM) -> Transformer:
    """The model after a few steps, so that scales are no longer what the weights alone would
    give.
    """
    optimizers = make_optimizers(model, optim)
    batch = Batch(input_ids=IDS[:, :-1], labels=IDS[:, 1:])
    for step in range(4):
        train_step(model, optimizers, [batch], next_token_loss, optim.lr, optim.grad_clip, step)
    return model


def trained(**fields: Any) -> Transformer:
    return stepped(prepare(Transformer(replace(CONFIG, **fields), seed=3), CHANNEL))


# ---- the grid and its gradients ----

SCALES = {
    "of the weights": 1.0,
    "half, which clips": 0.5,
    "a tenth, which clips most": 0.1,
    "thrice": 3.0,
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("groups", [1, 4])
def test_values_and_gradients_are_those_of_torchao_s_range_learning(name: str, groups: int) -> None:
    qat = pytest.importorskip(
        "torchao.quantization.qat", reason="needs the extra pocketlm[executorch]"
    )
    granularity: dict[str, Any] = (
        {"granularity": "per_channel"} if groups == 1 else {"group_size": 16}
    )
    config = qat.IntxFakeQuantizeConfig(INT4, **granularity, is_dynamic=False, range_learning=True)
    reference = qat.FakeQuantizedLinear(64, 48, weight_config=config)
    qat.initialize_fake_quantizers(reference, (torch.zeros(1, 64),))
    weight, upstream = drawn(48, 64), drawn(48, 64, seed=5)
    scheme = replace(CHANNEL, group_size=64 // groups)
    scale = round_scale_to_bfloat16(group_scales(weight, scheme).float() * SCALES[name]).float()
    fake = reference.weight_fake_quantizer
    with torch.no_grad():
        reference.weight.copy_(weight)
        fake.scale.copy_(scale)
    weight.requires_grad_()
    scale.requires_grad_()
    expected, found = fake(reference.weight), fake_quantize_weight(weight, scheme, scale)
    assert torch.equal(found, expected)
    (expected * upstream).sum().backward()
    (found * upstream).sum().backward()
    assert weight.grad is not None and scale.grad is not None
    torch.testing.assert_close(weight.grad, reference.weight.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(scale.grad, fake.scale.grad, rtol=1e-5, atol=1e-5)
    clipped = float((weight.grad == 0).float().mean())
    assert clipped > 0.05 if SCALES[name] < 1 else clipped == 0


def test_a_weight_beyond_the_range_moves_the_scale_alone() -> None:
    weight = torch.tensor([[0.30, 0.74, 5.0, -9.0]], requires_grad=True)
    scale = torch.tensor([[0.5]], requires_grad=True)  # ratios 0.6, 1.48, 10, -18
    fake_quantize_weight(weight, CHANNEL, scale).backward(
        torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    )
    assert weight.grad is not None and weight.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]
    expected = (1 - 0.6) + 10 * (1 - 1.48) + 100 * 7 + 1000 * -8
    assert scale.grad is not None and scale.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e-9, 0.02, 1.0, 1e30])
@pytest.mark.parametrize("factor", [0.03, 0.4, 1.0, 7.0])
def test_unpacked_weights_are_the_ones_training_computed_with_bit_for_bit(
    size: float, factor: float
) -> None:
    weight = drawn(16, 96) * size
    scale = (
        group_scales(weight, CHANNEL).float()
        * factor
        * (1 + 0.1 * drawn(16, 1, seed=2).clamp(-3, 3))
    )
    qweight, snapped = quantize_weight(weight, CHANNEL, scale)
    assert (
        qweight.dtype == torch.int8 and snapped.dtype == torch.bfloat16 and snapped.shape == (16, 1)
    )
    assert qweight.min() >= -8 and qweight.max() <= 7 and (snapped.float() >= SMALLEST_SCALE).all()
    found = fake_quantize_weight(weight, CHANNEL, scale.requires_grad_())
    assert found.requires_grad and torch.equal(found, dequantize_weight(qweight, snapped))


def test_a_scale_that_training_pushed_below_the_smallest_can_come_back() -> None:
    weight, scale = drawn(1, 64).requires_grad_(), torch.tensor([[-1e-3]], requires_grad=True)
    found = fake_quantize_weight(weight, CHANNEL, scale)
    ends = torch.tensor([-8 * SMALLEST_SCALE, 7 * SMALLEST_SCALE])
    assert torch.equal(found.unique(), ends)
    (found - weight.detach()).square().sum().backward()
    # a step against it makes the scale larger
    assert scale.grad is not None and scale.grad.item() < 0


def test_a_learned_range_beats_the_range_of_the_weights_on_rows_with_an_outlier() -> None:
    weight = drawn(32, 128) * 0.02
    weight[:, 7] = 0.3
    scale = group_scales(weight, CHANNEL).float().requires_grad_()
    optimizer = torch.optim.Adam([scale], lr=1e-3)

    def error() -> Tensor:
        near = torch.arange(128) != 7
        return (fake_quantize_weight(weight, CHANNEL, scale) - weight)[:, near].square().mean()

    before = error().item()
    for _ in range(100):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.2 * before


# ---- in a model ----


def test_a_tied_table_and_head_share_one_range_and_an_untied_head_has_its_own() -> None:
    names = {
        tied: prepare(Transformer(replace(CONFIG, tie_word_embeddings=tied)), CHANNEL)
        for tied in (True, False)
    }
    heads = {tied: f"lm_head.{SCALE}" in model.state_dict() for tied, model in names.items()}
    assert heads == {True: False, False: True}
    model = names[True]
    assert model.state_dict()[f"model.embed_tokens.{SCALE}"].shape == (300, 1)
    assert all(
        f"{n}.{SCALE}" in model.state_dict()
        for n, m in model.named_modules()
        if isinstance(m, FakeQuantized)
    )


def test_at_first_the_range_is_that_of_the_weights() -> None:
    learned = prepare(Transformer(CONFIG), CHANNEL)
    assert torch.equal(
        learned(IDS), prepare(Transformer(CONFIG), SCHEMES["int4_channel_minmax"])(IDS)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_moves_the_scales_and_the_grid_follows(optimizer: str) -> None:
    optim = replace(OPTIM, optimizer=optimizer, weight_decay=0.1)
    model = prepare(Transformer(CONFIG), CHANNEL).eval()
    before = {
        name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(SCALE)
    }
    with torch.no_grad():
        model(IDS)  # from here on there is a grid to go stale
    stepped(model, optim)
    assert all(
        not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before
    )
    fresh = prepare(Transformer(CONFIG), CHANNEL).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IDS), fresh(IDS))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_leaves_scales_alone(optimizer: str) -> None:
    """With no gradient at all, what moves is what decays."""
    model = prepare(Transformer(CONFIG), CHANNEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for each in make_optimizers(model, replace(OPTIM, optimizer=optimizer, weight_decay=5.0)):
        for parameter in (p for group in each.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        each.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in before.items() if name.endswith("weight") and p.dim() == 2}


def test_a_scale_moves_by_an_eighth_of_the_learning_rate_and_a_weight_by_all_of_it() -> None:
    """AdamW's first step is the learning rate for every parameter with a gradient."""
    model = prepare(Transformer(CONFIG), CHANNEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim = replace(OPTIM, weight_decay=0.0)
    batch = Batch(input_ids=IDS[:, :-1], labels=IDS[:, 1:])
    train_step(
        model, make_optimizers(model, optim), [batch], next_token_loss, 1e-3, optim.grad_clip, 0
    )
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 / 8 if name.endswith(SCALE) else 1e-3, rel=0.01)


# ---- on disk ----


def test_a_trained_checkpoint_keeps_its_grid(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = trained()
    save_checkpoint(tmp_path, model, tokenizer)
    assert quantization_of(tmp_path) == "int4_channel"
    stored = load_file(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(
            stored[name],
            round_scale_to_bfloat16(tensor).float() if name.endswith(SCALE) else tensor,
        )
    assert torch.equal(load_checkpoint(tmp_path)[0](IDS), model(IDS))


def test_scales_move_with_their_rows_into_metas_layout_and_back(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = trained(use_qk_norm=True)
    save_checkpoint(tmp_path, model, tokenizer, layout="llama4_text")
    assert torch.equal(load_checkpoint(tmp_path)[0](IDS), model(IDS))
    stored = load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.0.self_attn.q_proj."
    theirs = dequantize_weight(
        *quantize_weight(stored[prefix + "weight"], CHANNEL, stored[prefix + SCALE])
    )
    ours = model.get_submodule(prefix.rstrip(".")).grid_weight()  # type: ignore[operator]
    assert not torch.equal(theirs, ours) and torch.equal(theirs.sort(0).values, ours.sort(0).values)


def torchao_prepared(folder: Path) -> Any:
    """The checkpoint in stock transformers, prepared by torchao as Pro's accelerator recipe is."""
    qat = pytest.importorskip(
        "torchao.quantization.qat", reason="needs the extra pocketlm[executorch]"
    )
    from torchao.quantization import quantize_

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = qat.IntxFakeQuantizeConfig(INT4, "per_channel", is_dynamic=False, range_learning=True)
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    quantize_(
        model,
        qat.QATConfig(weight_config=config, step="prepare"),
        filter_fn=lambda m, _: isinstance(m, kinds),
    )
    qat.initialize_fake_quantizers(model, (IDS,))
    return model


def test_torchao_reads_our_tensors_by_name_and_computes_the_same_grid(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = trained()
    save_checkpoint(tmp_path, model, tokenizer)
    theirs = torchao_prepared(tmp_path)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    grids = {
        name: module for name, module in model.named_modules() if isinstance(module, FakeQuantized)
    }
    assert len(grids) == 2 + 7 * CONFIG.num_hidden_layers
    for name, module in grids.items():
        found = theirs.get_submodule(name)
        assert torch.equal(found.weight_fake_quantizer(found.weight), module.grid_weight())
    with torch.no_grad():
        assert (theirs(IDS).logits - model(IDS)).abs().max() <= 1e-4


def test_a_checkpoint_that_torchao_trained_comes_in_by_its_names(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As Meta's accelerator checkpoint: bfloat16 weights, scales beside them, nothing about four
    bits in config.json.
    """
    (tmp_path / "theirs").mkdir()
    save_checkpoint(tmp_path / "theirs", Transformer(CONFIG, seed=6), tokenizer)
    theirs = torchao_prepared(tmp_path / "theirs")
    with torch.no_grad():
        for module in theirs.modules():
            if hasattr(module, "weight_fake_quantizer"):
                module.weight_fake_quantizer.scale.mul_(0.7)
        for parameter in theirs.parameters():
            parameter.copy_(parameter.bfloat16())
    tensors = {name: tensor.bfloat16() for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del raw["pocketlm"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(raw))
    (tmp_path / "ours").mkdir()
    import_model(ImportConfig(name="ours", source=str(tmp_path / "theirs")), tmp_path / "ours")
    assert quantization_of(tmp_path / "ours") == "int4_channel"
    assert json.loads((tmp_path / "ours" / "import.json").read_text())["scales_moved"] == 0
    model, _ = load_checkpoint(tmp_path / "ours")
    with torch.no_grad():
        assert (theirs(IDS).logits - model(IDS)).abs().max() <= 1e-4


def test_float32_scales_from_elsewhere_are_snapped_and_import_tells_how_far(
    tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    save_checkpoint(tmp_path / "theirs", trained(), tokenizer)
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    for name in [name for name in tensors if name.endswith(SCALE)]:
        tensors[name] *= 1.001
    save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    (tmp_path / "ours").mkdir()
    import_model(ImportConfig(name="ours", source=str(tmp_path / "theirs")), tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "import.json").read_text())
    assert told["scales_moved"] == pytest.approx(0.001, rel=0.01)


def test_a_tied_checkpoint_with_two_ranges_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained(tie_word_embeddings=True), tokenizer)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[f"lm_head.{SCALE}"] = tensors[f"model.embed_tokens.{SCALE}"].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    load_checkpoint(tmp_path)
    tensors[f"lm_head.{SCALE}"] *= 2
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"ties the embeddings, but lm_head\.weight_fake_quantizer\.scale differs"
    ):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_lost_its_scales_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, prepare(Transformer(CONFIG), SCHEMES["int4_channel"]), tokenizer)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(
        {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)},
        tmp_path / WEIGHTS,
    )
    with pytest.raises(
        ValueError, match=r"missing model\.embed_tokens\.weight_fake_quantizer\.scale"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_four_bit_model_whose_context_is_extended_stays_one(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = stepped(prepare(Transformer(CONFIG), SCHEMES[name]))
    for folder in ("model", "long"):
        (tmp_path / folder).mkdir()
    save_checkpoint(tmp_path / "model", model, tokenizer)
    config = ExtendConfig(
        name="long",
        optim=None,
        seq_len=128,
        rows_per_step=1,
        micro_batch_size=1,
        seed=0,
        rope_theta_factor=1.0,
    )
    extend_context(config, tmp_path / "long", corpus=tmp_path, model=tmp_path / "model")
    longer, _ = load_checkpoint(tmp_path / "long")
    assert scheme_of(longer) == SCHEMES[name] and longer.config.max_position_embeddings == 128
    assert torch.equal(longer(IDS), load_checkpoint(tmp_path / "model")[0](IDS))
