"""Sparse encoding of a teacher's distributions: for each token its top entries, plus the mass of
all other words.

A word without an entry gets a share of the remaining mass, by the same tail prior for all tokens:
the teacher's mean distribution outside its likeliest words. A word has an entry where that lowers
the KL error of the token by more than `min_gain` nats, so k differs from token to token: a
confident one takes a few, another up to MAX_ENTRIES. Log-probabilities are rounded to 6 bits on a
grid that is finest near certainty. Papers are silent: all of this is our choice, measured by
benchmarks/teacher_cache.py against fixed k and against a published scheme.

A document of T tokens and E entries is T bytes of counts, T bytes of remaining mass, and E x (id
bits + 6) bits packed.

Shapes: N tokens, V vocabulary, E entries of all N
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketlm.train.lazy_logits import SparseScores

MAX_ENTRIES = 255  # of a token: a count is a byte
VALUE_BITS, LOWEST_VALUE = 6, -20.0  # log-probabilities of entries: 0 to -20 nats
MASS_BITS, LOWEST_MASS = 8, -30.0  # the same of the remaining mass
LIKELIEST = 32  # words of a token that do not count towards the tail prior
FLOOR = 1e-3  # of the tail prior is uniform, so that a word never seen has a share


@dataclass(frozen=True)
class Encoded:
    """N distributions. counts uint8 [N]: entries of each token; remaining_mass uint8 [N];
    ids uint32 [E]; values uint8 [E].

    Entries are ordered by token, then by id.
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


def concatenate(parts: list[Encoded]) -> Encoded:
    """The distributions of all parts, in order."""
    return Encoded(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Encoded.__annotations__
        )
    )


def tail_prior(mass: Tensor) -> Tensor:
    """Log shares [V] of words without entry in the remaining mass, from the `tail_mass` [V] of many
    tokens.
    """
    return ((1 - FLOOR) * mass / mass.sum() + FLOOR / len(mass)).log()


def tail_mass(logits: Tensor) -> Tensor:
    """The sum [V] of probabilities outside the LIKELIEST words of each token, of logits [N, V]."""
    q = logits.softmax(-1)
    return q.scatter_(1, q.topk(min(LIKELIEST, q.shape[1] // 2)).indices, 0.0).sum(0)


def encode(logits: Tensor, prior: Tensor, min_gain: float) -> tuple[Encoded, Tensor]:
    """(the distributions of logits [N, V], encoded; the KL [N] in nats of what is decoded from the
    exact ones).
    """
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    level = torch.zeros(len(q), 1, device=q.device)
    # the remaining mass depends on which words are stored, and they on it; two rounds converge
    for _ in range(2):
        others = (_gain(q, log_q, prior + level) <= min_gain).to(q.dtype)
        mass, share = (others * q).sum(-1, True), others @ prior.exp()[:, None]
        level = mass.clamp(min=1e-13).log() - share.clamp(min=1e-13).log()
    gain = _gain(q, log_q, prior + level)
    chosen = gain > min_gain
    many = chosen.sum(-1) > MAX_ENTRIES
    if many.any():
        best = gain[many].topk(MAX_ENTRIES).indices
        chosen[many] = torch.zeros_like(chosen[many]).scatter_(1, best, True)
    rows, ids = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(-1)
    mass = (
        (1 - torch.zeros_like(level[:, 0]).index_add_(0, rows, q[rows, ids])).clamp(min=1e-13).log()
    )
    coded = (
        counts,
        _quantize(mass, MASS_BITS, LOWEST_MASS),
        ids,
        _quantize(log_q[rows, ids], VALUE_BITS, LOWEST_VALUE),
    )
    kinds = (np.uint8, np.uint8, np.uint32, np.uint8)
    encoded = Encoded(*(x.cpu().numpy().astype(kind) for x, kind in zip(coded, kinds, strict=True)))
    return encoded, _error(q, log_q, encoded, prior)


def _gain(q: Tensor, log_q: Tensor, log_r: Tensor) -> Tensor:
    """Nats by which an entry for a word lowers the KL, at least 0; r, overwritten, is what the word
    gets without one.
    """
    return (log_q - log_r).mul_(q).sub_(q).add_(log_r.exp_())


def _error(q: Tensor, log_q: Tensor, encoded: Encoded, prior: Tensor) -> Tensor:
    """KL [N] of the decoded distributions, made to sum to 1 as the loss makes them, from q."""
    sparse = decode(encoded, prior)
    total = (sparse.levels + prior).exp().sum(-1)
    # what the words of entries would get without them
    without = sparse.levels[sparse.owners, 0] + prior[sparse.ids]
    total.index_add_(0, sparse.owners, sparse.values.exp() - without.exp())
    error = (q * (log_q - prior)).sum(-1) - sparse.levels[:, 0] + total.log()
    return error.index_add_(
        0, sparse.owners, q[sparse.owners, sparse.ids] * (without - sparse.values)
    )


def decode(coded: Encoded, prior: Tensor) -> SparseScores:
    """Log-probabilities [N, V], on the device of the tail prior [V]."""
    where = prior.device
    counts = torch.from_numpy(coded.counts.astype(np.int64)).to(where)
    ids = torch.from_numpy(coded.ids.astype(np.int64)).to(where)
    owners = torch.repeat_interleave(torch.arange(len(coded), device=where), counts)
    values = _dequantize(coded.values, VALUE_BITS, LOWEST_VALUE).to(where)
    taken = torch.zeros(len(coded), device=where).index_add_(0, owners, prior[ids].exp())
    level = _dequantize(coded.remaining_mass, MASS_BITS, LOWEST_MASS).to(where)
    level -= (1 - taken).clamp(min=1e-6).log()
    order = ids.argsort(stable=True)
    return SparseScores(owners[order], ids[order], values[order], level[:, None], prior)


def _quantize(logs: Tensor, bits: int, lowest: float) -> Tensor:
    """Integers for log-probabilities: steps grow with the distance from 0, because likely words
    weigh more in the KL.
    """
    return ((logs / lowest).clamp(0, 1).sqrt() * (2**bits - 1)).round()


def _dequantize(codes: np.ndarray, bits: int, lowest: float) -> Tensor:
    return (torch.from_numpy(codes.astype(np.float32)) / (2**bits - 1)).square() * lowest


def id_bits(vocab_size: int) -> int:
    return max(1, (vocab_size - 1).bit_length())


def to_bytes(coded: Encoded, bits: int) -> bytes:
    """A document as it is on disk; `bits` of an id."""
    width = bits + VALUE_BITS
    entries = coded.ids << np.uint32(VALUE_BITS) | coded.values
    bit_rows = (entries[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return b"".join(
        (
            coded.counts.tobytes(),
            coded.remaining_mass.tobytes(),
            np.packbits(bit_rows.astype(np.uint8), bitorder="little").tobytes(),
        )
    )


def size_in_bytes(tokens: int, entries: int, bits: int) -> int:
    return 2 * tokens + -(-entries * (bits + VALUE_BITS) // 8)


def from_bytes(
    raw: np.ndarray, tokens: int, bits: int, first: int = 0, stop: int | None = None
) -> Encoded:
    """Tokens first..stop - 1 of the document of `tokens` tokens in raw, uint8."""
    stop, width = tokens if stop is None else stop, bits + VALUE_BITS
    counts, mass, packed = raw[first:stop], raw[tokens + first : tokens + stop], raw[2 * tokens :]
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
        mass,
        (entries >> np.uint64(VALUE_BITS)).astype(np.uint32),
        (entries & np.uint64(2**VALUE_BITS - 1)).astype(np.uint8),
    )
