"""Q4_0 blocks hold the trained grid, bit for bit; the reference reader is the `gguf` package's."""

import gguf
import numpy as np
import pytest
import torch

from pocketlm.export.gguf import pack_q4_0
from pocketlm.model.quant import SCHEMES, SMALLEST_SCALE, dequantize_weight, quantize_weight

SCHEME = SCHEMES["int4_group32"]
Q4_0 = gguf.GGMLQuantizationType.Q4_0


def rows(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 160, generator=generator)
    if kind == "zero groups":
        weight[:, 32:96] = 0.0
    if kind == "tiny":
        weight *= 10.0 ** torch.linspace(-12, -4, 6)[:, None]
    if kind == "huge":
        weight *= 1e4
    if kind == "one-sided":
        weight = weight.abs() * torch.tensor([1.0, -1.0]).repeat(3)[:, None]
    if kind == "one outlier":
        weight[:, ::32] = 300.0 * weight[:, ::32]
    return weight


@pytest.mark.parametrize(
    "kind", ["normal", "zero groups", "tiny", "huge", "one-sided", "one outlier"]
)
@pytest.mark.parametrize("seed", range(5))
def test_unpacked_blocks_equal_the_trained_grid_bit_for_bit(kind: str, seed: int) -> None:
    qweight, scale = quantize_weight(rows(kind, seed), SCHEME)
    packed = pack_q4_0(qweight, scale)
    assert packed.dtype == np.uint8 and packed.shape == (6, 5 * 18)
    np.testing.assert_array_equal(
        gguf.quants.dequantize(packed, Q4_0), dequantize_weight(qweight, scale).numpy()
    )


def test_every_level_at_every_place_of_a_block_survives() -> None:
    qweight = torch.stack([torch.roll(torch.arange(32) % 16 - 8, i) for i in range(32)]).to(
        torch.int8
    )
    scale = (2.0 ** torch.linspace(-14, 15, 32)).to(torch.bfloat16)[:, None]
    unpacked = gguf.quants.dequantize(pack_q4_0(qweight, scale), Q4_0)
    np.testing.assert_array_equal(unpacked, dequantize_weight(qweight, scale).numpy())


def test_the_nearest_float16_would_not_do_for_scales_below_the_scheme_s_smallest() -> None:
    qweight = torch.full((1, 32), 7, dtype=torch.int8)
    pack_q4_0(qweight, torch.tensor([[SMALLEST_SCALE]], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="float16"):
        pack_q4_0(qweight, torch.tensor([[1.0e-7]], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="float16"):
        pack_q4_0(qweight, torch.tensor([[1.0e5]], dtype=torch.bfloat16))
