"""Find the mix: one simulated run gives each source a utility and from it static shares, compared
with two plain mixes.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import held_out_texts, open_shards, source_domains
from pocketlm.data.mixture import Shares, cap_repetition, proportional_shares, uniform_shares
from pocketlm.data.utility import mean_gradient, shares_from_utility, utilities
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.model.files import write_json
from pocketlm.model.generate import LanguageModel
from pocketlm.model.json_shape import read_object
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer, set_compute_dtype
from pocketlm.train.loop import train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers, product_dtype


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How to find shares.

    proxy, optim: the small network of the simulated run; the three mixes are compared on fresh ones
    like it. looks: how many times during the run gradients are compared. prior: what a useless
    difference leaves the shares at. temperature: how far utility moves shares from the prior.
    probe_weights: of each domain; empty means equal, as R1. budget_tokens, max_epochs: no source is
    repeated more than max_epochs times in a training of budget_tokens. validation_tokens: held-out
    text of each domain that the three mixes are compared on.
    """

    name: str
    proxy: ModelConfig
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    looks: int
    temperature: float
    budget_tokens: int
    max_epochs: float
    seed: int
    prior: str = "uniform"
    probe_weights: dict[str, float] = field(default_factory=dict)
    validation_tokens: int = 6000

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is unknown; known: {', '.join(PRIORS)}")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature {self.temperature} must be positive; large keeps the prior's shares"
            )
        if not 1 <= self.looks <= self.optim.num_steps:
            raise ValueError(
                f"looks {self.looks} must be from 1 to optim.num_steps {self.optim.num_steps}"
            )

    def summary(self) -> str:
        return (
            f"4 proxy runs of {self.optim.num_steps:,} steps, {self.looks} looks, at most "
            f"{self.max_epochs:g} epochs"
        )


PRIORS = {"uniform": uniform_shares, "proportional": proportional_shares}


def find_mix(config: MixConfig, out: Path, *, corpus: Path) -> Path:
    """`out`, with mix.json: the shares found, the two plain ones, and held-out bits per byte after
    training on each.

    Uniform is the papers' baseline and a weak one; size-proportional is the one to beat
    (docs/log.md).
    """
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    rows = {
        split: {
            name: TextRows(shard, config.seq_len, tokenizer.eos_id)
            for name, shard in open_shards(corpus, split).items()
        }
        for split in ("train", "probe")
    }
    domains = source_domains(corpus)
    tokens = {name: len(shard.tokens) for name, shard in open_shards(corpus, "train").items()}
    uniform, proportional = uniform_shares(tokens), proportional_shares(tokens)
    simulated = out / "simulated.json"
    if not simulated.is_file():  # the costly part: an interrupted call does not repeat it
        write_json(simulated, simulate(config, rows, domains, uniform))
    by_probe = read_object(simulated)
    weights = config.probe_weights or dict.fromkeys(by_probe, 1.0)
    unknown = sorted(set(weights) - set(by_probe))
    if unknown:
        raise ValueError(
            f"{config.name}.probe_weights names {', '.join(unknown)}; the corpus serves "
            f"{', '.join(by_probe)}"
        )
    utility = {
        name: sum(weights.get(p, 0.0) * by_probe[p][name] for p in by_probe) for name in tokens
    }
    shares = shares_from_utility(utility, PRIORS[config.prior](tokens), config.temperature)
    shares = cap_repetition(shares, tokens, config.budget_tokens, config.max_epochs)
    mixes = {"found": shares, "uniform": uniform, "proportional": proportional}
    bits = {}
    for name, mix in mixes.items():
        done = out / f"bits-{name}.json"
        if not done.is_file():
            write_json(done, compare(config, rows, corpus, mix, name, tokenizer))
        bits[name] = read_object(done)
    found = {"shares": shares, "uniform": uniform, "proportional": proportional}
    write_json(
        out / "mix.json",
        found | {"utility": utility, "utility_by_probe": by_probe, "bits_per_byte": bits},
    )
    return out


Split = dict[str, TextRows]


def simulate(
    config: MixConfig, rows: dict[str, Split], domains: dict[str, str], uniform: Shares
) -> dict[str, dict[str, float]]:
    """utility[domain][source], added up over the looks of one run on the uniform mix."""
    layout = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.rows_per_step,
        seed=config.seed,
    )
    batches = make_batches(rows["train"], uniform, layout, separate_documents=False)
    fresh = {
        name: make_batches({name: own}, {name: 1.0}, _other(layout, 1), separate_documents=False)
        for name, own in rows["train"].items()
    }
    probes = {
        domain: _domain_batches(rows["probe"], domains, domain, _other(layout, 2))
        for domain in sorted(set(domains.values()))
    }
    model = Transformer(config.proxy, seed=config.seed)
    set_compute_dtype(model, product_dtype(config.optim, torch.device("cpu")))
    optimizers = make_optimizers(model, config.optim)
    found: dict[str, dict[str, float]] = {
        domain: dict.fromkeys(rows["train"], 0.0) for domain in probes
    }
    every = config.optim.num_steps / config.looks
    look_steps = {math.ceil((i + 1) * every) - 1 for i in range(config.looks)}
    for step in track(
        range(config.optim.num_steps), "  simulated run", console=Console(stderr=True)
    ):
        lr = lr_at(config.optim, step)
        train_step(
            model, optimizers, batches(step), next_token_loss, lr, config.optim.grad_clip, step
        )
        if step in look_steps:
            own = {name: mean_gradient(model, draw(step)[0]) for name, draw in fresh.items()}
            towards = {
                domain: mean_gradient(model, draw(step)[0]) for domain, draw in probes.items()
            }
            for domain, values in utilities(own, towards, lr).items():
                for name, value in values.items():
                    found[domain][name] += value
    return found


def compare(
    config: MixConfig,
    rows: dict[str, Split],
    corpus: Path,
    mix: Shares,
    label: str,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Held-out bits per byte of each domain, and their mean, after the proxy's training on one mix
    from the same start.
    """
    layout = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.rows_per_step,
        seed=config.seed,
    )
    batches = make_batches(rows["train"], mix, layout, separate_documents=False)
    model = Transformer(config.proxy, seed=config.seed)
    set_compute_dtype(model, product_dtype(config.optim, torch.device("cpu")))
    optimizers = make_optimizers(model, config.optim)
    for step in track(
        range(config.optim.num_steps), f"  {label} mix", console=Console(stderr=True)
    ):
        lr = lr_at(config.optim, step)
        train_step(
            model, optimizers, batches(step), next_token_loss, lr, config.optim.grad_clip, step
        )
    held_out = held_out_texts(corpus, tokenizer, "validation", config.validation_tokens)
    set_compute_dtype(model, None)
    measured = LanguageModel(model, tokenizer)
    bits = {
        domain: bits_per_byte(measured, texts, config.seq_len) for domain, texts in held_out.items()
    }
    return bits | {"mean": sum(bits.values()) / len(bits)}


def _other(layout: BatchPlan, seed: int) -> BatchPlan:
    return BatchPlan(
        seq_len=layout.seq_len,
        rows_per_step=layout.rows_per_step,
        micro_batch_size=layout.rows_per_step,
        seed=layout.seed + seed,
    )


def _domain_batches(rows: Split, domains: dict[str, str], domain: str, layout: BatchPlan):
    """Batches of one domain, its sources in equal shares."""
    own = {name: source for name, source in rows.items() if domains[name] == domain and len(source)}
    if not own:
        raise ValueError(
            f"no held-out text of domain {domain!r}; raise probe_share and validation_share in "
            "curate"
        )
    return make_batches(
        own, uniform_shares(dict.fromkeys(own, 1)), layout, separate_documents=False
    )
