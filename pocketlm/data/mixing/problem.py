"""What a mixing method gets and what it gives: a method is a function (config, problem) -> Mix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pocketlm.data.datainf import AllReduce
from pocketlm.data.mixture import Shares
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer

LossFn = Callable[[Transformer, Batch], Tensor]  # the sum over labels, as training takes it
Gradients = Sequence[Tensor]  # one for each parameter of a model, in its order


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """What the optimizer does next at a milestone, linear in the gradient.

    rate: the sum of the learning rates of the steps that the milestone stands for, so that rate x
    value, summed over milestones, is a sum over the run. linear_step(whole): with `whole` as the
    gradient of the next step, the map from a part of it to that part's move at learning rate 1,
    downhill. weight_decay: of each parameter. loss_rows: held-out rows of each domain to measure
    the fall of the loss on, the same at the start and the end of the run; no rows in between.
    """

    rate: float
    linear_step: Callable[[Gradients], Callable[[Gradients], list[Tensor]]]
    weight_decay: Sequence[float]
    loss_rows: Mapping[str, Sequence[Batch]]


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """The proxy after one step of a simulated run, and rows to compute gradients on.

    lr: of that step. source_rows: training rows of each source, fresh or fixed. probe_rows:
    held-out rows of each domain, its sources in equal shares. first_order: where it was asked for.
    part: of the batches of all sources, of all probe sets, or of any other rows, those that this
    rank computes; all_reduce sums a tensor over the ranks, in place.
    """

    model: Transformer
    lr: float
    loss_fn: LossFn
    source_rows: Mapping[str, Sequence[Batch]]
    probe_rows: Mapping[str, Sequence[Batch]]
    first_order: FirstOrder | None = None
    part: slice = field(default_factory=lambda: slice(None))
    all_reduce: AllReduce | None = None


class Simulate(Protocol):
    """Trains the proxy on these shares, calls `measure` on `count` evenly spaced milestones of that
    run, and returns what it gave, in order.

    fixed_rows: at most so many rows of each source and probe set, none twice, the same at every
    milestone of every run; None: fresh ones, as many as a step has. first_order: the start of the
    run comes before its milestones, and each says what the optimizer does. Several ranks measure a
    milestone together, and `measure` gives plain data, the same on each, which is kept on disk.
    """

    def __call__(
        self,
        shares: Shares,
        count: int,
        measure: Callable[[Milestone], Any],
        *,
        fixed_rows: int | None = None,
        first_order: bool = False,
    ) -> list[Any]: ...


@dataclass(frozen=True, kw_only=True)
class MixProblem:
    """tokens: of each source's training text. capabilities: the sources whose probe text serves
    each. where: the method's place in the config, for messages.

    losses(mixes): trains a proxy on each of these shares, and gives by the same names the held-out
    bits per byte of each domain. They are of text to choose by, which no mix is reported on.
    """

    tokens: Mapping[str, int]
    capabilities: Mapping[str, tuple[str, ...]]
    budget_tokens: int
    max_epochs: float
    where: str
    simulate: Simulate
    losses: Callable[[Mapping[str, Shares]], dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of all sources, and the plain data that mix.json tells of how they were found.

    beside: runs of the method's `losses`, by their names, that the mixes are to be compared with:
    {"best": "run-003"} of the mix "swarm" is the mix "best of swarm". They are not trained again. A
    config whose method gives any says how many in `num_beside`. warnings: lines for the user, who
    finds them in mix.json too.
    """

    shares: Shares
    details: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
