"""The four-bit grid: one for training, checkpoints and exported files."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor

from pocketlm.inference.kv_cache import Int8Slots, KVCache
from pocketlm.model.batch import Batch
from pocketlm.model.int8_rounding import fake_quantize_heads, fake_quantize_tokens
from pocketlm.model.quant import (
    SCHEMES,
    SMALLEST_SCALE,
    FakeQuantLinear,
    dequantize_weight,
    fake_quantize_weight,
    prepare,
    quantize_weight,
    scheme,
)
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers

INT4 = SCHEMES["int4_group32"]
CONFIG = small(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
IDS = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spike(value: float) -> Tensor:
    """One group of small weights with one far larger."""
    weight = drawn(1, 32) * 1e-3
    weight[0, 5] = value
    return weight


WEIGHTS = {
    "random": drawn(64, 128),
    "like a trained layer": drawn(64, 128) * 0.02,
    "zero": torch.zeros(4, 64),
    "one group of zeros beside a random one": torch.cat([torch.zeros(4, 32), drawn(4, 32)], 1),
    "tiny": drawn(16, 64) * 1e-9,
    "subnormal": torch.full((2, 32), 1e-42),
    "huge": drawn(16, 64) * 1e30,
    "all sizes": drawn(512, 64) * 10.0 ** torch.linspace(-12, 12, 512)[:, None],
    "a large positive": spike(50.0),
    "a large negative": spike(-50.0),
    "all positive": drawn(8, 64).abs(),
    "all negative": -drawn(8, 64).abs(),
    "halves, where rounding ties": torch.arange(-16, 16)[None] / 2.0,
    "the grid itself": (torch.arange(32) % 16 - 8.0)[None] * 0.125,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_unpacked_weights_are_the_ones_training_computed_with_bit_for_bit(name):
    weight = WEIGHTS[name]
    qweight, scale = quantize_weight(weight, INT4)
    assert qweight.dtype == torch.int8 and qweight.shape == weight.shape
    assert scale.dtype == torch.bfloat16 and scale.shape == (weight.shape[0], weight.shape[1] // 32)
    assert qweight.min() >= -8 and qweight.max() <= 7
    assert (scale.float() >= SMALLEST_SCALE).all()
    unpacked = dequantize_weight(qweight, scale)
    trained = fake_quantize_weight(weight, INT4)
    assert trained.dtype == unpacked.dtype == torch.float32
    assert torch.equal(trained.view(torch.int32), unpacked.view(torch.int32))


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weight_moves_by_more_than_half_a_level(name):
    """Nothing is clipped by more than what the scale's rounding to bfloat16, 2^-9 of it, takes from
    eight levels.
    """
    weight = WEIGHTS[name]
    qweight, scale = quantize_weight(weight, INT4)
    step = scale.double().repeat_interleave(32, 1)
    assert (
        (dequantize_weight(qweight, scale).double() - weight.double()).abs()
        <= step * (0.5 + 8 * 2.0**-9)
    ).all()


def test_quantizing_twice_changes_nothing_where_a_level_reaches_the_end():
    once = fake_quantize_weight(WEIGHTS["random"], INT4)
    assert torch.equal(fake_quantize_weight(once, INT4), once)


def test_the_scale_is_the_smallest_that_reaches_both_ends():
    """Against a loop over groups: max(-min/8, max/7), then bfloat16."""
    weight = drawn(6, 96, seed=3)
    _, scale = quantize_weight(weight, INT4)
    for row in range(6):
        for group in range(3):
            values = weight[row, 32 * group : 32 * group + 32].tolist()
            expected = torch.tensor(max(-min(values) / 8, max(values) / 7)).to(torch.bfloat16)
            assert scale[row, group] == expected


def test_both_ends_of_the_levels_are_used():
    qweight, _ = quantize_weight(drawn(64, 128), INT4)
    assert qweight.min() == -8 and qweight.max() == 7


def test_gradients_pass_straight_through_the_weight_grid_and_the_token_grid():
    weight, tokens, upstream = (
        drawn(8, 64).requires_grad_(),
        drawn(8, 64).requires_grad_(),
        drawn(8, 64, seed=5),
    )
    (fake_quantize_weight(weight, INT4) * upstream).sum().backward()
    (fake_quantize_tokens(tokens) * upstream).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, upstream)
    assert tokens.grad is not None and torch.equal(tokens.grad, upstream)


def on_int8_grid(values: list[float]) -> list[float]:
    """One token on its asymmetric int8 grid, number by number, in float32 as the runtimes
    compute.
    """
    f32 = lambda x: torch.tensor(x, dtype=torch.float32)  # noqa: E731
    low, high = f32(min(0.0, *values)), f32(max(0.0, *values))
    scale = max((high - low) / f32(255.0), f32(torch.finfo(torch.float32).eps))
    zero = min(max(-128 - round(float(low / scale)), -128), 127)
    levels = [min(max(round(float(f32(x) / scale)) + zero, -128), 127) for x in values]
    return [float(f32(float(level - zero)) * scale) for level in levels]


TOKENS = {
    "random": drawn(16, 64),
    "large": drawn(16, 64) * 1e6,
    "tiny": drawn(4, 64) * 1e-10,
    "zero": torch.zeros(2, 8),
    "all positive": drawn(4, 64).abs() + 3,
    "all negative": -drawn(4, 64).abs() - 3,
    "one outlier": torch.cat([drawn(4, 63) * 0.01, torch.full((4, 1), -77.0)], 1),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_rounded_as_the_written_out_int8_grid_does(name):
    tokens = TOKENS[name]
    expected = torch.tensor([on_int8_grid(row) for row in tokens.tolist()])
    found = fake_quantize_tokens(tokens)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-6 * tokens.abs().max()  # one rounding, in float32
    assert not fake_quantize_tokens(torch.zeros(3)).any()


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_rounded_as_torchao_does(name):
    primitives = pytest.importorskip(
        "torchao.quantization.quant_primitives", reason="needs the extra pocketlm[executorch]"
    )
    tokens = TOKENS[name]
    block = (1, tokens.shape[1])
    scale, zero = primitives.choose_qparams_affine(
        tokens,
        primitives.MappingType.ASYMMETRIC,
        block,
        torch.int8,
        -128,
        127,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int8,
    )
    levels = primitives.quantize_affine(tokens, block, scale, zero, torch.int8, -128, 127)
    expected = primitives.dequantize_affine(levels, block, scale, zero, torch.int8, -128, 127)
    apart = (fake_quantize_tokens(tokens) - expected).abs()
    # torchao multiplies by 1/scale where we divide: a value on the edge of two levels may fall to
    # either
    assert (apart <= scale[:, None] * 1.001).all()
    assert (apart > 1e-6 * tokens.abs().max()).float().mean() <= 1e-3


def test_each_token_has_its_own_grid_and_zero_stays_zero():
    tokens = drawn(3, 5, 64) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    tokens[..., 7] = 0.0
    found = fake_quantize_tokens(tokens)
    for row in range(3):
        for place in range(5):
            assert torch.equal(found[row, place], fake_quantize_tokens(tokens[row, place]))
            assert len(found[row, place].unique()) > 32
    assert not found[..., 7].any()


def test_preparing_keeps_the_names_and_values_of_the_state_dict():
    model = Transformer(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    logits = model(IDS)
    assert prepare(model, INT4) is model
    assert list(model.state_dict()) == list(before)
    assert [name for name, _ in model.named_parameters()] == parameters
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model(IDS), logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_prepared_model_without_int8_activations_computes_as_one_filled_with_grid_weights(tied):
    config = replace(CONFIG, tie_word_embeddings=tied)
    weight_only = SCHEMES["int4_group32_weight_only"]
    filled = Transformer(config)
    with torch.no_grad():
        for parameter in filled.parameters():
            if parameter.dim() == 2:
                parameter.copy_(dequantize_weight(*quantize_weight(parameter, weight_only)))
    prepared = prepare(Transformer(config), weight_only)
    assert torch.equal(prepared(IDS), filled(IDS))
    with torch.no_grad():
        assert torch.equal(prepared(IDS), filled(IDS))
    # int8 activations do something
    assert not torch.equal(prepare(Transformer(config), INT4)(IDS), filled(IDS))


def test_training_for_an_int8_cache_computes_what_inference_on_one_does():
    """Whole rows, rounded where training rounds them, against tokens one after another on a cache
    that holds int8.
    """
    rounding = prepare(Transformer(CONFIG), SCHEMES["int4_group32_int8_cache"])
    plain = prepare(Transformer(CONFIG), INT4)
    with torch.no_grad():
        trained, exact = rounding(IDS), plain(IDS)
        cache = KVCache(CONFIG, 2, 16, int8=True)
        positions = torch.arange(16).expand(2, -1)
        cached = torch.cat(
            [plain(IDS[:, [t]], positions[:, [t]], cache) for t in range(IDS.shape[1])], 1
        )
    error = (trained - cached).abs().max()
    # the last bit of a float turns a level now and then
    assert error < 0.1 * (exact - cached).abs().max()
    # a cache that rounds what is rounded changes nothing
    with torch.no_grad():
        again = rounding(IDS, positions, KVCache(CONFIG, 2, 16, int8=True))
    torch.testing.assert_close(again, trained, atol=1e-4, rtol=0)


def test_an_int8_cache_passes_gradients_straight_through():
    heads = drawn(2, 5, 3, 8).requires_grad_()
    rounded = fake_quantize_heads(heads)
    assert torch.equal(
        rounded.detach(),
        Int8Slots((2, 3, 5, 8), "cpu").rounded(heads.detach().transpose(1, 2)).transpose(1, 2),
    )
    upstream = drawn(2, 5, 3, 8, seed=1)
    rounded.backward(upstream)
    assert heads.grad is not None and torch.equal(heads.grad, upstream)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_grid_follows_the_weight_after_a_training_step(optimizer):
    """The fused AdamW step does not count up a weight's version, so the version alone would miss
    it.
    """
    model = prepare(Transformer(CONFIG), INT4).eval()
    batch = Batch(input_ids=IDS[:, :-1], labels=IDS[:, 1:])
    config = OptimConfig(
        lr=0.05, num_steps=4, warmup_steps=0, final_lr_share=1.0, optimizer=optimizer
    )
    optimizers = make_optimizers(model, config)
    for step in range(3):
        with torch.no_grad():
            model(IDS)  # from here on there is a grid to go stale
        train_step(model, optimizers, [batch], next_token_loss, 0.05, 1.0, step)
        fresh = prepare(Transformer(CONFIG), INT4).eval()
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(model(IDS), fresh(IDS))


@pytest.mark.parametrize("assign", [False, True])
def test_the_grid_follows_the_weight_after_loading_a_state(assign):
    model = prepare(Transformer(CONFIG), INT4)
    other = Transformer(CONFIG, seed=9).state_dict()
    with torch.no_grad():
        before = model(IDS)
        model.load_state_dict(other, assign=assign)
        after = model(IDS)
        assert not torch.equal(before, after)
        assert torch.equal(after, prepare(Transformer(CONFIG, seed=9), INT4)(IDS))


def up_proj(model: Transformer) -> FakeQuantLinear:
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, FakeQuantLinear)
    return layer


def test_without_gradients_the_grid_is_worked_out_once():
    layer = up_proj(prepare(Transformer(CONFIG), INT4))
    with torch.no_grad():
        first = layer.grid_weight()
        assert layer.grid_weight() is first
        layer.weight.mul_(2)
        assert torch.equal(layer.grid_weight(), 2 * first)
    assert layer.grid_weight().requires_grad


def test_gradients_of_a_prepared_layer_are_those_of_the_grid_weight():
    model = prepare(Transformer(CONFIG), SCHEMES["int4_group32_weight_only"])
    layer = up_proj(model)
    x, upstream = drawn(5, 64), drawn(5, 96, seed=2)
    (layer(x) * upstream).sum().backward()
    weight = layer.grid_weight().detach().requires_grad_()
    (F.linear(x, weight) * upstream).sum().backward()
    assert layer.weight.grad is not None and weight.grad is not None
    assert torch.equal(layer.weight.grad, weight.grad)


def test_products_of_a_prepared_model_run_in_bfloat16_where_training_asks_for_it():
    """Else a step of training on the grid costs many times a plain one."""
    model = prepare(Transformer(CONFIG, seed=1), INT4)
    exact = model(IDS)
    model.compute = ComputeSettings(dtype=torch.bfloat16)
    layers = [module for module in model.modules() if isinstance(module, FakeQuantLinear)]
    dtypes = {layer(torch.ones(1, layer.in_features), torch.bfloat16).dtype for layer in layers}
    assert dtypes == {torch.bfloat16}
    rounded = model(IDS)
    assert (
        rounded.dtype == torch.float32
        and 0 < (rounded - exact).abs().max() <= 0.05 * exact.abs().max()
    )
    rounded.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    model.compute = ComputeSettings()
    with torch.no_grad():
        assert torch.equal(model(IDS), exact)


def test_an_unknown_scheme_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'int3'; known: int4_group32, int4_group32_int8_cache"):
        scheme("int3")


def test_rows_that_do_not_split_into_groups_are_refused():
    with pytest.raises(ValueError, match="rows of 48 weights do not split into groups of 32"):
        quantize_weight(torch.zeros(2, 48), INT4)


def test_a_model_that_cannot_be_quantized_is_left_as_it_was():
    model = Transformer(replace(CONFIG, intermediate_size=80))
    logits = model(IDS)
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.0\.mlp\.down_proj\.weight has rows of 80, not a multiple of 32",
    ):
        prepare(model, INT4)
    assert torch.equal(model(IDS), logits)
