"""Log-likelihoods of continuations: what several texts begin with is evaluated once.

A pair is a context and a continuation. The ids that all contexts of a suite begin with (its shots)
are read once and kept. What the pairs of one problem have in common beyond them, such as the
question, is one branch of a tree whose leaves are the texts: a pass of our network reads whole
trees, each id seeing its ancestors alone.

Shapes: N ids of a pass or logits of a chunk, D hidden, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.kv_cache import SharedText
from pocketlm.model.transformer import Transformer

Pair = tuple[list[int], list[int]]  # context ids, continuation ids: neither is empty
PASS_IDS = 512  # of trees that are read together: more do not stay near the processor
PAIRS = 64  # of one tree at most
PART_IDS = 2048  # of the continuations of one tree, where it has several
LOGITS_BYTES = 2**27  # of one product with the head


class Scored(NamedTuple):
    """log_prob: natural, the sum over a continuation's ids. greedy: whether each of them is the
    likeliest where it stands.
    """

    log_prob: float
    greedy: bool


# (pairs of each problem, ids that every context begins with, and goes on) -> theirs, in order. Not
# for several threads: it keeps what it read of the ids given last
Scorer = Callable[[Sequence[Sequence[Pair]], Sequence[int]], list[list[Scored]]]


@dataclass
class Tree:
    """The texts of some pairs after the ids that are shared, each id that several have in common
    once; an id's parent stands before it.

    ids, parents (-1: the shared ids), depths: of each node. queried: the nodes whose next id is
    asked for, rising. targets: for each pair (place in queried, id) of its continuation.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    queried: list[int] = field(default_factory=list)
    targets: list[list[tuple[int, int]]] = field(default_factory=list)

    @classmethod
    def of(cls, pairs: Sequence[Pair], shared: int) -> Tree:
        """shared: how many ids at the beginning of every context are left out."""
        tree = cls()
        children: dict[tuple[int, int], int] = {}
        predicting: list[list[int]] = []  # the nodes, for each pair
        for context, continuation in pairs:
            path = [-1]
            # the last id predicts nothing that is asked
            for token in (context + continuation)[shared:-1]:
                node = children.setdefault((path[-1], token), len(tree.ids))
                if node == len(tree.ids):
                    tree.ids.append(token)
                    tree.parents.append(path[-1])
                    tree.depths.append(len(path) - 1)
                path.append(node)
            predicting.append(path[len(path) - len(continuation) :])
        tree.queried = sorted({node for nodes in predicting for node in nodes})
        place = {node: number for number, node in enumerate(tree.queried)}
        tree.targets = [
            [(place[node], token) for node, token in zip(nodes, ids, strict=True)]
            for nodes, (_, ids) in zip(predicting, pairs, strict=True)
        ]
        return tree

    @property
    def is_text(self) -> bool:
        """Whether it has a single leaf."""
        return self.depths == list(range(len(self.ids)))

    def rows(self) -> list[list[int]]:
        """The nodes of each text from its first id to its leaf, in the order of the leaves."""
        inner = set(self.parents)
        rows = []
        for leaf in (node for node in range(len(self.ids)) if node not in inner):
            row = [leaf]
            while (parent := self.parents[row[-1]]) >= 0:
                row.append(parent)
            rows.append(row[::-1])
        return rows

    def sees(self) -> np.ndarray:
        """bool [N, N]: each node sees its ancestors and itself."""
        seen = np.eye(len(self.ids), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """How many ids all texts begin with, no text's last among them: it predicts what follows."""
    first, length = texts[0], min(map(len, texts)) - 1
    for text in texts[1:]:
        length = next((i for i in range(length) if text[i] != first[i]), length)
    return max(0, length)


def tree_scorer(evaluated: Callable[[Sequence[int], Sequence[Tree]], Iterator[Tensor]]) -> Scorer:
    """A Scorer over what gives, after ids that are shared, the logits [N, V] of all queried nodes
    of some trees, in chunks.
    """

    def score(problems: Sequence[Sequence[Pair]], shared: Sequence[int]) -> list[list[Scored]]:
        scores: list[list[Scored]] = [[] for _ in problems]
        for group in _passes(problems, shared):
            trees = [part.tree for part in group]
            of_parts = _scores(evaluated(group[0].beginning, trees), trees)
            for part, scored in zip(group, of_parts, strict=True):
                scores[part.problem] += scored
        return scores

    return score


class Part(NamedTuple):
    """Some pairs of a problem as a tree, after ids that are read before."""

    problem: int
    beginning: tuple[int, ...]
    tree: Tree


def _passes(problems: Sequence[Sequence[Pair]], shared: Sequence[int]) -> Iterator[list[Part]]:
    """Parts of the same beginning in groups of at most PASS_IDS ids and PAIRS pairs; a larger one
    is alone.
    """
    group: list[Part] = []
    for part in _parts(problems, tuple(shared)):
        trees = [other.tree for other in (*group, part)]
        full = sum(len(tree.ids) for tree in trees) > PASS_IDS
        full |= sum(len(tree.targets) for tree in trees) > PAIRS
        if group and (full or part.beginning != group[0].beginning):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _parts(problems: Sequence[Sequence[Pair]], shared: tuple[int, ...]) -> Iterator[Part]:
    """The problems in order, one that has more than PAIRS pairs, or whose continuations are long,
    in several parts. What a long problem's contexts begin with is read before, where nothing that
    all share is kept.
    """
    for number, pairs in enumerate(problems):
        common = 0 if shared else common_beginning([context for context, _ in pairs])
        beginning = tuple(pairs[0][0][:common]) if common > PASS_IDS else shared
        waiting: list[Pair] = []
        for pair in pairs:
            ids = sum(len(ids) for _, ids in (*waiting, pair))
            if len(waiting) == PAIRS or (waiting and ids > PART_IDS):
                yield Part(number, beginning, Tree.of(waiting, len(beginning)))
                waiting = []
            waiting.append(pair)
        yield Part(number, beginning, Tree.of(waiting, len(beginning)))


def _scores(chunks: Iterable[Tensor], trees: Sequence[Tree]) -> list[list[Scored]]:
    """For each pair of each tree its score, from the logits of all queried nodes, a chunk [N, V] of
    them after the other.
    """
    firsts = np.cumsum([0, *(len(tree.queried) for tree in trees)])
    tokens = [
        (first + place, token)
        for first, tree in zip(firsts.tolist(), trees, strict=False)
        for pair in tree.targets
        for place, token in pair
    ]
    node, target = torch.tensor(tokens).T
    log_probs, greedy = torch.empty(len(tokens), dtype=torch.float64), torch.empty_like(node)
    start = 0
    for logits in chunks:
        here = ((node >= start) & (node < start + len(logits))).nonzero()[:, 0]
        at, wanted = (x[here].to(logits.device) for x in (node - start, target))
        likeliest, normalizers = logits.argmax(1), logits.logsumexp(1)
        log_probs[here] = (logits[at, wanted] - normalizers[at]).double().cpu()
        greedy[here] = (likeliest[at] == wanted).long().cpu()
        start += len(logits)
    lengths = [len(pair) for tree in trees for pair in tree.targets]
    sums = zip(log_probs.split(lengths), greedy.split(lengths), strict=True)
    flat = iter([Scored(nats.sum().item(), bool(likely.all())) for nats, likely in sums])
    return [[next(flat) for _ in tree.targets] for tree in trees]


def network_scorer(network: Transformer) -> Scorer:
    """The scorer of our own network: shared ids in a SharedText, trees under a mask."""
    device = network.model.embed_tokens.weight.device
    kept: dict[tuple[int, ...], SharedText] = {}

    @torch.inference_mode()
    def evaluated(shared: Sequence[int], trees: Sequence[Tree]) -> Iterator[Tensor]:
        key = tuple(shared)
        if key not in kept:
            kept.clear()
            kept[key] = SharedText(network, shared)
        ids = torch.tensor([[i for tree in trees for i in tree.ids]], device=device)
        if not shared and len(trees) == 1 and trees[0].is_text:
            hidden = network.hidden(ids, None)[0]  # [N, D], without a mask of all pairs
        else:
            depths = [depth for tree in trees for depth in tree.depths]
            positions = torch.tensor([depths], device=device) + len(shared)
            sees = torch.block_diag(*(torch.from_numpy(tree.sees()) for tree in trees))
            hidden = network.hidden(ids, positions, kept[key], sees=sees.to(device))[0]
        firsts = np.cumsum([0, *(len(tree.ids) for tree in trees)]).tolist()
        nodes = [
            first + node
            for first, tree in zip(firsts, trees, strict=False)
            for node in tree.queried
        ]
        states = hidden[torch.tensor(nodes, device=device)]
        for part in states.split(max(1, LOGITS_BYTES // (4 * network.config.vocab_size))):
            yield network.head(part)

    return tree_scorer(evaluated)
