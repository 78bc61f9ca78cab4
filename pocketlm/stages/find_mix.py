"""Find the mix: shares of the sources by any number of methods, compared by training a small proxy
on each and measuring it on held-out text.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from pocketlm.data.mixing.methods import (
    METHODS,
    MixMethod,
    gradient_rows,
    num_gradient_probes,
    num_own_proxies,
    num_trained_before,
)
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixture import Shares
from pocketlm.model.costs import flops_of
from pocketlm.model.files import write_json
from pocketlm.model.model_config import ModelConfig
from pocketlm.stages.proxies import Proxies, SharesKey, shares_key
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
    weights and rows; the methods themselves choose by the first. sources: those that are mixed,
    where a corpus holds others for trainings with shares of their own; empty: all. save: how often
    a proxy's state is written.
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
    sources: tuple[str, ...] = ()
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

    def num_runs(self, num_capabilities: int) -> int:
        """Proxies that are trained: those of each compared mix, and those that methods train to
        find it. What is compared beside a mix is one of these, as other mixes may be: its first
        seed is not trained again.
        """
        methods = list(self.methods.values())
        again = self.num_compared - len(methods) + num_trained_before(methods)
        found_by = sum(num_own_proxies(method, num_capabilities) for method in methods)
        return self.num_compared * self.num_seeds - again + found_by

    @property
    def num_compared(self) -> int:
        """Mixes that are compared: one of each method, and those that methods give beside it."""
        beside = sum(getattr(method, "num_beside", 0) for method in self.methods.values())
        return len(self.methods) + beside

    def summary(self) -> str:
        seeds = f" with {self.num_seeds} seeds each" if self.num_seeds > 1 else ""
        runs = f"{self.num_runs(0)}"
        if by_capability := self.num_runs(1) - self.num_runs(0):
            runs += f" + {by_capability} for each capability"
        return (
            f"{', '.join(self.methods)} compared{seeds}; {runs} proxy runs of "
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
    proxies = Proxies(config, out, corpus, probes, config.sources)
    if not (out / "mix.json").is_file():
        write_mixes(config, out, proxies)
    proxies.remove_states()
    return out


def write_mixes(config: MixConfig, out: Path, proxies: Proxies) -> None:
    """mix.json, written by the first rank when every proxy is trained and measured."""
    by_method = _found_mixes(config, proxies)
    shares, trained = _compared(by_method)
    by_seed = [
        proxies.losses(
            {proxy: shares[name] for name, proxy in trained.items()},
            config.validation_tokens,
            seed=number,
        )
        for number in range(config.num_seeds)
    ]
    if not ranks().first:
        return
    objectives, asked_for = _objectives(config, next(iter(by_seed[0].values())))
    figures = {
        name: _over_seeds([with_means(losses[proxy], objectives) for losses in by_seed])
        for name, proxy in trained.items()
    }
    compared = {
        name: {
            "method": config.methods[name].summary(),
            "shares": mix.shares,
            **figures[name],
            **({"objective": asked_for[name]} if name in asked_for else {}),
            "cost": cost,
            **mix.details,
            **({"warnings": list(mix.warnings)} if mix.warnings else {}),
        }
        for name, (mix, cost, _) in by_method.items()
    }
    for name in [name for name in shares if name not in by_method]:
        beside = {"method": f"the proxy {trained[name]}", "shares": shares[name], **figures[name]}
        compared[name] = beside
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


# a method's mix, what finding it cost, and the shares of the proxies it was found by
Found = tuple[Mix, dict[str, int], dict[str, Shares]]


def _compared(by_method: Mapping[str, Found]) -> tuple[dict[str, Shares], dict[str, str]]:
    """(the shares, the name of the proxy) of every mix that is compared, by its name. What a method
    gives beside its mix is one of its own proxies.
    """
    shares = {name: mix.shares for name, (mix, _, _) in by_method.items()}
    trained = {name: name for name in by_method}
    for name, (mix, _, runs) in by_method.items():
        for label, run in mix.beside.items():
            shares[f"{label} of {name}"] = runs[run]
            trained[f"{label} of {name}"] = f"{name}-{run}"
    return shares, trained


def _found_mixes(config: MixConfig, proxies: Proxies) -> dict[str, Found]:
    """Every method's mix, and what finding it cost: proxies that were trained for it, rows that
    gradients were computed on, and the FLOPs of both (model/costs.py).
    """
    by_method: dict[str, Found] = {}
    row = flops_of(config.proxy, 1, config.seq_len).training()
    for name, method in config.methods.items():
        count, runs = Counter(proxies=0), {}
        trained: set[SharesKey] = set()
        problem = MixProblem(
            tokens=proxies.tokens,
            capabilities=proxies.capabilities,
            budget_tokens=config.budget_tokens,
            max_epochs=config.max_epochs,
            where=f"{config.name}.methods.{name}",
            simulate=partial(_simulate, proxies, proxies.simulated_names(name), count, trained),
            losses=partial(
                swarm_losses, proxies, name, config.validation_tokens, count, trained, runs
            ),
        )
        mix = METHODS[type(method)](method, problem)
        for line in mix.warnings if ranks().first else ():
            print(f"  {name}: {line}", file=sys.stderr, flush=True)
        trained_rows = count["proxies"] * config.optim.num_steps * config.rows_per_step
        probed = gradient_rows(
            method, config.rows_per_step, len(proxies.rows), len(proxies.capabilities)
        )
        cost = {**count, "gradient_rows": probed, "flops": (trained_rows + probed) * row}
        by_method[name] = mix, cost, runs
    return by_method


def _simulate(
    proxies: Proxies,
    names: Iterator[str],
    count: Counter[str],
    trained: set[SharesKey],
    shares: Shares,
    *run: Any,
    **how: Any,
):
    """Proxies.simulate, counted."""
    count.update(proxies=1)
    trained.add(shares_key(shares))
    return proxies.simulate(names, shares, *run, **how)


def swarm_losses(
    proxies: Proxies,
    method: str,
    num_tokens: int,
    count: Counter[str],
    trained: set[SharesKey],
    runs: dict[str, Shares],
    mixes: Mapping[str, Shares],
) -> dict[str, dict[str, float]]:
    """The losses of a method's own proxies, by which it may choose; the mixes are compared on
    another part of the text. count, trained, runs: what was trained, added up over the method's
    calls; one proxy for the same shares.
    """
    keys = {shares_key(shares) for shares in mixes.values()}
    count.update(proxies=len(keys - trained))
    trained |= keys
    runs.update(mixes)
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
