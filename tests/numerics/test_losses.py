"""Losses and one update against torch.nn.functional, torch.distributions and gradients written out in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import ModelConfig, Transformer
from pocketlm.train.loop import train_step
from pocketlm.train.losses import LossFn, distillation_loss, forward_kl, next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.teacher import live_teacher

# B batch, T tokens, V vocabulary, N labels that count

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=10000.0,
    initializer_range=0.1,
)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=10, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32", grad_clip=float("inf")
)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_batch(rows: int, *, counted: float = 0.6, seed: int = 0) -> Batch:
    """Random rows of 24 tokens; the share of labels that count differs from row to row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, (rows, 25), generator=generator)
    share = torch.linspace(0.1, 2 * counted - 0.1, rows)[:, None]
    ignored = torch.rand(rows, 24, generator=generator) > share
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:].masked_fill(ignored, IGNORE_INDEX))


@pytest.fixture()
def model() -> Transformer:
    return Transformer(CONFIG)


def test_forward_kl_is_the_divergence_of_torch_distributions():
    teacher, student = drawn(50, 300, seed=1) * 3, drawn(50, 300, seed=2) * 3
    expected = kl_divergence(Categorical(logits=teacher.double()), Categorical(logits=student.double())).sum()
    assert float(forward_kl(teacher, student)) == pytest.approx(float(expected), rel=1e-6)
    probabilities = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum")
    assert float(forward_kl(teacher, student)) == pytest.approx(float(probabilities), rel=1e-5)


def test_forward_kl_is_not_the_reverse_one_and_is_zero_only_between_equals():
    teacher, student = drawn(5, 30, seed=1), drawn(5, 30, seed=2)
    assert float(forward_kl(teacher, student)) != pytest.approx(float(forward_kl(student, teacher)), rel=1e-2)
    assert float(forward_kl(teacher, teacher + 4)) == pytest.approx(0, abs=1e-5)  # a shift of logits changes nothing
    assert float(forward_kl(teacher, student)) > 0.1


def test_forward_kl_stays_finite_where_the_teacher_is_certain():
    teacher = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert float(forward_kl(teacher, torch.zeros(1, 3))) == pytest.approx(torch.log(torch.tensor(3.0)).item())


def test_the_gradient_of_forward_kl_is_the_difference_of_the_distributions():
    teacher, student = drawn(20, 300, seed=1) * 3, (drawn(20, 300, seed=2) * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(teacher, student), student)
    expected = student.detach().double().softmax(-1) - teacher.double().softmax(-1)
    assert (gradient - expected).abs().max() <= 1e-6


def test_next_token_loss_is_cross_entropy_summed_over_counted_labels(model):
    batch = drawn_batch(4)
    logits = model(batch.input_ids).detach().double()
    counted = batch.labels != IGNORE_INDEX
    each = -logits.log_softmax(-1).gather(2, batch.labels.clamp(min=0)[..., None])[..., 0]
    loss = next_token_loss(model, batch)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(each[counted].sum()), rel=1e-6)
    mean = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    assert float(loss.detach()) / batch.num_labels == pytest.approx(float(mean), rel=1e-6)


def test_the_gradient_of_next_token_loss_is_probability_minus_one_hot(model):
    batch = drawn_batch(2)
    caught: list[Tensor] = []
    original = model.head
    model.head = lambda hidden: caught.append(original(hidden)) or caught[-1]  # type: ignore[method-assign]
    loss = next_token_loss(model, batch)
    (gradient,) = torch.autograd.grad(loss, caught[0])
    counted = batch.labels != IGNORE_INDEX
    expected = caught[0].detach().double().softmax(-1) - F.one_hot(
        batch.labels[counted], 300
    )  # no other logits are made
    assert (gradient - expected).abs().max() <= 1e-6


def test_distillation_counts_the_divergence_at_counted_labels_alone(model):
    batch = drawn_batch(4)
    teacher_logits = drawn(4, 24, 300, seed=3)
    counted = batch.labels != IGNORE_INDEX
    wild = teacher_logits.clone()
    wild[~counted] = float("nan")  # a label that does not count is not even looked at
    logits = model(batch.input_ids).detach().double()
    expected = kl_divergence(Categorical(logits=teacher_logits.double()), Categorical(logits=logits))[counted].sum()
    found = distillation_loss(lambda _: wild)(model, batch)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("label_share", [0.0, 0.25, 1.0])
def test_label_share_mixes_cross_entropy_into_distillation(label_share, model):
    batch = drawn_batch(4)
    teacher = drawn(4, 24, 300, seed=3)
    divergence = float(distillation_loss(lambda _: teacher)(model, batch).detach())
    entropy = float(next_token_loss(model, batch).detach())
    mixed = float(distillation_loss(lambda _: teacher, label_share=label_share)(model, batch).detach())
    assert mixed == pytest.approx((1 - label_share) * divergence + label_share * entropy, rel=1e-6)


def test_a_live_teacher_is_frozen_and_reads_the_very_batch(model):
    batch = Batch(
        input_ids=torch.arange(20).view(1, 20),
        labels=torch.arange(1, 21).view(1, 20),
        positions=torch.tensor([[*range(12), *range(8)]]),
        doc_ids=torch.tensor([[0] * 12 + [1] * 8]),
    )
    network = Transformer(CONFIG, seed=7)
    taught = live_teacher(network, OPTIM)(batch)
    assert torch.equal(taught, network(batch.input_ids, batch.positions, doc_ids=batch.doc_ids))
    assert not taught.requires_grad and not any(p.requires_grad for p in network.parameters())
    distillation_loss(live_teacher(network, OPTIM))(model, batch).backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(model):
    batch = drawn_batch(2)
    loss = distillation_loss(live_teacher(Transformer(CONFIG), OPTIM))(model, batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert all(p.grad is not None and p.grad.abs().max() <= 1e-5 for p in model.parameters())


def updated(split: list[Batch], loss_fn: LossFn, make: Callable) -> tuple[Transformer, float, float]:
    model = Transformer(CONFIG)
    loss, norm, tokens = train_step(model, make(model), split, loss_fn, 1e-2, float("inf"), 0)
    assert tokens == 8 * 24
    return model, loss, norm


def plain(model: Transformer) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=1e-2)]


@pytest.mark.parametrize("optimizer", ["plain", "adamw", "muon"])
@pytest.mark.parametrize("kind", ["next token", "distillation"])
def test_eight_micro_batches_of_one_row_update_as_one_of_eight(optimizer, kind):
    """Though rows have unequal numbers of labels: the loop divides once, by the count of the whole batch."""
    whole = drawn_batch(8)
    rows = [Batch(input_ids=whole.input_ids[i : i + 1], labels=whole.labels[i : i + 1]) for i in range(8)]
    assert len({row.num_labels for row in rows}) > 4
    teacher = Transformer(CONFIG, seed=5)
    loss_fn = next_token_loss if kind == "next token" else distillation_loss(live_teacher(teacher, OPTIM))
    config = OptimConfig(
        lr=1e-2, num_steps=10, warmup_steps=0, final_lr_share=1.0, optimizer="muon" if optimizer == "muon" else "adamw"
    )
    make = plain if optimizer == "plain" else lambda model: make_optimizers(model, config)
    one, loss, norm = updated([whole], loss_fn, make)
    eight, split_loss, split_norm = updated(rows, loss_fn, make)
    assert split_loss == pytest.approx(loss, rel=1e-6) and split_norm == pytest.approx(norm, rel=1e-5)
    # measured: 1.5e-8, 1.9e-6 (AdamW divides by the gradient's size), 7.8e-5 (Muon orthogonalises in bfloat16), lr 1e-2
    limit = {"plain": 1e-7, "adamw": 2e-5, "muon": 5e-4}[optimizer]
    for (name, a), b in zip(one.named_parameters(), eight.parameters(), strict=True):
        assert (a - b).abs().max() <= limit, name


def test_the_mean_loss_and_the_gradient_of_a_step_are_those_of_cross_entropy():
    batch = drawn_batch(8)
    model, reference = Transformer(CONFIG), Transformer(CONFIG)
    logits = reference(batch.input_ids)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    expected.backward()
    loss, norm, _ = train_step(model, plain(model), [batch], next_token_loss, 1e-2, float("inf"), 0)
    gradients = [p.grad for p in reference.parameters() if p.grad is not None]
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-5)
    for own, theirs, gradient in zip(model.parameters(), reference.parameters(), gradients, strict=True):
        assert (own - (theirs - 1e-2 * gradient)).abs().max() <= 1e-7


def test_gradients_are_clipped_to_the_norm_asked_for():
    batch = drawn_batch(8)
    model, clipped = Transformer(CONFIG), Transformer(CONFIG)
    before = torch.cat([p.detach().flatten() for p in Transformer(CONFIG).parameters()])
    _, norm, _ = train_step(model, plain(model), [batch], next_token_loss, 1.0, float("inf"), 0)
    _, told, _ = train_step(clipped, plain(clipped), [batch], next_token_loss, 1.0, norm / 4, 0)
    moved = torch.cat([p.detach().flatten() for p in clipped.parameters()]) - before
    assert told == pytest.approx(norm) and float(moved.norm()) == pytest.approx(norm / 4, rel=1e-4)


def test_a_batch_without_labels_is_refused_and_a_micro_batch_without_them_adds_nothing():
    batch = drawn_batch(4)
    empty = Batch(input_ids=batch.input_ids, labels=torch.full_like(batch.labels, IGNORE_INDEX))
    model, alone = Transformer(CONFIG), Transformer(CONFIG)
    with pytest.raises(ValueError, match="step 3: no label counts"):
        train_step(model, plain(model), [empty], next_token_loss, 1e-2, 1.0, 3)
    teacher = live_teacher(Transformer(CONFIG, seed=5), OPTIM)
    for loss_fn in (next_token_loss, distillation_loss(teacher, label_share=0.5)):
        train_step(model, plain(model), [empty, batch], loss_fn, 1e-2, 1.0, 0)
        train_step(alone, plain(alone), [batch], loss_fn, 1e-2, 1.0, 0)
    for own, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(own, theirs)
