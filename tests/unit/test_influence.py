"""Influence scores against the inner product of gradients that autograd holds explicitly, sample by
sample.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pocketlm.data.influence import influence, probe_directions, table_gradient
from pocketlm.model import softmax_blocks
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.optim import computing

# B samples, T tokens, V vocabulary, D hidden, C probes, M matrices

CONFIG = small(
    max_position_embeddings=256,
    initializer_range=0.1,
    layer_types=(LOCAL, GLOBAL),
    sliding_window=8,
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return Transformer(replace(CONFIG, tie_word_embeddings=request.param))


def tables(model: Transformer) -> list[Tensor]:
    """The embedding, and the output layer where it is a matrix of its own."""
    return [
        model.model.embed_tokens.weight,
        *([] if model.lm_head is None else [model.lm_head.weight]),
    ]


def drawn_directions(model: Transformer, count: int) -> Tensor:
    return torch.randn(
        count, len(tables(model)), 300, 32, generator=torch.Generator().manual_seed(1)
    )


def drawn_batch(rows: int, seed: int = 0, length: int = 20) -> Batch:
    """Random samples of unequal numbers of labels; tokens repeat, so embedding rows get more than
    one gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    for row in range(rows):
        labels[row, length - 3 * row :] = IGNORE_INDEX
    return Batch(input_ids=ids[:, :-1], labels=labels)


def one_sample(batch: Batch, row: int) -> Batch:
    return Batch(input_ids=batch.input_ids[row : row + 1], labels=batch.labels[row : row + 1])


def explicit_gradient(model: Transformer, batch: Batch) -> Tensor:
    """[M, V, D]: the gradient of one sample's mean loss in the embedding and output layers, by
    autograd alone.
    """
    logits = model(batch.input_ids)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    return torch.stack(torch.autograd.grad(loss, tables(model)))


def test_the_gradient_of_embedding_and_output_is_autograds_summed_over_samples(model):
    batch = drawn_batch(5)
    expected = sum(explicit_gradient(model, one_sample(batch, row)) for row in range(5))
    gradient = table_gradient(model, batch)
    assert gradient.shape == (len(tables(model)), 300, 32)
    assert (gradient - expected).abs().max() <= 1e-6 * gradient.abs().max() + 1e-7
    assert all(table.grad is None for table in tables(model))  # training's gradients stay untouched


def test_influence_is_the_inner_product_of_each_samples_gradient_with_each_direction(model):
    batch = drawn_batch(5)
    directions = drawn_directions(model, 3)
    scores = influence(model, batch, directions)
    assert scores.shape == (5, 3)
    for row in range(5):
        gradient = explicit_gradient(model, one_sample(batch, row)).double()
        for column, direction in enumerate(directions):
            expected = float((gradient * direction.double()).sum())
            assert float(scores[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def influence_with_logits(model: Transformer, batch: Batch, directions: Tensor) -> Tensor:
    """[B, C]: as version 0.1 computed it, with three tensors [B, T, V]."""
    table = model.model.embed_tokens.weight
    embedded = F.embedding(batch.input_ids, table).detach().requires_grad_(True)
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: embedded)
    hidden = model.hidden(batch.input_ids, None)
    handle.remove()
    counted = batch.labels != IGNORE_INDEX
    weight = counted.float() / counted.sum(1, keepdim=True).clamp(min=1)
    labels = batch.labels.clamp(min=0)
    logits = model.head(hidden)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * weight
    (input_gradient,) = torch.autograd.grad(losses.sum(), embedded)
    error = (logits.softmax(-1) - F.one_hot(labels, 300)) * weight[..., None]
    scores = [
        (error * F.linear(hidden, direction[-1])).sum((1, 2))
        + (input_gradient * F.embedding(batch.input_ids, direction[0])).sum((1, 2))
        for direction in directions
    ]
    return torch.stack(scores, 1).detach()


@pytest.mark.parametrize("tokens", [1024, 7])
@pytest.mark.parametrize("words", [300, 299, 64, 1])
def test_no_block_size_changes_the_scores_from_those_computed_with_all_logits(
    model, tokens, words, monkeypatch
):
    monkeypatch.setitem(softmax_blocks.TOKENS, "cpu", tokens)
    monkeypatch.setattr(
        softmax_blocks,
        "word_slices",
        lambda x, size, num_sums=0: (slice(i, i + words) for i in range(0, size, words)),
    )
    batch, directions = drawn_batch(5), drawn_directions(model, 2)
    scores = influence(model, batch, directions)
    expected = influence_with_logits(model, batch, directions)
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()
    rows = [explicit_gradient(model, one_sample(batch, row)) for row in range(5)]
    gradient = torch.stack(rows).sum(0)
    difference = (table_gradient(model, batch) - gradient).abs().max()
    assert difference <= 1e-6 * gradient.abs().max() + 1e-7


def test_scores_stay_finite_where_logits_are_large(model):
    """The running maximum: exp(200) is beyond float32."""
    large = Transformer(replace(model.config, initializer_range=12.0))
    assert large(drawn_batch(3).input_ids).abs().max() > 200
    directions = drawn_directions(large, 1)
    scores = influence(large, drawn_batch(3), directions)
    expected = influence_with_logits(large, drawn_batch(3), directions)
    assert (scores - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_no_tensor_as_large_as_the_logits_is_ever_made(model):
    """What is allocated at once, in the largest tensor: a block, not B x T x V."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return made

    directions = drawn_directions(model, 1)
    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setitem(softmax_blocks.BLOCK_BYTES, "cpu", 4 * 4096)
        influence(model, drawn_batch(40, length=130), directions)
        table_gradient(model, drawn_batch(40, length=130))
    hidden, table = 40 * 130 * 64, len(tables(model)) * 300 * 32
    assert largest <= max(hidden, table) < 40 * 130 * 300


def test_products_in_bfloat16_give_the_scores_but_for_rounding(model):
    batch, directions = drawn_batch(5), drawn_directions(model, 1)
    exact = influence(model, batch, directions)
    with computing(model, ComputeSettings(dtype=torch.bfloat16)):
        rounded = influence(model, batch, directions)
    assert 0 < (rounded - exact).abs().max() <= 0.03 * exact.abs().max()


def test_the_score_of_a_mean_direction_is_the_mean_of_the_scores(model):
    batch, directions = drawn_batch(5), drawn_directions(model, 3)
    mean = influence(model, batch, directions.mean(0, keepdim=True))[:, 0]
    assert torch.allclose(mean, influence(model, batch, directions).mean(1), rtol=1e-4, atol=1e-5)


def test_parts_of_the_probe_batches_add_up_to_the_directions_of_all(model):
    probes = {"code": [drawn_batch(3, i) for i in range(5)], "maths": [drawn_batch(2, 9)]}
    sums: list[Tensor] = []
    for rank in range(3):
        probe_directions(
            model, probes, part=slice(rank, None, 3), all_reduce=lambda x: sums.append(x.clone())
        )
    directions = probe_directions(
        model, probes, all_reduce=lambda x: x.copy_(torch.stack(sums).sum(0))
    )
    assert torch.allclose(directions, probe_directions(model, probes), rtol=1e-4, atol=1e-7)


def test_a_samples_score_does_not_depend_on_its_neighbours(model):
    batch = drawn_batch(5)
    directions = drawn_directions(model, 2)
    together = influence(model, batch, directions)
    alone = torch.cat([influence(model, one_sample(batch, row), directions) for row in range(5)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_a_sample_that_is_the_probe_helps_it(model):
    for seed in range(5):
        probe = drawn_batch(1, seed)
        directions = probe_directions(model, {"own": [probe], "other": [drawn_batch(1, seed + 50)]})
        scores = influence(model, probe, directions)[0]
        assert scores[0] > 0 and scores[0] > scores[1].abs()


def test_positive_influence_means_that_learning_the_sample_lowers_the_probes_loss(model):
    """Along the sample's gradient the probe's loss falls at the rate of the inner product (a
    central difference).
    """
    probe, samples = drawn_batch(1, 3), drawn_batch(4, 8)
    direction = explicit_gradient(model, probe)
    scores = influence(model, samples, direction[None])[:, 0]
    start = torch.stack([table.detach().clone() for table in tables(model)])

    @torch.no_grad()
    def set_tables(values: Tensor) -> None:
        for table, value in zip(tables(model), values, strict=True):
            table.copy_(value)

    @torch.no_grad()
    def probe_loss(values: Tensor) -> float:
        set_tables(values)
        logits = model(probe.input_ids).double()
        set_tables(start)
        return float(
            F.cross_entropy(logits.flatten(0, 1), probe.labels.flatten(), ignore_index=IGNORE_INDEX)
        )

    lr = 1e-3
    for row in range(4):
        gradient = explicit_gradient(model, one_sample(samples, row))
        fall = (probe_loss(start + lr * gradient) - probe_loss(start - lr * gradient)) / (2 * lr)
        assert fall == pytest.approx(float(scores[row]), rel=0.02, abs=1e-4)


def test_probe_directions_are_of_unit_norm_and_one_for_each_probe(model):
    probes = {"code": [drawn_batch(3, 1), drawn_batch(3, 2)], "maths": [drawn_batch(2, 3)]}
    directions = probe_directions(model, probes)
    assert directions.shape == (2, len(tables(model)), 300, 32)
    assert directions.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_probe_directions_are_mean_gradients_over_root_mean_squares(model):
    probes = {"code": [drawn_batch(3, 1), drawn_batch(3, 2)], "maths": [drawn_batch(2, 3)]}
    by_probe = {
        name: [
            sum(explicit_gradient(model, one_sample(b, row)) for row in range(len(b.labels)))
            / len(b.labels)
            for b in batches
        ]
        for name, batches in probes.items()
    }
    flat = torch.stack([g for gradients in by_probe.values() for g in gradients])  # type: ignore[arg-type]
    root = flat.square().mean(0).sqrt() + 1e-8
    for direction, gradients in zip(
        probe_directions(model, probes), by_probe.values(), strict=True
    ):
        expected = torch.stack(gradients).mean(0) / root  # type: ignore[arg-type]
        assert F.cosine_similarity(direction.flatten(), expected.flatten(), dim=0) > 0.9999


def test_a_sample_without_labels_has_no_influence(model):
    batch = drawn_batch(2)
    batch.labels[1] = IGNORE_INDEX
    directions = drawn_directions(model, 1)
    scores = influence(model, batch, directions)[:, 0]
    assert scores[0] != 0 and scores[1] == 0


def test_an_empty_probe_set_is_refused(model):
    with pytest.raises(ValueError, match="a probe set is empty; raise probe_share"):
        probe_directions(model, {"code": []})
