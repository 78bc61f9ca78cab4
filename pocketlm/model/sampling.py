"""How the next token is chosen from logits: greedy, or drawn. Every runtime here chooses by this one function.

Shapes: B batch, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the choice is restricted to, in the order in which it is applied (that of Hugging Face's generate).

    repetition_penalty: logits of tokens that were there before, in the prompt too, are divided by it where positive and
    multiplied where negative; 1 does nothing. temperature: logits are divided by it; 0 takes the likeliest. top_k: only
    the k likeliest; 0 for all. top_p: only the likeliest that together have this probability. min_p: only those at
    least this share as likely as the likeliest. seed: row n of a batch draws with seed + n.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature {self.temperature} is below 0; 0 gives the likeliest answer, 0.7 varies")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is below 0; 0 draws from every word")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not between 0 and 1; 1 draws from every word")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is not between 0 and 1; 0 draws from every word")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is not above 0; 1 does nothing")

    def generators(self, rows: int) -> list[torch.Generator]:
        """A source of chance for each row, the same whoever is beside it."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]


GREEDY = Sampling()


def sample(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator], earlier: Sequence[Sequence[int]]
) -> Tensor:
    """Next ids [B] from logits [B, V]. earlier: the ids of each row so far, its prompt's and its answer's."""
    logits = penalised(logits, earlier, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return torch.from_numpy(logits.float().cpu().numpy().argmax(-1)).to(logits.device)  # of 128k: 9 us, not 110
    probabilities, order = restricted(logits, sampling)
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
    return order.gather(-1, torch.stack(drawn))[:, 0]


def penalised(logits: Tensor, earlier: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """The logits, those of earlier tokens made less likely (Keskar et al. 2019, CTRL, section 4.1)."""
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, ids in zip(logits, earlier, strict=True):
        seen = torch.tensor(sorted(set(ids)), device=row.device)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return logits


def restricted(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(weights, ids), both [B, V], the likeliest first: what is drawn from. Weights left out are 0; they need not sum to 1."""
    weights, order = torch.softmax(logits / sampling.temperature, -1).sort(-1, descending=True)
    if 0 < sampling.top_k < weights.shape[-1]:
        weights[:, sampling.top_k :] = 0.0
        weights = weights / weights.sum(-1, keepdim=True)
    if sampling.top_p < 1:  # at 1 the rounding of the sum would cut the tail
        weights[weights.cumsum(-1) - weights >= sampling.top_p] = 0.0
    weights[weights < sampling.min_p * weights[:, :1]] = 0.0
    return weights, order
