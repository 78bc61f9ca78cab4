"""Find the mix: shares of the sources by any number of methods, compared by training a small proxy
on each and measuring it on held-out text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pocketlm.data.mixing.methods import METHODS, MixMethod, num_gradient_probes
from pocketlm.data.mixing.problem import Mix, MixProblem
from pocketlm.data.mixture import Shares
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
    that the mixes are compared on. save: how often a proxy's state is written.
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
    save: SaveConfig = SaveConfig(every_steps=50)

    def __post_init__(self) -> None:
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
        """Proxies that are trained: one for each mix, and simulated runs."""
        simulated = sum(num_gradient_probes(method) > 0 for method in self.methods.values())
        return len(self.methods) + simulated

    def summary(self) -> str:
        return (
            f"{', '.join(self.methods)} compared; {self.num_runs} proxy runs of "
            f"{self.optim.num_steps:,} steps; {self.selected} selected"
        )


def find_mix(config: MixConfig, out: Path, *, corpus: Path, probes: Path | None = None) -> Path:
    """`out`, with mix.json: the shares of the selected mix, and of every mix its shares, its
    held-out bits per byte after training on it, and what its method tells; proxies/ has the metrics
    of the proxies' trainings.

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
    mixes: dict[str, Mix] = {}
    for name, method in config.methods.items():
        problem = MixProblem(
            tokens=proxies.tokens,
            capabilities=proxies.capabilities,
            budget_tokens=config.budget_tokens,
            max_epochs=config.max_epochs,
            where=f"{config.name}.methods.{name}",
            simulate=partial(proxies.simulate, proxies.simulated_names(name)),
            losses=partial(swarm_losses, proxies, name),
        )
        mixes[name] = METHODS[type(method)](method, problem)
    measured = proxies.losses({name: mix.shares for name, mix in mixes.items()})
    if ranks().first:
        compared = {
            name: {
                "method": config.methods[name].summary(),
                "shares": mix.shares,
                "bits_per_byte": _with_mean(measured[name]),
                **mix.details,
            }
            for name, mix in mixes.items()
        }
        shares = mixes[config.selected].shares
        content = {"selected": config.selected, "shares": shares, "mixes": compared}
        write_json(out / "mix.json", content)


def swarm_losses(
    proxies: Proxies, method: str, mixes: Mapping[str, Shares]
) -> dict[str, dict[str, float]]:
    """The losses of a method's own proxies, by which it may choose; the mixes are compared on
    another part of the text.
    """
    names = {f"{method}-{name}": shares for name, shares in mixes.items()}
    measured = proxies.losses(names, "choose")
    return {name: measured[f"{method}-{name}"] for name in mixes}


def _with_mean(bits: Mapping[str, float]) -> dict[str, float]:
    return {**bits, "mean": sum(bits.values()) / len(bits)}
