"""Semantic deduplication (SemDeDup, Abbas et al. 2023, arXiv 2303.09540): texts as vectors, in
clusters, and of those nearer to each other than a cosine one stays.

Shapes: N texts, D dimensions, K clusters
"""

from dataclasses import dataclass

import numpy as np

ROUNDS = 20  # of k-means, at most
BLOCK = 512  # vectors that are compared at once


@dataclass(frozen=True)
class Deduplication:
    """kept [N] bool. like [N]: of a text that goes the number of the one that stays for it, else
    -1. cosine [N]: theirs. cluster_sizes: of all K clusters.
    """

    kept: np.ndarray
    like: np.ndarray
    cosine: np.ndarray
    cluster_sizes: list[int]


def deduplicate(
    vectors: np.ndarray,
    ranking: np.ndarray,
    *,
    max_cosine: float,
    documents_per_cluster: int,
    seed: int,
) -> Deduplication:
    """Of each cluster the texts in the order of their ranking, the highest first: one stays unless
    its cosine to a text that stays is above max_cosine.

    SemDeDup keeps the text farthest from its cluster's centre; here the best one stays (our
    choice), ties in the order of the texts. Texts of two clusters are not compared.
    """
    num_clusters = max(1, round(len(vectors) / documents_per_cluster))
    clusters = k_means(vectors, num_clusters, seed)
    kept = np.zeros(len(vectors), dtype=bool)
    like = np.full(len(vectors), -1)
    cosine = np.zeros(len(vectors))
    order = np.lexsort((np.arange(len(vectors)), -ranking))
    for number in range(num_clusters):
        members = order[clusters[order] == number]
        for first in range(0, len(members), BLOCK):
            block = members[first : first + BLOCK]
            earlier = members[:first][kept[members[:first]]]
            _compare(vectors, earlier, block, max_cosine, kept, like, cosine)
    sizes = np.bincount(clusters, minlength=num_clusters)
    return Deduplication(kept, like, cosine, sizes.tolist())


def _compare(
    vectors: np.ndarray,
    earlier: np.ndarray,
    block: np.ndarray,
    max_cosine: float,
    kept: np.ndarray,
    like: np.ndarray,
    cosine: np.ndarray,
) -> None:
    """Decides for the texts of a block, in order, given the earlier ones that stay."""
    candidates = np.concatenate([earlier, block])
    near = vectors[block] @ vectors[candidates].T  # [block, candidates]
    stays = np.zeros(len(candidates), dtype=bool)
    stays[: len(earlier)] = True
    for row, text in enumerate(block):
        nearest = int(np.argmax(np.where(stays, near[row], -2.0))) if stays.any() else -1
        if nearest >= 0 and near[row, nearest] > max_cosine:
            like[text], cosine[text] = candidates[nearest], near[row, nearest]
        else:
            kept[text] = stays[len(earlier) + row] = True


def k_means(vectors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each vector [N], by the largest cosine to a centre: spherical k-means from
    centres drawn among the vectors. A centre that no vector is nearest to stays where it was.
    """
    draw = np.random.default_rng(seed)
    start = np.sort(draw.choice(len(vectors), size=num_clusters, replace=False))
    centres = vectors[start].copy()
    clusters = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        nearest = np.concatenate(
            [
                np.argmax(vectors[i : i + BLOCK] @ centres.T, axis=1)
                for i in range(0, len(vectors), BLOCK)
            ]
        )
        if (nearest == clusters).all():
            break
        clusters = nearest
        for number in range(num_clusters):
            members = vectors[clusters == number]
            if len(members):
                total = members.sum(0)
                centres[number] = total / max(float(np.linalg.norm(total)), 1e-12)
    return clusters
