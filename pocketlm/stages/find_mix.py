"""Find the mix: shares of the sources by any number of methods, compared by training a small proxy
on each and measuring it on held-out text.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import held_out_texts, open_shards, source_domains
from pocketlm.data.mixing.methods import METHODS, MixMethod, num_gradient_probes
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixture import Shares, uniform_shares
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ComputeSettings, ModelConfig, Transformer
from pocketlm.train.checkpoint import RESUME, SaveConfig
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import barrier, device, ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import next_token_loss
from pocketlm.train.milestones import MILESTONES, Milestones
from pocketlm.train.optim import OptimConfig, lr_at, product_dtype

Rows = Mapping[str, TextRows]
PROXIES = "proxies"


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


def find_mix(config: MixConfig, out: Path, *, corpus: Path) -> Path:
    """`out`, with mix.json: the shares of the selected mix, and of every mix its shares, its
    held-out bits per byte after training on it, and what its method tells; proxies/ has the metrics
    of the proxies' trainings.

    Uniform is the papers' baseline and a weak one; size-proportional is the one to beat
    (docs/log.md). All ranks train each proxy together, and divide what is measured.
    """
    if not (out / "mix.json").is_file():
        write_mixes(config, out, corpus)
    for proxy in (out / PROXIES).glob("*") if ranks().first else ():
        for folder in (proxy / RESUME, proxy / MILESTONES):
            shutil.rmtree(folder, ignore_errors=True)
    return out


def write_mixes(config: MixConfig, out: Path, corpus: Path) -> None:
    """mix.json, written by the first rank when every proxy is trained and measured."""
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    train_rows, probe_rows = (
        {
            name: TextRows(shard, config.seq_len, tokenizer.eos_id)
            for name, shard in open_shards(corpus, split).items()
        }
        for split in ("train", "probe")
    )
    domains = source_domains(corpus)
    mixes: dict[str, Mix] = {}
    for name, method in config.methods.items():
        folders = (out / PROXIES / f"{name}-simulated-{number}" for number in itertools.count(1))
        problem = MixProblem(
            tokens={source: len(rows.shard.tokens) for source, rows in train_rows.items()},
            domains=domains,
            budget_tokens=config.budget_tokens,
            max_epochs=config.max_epochs,
            where=f"{config.name}.methods.{name}",
            simulate=partial(simulate, config, folders, tokenizer, train_rows, probe_rows, domains),
        )
        mixes[name] = METHODS[type(method)](method, problem)
    for name, mix in mixes.items():
        folder = out / PROXIES / name
        train_proxy(config, folder, train_rows, mix.shares, Milestones(1, tokenizer))
    measured = measure_bits(config, out, corpus, tokenizer, list(mixes))
    if ranks().first:
        shares, compared = mixes[config.selected].shares, {}
        for name, mix in mixes.items():
            bits = {domain: float(read_json(file)) for domain, file in measured[name].items()}
            compared[name] = {
                "method": config.methods[name].summary(),
                "shares": mix.shares,
                "bits_per_byte": bits | {"mean": sum(bits.values()) / len(bits)},
                **mix.details,
            }
        content = {"selected": config.selected, "shares": shares, "mixes": compared}
        write_json(out / "mix.json", content)


# ---- proxies ----


def train_proxy(
    config: MixConfig, folder: Path, rows: Rows, shares: Shares, milestones: Milestones
) -> list[int]:
    """A proxy trained on these shares: the steps after which it is in folder/milestones."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = make_batches(rows, shares, _layout(config), separate_documents=False)
    model = Transformer(config.proxy, seed=config.seed)
    train(
        model,
        batches,
        next_token_loss,
        config.optim,
        folder,
        label=f"  {folder.name}",
        save=config.save,
        milestones=milestones,
    )
    steps = range(1, config.optim.num_steps + 1)
    return [step for step in steps if milestones.is_due(step, config.optim.num_steps)]


def open_proxy(folder: Path, step: int) -> Transformer:
    """The proxy after so many steps, whole, where this rank computes."""
    model, _ = load_checkpoint(folder / MILESTONES / f"step-{step:08d}")
    return model.to(device())


def _layout(config: MixConfig, seed: int = 0, *, whole: bool = False) -> BatchPlan:
    """Steps of this rank's rows, or of all rows; another seed for other rows."""
    process = ranks()
    return BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed + seed,
        rank=0 if whole else process.rank,
        world_size=1 if whole else process.world_size,
    )


# ---- the simulated run ----


def simulate(
    config: MixConfig,
    folders: Iterator[Path],
    tokenizer: Tokenizer,
    train_rows: Rows,
    probe_rows: Rows,
    domains: Mapping[str, str],
    shares: Shares,
    count: int,
    measure: Callable[[Milestone], Any],
) -> list[Any]:
    """What `measure` gives at `count` evenly spaced milestones of a proxy's training on these
    shares, in order.

    Each run of a method has a folder of its own, in the order of its calls. Each milestone is
    measured by one rank, and what it gave is a file: it is not computed again when the stage is
    resumed.
    """
    folder = next(folders)
    draw_sources = {
        source: _draw({source: rows}, _layout(config, 1, whole=True))
        for source, rows in train_rows.items()
    }
    draw_probes = {
        domain: _draw_domain(probe_rows, domains, domain, _layout(config, 2, whole=True))
        for domain in sorted(set(domains.values()))
    }
    steps = train_proxy(config, folder, train_rows, shares, Milestones(count, tokenizer))
    files = [folder / RESUME / f"measured-{step:08d}.json" for step in steps]
    for file, step in _own_part(list(zip(files, steps, strict=True))):
        if file.is_file():
            continue
        model = open_proxy(folder, step)
        model.compute = ComputeSettings(dtype=product_dtype(config.optim, device()))
        milestone = Milestone(
            model=model,
            lr=lr_at(config.optim, step - 1),
            loss_fn=next_token_loss,
            source_rows={source: draw(step - 1) for source, draw in draw_sources.items()},
            probe_rows={domain: draw(step - 1) for domain, draw in draw_probes.items()},
        )
        write_json(file, measure(milestone))
    barrier()
    return [read_json(file) for file in files]


def _own_part(jobs: list[Any]) -> list[Any]:
    """This rank's part of jobs that are divided over all ranks."""
    process = ranks()
    return jobs[process.rank :: process.world_size]


def _draw(rows: Rows, layout: BatchPlan) -> Callable[[int], list[Batch]]:
    """Rows of some sources in equal shares, on the device where this rank computes."""
    shares = uniform_shares(dict.fromkeys(rows, 1))
    batches = make_batches(rows, shares, layout, separate_documents=False)
    return lambda step: [to_device(batch, device()) for batch in batches(step)]


def _draw_domain(
    rows: Rows, domains: Mapping[str, str], domain: str, layout: BatchPlan
) -> Callable[[int], list[Batch]]:
    """Held-out rows of one domain, its sources in equal shares."""
    serving = {
        name: source for name, source in rows.items() if domains[name] == domain and len(source)
    }
    if not serving:
        raise ValueError(
            f"no held-out text of domain {domain!r}; raise probe_share and validation_share in "
            "curate"
        )
    return _draw(serving, layout)


# ---- the comparison ----


def measure_bits(
    config: MixConfig, out: Path, corpus: Path, tokenizer: Tokenizer, names: list[str]
) -> dict[str, dict[str, Path]]:
    """For each mix and domain the file with the held-out bits per byte of the proxy trained on it,
    for the first rank to read.

    Each is measured by one rank, and not again when the stage is resumed.
    """
    texts = held_out_texts(corpus, tokenizer, "validation", config.validation_tokens)
    files = {
        name: {domain: out / PROXIES / name / RESUME / f"bits-{domain}.json" for domain in texts}
        for name in names
    }
    for name, domain in _own_part([(name, domain) for name in names for domain in texts]):
        file = files[name][domain]
        if not file.is_file():
            proxy = open_proxy(out / PROXIES / name, config.optim.num_steps)
            model = LanguageModel(proxy, tokenizer)
            write_json(file, bits_per_byte(model, texts[domain], config.seq_len))
    barrier()
    return files
