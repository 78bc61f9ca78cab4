"""Muon is torch's own in bfloat16, and in float32 what it would be with exact products; `auto` asks
the processor which.
"""

from dataclasses import replace

import pytest
import torch
from shapes import small

from pocketlm.model.transformer import Transformer
from pocketlm.train.muon import MOMENTUM, Muon, orthogonalised
from pocketlm.train.optim import NO_BFLOAT16, OptimConfig, dtype_of, make_optimizers

SHAPES = [(48, 80), (80, 48), (64, 64)]
OPTIM = OptimConfig(lr=1e-2, num_steps=6, warmup_steps=2, final_lr_share=0.1, optimizer="muon")
CPU = torch.device("cpu")


def moved(shape: tuple[int, int], make) -> torch.Tensor:
    """A matrix after five steps with gradients that the shape alone decides."""
    random = torch.Generator().manual_seed(shape[0])
    parameter = torch.nn.Parameter(torch.randn(shape, generator=random))
    optimizer = make([parameter])
    for _ in range(5):
        parameter.grad = torch.randn(shape, generator=random)
        optimizer.step()
    return parameter.detach()


def of_torch(parameters) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        parameters, lr=0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_every_step_is_that_of_torchs_muon(shape):
    ours = moved(shape, lambda each: Muon(each, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16))
    assert torch.equal(ours, moved(shape, of_torch))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_steps_differ_from_torchs_by_its_rounding_alone(shape):
    ours = moved(shape, lambda each: Muon(each, lr=0.02, weight_decay=0.1, dtype=torch.float32))
    # measured: 7e-4; steps of 0.02 x 0.2
    assert 1e-5 < (ours - moved(shape, of_torch)).abs().max() < 2e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_is_orthogonalised_as_exact_products_would(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = orthogonalised(matrix.double(), torch.float64)
    assert (orthogonalised(matrix, torch.float32) - exact).abs().max() < 1e-5  # measured: 1e-6
    assert (orthogonalised(matrix, torch.bfloat16) - exact).abs().max() > 1e-3
    values = torch.linalg.svdvals(exact)
    # a square matrix has one near 0
    assert values.max() < 1.3 and (values > 0.6).float().mean() > 0.9
    assert orthogonalised(torch.zeros(shape), torch.float32).abs().max() == 0


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_muon_computes_in_the_dtype_of_products(name, dtype):
    config = small(vocab_size=64, num_hidden_layers=1)
    muon, _ = make_optimizers(Transformer(config), replace(OPTIM, compute_dtype=name))
    assert isinstance(muon, Muon) and muon.dtype == dtype


@pytest.mark.parametrize(
    ("variable", "level"), [(name, each) for name in NO_BFLOAT16 for each in NO_BFLOAT16[name]]
)
def test_auto_is_float32_where_libraries_are_told_to_do_without_bfloat16(
    variable, level, monkeypatch
):
    for name in NO_BFLOAT16:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert dtype_of("auto", CPU) == torch.bfloat16
    for other in ("avx512_core_bf16", "AVX512_CORE_AMX", "ALL", "avx512", ""):
        monkeypatch.setenv(variable, other)
        assert dtype_of("auto", CPU) == torch.bfloat16, other
    monkeypatch.setenv(variable, level.lower())
    assert dtype_of("auto", CPU) is None and dtype_of("bfloat16", CPU) == torch.bfloat16
