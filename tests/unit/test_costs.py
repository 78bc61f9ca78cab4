"""Parameters, FLOPs and kept bytes computed from a shape, against what torch counts and keeps."""

from dataclasses import replace

import pytest
import torch
from shapes import small
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pocketlm.model.costs import flops_of, kept_bytes, num_parameters
from pocketlm.model.kernels import blockwise
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import ComputeSettings, Transformer

GLOBAL_ONLY = small(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
)
SHAPES = {
    "global": GLOBAL_ONLY,
    "local": replace(
        GLOBAL_ONLY, layer_types=("sliding_attention", "full_attention"), sliding_window=64
    ),
    "wide window": replace(
        GLOBAL_ONLY, layer_types=("sliding_attention", "full_attention"), sliding_window=300
    ),
    "biases": replace(GLOBAL_ONLY, use_qk_norm=False, qkv_bias=True),
    "Gemma's blocks": replace(
        GLOBAL_ONLY,
        qk_norm_weight=True,
        gemma_blocks=True,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=64,
        rope_local_base_freq=500.0,
    ),
    "without RoPE": replace(GLOBAL_ONLY, use_qk_norm=False, no_rope_layers=(1, 0)),
    "learned norm": replace(GLOBAL_ONLY, qk_norm_weight=True),
    "no norm, untied": replace(GLOBAL_ONLY, use_qk_norm=False, tie_word_embeddings=False),
    "no norm, local": replace(
        GLOBAL_ONLY,
        use_qk_norm=False,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=64,
    ),
    "repeated": replace(GLOBAL_ONLY, layer_repeats=2),
    "wide heads": replace(GLOBAL_ONLY, head_dim=64),
}
# what the operators run
FORWARD, BACKWARD = blockwise.blockwise_attention._init_fn, blockwise._backward._init_fn
ROWS, SEQ_LEN = 2, 300  # two whole pieces of a local layer, and a part


def doubled(shape: ModelConfig) -> ModelConfig:
    """The shape with its two layers twice."""
    return replace(
        shape,
        num_hidden_layers=4,
        layer_types=shape.layer_types * 2,
        no_rope_layers=shape.no_rope_layers * 2,
    )


def inputs(masked: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    ids = torch.randint(512, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    if not masked:
        return ids, None, None
    return (
        ids,
        torch.arange(SEQ_LEN).expand(ROWS, -1),
        (torch.arange(SEQ_LEN) // 100).expand(ROWS, -1),
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_parameters_are_the_networks(shape: ModelConfig) -> None:
    assert num_parameters(shape) == sum(p.numel() for p in Transformer(shape).parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [("r1-140m", 140_248_512), ("r1-360m", 359_431_168), ("pro", 1_084_453_120)],
)
def test_parameters_are_the_published_ones(name: str, published: int) -> None:
    assert num_parameters(PRESETS[name]) == published


class Blockwise(torch.autograd.Function):
    """The operator of attention as plain torch, so that its products are seen one by one."""

    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return FORWARD(*inputs)

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *BACKWARD(*upstream, *ctx.saved_tensors), None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_flops_are_those_that_torch_counts_forward_and_back(
    shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "blockwise_attention", Blockwise.apply)
    model = Transformer(shape)
    """As attention goes in pieces; a row of one document goes through torch's own, which is
    counted as all pairs.
    """
    ids, positions, doc_ids = inputs(masked=True)
    assert doc_ids is not None
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, positions, doc_ids=torch.zeros_like(doc_ids))
        forward = counter.get_total_flops()
        logits.sum().backward()
    expected = flops_of(shape, ROWS, SEQ_LEN)
    assert (forward, counter.get_total_flops()) == (expected.forward, expected.training())


def test_blocks_worked_out_twice_take_their_forward_pass_once_more() -> None:
    once = flops_of(GLOBAL_ONLY, 1, 64)
    assert once.training(recomputed=1.0) - once.training() == once.products + once.attention


def test_a_block_that_is_recomputed_keeps_its_input_alone() -> None:
    deeper = replace(GLOBAL_ONLY, num_hidden_layers=4)
    settings = ComputeSettings(checkpoint_every_n_blocks=2)
    saved = [saved_bytes(shape, False, settings) for shape in (GLOBAL_ONLY, deeper)]
    expected = [
        kept_bytes(each, ROWS, SEQ_LEN, product_bytes=4, checkpoint_every_n_blocks=2)
        for each in (GLOBAL_ONLY, deeper)
    ]
    assert saved[1] - saved[0] == expected[1] - expected[0]


@pytest.mark.parametrize("attention", ["sdpa", "blockwise"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", ["global", "local", "wide heads"])
def test_kept_bytes_are_those_of_the_kernel_that_is_named(
    name: str, masked: bool, attention: str
) -> None:
    shape = SHAPES[name]
    deeper = doubled(shape)
    options = {"product_bytes": 2, "masked": masked, "attention": attention}
    expected = [kept_bytes(each, ROWS, SEQ_LEN, **options) for each in (shape, deeper)]
    settings = ComputeSettings(dtype=torch.bfloat16, attention=attention)
    saved = [saved_bytes(each, masked, settings) for each in (shape, deeper)]
    assert saved[1] - saved[0] == expected[1] - expected[0]


@pytest.mark.parametrize("scheme", [None, "int4_group32"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_kept_bytes_are_those_that_autograd_saves(
    shape: ModelConfig, masked: bool, dtype: torch.dtype | None, scheme: str | None
) -> None:
    """What two more layers add, so that what the ends of the network keep is left out; each storage
    counts once.

    On the CPU documents that are kept apart need no mask, and what goes in pieces keeps nothing of
    its own.
    """
    deeper = doubled(shape)
    expected = [
        kept_bytes(
            each,
            ROWS,
            SEQ_LEN,
            product_bytes=2 if dtype else 4,
            masked=masked,
            on_grid=bool(scheme),
        )
        for each in (shape, deeper)
    ]
    settings = ComputeSettings(dtype=dtype)
    saved = [saved_bytes(each, masked, settings, scheme) for each in (shape, deeper)]
    assert saved[1] - saved[0] == expected[1] - expected[0]


def saved_bytes(
    shape: ModelConfig, masked: bool, settings: ComputeSettings, scheme: str | None = None
) -> int:
    model = Transformer(shape)
    if scheme:
        prepare(model, SCHEMES[scheme])
    model.compute = settings
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # holding them keeps their addresses from being used again

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, positions, doc_ids = inputs(masked)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.hidden(ids, positions, doc_ids=doc_ids)
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
