"""Find the mix: shares of the sources by any number of methods, compared by training a small proxy
on each and measuring it on held-out text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from pocketlm.data.mixing.methods import METHODS, MixMethod, num_gradient_probes
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixture import Shares
from pocketlm.model.costs import flops_of
from pocketlm.model.files import write_json
from pocketlm.model.transformer import ModelConfig
from pocketlm.stages.proxies import Proxies
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How to find shares, and with what to compare them.

    methods: each mix by its name, with the config of its method. selected: the one that the stages
    after this train on. proxy, optim, seq_len, rows_per_step, micro_batch_size: the small network
    that is trained on each mix from the same start, and how; a simulated run is trained alike.
    budget_tokens, max_epochs: a method that caps repetition passes over no source more than
    max_epochs times in a training of budget_tokens. validation_tokens: held-out text of each domain
    that the mixes are compared on. num_seeds: trainings on each compared mix, with other first
    weights and rows; the methods themselves choose by the first. save: how often a proxy's state is
    written.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    methods: dict[str, MixMethod]
    selected: str
    proxy: ModelConfig
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    budget_tokens: int
    max_epochs: float
    seed: int
    validation_tokens: int = 6000
    num_seeds: int = 1
    save: SaveConfig = SaveConfig(every_steps=50)

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ValueError(f"{self.name}.num_seeds {self.num_seeds} must be at least 1")
        if self.selected not in self.methods:
            raise ValueError(
                f"selected {self.selected!r} is none of the mixes; known: {', '.join(self.methods)}"
            )
        for name, method in self.methods.items():
            if num_gradient_probes(method) > self.optim.num_steps:
                raise ValueError(
                    f"methods.{name}.num_gradient_probes {num_gradient_probes(method)} exceeds "
                    f"optim.num_steps {self.optim.num_steps}"
                )

    @property
    def num_runs(self) -> int:
        """Proxies that are trained: those of each compared mix, and simulated runs."""
        simulated = sum(num_gradient_probes(method) > 0 for method in self.methods.values())
        return len(self.methods) * self.num_seeds + simulated

    def summary(self) -> str:
        seeds = f" with {self.num_seeds} seeds each" if self.num_seeds > 1 else ""
        return (
            f"{', '.join(self.methods)} compared{seeds}; {self.num_runs} proxy runs of "
            f"{self.optim.num_steps:,} steps; {self.selected} selected"
        )


def find_mix(config: MixConfig, out: Path, *, corpus: Path, probes: Path | None = None) -> Path:
    """`out`, with mix.json: the shares of the selected mix, and of every mix its shares, its
    held-out bits per byte after training on it, what finding it cost, and what its method tells;
    mixes/NAME is the same with another mix selected, for a training on that; proxies/ has the
    metrics of the proxies' trainings.

    probes: what build_probes wrote; without it held-out text as it is. Uniform is the papers'
    baseline and a weak one; size-proportional is the one to beat (docs/log.md). All ranks train
    each proxy together, and divide what is measured.
    """
    proxies = Proxies(config, out, corpus, probes)
    if not (out / "mix.json").is_file():
        write_mixes(config, out, proxies)
    proxies.remove_states()
    return out


def write_mixes(config: MixConfig, out: Path, proxies: Proxies) -> None:
    """mix.json, written by the first rank when every proxy is trained and measured."""
    mixes, costs = _found_mixes(config, proxies)
    shares = {name: mix.shares for name, mix in mixes.items()} | {
        f"{name}-{run}": other  # the name of its proxy
        for name, mix in mixes.items()
        for run, other in mix.runs.items()
    }
    by_seed = [
        proxies.losses(shares, config.validation_tokens, seed=number)
        for number in range(config.num_seeds)
    ]
    if not ranks().first:
        return
    objectives, asked_for = _objectives(config, next(iter(by_seed[0].values())))
    figures = {
        name: _over_seeds([with_means(losses[name], objectives) for losses in by_seed])
        for name in shares
    }
    compared = {
        name: {
            "method": config.methods[name].summary(),
            "shares": mix.shares,
            **figures[name],
            **({"objective": asked_for[name]} if name in asked_for else {}),
            "cost": costs[name],
            **mix.details,
        }
        for name, mix in mixes.items()
    }
    for name, mix in mixes.items():
        for run, other in mix.runs.items():
            place = f"{name}-{run}"
            method = f"the best run of {name}"
            compared[place] = {"method": method, "shares": other, **figures[place]}
    content = {
        "selected": config.selected,
        "shares": shares[config.selected],
        **({"objectives": objectives} if objectives else {}),
        "mixes": compared,
    }
    for name, mix in compared.items():
        alone = {"selected": name, "shares": shares[name], "mixes": {name: mix}}
        folder = out / "mixes" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "mix.json", alone)
    write_json(out / "mix.json", content)


def _found_mixes(
    config: MixConfig, proxies: Proxies
) -> tuple[dict[str, Mix], dict[str, dict[str, int]]]:
    """Every method's mix, and what finding it cost: proxies that were trained for it, rows that
    gradients were computed on, and the FLOPs of both (model/costs.py).
    """
    mixes: dict[str, Mix] = {}
    costs: dict[str, dict[str, int]] = {}
    row = flops_of(config.proxy, 1, config.seq_len).training()
    for name, method in config.methods.items():
        count = Counter(proxies=0, gradient_rows=0)
        problem = MixProblem(
            tokens=proxies.tokens,
            capabilities=proxies.capabilities,
            budget_tokens=config.budget_tokens,
            max_epochs=config.max_epochs,
            where=f"{config.name}.methods.{name}",
            simulate=partial(_simulate, proxies, proxies.simulated_names(name), count),
            losses=partial(swarm_losses, proxies, name, config.validation_tokens, count),
        )
        mixes[name] = METHODS[type(method)](method, problem)
        trained_rows = count["proxies"] * config.optim.num_steps * config.rows_per_step
        costs[name] = {**count, "flops": (trained_rows + count["gradient_rows"]) * row}
    return mixes, costs


def _simulate(
    proxies: Proxies,
    names: Iterator[str],
    count: Counter[str],
    shares: Shares,
    num_milestones: int,
    measure: Callable[[Milestone], Any],
) -> list[Any]:
    """Proxies.simulate, counted. A milestone has as many rows of each source and of each
    capability as a step trains on.
    """
    rows = (len(proxies.rows) + len(proxies.capabilities)) * proxies.config.rows_per_step
    count.update(proxies=1, gradient_rows=num_milestones * rows)
    return proxies.simulate(names, shares, num_milestones, measure)


def swarm_losses(
    proxies: Proxies, method: str, num_tokens: int, count: Counter[str], mixes: Mapping[str, Shares]
) -> dict[str, dict[str, float]]:
    """The losses of a method's own proxies, by which it may choose; the mixes are compared on
    another part of the text.
    """
    count.update(proxies=len(mixes))
    names = {f"{method}-{name}": shares for name, shares in mixes.items()}
    measured = proxies.losses(names, num_tokens, "choose")
    return {name: measured[f"{method}-{name}"] for name in mixes}


def _objectives(
    config: MixConfig, domains: Iterable[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(the weighted means that methods were asked for, by the name of their column: the weight of
    each domain, summing to 1; the column of each method that has one).

    Only where they differ from the plain mean. Weights of capabilities that no domain is named
    after have no validation text to be measured on.
    """
    names = list(domains)
    objectives: dict[str, dict[str, float]] = {}
    columns: dict[str, str] = {}
    for name, method in config.methods.items():
        given = getattr(method, "probe_weights", {})
        total = sum(given.values())
        if not total or not set(given) <= set(names):
            continue
        weights = {domain: given.get(domain, 0.0) / total for domain in names}
        if len(set(weights.values())) > 1:
            same = (column for column, other in objectives.items() if other == weights)
            columns[name] = next(same, f"mean for {name}")
            objectives[columns[name]] = weights
    return objectives, columns


def with_means(
    bits: Mapping[str, float], objectives: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Bits per byte of each domain, their plain mean, and the mean of each objective."""
    weighted = {
        name: sum(weights[domain] * bits[domain] for domain in bits)
        for name, weights in objectives.items()
    }
    return {**bits, "mean": sum(bits.values()) / len(bits), **weighted}


def _over_seeds(by_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What mix.json tells of one mix: its bits per byte, and with several seeds their mean, their
    standard deviation (of one seed, with n - 1), and the figures themselves.
    """
    if len(by_seed) == 1:
        return {"bits_per_byte": by_seed[0]}
    columns = {key: [figures[key] for figures in by_seed] for key in by_seed[0]}
    return {
        "bits_per_byte": {key: mean(values) for key, values in columns.items()},
        "bits_per_byte_deviation": {key: stdev(values) for key, values in columns.items()},
        "bits_per_byte_by_seed": list(by_seed),
    }
