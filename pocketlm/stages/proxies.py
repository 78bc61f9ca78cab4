"""Proxies: small networks trained from the same start on shares of the sources, each in a folder of
its own, and what is measured on them: held-out loss, or anything at milestones of a training.

The stages that find a mix and that leave sources out train them so. All ranks train each proxy
together, and divide what is measured; an interrupted stage repeats neither.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import held_out_texts, open_shards, source_domains
from pocketlm.data.mixing.problem import Milestone
from pocketlm.data.mixture import Shares, uniform_shares
from pocketlm.data.probe_sets import open_probe_sets
from pocketlm.data.shards import Shard
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

PROXIES = "proxies"
# Held-out text in two parts that share no document: one to choose by, the other to report on
Part = Literal["choose", "report"]
PARTS: dict[Part, slice] = {"choose": slice(0, None, 2), "report": slice(1, None, 2)}


class ProxySettings(Protocol):
    """What a stage's config says of its proxies.

    proxy, optim, seq_len, rows_per_step, micro_batch_size, seed: the network and its training, the
    same for every proxy. validation_tokens: held-out text of each domain they are measured on.
    save: how often a proxy's state is written.
    """

    @property
    def proxy(self) -> ModelConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def rows_per_step(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def validation_tokens(self) -> int: ...
    @property
    def save(self) -> SaveConfig: ...


class Proxies:
    """The proxies of one stage, in out/proxies. tokens: of each source's training text.
    capabilities: the sources whose probe text serves each. probes: as open_probe_sets takes them.
    """

    def __init__(
        self, config: ProxySettings, out: Path, corpus: Path, probes: Path | None = None
    ) -> None:
        self.config, self.out, self.corpus = config, out, corpus
        self.tokenizer = Tokenizer.load(corpus / "tokenizer")
        self.rows = {
            name: self._rows(shard) for name, shard in open_shards(corpus, "train").items()
        }
        self.tokens = {source: len(rows.shard.tokens) for source, rows in self.rows.items()}
        self.probes = open_probe_sets(corpus, probes)
        self.capabilities = self.probes.capabilities

    def _rows(self, shard: Shard) -> TextRows:
        return TextRows(shard, self.config.seq_len, self.tokenizer.eos_id)

    def _plan(self, seed: int = 0, *, whole: bool = False) -> BatchPlan:
        """Steps of this rank's rows, or of all rows; another seed for other rows."""
        process = ranks()
        return BatchPlan(
            seq_len=self.config.seq_len,
            rows_per_step=self.config.rows_per_step,
            micro_batch_size=self.config.micro_batch_size,
            seed=self.config.seed + seed,
            rank=0 if whole else process.rank,
            world_size=1 if whole else process.world_size,
        )

    def train(self, name: str, shares: Shares, num_milestones: int = 1) -> list[int]:
        """A proxy trained on these shares: the steps after which it can be opened; the last is that
        of its end.
        """
        milestones = Milestones(num_milestones, self.tokenizer)
        folder, num_steps = self.out / PROXIES / name, self.config.optim.num_steps
        folder.mkdir(parents=True, exist_ok=True)
        train(
            Transformer(self.config.proxy, seed=self.config.seed),
            make_batches(self.rows, shares, self._plan(), separate_documents=False),
            next_token_loss,
            self.config.optim,
            folder,
            label=f"  {name}",
            save=self.config.save,
            milestones=milestones,
        )
        return [step for step in range(1, num_steps + 1) if milestones.is_due(step, num_steps)]

    def open(self, name: str, step: int) -> Transformer:
        """A proxy after so many steps, whole, where this rank computes."""
        folder = self.out / PROXIES / name / MILESTONES / f"step-{step:08d}"
        model, _ = load_checkpoint(folder)
        return model.to(device())

    def losses(
        self, mixes: Mapping[str, Shares], part: Part = "report"
    ) -> dict[str, dict[str, float]]:
        """For each named mix the held-out bits per byte, by domain, of the proxy trained on it.

        Each is measured by one rank, and not again when the stage is resumed.
        """
        for name, shares in mixes.items():
            self.train(name, shares)
        texts = self._texts(part)
        files = {
            name: {
                domain: self.out / PROXIES / name / RESUME / f"{part}-{domain}.json"
                for domain in texts
            }
            for name in mixes
        }
        for name, domain in _own_part([(name, domain) for name in mixes for domain in texts]):
            file = files[name][domain]
            if not file.is_file():
                proxy = self.open(name, self.config.optim.num_steps)
                model = LanguageModel(proxy, self.tokenizer)
                write_json(file, bits_per_byte(model, texts[domain], self.config.seq_len))
        barrier()
        return {
            name: {domain: float(read_json(file)) for domain, file in by_domain.items()}
            for name, by_domain in files.items()
        }

    def _texts(self, part: Part) -> dict[str, list[str]]:
        """Held-out texts of every domain, of one part."""
        num_tokens = self.config.validation_tokens
        texts = held_out_texts(self.corpus, self.tokenizer, "validation", num_tokens, PARTS[part])
        domains = sorted(set(source_domains(self.corpus).values()))
        if missing := [domain for domain in domains if domain not in texts]:
            raise ValueError(
                f"{self.corpus} has too few validation documents of {', '.join(missing)} to choose "
                "a mix by some and report on others; raise validation_share in curate"
            )
        return texts

    def simulate(
        self, names: Iterator[str], shares: Shares, count: int, measure: Callable[[Milestone], Any]
    ) -> list[Any]:
        """What `measure` gives at `count` evenly spaced milestones of a proxy's training on these
        shares, in order.

        names: of proxies; each run of a method has the next one, in the order of its calls. Each
        milestone is measured by one rank, and what it gave is a file.
        """
        name = next(names)
        folder = self.out / PROXIES / name
        draw_sources = {
            source: _draw({source: rows}, self._plan(1, whole=True))
            for source, rows in self.rows.items()
        }
        draw_probes = {
            capability: self._draw_probes(capability, self._plan(2, whole=True))
            for capability in self.capabilities
        }
        steps = self.train(name, shares, count)
        files = [folder / RESUME / f"measured-{step:08d}.json" for step in steps]
        for file, step in _own_part(list(zip(files, steps, strict=True))):
            if file.is_file():
                continue
            model = self.open(name, step)
            model.compute = ComputeSettings(dtype=product_dtype(self.config.optim, device()))
            milestone = Milestone(
                model=model,
                lr=lr_at(self.config.optim, step - 1),
                loss_fn=next_token_loss,
                source_rows={source: draw(step - 1) for source, draw in draw_sources.items()},
                probe_rows={name: draw(step - 1) for name, draw in draw_probes.items()},
            )
            write_json(file, measure(milestone))
        barrier()
        return [read_json(file) for file in files]

    def simulated_names(self, method: str) -> Iterator[str]:
        """Names of the runs that a method simulates."""
        return (f"{method}-simulated-{number}" for number in itertools.count(1))

    def _draw_probes(self, capability: str, plan: BatchPlan) -> Callable[[int], list[Batch]]:
        """Probe rows of one capability, its sources in equal shares."""
        sources = {
            name: self._rows(shard) for name, shard in self.probes.shards[capability].items()
        }
        serving = {name: rows for name, rows in sources.items() if len(rows)}
        if not serving:
            raise ValueError(
                f"no held-out text of domain {capability!r}; raise probe_share and "
                "validation_share in curate"
            )
        return _draw(serving, plan)

    def remove_states(self) -> None:
        """Deletes the trainings' states and milestones; their metrics stay."""
        for proxy in (self.out / PROXIES).glob("*") if ranks().first else ():
            for folder in (proxy / RESUME, proxy / MILESTONES):
                shutil.rmtree(folder, ignore_errors=True)


def _own_part(jobs: list[Any]) -> list[Any]:
    """This rank's part of jobs that are divided over all ranks."""
    process = ranks()
    return jobs[process.rank :: process.world_size]


def _draw(rows: Mapping[str, TextRows], plan: BatchPlan) -> Callable[[int], list[Batch]]:
    """Rows of some sources in equal shares, on the device where this rank computes."""
    shares = uniform_shares(dict.fromkeys(rows, 1))
    batches = make_batches(rows, shares, plan, separate_documents=False)
    return lambda step: [to_device(batch, device()) for batch in batches(step)]
