"""Weights of tokens in the loss, and the log-probability of each label, against autograd."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train import vocab_blocks
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.losses import Distillation, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig
from pocketlm.train.token_log_probs import token_log_probs

CONFIG = small(initializer_range=0.1)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=10, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_with_ignored(vocab_size: int = 300) -> Batch:
    """Two rows of 24 tokens in packed documents, a third of the labels ignored."""
    generator = torch.Generator().manual_seed(3)
    ids, labels = torch.randint(vocab_size, (2, 2, 24), generator=generator)
    labels = labels.masked_fill(torch.rand(2, 24, generator=generator) < 0.3, IGNORE_INDEX)
    place = torch.arange(24).expand(2, 24)
    return Batch(input_ids=ids, labels=labels, positions=place % 10, doc_ids=place // 10)


def loss_and_gradients(model: Transformer, batch: Batch) -> list[Tensor]:
    model.zero_grad()
    loss = next_token_loss(model, batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_one_leave_every_bit_and_others_scale_the_loss_and_its_gradient(tied):
    model = Transformer(replace(CONFIG, tie_word_embeddings=tied))
    batch = rows_with_ignored()
    plain = loss_and_gradients(model, batch)
    ones = loss_and_gradients(model, replace(batch, weights=torch.ones(2, 24)))
    assert all(torch.equal(a, b) for a, b in zip(plain, ones, strict=True))
    halves = loss_and_gradients(model, replace(batch, weights=torch.full((2, 24), 0.5)))
    assert all(torch.equal(0.5 * a, b) for a, b in zip(plain, halves, strict=True))


def test_each_label_counts_by_its_weight_as_autograd_says():
    model = Transformer(CONFIG)
    weights = drawn(2, 24, seed=5)
    batch = replace(rows_with_ignored(), weights=weights)
    own = loss_and_gradients(model, batch)
    model.zero_grad()
    logits = model(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    losses = F.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    (losses * weights).sum().backward()
    expected = [(losses * weights).sum(), *(p.grad for p in model.parameters())]
    for mine, theirs in zip(own, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_teachers_divergence_refuses_weights_and_labels_alone_take_them():
    model, teacher = Transformer(CONFIG), Transformer(CONFIG, seed=1)
    batch = replace(rows_with_ignored(), weights=torch.full((2, 24), 0.5))
    loss_fn = distillation_loss(live_teacher(teacher, OPTIM))
    with pytest.raises(ValueError, match="takes no weights of tokens"):
        loss_fn(model, batch)
    labels = distillation_loss(live_teacher(teacher, OPTIM), Distillation(label_share=1.0))
    assert torch.equal(labels(model, batch), next_token_loss(model, batch))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("block", "kept"), [(2**23, 2**30), (2**9, 2**13), (2**6, 2**10)])
def test_token_log_probs_are_log_softmax_by_value_and_gradient(tied, block, kept, monkeypatch):
    """In float64, whole and in chunks of a few tokens and words."""
    monkeypatch.setitem(vocab_blocks.BLOCK_BYTES, "cpu", block)
    monkeypatch.setitem(vocab_blocks.KEPT_BYTES, "cpu", kept)
    model = Transformer(replace(CONFIG, tie_word_embeddings=tied)).double()
    batch, upstream = rows_with_ignored(), drawn(2, 24, seed=5).double()
    results = []
    for own in (True, False):
        model.zero_grad()
        if own:
            values = token_log_probs(model, batch)
        else:
            hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
            head = model.model.embed_tokens if model.lm_head is None else model.lm_head
            logs = (hidden @ head.weight.T).log_softmax(-1)  # model.head rounds to float32
            values = logs.gather(2, batch.labels.clamp(min=0)[..., None])[..., 0]
            values = values * (batch.labels != IGNORE_INDEX)
        # any function of them, so that no gradient is known before
        (values.exp() * upstream + values.square()).sum().backward()
        results.append([values, *(p.grad for p in model.parameters())])
    assert results[0][0].shape == (2, 24)
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and (mine - theirs).abs().max() <= 1e-12 * (1 + theirs.abs().max())


def test_token_log_probs_are_float32_and_sum_to_the_loss_in_bfloat16_too():
    model, batch = Transformer(CONFIG), rows_with_ignored()
    for dtype in (None, torch.bfloat16):
        model.compute = ComputeSettings(dtype=dtype)
        values = token_log_probs(model, batch)
        assert values.dtype == torch.float32
        assert (values[batch.labels == IGNORE_INDEX] == 0).all()
        assert -values.sum().item() == pytest.approx(next_token_loss(model, batch).item(), rel=1e-6)


def test_token_log_probs_never_hold_the_logits():
    """Peak of live bytes in forward and backward, as autograd keeps them, below a tenth of the
    logits.
    """
    model = Transformer(replace(CONFIG, vocab_size=40_000))
    ids = torch.randint(40_000, (2, 24))
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    largest: list[int] = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() == 2 and out.shape[0] <= 48:
                largest.append(out.numel() * 4)
            return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vocab_blocks.BLOCK_BYTES, "cpu", 2**16)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), Largest():
            values = token_log_probs(model, Batch(input_ids=ids, labels=ids))
        with Largest():
            values.sum().backward()
    logits = 4 * 48 * 40_000
    table = 4 * 40_000 * CONFIG.hidden_size
    assert max(largest) <= logits / 10
    assert all(size == table or size <= logits / 10 for size in saved)


@pytest.mark.parametrize("name", ["int4_group32", "int4_channel"])
def test_token_log_probs_of_a_prepared_model_train_its_weights_and_ranges(name):
    model, batch = prepare(Transformer(CONFIG), SCHEMES[name]), rows_with_ignored()
    results = []
    for by_token in (True, False):
        model.zero_grad()
        loss = -token_log_probs(model, batch).sum() if by_token else next_token_loss(model, batch)
        loss.backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
