"""Semantic deduplication against comparing all texts with all."""

import numpy as np
import pytest

from pocketlm.data.probe_building import semantic
from pocketlm.data.probe_building.semantic import deduplicate, k_means


def unit_vectors(count: int, seed: int = 0, dimensions: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [512, 7, 1])
def test_in_one_cluster_a_text_goes_where_a_better_one_that_stays_is_near(block, monkeypatch):
    monkeypatch.setattr(semantic, "BLOCK", block)
    vectors = unit_vectors(60)
    ranking = np.random.default_rng(1).integers(0, 20, 60).astype(float)  # with ties
    outcome = deduplicate(vectors, ranking, max_cosine=0.8, documents_per_cluster=1000, seed=0)
    kept: list[int] = []
    for i in sorted(range(60), key=lambda i: (-ranking[i], i)):
        near = [(float(vectors[i] @ vectors[j]), j) for j in kept]
        if near and max(near)[0] > 0.8:
            assert outcome.like[i] == max(near)[1] and not outcome.kept[i]
            assert outcome.cosine[i] == pytest.approx(max(near)[0], abs=1e-6)
        else:
            kept.append(i)
            assert outcome.kept[i] and outcome.like[i] == -1
    assert 0 < len(kept) < 60 and outcome.cluster_sizes == [60]


def test_clusters_are_those_of_the_texts_and_the_same_each_time():
    draw = np.random.default_rng(3)
    vectors = np.eye(6, dtype=np.float32)[np.arange(90) % 3] * 5
    vectors = vectors + draw.normal(scale=0.1, size=(90, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = {tuple(k_means(vectors, 3, seed)[:3]) for seed in range(8)}
    assert any(len(set(group)) == 3 for group in groups)
    clusters = k_means(vectors, 3, 0)
    assert (clusters == k_means(vectors, 3, 0)).all()
    outcome = deduplicate(
        vectors, np.arange(90.0), max_cosine=0.9, documents_per_cluster=30, seed=0
    )
    assert sum(outcome.cluster_sizes) == 90 and len(outcome.cluster_sizes) == 3
    # the best of each of the three kinds is among those that stay
    assert outcome.kept[[87, 88, 89]].all() and outcome.kept.sum() < 10


def test_a_vector_of_zeros_is_like_no_text():
    vectors = np.vstack([np.zeros((2, 6), np.float32), unit_vectors(3)])
    outcome = deduplicate(vectors, np.zeros(5), max_cosine=0.9, documents_per_cluster=10, seed=0)
    assert outcome.kept[:2].all()
