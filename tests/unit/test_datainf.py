"""DataInf against its formula with gradients that autograd holds explicitly, and against the dense
inverse that it stands for.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from shapes import small
from torch import Tensor

from pocketlm.data.datainf import (
    datainf_directions,
    mean_gradients,
    sample_products,
    score_directions,
)
from pocketlm.data.influence import influence, probe_directions
from pocketlm.model import softmax_blocks
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer

V, D = 50, 8
CONFIG = small(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=16,
    head_dim=4,
    max_position_embeddings=32,
    initializer_range=0.3,
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.set_num_threads(1)
    return Transformer(replace(CONFIG, tie_word_embeddings=request.param), seed=3)


def matrices(model: Transformer) -> list[Tensor]:
    return [
        model.model.embed_tokens.weight,
        *([] if model.lm_head is None else [model.lm_head.weight]),
    ]


def drawn(rows: int, seed: int, words: int = V) -> Batch:
    """Rows of 12 tokens, the later ones of a batch with fewer labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(words, (rows, 13), generator=generator)
    labels = ids[:, 1:].clone()
    for row in range(rows):
        labels[row, 12 - row % 4 :] = IGNORE_INDEX
    return Batch(input_ids=ids[:, :-1], labels=labels)


SAMPLES = [drawn(4, seed) for seed in range(5)] + [drawn(3, 9)]
PROBES = {"code": [drawn(4, 20, 25), drawn(2, 21, 25)], "maths": [drawn(4, 22)]}
CANDIDATES = drawn(60, 40)


def gradients(model: Transformer, batches: list[Batch]) -> Tensor:
    """[n, M, V D] in float64: of each sample's mean loss, by autograd alone."""
    rows = []
    for batch in batches:
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            loss = F.cross_entropy(model(ids[None])[0], labels, ignore_index=IGNORE_INDEX)
            by_matrix = torch.autograd.grad(loss, matrices(model))
            rows.append(torch.stack([gradient.flatten() for gradient in by_matrix]))
    return torch.stack(rows).double()


def dampings(samples: Tensor) -> Tensor:
    """lambda [M] of samples [n, M, d]."""
    return 0.1 * samples.square().sum(2).mean(0) / samples.shape[2]


def by_formula(samples: Tensor, probes: Tensor) -> Tensor:
    """h [C, M, d], as the reference code writes it: sample by sample."""
    result = torch.zeros_like(probes)
    for matrix, damping in enumerate(dampings(samples)):
        for probe, v in enumerate(probes[:, matrix]):
            for g in samples[:, matrix]:
                result[probe, matrix] += (v - (v @ g) / (damping + g @ g) * g) / damping
    return result / len(samples)


def scores(directions: Tensor, candidates: Tensor) -> Tensor:
    """[n, C]"""
    return torch.einsum("cmd,nmd->nc", directions, candidates)


@pytest.fixture(scope="module")
def explicit(model: Transformer) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of samples, probes (their means) and candidates."""
    probes = torch.stack([gradients(model, batches).mean(0) for batches in PROBES.values()])
    return gradients(model, SAMPLES), probes, gradients(model, [CANDIDATES])


def test_a_samples_squared_norm_and_products_are_those_of_its_gradient(model, explicit):
    samples, probes, _ = explicit
    directions = probes.float().view(2, -1, V, D)
    squares, products = zip(
        *(sample_products(model, batch, directions) for batch in SAMPLES), strict=True
    )
    expected = samples.square().sum(2)
    assert torch.allclose(torch.cat(squares).double(), expected, rtol=1e-5)
    expected = torch.einsum("cmd,nmd->ncm", probes, samples)
    error = (torch.cat(products) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("words", [1, 7, 64])
def test_blocks_of_the_vocabulary_do_not_change_the_products(model, words, monkeypatch):
    directions = mean_gradients(model, PROBES)
    whole = sample_products(model, SAMPLES[0], directions)
    monkeypatch.setattr(
        softmax_blocks,
        "word_slices",
        lambda x, size, num_sums=0: (slice(i, i + words) for i in range(0, size, words)),
    )
    for part, expected in zip(sample_products(model, SAMPLES[0], directions), whole, strict=True):
        assert (part - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_probes_gradients_are_means_over_their_rows(model, explicit):
    expected = explicit[1].view(2, -1, V, D)
    assert (mean_gradients(model, PROBES) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_scores_are_those_of_the_papers_formula_with_explicit_gradients(model, explicit):
    samples, probes, candidates = explicit
    directions = score_directions("datainf", model, PROBES, SAMPLES)
    expected = scores(by_formula(samples, probes), candidates)
    found = influence(model, CANDIDATES, directions).double()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_datainf_is_the_mean_of_the_dense_inverses_of_each_samples_own_matrix(model, explicit):
    """The approximation itself: (g g^T + lambda)^-1 solved densely, 400 x 400, and averaged."""
    samples, probes, candidates = explicit
    solved = torch.zeros_like(probes)
    for matrix, damping in enumerate(dampings(samples)):
        for g in samples[:, matrix]:
            dense = torch.outer(g, g) + damping * torch.eye(V * D, dtype=torch.float64)
            solved[:, matrix] += torch.linalg.solve(dense, probes[:, matrix].T).T / len(samples)
    found = influence(
        model, CANDIDATES, datainf_directions(model, SAMPLES, probes.float().view(2, -1, V, D))
    )
    expected = scores(solved, candidates)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("damping", "least"), [(0.1, 0.3), (V * D, 0.97)])
def test_its_ranks_agree_with_the_exact_inverse_of_the_damped_fisher_matrix(
    damping, least, model, explicit
):
    """Roughly at the papers' damping, where swapping mean and inverse costs most, and well where
    lambda is the samples' mean squared norm.
    """
    samples, probes, candidates = explicit
    exact = torch.zeros_like(probes)
    for matrix, base in enumerate(dampings(samples)):
        fisher = samples[:, matrix].T @ samples[:, matrix] / len(samples)
        dense = fisher + base * damping / 0.1 * torch.eye(V * D, dtype=torch.float64)
        exact[:, matrix] = torch.linalg.solve(dense, probes[:, matrix].T).T
    expected = scores(exact, candidates)
    directions = score_directions("datainf", model, PROBES, SAMPLES, damping=damping)
    found = influence(model, CANDIDATES, directions)
    for probe in range(2):
        ranks = [rankdata(values[:, probe]) for values in (found, expected)]
        assert np.corrcoef(ranks)[0, 1] > least


def test_more_damping_brings_the_direction_of_each_matrix_to_the_probes_gradient(model):
    probes = mean_gradients(model, PROBES)
    far, near = (
        F.cosine_similarity(
            datainf_directions(model, SAMPLES, probes, damping=damping).flatten(2),
            probes.flatten(2),
            dim=2,
        )
        for damping in (1e9, 0.1)
    )
    assert far.min() > 1 - 1e-5 and near.max() < 1 - 1e-4


def test_parts_of_the_batches_add_up_to_the_directions_of_all(model):
    """Three ranks one after another; each round makes the sums of one more reduction known."""
    whole = score_directions("datainf", model, PROBES, SAMPLES)
    known: list[Tensor] = []

    def on_rank(rank: int) -> tuple[Tensor, list[Tensor]]:
        calls: list[Tensor] = []

        def all_reduce(tensor: Tensor) -> None:
            calls.append(tensor.clone())
            if len(calls) <= len(known):
                tensor.copy_(known[len(calls) - 1])

        part = slice(rank, None, 3)
        directions = score_directions(
            "datainf", model, PROBES, SAMPLES, part=part, all_reduce=all_reduce
        )
        return directions, calls

    for number in range(3):  # the probes' gradients, the norms, the weighted samples
        known.append(torch.stack([on_rank(rank)[1][number] for rank in range(3)]).sum(0))
    for rank in range(3):
        directions, calls = on_rank(rank)
        assert len(calls) == 3
        assert (directions - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_the_cheap_score_is_that_of_the_probe_directions(model):
    directions = score_directions("adam", model, PROBES, [])
    assert torch.equal(directions, probe_directions(model, PROBES))


def test_samples_that_say_nothing_and_empty_probes_are_refused(model):
    silent = drawn(2, 1)
    silent.labels.fill_(IGNORE_INDEX)
    with pytest.raises(ValueError, match="no sample has a gradient"):
        score_directions("datainf", model, PROBES, [silent])
    with pytest.raises(ValueError, match="no sample has a gradient"):
        score_directions("datainf", model, PROBES, [])
    with pytest.raises(ValueError, match="a probe set is empty"):
        score_directions("datainf", model, {"code": []}, SAMPLES)


def test_no_sample_is_ever_held_whole(model, monkeypatch):
    """A block of the vocabulary at most, whatever the number of samples."""
    largest = 0
    blocks = softmax_blocks.softmax_outer

    def watched(*arguments):
        nonlocal largest
        for words, block in blocks(*arguments):
            largest = max(largest, block.numel())
            yield words, block

    monkeypatch.setattr("pocketlm.data.datainf.softmax_outer", watched)
    monkeypatch.setitem(softmax_blocks.BLOCK_BYTES, "cpu", 4 * 12 * 5)
    directions = mean_gradients(model, PROBES)
    sample_products(model, SAMPLES[0], directions)
    assert 0 < largest <= 12 * 5 < V * D
