"""What an optimizer's next step does with a part of its gradient: beside the step that it takes."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
from shapes import small

from pocketlm.model.transformer import Transformer
from pocketlm.train.first_order import decays, linear_step, mean_clip, rates_at
from pocketlm.train.muon import orthogonalised, orthogonaliser
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers

SHAPE = small(num_hidden_layers=1)
OPTIM = OptimConfig(
    lr=0.1,
    num_steps=20,
    warmup_steps=2,
    final_lr_share=0.1,
    compute_dtype="float32",
    beta1=0.0,
    weight_decay=0.0,
)


def drawn(model: Transformer, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def stepped(model: Transformer, optimizers: list, gradients: list[torch.Tensor]) -> list:
    """How far a real step at learning rate 0.1 moves the weights downhill, over that rate."""
    before = [p.detach().clone() for p in model.parameters()]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    for optimizer in optimizers:
        optimizer.step()
    return [(old - p.detach()) / 0.1 for old, p in zip(before, model.parameters(), strict=True)]


def near(ours: list[torch.Tensor], others: list[torch.Tensor], tolerance: float) -> bool:
    return all((a - b).abs().max() <= tolerance for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("steps_done", [0, 1, 5])
def test_the_map_gives_adamws_own_step_for_the_whole_gradient_and_its_parts_add_up(steps_done):
    model = Transformer(SHAPE)
    optimizers = make_optimizers(model, OPTIM)
    for seed in range(steps_done):
        stepped(model, optimizers, drawn(model, seed))
    one, other = drawn(model, 100), drawn(model, 101)
    whole = [0.25 * a + 0.75 * b for a, b in zip(one, other, strict=True)]
    step = linear_step(model, optimizers, steps_done, 0.5, whole)
    parts = [0.25 * a + 0.75 * b for a, b in zip(step(one), step(other), strict=True)]
    expected = stepped(model, optimizers, [0.5 * gradient for gradient in whole])
    # float32 weights of about 1, whose difference is divided by 0.1; at the start a whole that
    # nearly cancels makes its parts large
    assert near(step(whole), expected, 1e-5)
    for ours, other_part, move in zip(parts, step(other), expected, strict=True):
        assert ((ours - move).abs() <= 1e-5 * (1 + other_part.abs())).all()


@pytest.mark.parametrize("steps_done", [0, 1, 5])
def test_the_map_gives_muons_own_step_for_a_gradient_that_stays(steps_done):
    model = Transformer(SHAPE)
    optimizers = make_optimizers(model, replace(OPTIM, optimizer="muon"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    whole = drawn(model, 0)
    for _ in range(steps_done):
        stepped(model, optimizers, whole)
    ours = linear_step(model, optimizers, steps_done, 1.0, whole)(whole)
    assert near(ours, stepped(model, optimizers, whole), 1e-4)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_the_orthogonalising_matrix_does_what_the_five_steps_do(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    root = orthogonaliser(matrix)
    assert root.shape == (min(shape), min(shape))
    product = matrix @ root if shape[0] > shape[1] else root @ matrix
    assert (product - orthogonalised(matrix, torch.float32)).abs().max() <= 1e-5


def test_weight_decay_falls_on_the_parameters_that_a_step_without_gradient_shrinks():
    model = Transformer(SHAPE)
    optimizers = make_optimizers(model, replace(OPTIM, weight_decay=0.3))
    shares, before = decays(model, optimizers), [p.detach().clone() for p in model.parameters()]
    moves = stepped(model, optimizers, [torch.zeros_like(p) for p in before])
    for share, weight, move in zip(shares, before, moves, strict=True):
        assert (share * weight - move).abs().max() <= 1e-5
    assert set(shares) == {0.0, 0.3}


def test_rates_shared_out_among_milestones_sum_a_line_as_every_step_would():
    steps = [0, 3, 7, 20]
    rates = rates_at(OPTIM, steps)
    assert sum(rates) == pytest.approx(sum(lr_at(OPTIM, step) for step in range(20)))
    values = [5.0, 2.0, 1.0, 0.5]  # at those steps, and linear between them
    every = numpy.interp(range(20), steps, values)
    expected = sum(lr_at(OPTIM, step) * value for step, value in enumerate(every))
    assert sum(r * v for r, v in zip(rates, values, strict=True)) == pytest.approx(expected)


def test_clipping_is_the_mean_over_the_steps_between_two_milestones(tmp_path):
    norms = [4.0, 0.5, 2.0, None, 8.0]
    lines = [json.dumps({"step": step, "grad_norm": norm}) for step, norm in enumerate(norms)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert mean_clip(tmp_path, OPTIM, 1, 4) == pytest.approx((1 + 0.5) / 2, rel=1e-5)
    assert mean_clip(tmp_path, OPTIM, 0, 1) == pytest.approx(0.25, rel=1e-5)
    assert mean_clip(tmp_path, OPTIM, 3, 4) == 1.0  # nothing was measured
