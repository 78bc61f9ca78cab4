"""A teacher's distributions in few bytes: for each token the words worth storing, and one number
for all others.

A word without an entry gets a share of the remaining mass, the same shares for all tokens: the
teacher's mean distribution outside its likeliest words. A word has an entry where that lowers the
KL error of the token by more than `min_gain` nats, so k differs from token to token: one that is
sure takes a few, one that is not up to MOST. Log-probabilities are rounded to 6 bits on a grid that
is finest near certainty. Papers are silent: all of this is our choice, measured by
benchmarks/teacher_cache.py against fixed k and against a published scheme.

A document of T tokens and E entries is T bytes of counts, T bytes of the remaining mass, and E x
(id bits + 6) bits packed.

Shapes: N tokens, V vocabulary, E entries of all N
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketlm.train.lazy_logits import SparseScores

MOST = 255  # entries of a token: a count is a byte
VALUE_BITS, LOWEST = 6, -20.0  # log-probabilities of entries: 0 to LOWEST nats
MASS_BITS, LEAST = 8, -30.0  # the same of the remaining mass
LIKELIEST = 32  # words of a token that its share of the others is not taken from
FLOOR = 1e-3  # of the shares is spread evenly, so that a word never seen has one


@dataclass(frozen=True)
class Encoded:
    """N distributions. counts uint8 [N]: entries of each token; remaining_mass uint8 [N]; ids
    uint32 [E]; values uint8 [E].

    Entries stand token by token, ids ascending.
    """

    counts: np.ndarray
    remaining_mass: np.ndarray
    ids: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def part(self, first: int, stop: int) -> "Encoded":
        """Those of tokens first..stop - 1."""
        begin, end = int(self.counts[:first].sum()), int(self.counts[:stop].sum())
        return Encoded(
            self.counts[first:stop],
            self.remaining_mass[first:stop],
            self.ids[begin:end],
            self.values[begin:end],
        )


def joined(parts: list[Encoded]) -> Encoded:
    """Distributions after one another."""
    return Encoded(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Encoded.__annotations__
        )
    )


def tail_prior(tails: Tensor) -> Tensor:
    """Log shares [V] of words without entry, from the sum [V] of probabilities outside the
    LIKELIEST of many tokens.
    """
    return ((1 - FLOOR) * tails / tails.sum() + FLOOR / len(tails)).log()


def tail_mass(logits: Tensor) -> Tensor:
    """Of logits [N, V] the sum [V] of probabilities outside the LIKELIEST words of each token."""
    q = logits.softmax(-1)
    return q.scatter_(1, q.topk(min(LIKELIEST, q.shape[1] // 2)).indices, 0.0).sum(0)


def encode(logits: Tensor, shares: Tensor, min_gain: float) -> tuple[Encoded, Tensor]:
    """(the distributions of logits [N, V], encoded; the KL [N] in nats of what is decoded from the
    exact ones).
    """
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    level = torch.zeros(len(q), 1, device=q.device)
    # the remaining mass depends on which words are stored, and they on it; two rounds settle it
    for _ in range(2):
        others = (_gain(q, log_q, shares + level) <= min_gain).to(q.dtype)
        remaining_mass, share = (others * q).sum(-1, True), others @ shares.exp()[:, None]
        level = remaining_mass.clamp(min=1e-13).log() - share.clamp(min=1e-13).log()
    gain = _gain(q, log_q, shares + level)
    chosen = gain > min_gain
    many = chosen.sum(-1) > MOST
    if many.any():
        best = gain[many].topk(MOST).indices
        chosen[many] = torch.zeros_like(chosen[many]).scatter_(1, best, True)
    rows, ids = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(-1)
    stored_mass = torch.zeros_like(level[:, 0]).index_add_(0, rows, q[rows, ids])
    log_remaining_mass = (1 - stored_mass).clamp(min=1e-13).log()
    coded = (
        counts,
        _code(log_remaining_mass, MASS_BITS, LEAST),
        ids,
        _code(log_q[rows, ids], VALUE_BITS, LOWEST),
    )
    kinds = (np.uint8, np.uint8, np.uint32, np.uint8)
    encoded = Encoded(*(x.cpu().numpy().astype(kind) for x, kind in zip(coded, kinds, strict=True)))
    return encoded, _error(q, log_q, encoded, shares)


def _gain(q: Tensor, log_q: Tensor, log_r: Tensor) -> Tensor:
    """Nats by which an entry for a word lowers the KL, where r, written over, is what the word gets
    without one: at least 0.
    """
    return (log_q - log_r).mul_(q).sub_(q).add_(log_r.exp_())


def _error(q: Tensor, log_q: Tensor, encoded: Encoded, shares: Tensor) -> Tensor:
    """KL [N] of the decoded distributions, made to sum to 1 as the loss makes them, from q."""
    sparse = decode(encoded, shares)
    total = (sparse.levels + shares).exp().sum(-1)
    # what entries would get if they were none
    without = sparse.levels[sparse.owners, 0] + shares[sparse.ids]
    total.index_add_(0, sparse.owners, sparse.values.exp() - without.exp())
    error = (q * (log_q - shares)).sum(-1) - sparse.levels[:, 0] + total.log()
    return error.index_add_(
        0, sparse.owners, q[sparse.owners, sparse.ids] * (without - sparse.values)
    )


def decode(coded: Encoded, shares: Tensor) -> SparseScores:
    """Log-probabilities [N, V], on the device of the shares [V]."""
    where = shares.device
    counts = torch.from_numpy(coded.counts.astype(np.int64)).to(where)
    ids = torch.from_numpy(coded.ids.astype(np.int64)).to(where)
    owners = torch.repeat_interleave(torch.arange(len(coded), device=where), counts)
    values = _decoded(coded.values, VALUE_BITS, LOWEST).to(where)
    taken = torch.zeros(len(coded), device=where).index_add_(0, owners, shares[ids].exp())
    level = (
        _decoded(coded.remaining_mass, MASS_BITS, LEAST).to(where)
        - (1 - taken).clamp(min=1e-6).log()
    )
    order = ids.argsort(stable=True)
    return SparseScores(owners[order], ids[order], values[order], level[:, None], shares)


def _code(logs: Tensor, bits: int, lowest: float) -> Tensor:
    """Integers for log-probabilities: steps grow with the distance from 0, for likely words weigh
    more.
    """
    return ((logs / lowest).clamp(0, 1).sqrt() * (2**bits - 1)).round()


def _decoded(codes: np.ndarray, bits: int, lowest: float) -> Tensor:
    return (torch.from_numpy(codes.astype(np.float32)) / (2**bits - 1)).square() * lowest


def id_bits(vocab_size: int) -> int:
    return max(1, (vocab_size - 1).bit_length())


def to_bytes(coded: Encoded, bits: int) -> bytes:
    """A document as it lies on disk; `bits` of an id."""
    width = bits + VALUE_BITS
    entries = coded.ids << np.uint32(VALUE_BITS) | coded.values
    spread = (entries[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return b"".join(
        (
            coded.counts.tobytes(),
            coded.remaining_mass.tobytes(),
            np.packbits(spread.astype(np.uint8), bitorder="little").tobytes(),
        )
    )


def size_in_bytes(tokens: int, entries: int, bits: int) -> int:
    return 2 * tokens + -(-entries * (bits + VALUE_BITS) // 8)


def from_bytes(
    raw: np.ndarray, tokens: int, bits: int, first: int = 0, stop: int | None = None
) -> Encoded:
    """Tokens first..stop - 1 of the document of `tokens` tokens in raw, uint8."""
    stop, width = tokens if stop is None else stop, bits + VALUE_BITS
    counts, packed = raw[first:stop], raw[2 * tokens :]
    remaining_mass = raw[tokens + first : tokens + stop]
    begin = int(raw[:first].sum(dtype=np.int64))
    places = (begin + np.arange(int(counts.sum(dtype=np.int64)))) * width
    at, shift = places >> 3, (places & 7).astype(np.uint64)
    packed = np.concatenate([packed, np.zeros(8, np.uint8)])
    word = np.zeros(len(places), dtype=np.uint64)
    for byte in range((width + 14) // 8):
        word |= packed[at + byte].astype(np.uint64) << np.uint64(8 * byte)
    entries = (word >> shift) & np.uint64(2**width - 1)
    return Encoded(
        counts,
        remaining_mass,
        (entries >> np.uint64(VALUE_BITS)).astype(np.uint32),
        (entries & np.uint64(2**VALUE_BITS - 1)).astype(np.uint8),
    )
