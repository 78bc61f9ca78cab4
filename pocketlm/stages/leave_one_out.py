"""Leave one source out: what each source does for each capability, by training a small proxy on all
sources and one without each (MobileLLM-R1, section 5.1.2, equation 1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from rich.console import Console

from pocketlm.data.mixture import Shares
from pocketlm.data.rank_correlation import spearman
from pocketlm.data.shards import Shard
from pocketlm.eval.perplexity import LN2, predict
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.files import write_json
from pocketlm.model.json_shape import read_object
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.report.mix_file import compared_mixes, details_of
from pocketlm.stages.proxies import Proxies
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distributed.ranks import device, ranks
from pocketlm.train.optim import OptimConfig

FILE = "leave_one_out.json"
ALL = "all"
Loss = dict[str, float]  # nats_per_token and bits_per_byte of one capability


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutConfig:
    """The proxies that are compared, and what with.

    proxy, optim, seq_len, rows_per_step, micro_batch_size: the small network that is trained on all
    sources and without each, from the same start. R1's size and budget are not found. probe_tokens:
    probe text of each capability that they are measured on. num_seeds: trainings of each, with
    other first weights and rows. min_fall: nats a token by which the loss must fall below that of
    the first weights; a proxy that learned less can say nothing of a source (our choice). save: how
    often a proxy's state is written.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    proxy: ModelConfig
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    seed: int
    probe_tokens: int = 6000
    num_seeds: int = 1
    min_fall: float = 0.5
    save: SaveConfig = SaveConfig(every_steps=50)

    def __post_init__(self) -> None:
        for field in ("num_seeds", "probe_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"{self.name}.{field} {getattr(self, field)} must be at least 1")

    def summary(self) -> str:
        seeds = f", {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"each source left out once, {self.optim.num_steps:,} steps a proxy{seeds}"


def leave_one_out(
    config: LeaveOneOutConfig,
    out: Path,
    *,
    corpus: Path,
    probes: Path | None = None,
    mix: Path | None = None,
) -> Path:
    """`out`, with leave_one_out.json: by how many nats a token the loss on each capability's probe
    set rises when a source is left out (equation 1: above 0 it helps), the losses themselves, and
    with a `mix` how far its figures of sources rank them alike.

    Sources are drawn in equal shares (R1), so the rest of a training takes the missing one's share:
    equal tokens for all. R1 repeats no example; where a source is too small for that, its passes
    are reported. probes: what build_probes wrote; without it held-out text as it is. mix: a folder
    of find_mix. All ranks train each proxy together, and divide what is measured. ValueError: a
    corpus of one source, a capability without text.
    """
    proxies = Proxies(config, out, corpus, probes)
    sources = list(proxies.rows)
    if len(sources) < 2:
        raise ValueError(
            f"{config.name}: {corpus} has one source, {', '.join(sources)}; leaving it out would "
            "leave nothing to train on"
        )
    if not (out / FILE).is_file():
        content = _compared(config, proxies)
        if mix is not None:
            content["rank_correlations"] = rank_correlations(content["effects"], mix)
        if ranks().first:
            write_json(out / FILE, content)
            for warning in content["warnings"]:
                console = Console(stderr=True, highlight=False)
                line = f"  {config.name}: {warning}"
                console.print(line, style="yellow", soft_wrap=True, markup=False)
    proxies.remove_states()
    return out


def equal_shares(sources: Sequence[str], without: str | None = None) -> Shares:
    """The same share for each source but the one that is left out."""
    count = len(sources) - (without is not None)
    return {name: 0.0 if name == without else 1 / count for name in sources}


def run_name(source: str) -> str:
    """Of the proxy without a source."""
    return f"without-{source}"


def _compared(config: LeaveOneOutConfig, proxies: Proxies) -> dict[str, Any]:
    """The content of leave_one_out.json."""
    sources, capabilities = list(proxies.rows), list(proxies.capabilities)
    runs = {ALL: equal_shares(sources)}
    runs |= {run_name(source): equal_shares(sources, source) for source in sources}
    texts = {
        capability: probe_texts(
            shards, proxies.tokenizer, config.probe_tokens, f"{config.name}: {capability!r}"
        )
        for capability, shards in proxies.probes.shards.items()
    }
    measures = {
        f"probe-{capability}": partial(_loss, documents=texts[capability], window=config.seq_len)
        for capability in capabilities
    }
    by_seed = [proxies.measured(runs, measures, number) for number in range(config.num_seeds)]
    first = LanguageModel(
        Transformer(config.proxy, seed=config.seed).to(device()), proxies.tokenizer
    )
    start = {name: _loss(first, texts[name], config.seq_len) for name in capabilities}
    losses = {
        run: {
            name: _mean_loss([measured[run][f"probe-{name}"] for measured in by_seed])
            for name in capabilities
        }
        for run in runs
    }
    effects = {
        source: {
            name: [
                measured[run_name(source)][f"probe-{name}"]["nats_per_token"]
                - measured[ALL][f"probe-{name}"]["nats_per_token"]
                for measured in by_seed
            ]
            for name in capabilities
        }
        for source in sources
    }
    passes = _passes(config, proxies)
    several = config.num_seeds > 1
    return {
        "capabilities": {name: list(serving) for name, serving in proxies.capabilities.items()},
        "num_seeds": config.num_seeds,
        "effects": _each(effects, mean),
        **({"effects_deviation": _each(effects, stdev)} if several else {}),
        "losses": {
            "start": start,
            ALL: losses[ALL],
            "without": {source: losses[run_name(source)] for source in sources},
        },
        "passes": passes,
        "warnings": _warnings(config, proxies, passes, start, losses[ALL]),
    }


def _loss(model: LanguageModel, documents: Sequence[str], window: int) -> Loss:
    predicted = predict(model, documents, window)
    return {
        "nats_per_token": predicted.nats / predicted.num_tokens,
        "bits_per_byte": predicted.nats / LN2 / predicted.num_bytes,
    }


def _mean_loss(losses: Sequence[Loss]) -> Loss:
    return {unit: mean(loss[unit] for loss in losses) for unit in losses[0]}


def _each(
    effects: Mapping[str, Mapping[str, list[float]]], over_seeds: Callable[[list[float]], float]
) -> dict[str, Loss]:
    """One figure of the seeds for each source and capability."""
    return {
        source: {name: over_seeds(values) for name, values in by_capability.items()}
        for source, by_capability in effects.items()
    }


def probe_texts(
    shards: Mapping[str, Shard], tokenizer: Tokenizer, max_tokens: int, where: str
) -> list[str]:
    """Texts of one capability worth about max_tokens, evenly from the sources that serve it.

    ValueError: there is none.
    """
    texts: list[str] = []
    serving = [shard for shard in shards.values() if len(shard)]
    share = max_tokens // max(1, len(serving))
    for shard in serving:
        taken = 0
        for number in range(len(shard)):
            if taken >= share:
                break
            ids = shard.document(number)[: share - taken + 1]
            taken += len(ids)
            texts.append(tokenizer.decode(ids[len(tokenizer.document_start) :].tolist()))
    if not any(texts):
        raise ValueError(
            f"{where} has no probe text of {', '.join(shards) or 'any source'}; raise probe_share "
            "in curate, or give probes in which a source serves it"
        )
    return texts


def _passes(config: LeaveOneOutConfig, proxies: Proxies) -> dict[str, float]:
    """How often a training without another source reads each row of a source."""
    rows = config.optim.num_steps * config.rows_per_step / (len(proxies.rows) - 1)
    return {name: rows / len(source) for name, source in proxies.rows.items() if len(source)}


def _warnings(
    config: LeaveOneOutConfig,
    proxies: Proxies,
    passes: Mapping[str, float],
    start: Mapping[str, Loss],
    end: Mapping[str, Loss],
) -> list[str]:
    """What a reader of the effects must know, a sentence each."""
    lines = []
    falls = {name: start[name]["nats_per_token"] - end[name]["nats_per_token"] for name in end}
    if flat := [name for name, fall in falls.items() if not fall >= config.min_fall]:
        figures = ", ".join(f"{name} {falls[name]:.3f}" for name in flat)
        lines.append(
            f"the proxy on all sources did not learn: its loss fell less than {config.min_fall} "
            f"nats a token below that of its start ({figures}); train it longer, or take a larger "
            "one, before you read its effects"
        )
    if repeated := {name: count for name, count in passes.items() if count > 1}:
        figures = ", ".join(f"{name} {count:.1f} times" for name, count in repeated.items())
        lines.append(f"equal shares repeat what R1 does not: rows are read of {figures}")
    served = {source for serving in proxies.capabilities.values() for source in serving}
    if none := [source for source in proxies.rows if source not in served]:
        lines.append(
            f"no capability has probe text of {', '.join(none)}: only the effect on the probes of "
            "other sources is measured"
        )
    return lines


def rank_correlations(
    effects: Mapping[str, Mapping[str, float]], mix: Path
) -> list[dict[str, Any]]:
    """Spearman's correlation over sources of the effects with every figure that mix.json has of all
    of them: shares, utilities, densities, by capability where they are.

    capability "all": the sum over capabilities of both; None where one is constant.
    """
    sources = list(effects)
    capabilities = list(effects[sources[0]])
    by_capability = {name: [effects[source][name] for source in sources] for name in capabilities}
    by_capability["all"] = [sum(effects[source].values()) for source in sources]
    rows: list[dict[str, Any]] = []

    def add(mix_name: str, figure: str, capability: str, column: Mapping[str, float]) -> None:
        if set(sources) <= set(column):
            value = spearman(by_capability[capability], [column[source] for source in sources])
            place = {"mix": mix_name, "figure": figure, "capability": capability}
            rows.append({**place, "spearman": value, "sources": len(sources)})

    file = read_object(mix / "mix.json")
    for name in file.object("mixes") if "mixes" in file else ():
        file.object("mixes").object(name).object("shares")
    _, mixes = compared_mixes(file)
    for name, content in mixes.items():
        details = details_of(content)
        columns = {"shares": content["shares"], **details.columns}
        for figure, column in columns.items():
            add(name, figure, "all", column)
        for figure, matrix in details.matrices.items():
            if not set(matrix) & set(capabilities):  # of scores in units of their own, say
                for key, column in matrix.items():
                    add(name, f"{figure}.{key}", "all", column)
                continue
            for capability in [key for key in capabilities if key in matrix]:
                add(name, figure, capability, matrix[capability])
            summed = {
                source: sum(column.get(source, 0.0) for column in matrix.values())
                for source in sources
            }
            add(name, figure, "all", summed)
    return rows
