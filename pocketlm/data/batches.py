"""Batches as pure functions of the step: the same seed, step and rank give the same rows, so
nothing needs a position.

Which source a row comes from, which row of that source, and in which epoch are arithmetic on the
row's global number.

Shapes: B rows of a micro-batch, T tokens
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, zip_longest

import numpy as np
import torch

from pocketlm.data.rows import Packing, row_index
from pocketlm.data.shards import Shard
from pocketlm.model.batch import IGNORE_INDEX, Batch, Span, document_key

Row = tuple[np.ndarray, np.ndarray, np.ndarray]  # input ids, labels, document ids, each [T]
BLOCK = 4096  # rows after which every source has had its share, to the row


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How rows become the batches of a step: rows_per_step rows of seq_len tokens,
    micro_batch_size at a time, over world_size ranks.
    """

    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.rows_per_step % (self.micro_batch_size * self.world_size):
            raise ValueError(
                f"rows_per_step {self.rows_per_step} does not divide into micro-batches of "
                f"{self.micro_batch_size} "
                f"on {self.world_size} ranks"
            )


class TextRows:
    """Rows of one shard, cut from its documents as `packing` says (data/rows.py). Inside a row
    documents follow each other and, as in R1's loader, may look at one another.
    """

    def __init__(
        self, shard: Shard, seq_len: int, eos_id: int, packing: Packing = "document_heads"
    ) -> None:
        self.shard, self.seq_len, self.eos_id = shard, seq_len, eos_id
        self.index = row_index(shard, seq_len, packing)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Row:
        start = self.index.start(number)
        tokens = self.shard.tokens[start : start + self.seq_len + 1].astype(np.int64)
        ids = np.full(self.seq_len + 1, self.eos_id)
        ids[: len(tokens)] = tokens
        labels = ids[1:].copy()
        labels[max(0, len(tokens) - 1) :] = IGNORE_INDEX
        return ids[:-1], labels, self.shard.documents_of(start, start + self.seq_len)

    def spans(self, number: int, row: int = 0) -> Iterator[Span]:
        """The documents of row `number`, which is row `row` of a batch."""
        offsets, first = self.shard.offsets, self.index.start(number)
        last = min(first + self.seq_len, int(offsets[-1]))
        inside = np.searchsorted(offsets, np.asarray([first, last - 1]), side="right") - 1
        for document in range(int(inside[0]), int(inside[1]) + 1):
            begin, end = (int(at) for at in offsets[document : document + 2])
            start, stop = max(begin, first), min(end, last)
            yield Span(row, start - first, stop - first, self.key(document), start - begin)

    def documents(self) -> int:
        return len(self.shard)

    def key(self, document: int) -> bytes:
        """The digest of a document's ids, which names it."""
        return document_key(self.document(document))

    def document(self, number: int) -> np.ndarray:
        """Ids of one document [T]."""
        return self.shard.document(number)


class ConversationRows:
    """Whole conversations packed into rows, first fit. Only the assistant's tokens are labels; none
    sees another conversation.
    """

    def __init__(
        self,
        conversations: Sequence[tuple[list[int], list[bool]]],
        seq_len: int,
        eos_id: int,
        *,
        packed: bool = True,
    ) -> None:
        """conversations: (ids, which of them the assistant wrote). More than seq_len + 1 ids raise
        ValueError.

        The last id is a label alone: no place of a row is spent on reading it.
        packed False gives each a row of its own.
        """
        self.seq_len, self.eos_id = seq_len, eos_id
        self.conversations = conversations
        self.rows = pack(
            [len(ids) - 1 for ids, _ in conversations], seq_len, open_rows=32 if packed else 0
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        ids = np.full(self.seq_len, self.eos_id)
        labels = np.full(self.seq_len, IGNORE_INDEX)
        documents = np.full(self.seq_len, -1)
        at = 0
        for place, which in enumerate(self.rows[number]):
            tokens, answered = self.conversations[which]
            n = len(tokens) - 1
            ids[at : at + n] = tokens[:-1]
            labels[at : at + n] = np.where(answered[1:], tokens[1:], IGNORE_INDEX)
            documents[at : at + n] = place
            at += n
        return ids, labels, documents

    def spans(self, number: int, row: int = 0) -> Iterator[Span]:
        """The conversations of row `number`, which is row `row` of a batch."""
        at = 0
        for which in self.rows[number]:
            length = len(self.conversations[which][0]) - 1
            yield Span(row, at, at + length, self.key(which), 0)
            at += length

    def documents(self) -> int:
        return len(self.conversations)

    def key(self, document: int) -> bytes:
        """The digest of a conversation's ids, which names it."""
        return document_key(self.document(document))

    def document(self, number: int) -> np.ndarray:
        """Ids of one conversation [T]."""
        return np.asarray(self.conversations[number][0])


def pack(lengths: Sequence[int], seq_len: int, open_rows: int = 32) -> list[list[int]]:
    """Which items share a row of seq_len tokens: each goes into the first of the newest `open_rows`
    rows with room.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item, length in enumerate(lengths):
        if length > seq_len:
            raise ValueError(
                f"conversation {item} has {length} tokens, a row holds {seq_len}; raise seq_len or "
                "drop it"
            )
        first = max(0, len(rows) - open_rows)
        row = next((r for r in range(first, len(rows)) if room[r] >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(seq_len)
        rows[row].append(item)
        room[row] -= length
    return rows


Rows = TextRows | ConversationRows


def make_batches(
    sources: Mapping[str, Rows],
    shares: Mapping[str, float],
    plan: BatchPlan,
    *,
    separate_documents: bool,
    name_documents: bool = False,
) -> Callable[[int], list[Batch]]:
    """batches(step): this rank's micro-batches of a step, rows drawn from `sources` in these
    shares.

    separate_documents: tokens see only their own document and positions start anew in each; else
    the row is one text. name_documents: batches tell which documents their tokens are (`spans`), as
    a teacher from disk must know.
    """
    names = [name for name in sorted(shares) if shares[name] > 0]
    empty = [name for name in names if len(sources[name]) == 0]
    if empty:
        raise ValueError(
            f"no rows in {', '.join(empty)}, yet the mix asks for them; give them share 0 or text"
        )
    weights = tuple(shares[name] for name in names)

    def place(number: int) -> tuple[str, int]:
        which, count = draw_source(number, weights, plan.seed)
        size = len(sources[names[which]])
        epoch, at = divmod(count, size)
        return names[which], permuted(at, size, (plan.seed, which, epoch))

    def micro_batch(numbers: Sequence[int]) -> Batch:
        places = [place(number) for number in numbers]
        rows = [sources[name][at] for name, at in places]
        batch = replace(collate(rows, separate_documents), rows=tuple(places))
        if not name_documents:
            return batch
        spans = [
            span for row, (name, at) in enumerate(places) for span in sources[name].spans(at, row)
        ]
        return replace(batch, spans=tuple(spans))

    def batches(step: int) -> list[Batch]:
        share = plan.rows_per_step // plan.world_size
        first = step * plan.rows_per_step + plan.rank * share
        numbers = range(first, first + share)
        size = plan.micro_batch_size
        return [micro_batch(numbers[i : i + size]) for i in range(0, share, size)]

    return batches


def fixed_batches(sources: Mapping[str, TextRows], plan: BatchPlan, count: int) -> Iterator[Batch]:
    """At most `count` rows in an order that the seed sets, sources taking turns, none twice."""
    orders = [
        [(rows, int(number)) for number in np.random.default_rng(plan.seed).permutation(len(rows))]
        for rows in sources.values()
    ]
    turns = chain.from_iterable(zip_longest(*orders))
    chosen = [place for place in turns if place is not None][:count]
    for first in range(0, len(chosen), plan.micro_batch_size):
        places = chosen[first : first + plan.micro_batch_size]
        yield collate([rows[number] for rows, number in places], separate_documents=False)


def collate(rows: Sequence[Row], separate_documents: bool) -> Batch:
    """One micro-batch of rows."""
    ids, labels, documents = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    if not separate_documents:
        return Batch(input_ids=ids, labels=labels)
    place = torch.arange(ids.shape[1]).expand(ids.shape)
    new = torch.ones_like(ids, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    began = torch.where(new, place, 0).cummax(1).values
    return Batch(input_ids=ids, labels=labels, positions=place - began, doc_ids=documents)


def block_totals(shares: Sequence[float], blocks: int) -> np.ndarray:
    """Rows of each source [sources] in the first `blocks` blocks of BLOCK rows; together blocks x
    BLOCK.

    Largest remainders of what is exact up to there, so a source has had the floor or the ceiling of
    it, however long the training, and nothing is carried from block to block. A rare source, of
    less than one row a block, is counted by itself: taken by remainders its total could fall
    again. What rounding many rare sources leaves over goes to the largest.
    """
    exact = np.asarray(shares) / sum(shares) * BLOCK * blocks
    rare = np.asarray(shares) / sum(shares) * BLOCK < 1
    totals = np.floor(exact + np.where(rare, 0.5, 0.0)).astype(np.int64)
    spare = blocks * BLOCK - int(totals.sum())
    common = np.flatnonzero(~rare)
    raised = common[np.argsort((totals - exact)[common], kind="stable")][: max(0, spare)]
    totals[raised] += 1
    totals[int(np.argmax(exact))] += spare - len(raised)
    return totals


def block_quotas(shares: Sequence[float], block: int = 0) -> list[int]:
    """Rows of each source in one block of BLOCK rows, which they sum to; 0 where a rare source
    waits for a later one.
    """
    quotas = block_totals(shares, block + 1) - block_totals(shares, block)
    if (quotas < 0).any():  # beyond some sixty sources, most of them rare
        raise ValueError(
            f"{len(shares)} sources are too many, with shares below one row in {BLOCK} among them; "
            "join small ones"
        )
    return quotas.tolist()


def draw_source(number: int, shares: tuple[float, ...], seed: int) -> tuple[int, int]:
    """(source of row `number`, how many rows of that source came before it), without counting
    them.
    """
    block, place = divmod(number, BLOCK)
    before, order = block_order(block, shares, seed)
    which = int(order[place])
    return which, int(before[which]) + int((order[:place] == which).sum())


@lru_cache(maxsize=8)
def block_order(block: int, shares: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of each source before the block, the source of each of its rows, shuffled by the seed
    and its number).
    """
    order = np.repeat(np.arange(len(shares)), block_quotas(shares, block))
    np.random.default_rng((seed, block)).shuffle(order)
    return block_totals(shares, block), order


def permuted(place: int, size: int, key: tuple[int, ...]) -> int:
    """Where `place` goes in a shuffle of range(size) chosen by `key`: a Feistel network, so no
    table is ever made.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:  # a power of 4 holds `size`; values outside it walk on until one falls inside
        left, right = place >> half, place & low
        for turn in range(4):
            left, right = right, left ^ (_mix(right, turn, *key) & low)
        place = left << half | right
        if place < size:
            return place


def _mix(*parts: int) -> int:
    """A 64-bit hash of a few integers (splitmix64's finaliser)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ part) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
