"""Losses and one update against torch.nn.functional, torch.distributions and gradients written out
in float64.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train import vocab_blocks
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.divergences import FORWARD_KL, JENSEN_SHANNON, REVERSE_KL, Divergence
from pocketlm.train.lazy_logits import LazyLogits, SparseScores
from pocketlm.train.loop import train_step
from pocketlm.train.losses import Distillation, LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.vocab_loss import UNKNOWN, head_loss

# B batch, T tokens, V vocabulary, N labels that count

CONFIG = small(initializer_range=0.1)
OPTIM = OptimConfig(
    lr=1e-2,
    num_steps=10,
    warmup_steps=0,
    final_lr_share=1.0,
    compute_dtype="float32",
    grad_clip=float("inf"),
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


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    return head_loss(LazyLogits(student), teacher=LazyLogits(teacher), label_share=0.0)


def test_forward_kl_is_the_divergence_of_torch_distributions():
    teacher, student = drawn(50, 300, seed=1) * 3, drawn(50, 300, seed=2) * 3
    expected = kl_divergence(
        Categorical(logits=teacher.double()), Categorical(logits=student.double())
    ).sum()
    assert float(forward_kl(teacher, student)) == pytest.approx(float(expected), rel=1e-6)
    probabilities = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum")
    assert float(forward_kl(teacher, student)) == pytest.approx(float(probabilities), rel=1e-5)


def test_forward_kl_is_not_the_reverse_one_and_is_zero_only_between_equals():
    teacher, student = drawn(5, 30, seed=1), drawn(5, 30, seed=2)
    assert float(forward_kl(teacher, student)) != pytest.approx(
        float(forward_kl(student, teacher)), rel=1e-2
    )
    # a shift of logits changes nothing
    assert float(forward_kl(teacher, teacher + 4)) == pytest.approx(0, abs=1e-5)
    assert float(forward_kl(teacher, student)) > 0.1


def test_forward_kl_stays_finite_where_the_teacher_is_certain():
    teacher = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert float(forward_kl(teacher, torch.zeros(1, 3))) == pytest.approx(
        torch.log(torch.tensor(3.0)).item()
    )


def test_the_gradient_of_forward_kl_is_the_difference_of_the_distributions():
    teacher, student = drawn(20, 300, seed=1) * 3, (drawn(20, 300, seed=2) * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(teacher, student), student)
    expected = student.detach().double().softmax(-1) - teacher.double().softmax(-1)
    assert (gradient - expected).abs().max() <= 1e-6


def written_out(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = (0.5 * (log_p.exp() + log_q.exp())).log()
    if divergence is JENSEN_SHANNON:
        return 0.5 * (written_out(REVERSE_KL, log_p, log_m) + written_out(REVERSE_KL, log_q, log_m))
    first, second = (log_q, log_p) if divergence is FORWARD_KL else (log_p, log_q)
    return (first.exp() * (first - second)).sum()


WAYS = {  # of working through a vocabulary of 70 words by 9 tokens
    "one block": {},
    "blocks": {"BLOCK_BYTES": 9 * 4 * 16},
    "blocks, four tokens at a time": {"BLOCK_BYTES": 4 * 4 * 16, "KEPT_BYTES": 4 * 2 * 8 * 70},
    "a token at a time": {"KEPT_BYTES": 0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("label_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON])
def test_values_and_gradients_are_those_of_the_losses_written_out(
    way, temperature, label_share, divergence, monkeypatch
):
    for name, value in WAYS[way].items():
        monkeypatch.setitem(getattr(vocab_blocks, name), "cpu", value)
    x, weight, teacher = (
        drawn(*shape, seed=i).double() for i, shape in enumerate(((9, 12), (70, 12), (9, 70)))
    )
    labels = torch.randint(70, (9,), generator=torch.Generator().manual_seed(4))
    leaves = x.requires_grad_(), weight.requires_grad_()
    found = head_loss(
        LazyLogits(x, weight),
        labels=labels,
        teacher=LazyLogits(teacher),
        divergence=divergence,
        temperature=temperature,
        label_share=label_share,
    )
    logits = x @ weight.T
    log_p, log_q = ((each / temperature).log_softmax(-1) for each in (logits, teacher))
    entropy = F.cross_entropy(logits, labels, reduction="sum")
    expected = (1 - label_share) * written_out(divergence, log_p, log_q) + label_share * entropy
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(found * 3, leaves),
        torch.autograd.grad(expected * 3, leaves),
        strict=True,
    ):
        assert (mine - theirs).abs().max() <= 1e-12


def drawn_sparse(tokens: int, vocab_size: int, seed: int = 5) -> SparseScores:
    """A cached teacher in float64: a few entries of each token, none of the first."""
    generator = torch.Generator().manual_seed(seed)
    stored = torch.rand(tokens, vocab_size, generator=generator) < 0.2
    stored[0] = False
    ids, owners = stored.T.nonzero(as_tuple=True)  # by word
    values, levels = (
        drawn(len(ids), seed=seed + 1).double() - 2,
        drawn(tokens, 1, seed=seed + 2).double() - 4,
    )
    return SparseScores(owners, ids, values, levels, drawn(vocab_size, seed=seed + 3).double())


def whole(teacher: SparseScores) -> Tensor:
    """The same with a loop, dense."""
    logs = teacher.levels + teacher.shares
    for owner, word, value in zip(teacher.owners, teacher.ids, teacher.values, strict=True):
        logs[owner, word] = value
    return logs


def drawn_teacher(kind: str, tokens: int, vocab_size: int) -> LazyLogits | SparseScores:
    return (
        drawn_sparse(tokens, vocab_size)
        if kind == "from disk"
        else LazyLogits(drawn(tokens, vocab_size, seed=3).double())
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("divergence", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON])
def test_a_teacher_of_few_entries_counts_as_the_same_one_written_out(way, divergence, monkeypatch):
    for name, value in WAYS[way].items():
        monkeypatch.setitem(getattr(vocab_blocks, name), "cpu", value)
    sparse = drawn_sparse(12, 70)
    chosen = torch.tensor([True, False, True, *[True] * 7, False, False])
    x, weight = (
        drawn(9, 12, seed=1).double().requires_grad_(),
        drawn(70, 12, seed=2).double().requires_grad_(),
    )
    found, expected = (
        head_loss(
            LazyLogits(x, weight),
            teacher=t,
            divergence=divergence,
            temperature=1.5,
            label_share=0.0,
        )
        for t in (sparse.rows(chosen), LazyLogits(whole(sparse)[chosen]))
    )
    assert float((found - expected).detach().abs()) <= 1e-11
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight)),
        torch.autograd.grad(expected, (x, weight)),
        strict=True,
    ):
        assert (mine - theirs).abs().max() <= 1e-12


class TakenAgain(torch.autograd.Function):
    """A head_loss computed anew for each gradient: gradcheck takes more than one, which a
    head_loss refuses.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.loss = loss
        return loss(x, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        with torch.enable_grad():
            of_x, of_weight = torch.autograd.grad(ctx.loss(x, weight) * upstream[0], (x, weight))
        return of_x, of_weight, None


@pytest.mark.parametrize("label_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["live", "live, padded", "from disk"])
@pytest.mark.parametrize("divergence", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON])
def test_gradients_pass_gradcheck(label_share, temperature, kind, divergence, monkeypatch):
    """By finite differences in float64: 4 tokens of width 3, two at a time, 11 words in blocks of
    4.
    """
    monkeypatch.setitem(vocab_blocks.BLOCK_BYTES, "cpu", 2 * 4 * 4)
    monkeypatch.setitem(vocab_blocks.KEPT_BYTES, "cpu", 2 * 2 * 8 * 11)
    teacher, labels = (
        drawn_teacher(kind, 4, 7 if kind == "live, padded" else 11),
        torch.tensor([0, 3, 9, 10]),
    )

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        options = {"divergence": divergence, "temperature": temperature, "label_share": label_share}
        return head_loss(LazyLogits(x, weight), labels=labels, teacher=teacher, **options)

    leaves = (
        drawn(4, 3, seed=1).double().requires_grad_(),
        drawn(11, 3, seed=2).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda x, weight: TakenAgain.apply(x, weight, loss), leaves)


@pytest.mark.parametrize("divergence", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON])
def test_a_teacher_padded_further_is_cut_to_the_words_of_the_model(divergence):
    student, teacher = drawn(9, 60, seed=1).double(), drawn(9, 64, seed=2).double()
    found, expected = (
        head_loss(
            LazyLogits(student), teacher=LazyLogits(each), divergence=divergence, label_share=0.0
        )
        for each in (teacher, teacher[:, :60])
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_words_that_only_the_model_has_are_learnt_to_be_improbable():
    student, teacher = drawn(9, 64, seed=1).double().requires_grad_(), drawn(9, 60, seed=2).double()
    loss = head_loss(LazyLogits(student), teacher=LazyLogits(teacher), label_share=0.0)
    (gradient,) = torch.autograd.grad(loss, student)
    log_q = F.pad(teacher.log_softmax(-1), (0, 4), value=UNKNOWN)
    assert float(loss.detach()) == pytest.approx(
        float(written_out(FORWARD_KL, student.log_softmax(-1), log_q).detach())
    )
    assert (gradient - (student.softmax(-1) - log_q.exp())).abs().max() <= 1e-9
    assert (gradient[:, 60:] > 0).all()


def test_a_gradient_is_taken_once():
    loss = head_loss(LazyLogits(drawn(2, 5, seed=1).requires_grad_()), labels=torch.tensor([0, 1]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


def test_bfloat16_products_round_no_more_than_one_product_does(model):
    """Against float64 the loss is off as cross-entropy of bfloat16 logits is, and the gradient less
    than theirs.
    """
    x, weight = drawn(64, 32, seed=1), drawn(300, 32, seed=2)
    labels = torch.arange(64)
    narrow = [t.clone().requires_grad_() for t in (x, weight)]
    plain = [t.clone().requires_grad_() for t in (x, weight)]
    exact = [t.double().requires_grad_() for t in (x, weight)]
    losses = (
        head_loss(LazyLogits(narrow[0], narrow[1], torch.bfloat16), labels=labels),
        F.cross_entropy(
            (plain[0].bfloat16() @ plain[1].bfloat16().T).float(), labels, reduction="sum"
        ),
        F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum"),
    )
    for loss in losses:
        loss.backward()
    assert float((losses[0] - losses[1]).detach().abs()) <= 1e-3
    for leaves in zip(narrow, plain, exact, strict=True):
        mine, theirs, truth = (leaf.grad for leaf in leaves)
        assert mine is not None and theirs is not None and truth is not None
        assert (mine - truth).norm() <= 1.1 * (theirs - truth).norm()


def test_a_loss_in_inference_makes_no_gradient(model):
    with torch.no_grad():
        loss = next_token_loss(model, drawn_batch(2))
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_share": 0.5, "labels": torch.zeros(3, dtype=torch.long)},
            "label_share 0.5 needs a teacher",
        ),
        (
            {"label_share": 0.5, "teacher": LazyLogits(torch.zeros(3, 30))},
            "label_share 0.5 needs labels",
        ),
    ],
)
def test_a_loss_without_what_it_needs_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        head_loss(LazyLogits(torch.zeros(3, 30)), **options)


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
    hidden = model.hidden(batch.input_ids, None).detach()
    model.hidden = lambda *_, **__: caught.requires_grad_()  # type: ignore[method-assign]
    caught = hidden.clone()
    (gradient,) = torch.autograd.grad(next_token_loss(model, batch), caught)
    counted = batch.labels != IGNORE_INDEX
    table = model.model.embed_tokens.weight.detach().double()
    apart = (hidden.double() @ table.T).softmax(-1) - F.one_hot(batch.labels.clamp(min=0), 300)
    assert (gradient[counted] - (apart @ table)[counted]).abs().max() <= 1e-6
    assert not gradient[~counted].any()


def test_distillation_counts_the_divergence_at_counted_labels_alone(model):
    batch = drawn_batch(4)
    teacher_logits = drawn(4, 24, 300, seed=3)
    counted = batch.labels != IGNORE_INDEX
    wild = teacher_logits.clone()
    wild[~counted] = float("nan")  # a label that does not count is not even looked at
    logits = model(batch.input_ids).detach().double()
    expected = kl_divergence(
        Categorical(logits=teacher_logits.double()), Categorical(logits=logits)
    )[counted].sum()
    found = distillation_loss(lambda _: LazyLogits(wild.flatten(0, 1)))(model, batch)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("label_share", [0.0, 0.25, 1.0])
def test_label_share_mixes_cross_entropy_into_distillation(label_share, model):
    batch = drawn_batch(4)
    teacher = LazyLogits(drawn(96, 300, seed=3))
    divergence = float(distillation_loss(lambda _: teacher)(model, batch).detach())
    entropy = float(next_token_loss(model, batch).detach())
    mixed = float(
        distillation_loss(lambda _: teacher, Distillation(label_share=label_share))(
            model, batch
        ).detach()
    )
    assert mixed == pytest.approx((1 - label_share) * divergence + label_share * entropy, rel=1e-6)


def test_a_live_teacher_is_frozen_and_reads_the_very_batch(model):
    batch = Batch(
        input_ids=torch.arange(20).view(1, 20),
        labels=torch.arange(1, 21).view(1, 20),
        positions=torch.tensor([[*range(12), *range(8)]]),
        doc_ids=torch.tensor([[0] * 12 + [1] * 8]),
    )
    network = Transformer(CONFIG, seed=7)
    taught = live_teacher(network, OPTIM)(batch).block(slice(0, 300))
    assert torch.equal(
        taught, network(batch.input_ids, batch.positions, doc_ids=batch.doc_ids).flatten(0, 1)
    )
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


def updated(
    split: list[Batch], loss_fn: LossFn, make: Callable
) -> tuple[Transformer, float, float]:
    model = Transformer(CONFIG)
    loss, norm, tokens = train_step(model, make(model), split, loss_fn, 1e-2, float("inf"), 0)
    assert tokens == 8 * 24
    return model, loss, norm


def plain(model: Transformer) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=1e-2)]


@pytest.mark.parametrize("optimizer", ["plain", "adamw", "muon"])
@pytest.mark.parametrize("kind", ["next token", "distillation"])
def test_eight_micro_batches_of_one_row_update_as_one_of_eight(optimizer, kind):
    """Though rows have unequal numbers of labels: the loop divides once, by the count of the whole
    batch.
    """
    whole = drawn_batch(8)
    rows = [
        Batch(input_ids=whole.input_ids[i : i + 1], labels=whole.labels[i : i + 1])
        for i in range(8)
    ]
    assert len({row.num_labels for row in rows}) > 4
    teacher = Transformer(CONFIG, seed=5)
    loss_fn = (
        next_token_loss if kind == "next token" else distillation_loss(live_teacher(teacher, OPTIM))
    )
    name = "muon" if optimizer == "muon" else "adamw"
    config = replace(
        OPTIM, lr=1e-2, num_steps=10, final_lr_share=1.0, optimizer=name, compute_dtype="float32"
    )
    make = plain if optimizer == "plain" else lambda model: make_optimizers(model, config)
    one, loss, norm = updated([whole], loss_fn, make)
    eight, split_loss, split_norm = updated(rows, loss_fn, make)
    assert split_loss == pytest.approx(loss, rel=1e-6) and split_norm == pytest.approx(
        norm, rel=1e-5
    )
    # measured at lr 1e-2: 1.5e-8; 1.9e-6, as AdamW divides by the gradient's size; and it moves the
    # table beside Muon, too
    limit = {"plain": 1e-7, "adamw": 2e-5, "muon": 2e-5}[optimizer]
    for (name, a), b in zip(one.named_parameters(), eight.parameters(), strict=True):
        assert (a - b).abs().max() <= limit, name


def test_the_mean_loss_and_the_gradient_of_a_step_are_those_of_cross_entropy():
    batch = drawn_batch(8)
    model, reference = Transformer(CONFIG), Transformer(CONFIG)
    logits = reference(batch.input_ids)
    expected = F.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX
    )
    expected.backward()
    loss, norm, _ = train_step(model, plain(model), [batch], next_token_loss, 1e-2, float("inf"), 0)
    gradients = [p.grad for p in reference.parameters() if p.grad is not None]
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert norm == pytest.approx(
        float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-5
    )
    for own, theirs, gradient in zip(
        model.parameters(), reference.parameters(), gradients, strict=True
    ):
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
    for loss_fn in (next_token_loss, distillation_loss(teacher, Distillation(label_share=0.5))):
        train_step(model, plain(model), [empty, batch], loss_fn, 1e-2, 1.0, 0)
        train_step(alone, plain(alone), [batch], loss_fn, 1e-2, 1.0, 0)
    for own, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(own, theirs)
