"""What a mixing method gets and what it gives: a method is a function (config, problem) -> Mix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pocketlm.data.mixture import Shares
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer

LossFn = Callable[[Transformer, Batch], Tensor]  # the sum over labels, as training takes it


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """The proxy after one step of a simulated run, and rows to compute gradients on.

    lr: of that step. source_rows: fresh training rows of each source. probe_rows: held-out rows of
    each domain, its sources in equal shares.
    """

    model: Transformer
    lr: float
    loss_fn: LossFn
    source_rows: Mapping[str, Sequence[Batch]]
    probe_rows: Mapping[str, Sequence[Batch]]


@dataclass(frozen=True, kw_only=True)
class MixProblem:
    """tokens: of each source's training text. capabilities: the sources whose probe text serves
    each. where: the method's place in the config, for messages.

    simulate(shares, count, measure): trains the proxy on these shares, calls `measure` on `count`
    evenly spaced milestones of that run, and returns what it gave, in order. With several ranks
    each measures some of the milestones; `measure` gives plain data, which is kept on disk.

    losses(mixes): trains a proxy on each of these shares, and gives by the same names the held-out
    bits per byte of each domain. They are of text to choose by, which no mix is reported on.
    """

    tokens: Mapping[str, int]
    capabilities: Mapping[str, tuple[str, ...]]
    budget_tokens: int
    max_epochs: float
    where: str
    simulate: Callable[[Shares, int, Callable[[Milestone], Any]], list[Any]]
    losses: Callable[[Mapping[str, Shares]], dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of all sources, and the plain data that mix.json tells of how they were found.

    runs: of the method's `losses`, by their names, that are to be compared as mixes too; they are
    not trained again.
    """

    shares: Shares
    details: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Shares] = field(default_factory=dict)
