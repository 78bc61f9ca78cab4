"""Proxies: small networks trained from the same start on shares of the sources, each in a folder of
its own, and what is measured on them: held-out loss, or anything at milestones of a training.

The stages that find a mix and that leave sources out train them so. All ranks train each proxy
together, and divide what is measured; an interrupted stage repeats neither.
"""

import itertools
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import held_out_texts, open_shards, source_domains
from pocketlm.data.mixing.problem import FirstOrder, Milestone
from pocketlm.data.mixture import Shares
from pocketlm.data.moved_batches import Joined, drawn_equally
from pocketlm.data.probe_sets import open_probe_sets
from pocketlm.data.shards import Shard
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.checkpoint import RESUME, SaveConfig
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import add_over_ranks, device, ranks, wait_for_ranks
from pocketlm.train.first_order import decays, linear_step, mean_clip, rates_at
from pocketlm.train.loop import train
from pocketlm.train.losses import next_token_loss
from pocketlm.train.milestones import MILESTONES, Milestones, open_optimizers
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers, product_dtype

PROXIES = "proxies"
SharesKey = tuple[tuple[str, float], ...]
SEEDS_APART = 1000  # so that no two of a stage's random streams share one
LOSS_DRAWS = 4  # steps' worth of probe rows that the fall of a loss is measured on (our choice)
# Held-out text in two parts that share no document: one to choose by, the other to report on
Part = Literal["choose", "report"]
PARTS: dict[Part, slice] = {"choose": slice(0, None, 2), "report": slice(1, None, 2)}


class ProxySettings(Protocol):
    """What a stage's config says of its proxies.

    proxy, optim, seq_len, rows_per_step, micro_batch_size, seed: the network and its training, the
    same for every proxy. save: how often a proxy's state is written.
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
    def save(self) -> SaveConfig: ...


class Proxies:
    """The proxies of one stage, in out/proxies; those of further seeds in out/proxies-seed-2, ...

    tokens: of each source's training text. capabilities: the sources whose probe text serves each.
    probes, sources: as open_probe_sets takes them.
    """

    def __init__(
        self,
        config: ProxySettings,
        out: Path,
        corpus: Path,
        probes: Path | None = None,
        sources: Collection[str] = (),
    ) -> None:
        self.config, self.out, self.corpus = config, out, corpus
        self.tokenizer = Tokenizer.load(corpus / "tokenizer")
        self.rows = {
            name: self._rows(shard) for name, shard in open_shards(corpus, "train", sources).items()
        }
        self.tokens = {source: len(rows.shard.tokens) for source, rows in self.rows.items()}
        self.probes = open_probe_sets(corpus, probes, sources)
        self.capabilities = self.probes.capabilities
        # the proxies of this call by what they were trained on: the number of the seed, and shares
        self._by_shares: dict[tuple[int, SharesKey], str] = {}

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

    def folder(self, name: str, seed: int = 0) -> Path:
        """Of a proxy, under the seed of this number."""
        return self.out / (PROXIES if seed == 0 else f"{PROXIES}-seed-{seed + 1}") / name

    def train(
        self,
        name: str,
        shares: Shares,
        num_milestones: int = 1,
        seed: int = 0,
        *,
        optimizer: bool = False,
    ) -> list[int]:
        """A proxy trained on these shares: the steps after which it can be opened; the last is that
        of its end.

        seed: the number of the seed, from 0. Another one draws other first weights and rows.
        optimizer: whether its state is kept with each.
        """
        milestones = Milestones(num_milestones, self.tokenizer, optimizer)
        folder, num_steps = self.folder(name, seed), self.config.optim.num_steps
        folder.mkdir(parents=True, exist_ok=True)
        offset = SEEDS_APART * seed
        train(
            Transformer(self.config.proxy, seed=self.config.seed + offset),
            make_batches(self.rows, shares, self._plan(offset), separate_documents=False),
            next_token_loss,
            self.config.optim,
            folder,
            label=f"  {name}" if seed == 0 else f"  {name}, seed {seed + 1}",
            save=self.config.save,
            milestones=milestones,
        )
        return [step for step in range(1, num_steps + 1) if milestones.is_due(step, num_steps)]

    def open(self, name: str, step: int, seed: int = 0) -> Transformer:
        """A proxy after so many steps, whole, where this rank computes; after none, its start."""
        if step == 0:
            start = self.config.seed + SEEDS_APART * seed
            return Transformer(self.config.proxy, seed=start).to(device())
        model, _ = load_checkpoint(self.milestone(name, step, seed))
        return model.to(device())

    def milestone(self, name: str, step: int, seed: int = 0) -> Path:
        return self.folder(name, seed) / MILESTONES / f"step-{step:08d}"

    def losses(
        self, mixes: Mapping[str, Shares], num_tokens: int, part: Part = "report", seed: int = 0
    ) -> dict[str, dict[str, float]]:
        """For each named mix the bits per byte, by domain, of the proxy trained on it: of about
        num_tokens of held-out text of each domain.
        """
        texts, window = self._texts(num_tokens, part), self.config.seq_len
        measures = {
            f"{part}-{domain}": partial(bits_per_byte, documents=documents, window=window)
            for domain, documents in texts.items()
        }
        return {
            name: {domain: float(figures[f"{part}-{domain}"]) for domain in texts}
            for name, figures in self.measured(mixes, measures, seed).items()
        }

    def measured(
        self,
        mixes: Mapping[str, Shares],
        measures: Mapping[str, Callable[[LanguageModel], Any]],
        seed: int = 0,
    ) -> dict[str, dict[str, Any]]:
        """What each named measure gives of the proxy trained on each of these shares.

        measures give plain data. Each is taken by one rank, and not again when the stage is
        resumed. Where a proxy was trained on the same shares under another name, it is that one.
        """
        trained = {}
        for name, shares in mixes.items():
            trained[name] = self._by_shares.setdefault((seed, shares_key(shares)), name)
            if trained[name] == name:
                self.train(name, shares, seed=seed)
        files = {
            (name, measure): self.folder(name, seed) / RESUME / f"{measure}.json"
            for name in dict.fromkeys(trained.values())
            for measure in measures
        }
        for name, measure in _own_part(list(files)):
            file = files[name, measure]
            if not file.is_file():
                proxy = self.open(name, self.config.optim.num_steps, seed)
                write_json(file, measures[measure](LanguageModel(proxy, self.tokenizer)))
        wait_for_ranks()
        return {
            name: {measure: read_json(files[proxy, measure]) for measure in measures}
            for name, proxy in trained.items()
        }

    def _texts(self, num_tokens: int, part: Part) -> dict[str, list[str]]:
        """Held-out texts of every domain, of one part."""
        texts = held_out_texts(self.corpus, self.tokenizer, "validation", num_tokens, PARTS[part])
        domains = sorted(set(source_domains(self.corpus).values()))
        if missing := [domain for domain in domains if domain not in texts]:
            raise ValueError(
                f"{self.corpus} has too few validation documents of {', '.join(missing)} to choose "
                "a mix by some and report on others; raise validation_share in curate"
            )
        return texts

    def simulate(
        self,
        names: Iterator[str],
        shares: Shares,
        count: int,
        measure: Callable[[Milestone], Any],
        *,
        fixed_rows: int | None = None,
        first_order: bool = False,
    ) -> list[Any]:
        """What `measure` gives at `count` evenly spaced milestones of a proxy's training on these
        shares, in order; with first_order at its start too, and with what the optimizer does next.

        names: of proxies; each run of a method has the next one, in the order of its calls. The
        ranks divide the rows of each milestone, and what it gave is a file. fixed_rows: as
        problem.py says.
        """
        name = next(names)
        folder = self.folder(name)
        draw_sources = {
            source: drawn_equally({source: rows}, self._plan(1, whole=True), fixed_rows, here)
            for source, rows in self.rows.items()
        }
        draw_probes = {
            capability: self._draw_probes(capability, self._plan(2, whole=True), fixed_rows)
            for capability in self.capabilities
        }
        steps = self.train(name, shares, count, optimizer=first_order)
        self._by_shares.setdefault((0, shares_key(shares)), name)
        steps = [0, *steps] if first_order else steps
        files = [folder / RESUME / f"measured-{step:08d}.json" for step in steps]
        process = ranks()
        for file, step in zip(files, steps, strict=True):
            if file.is_file():
                continue
            model = self.open(name, step)
            fresh = (step or steps[-1] + 1) - 1  # the start's are those of one step more
            model.compute = ComputeSettings(dtype=product_dtype(self.config.optim, device()))
            milestone = Milestone(
                model=model,
                lr=lr_at(self.config.optim, max(0, step - 1)),
                loss_fn=next_token_loss,
                source_rows={source: draw(fresh) for source, draw in draw_sources.items()},
                probe_rows={probe: draw(fresh) for probe, draw in draw_probes.items()},
                first_order=self._first_order(name, model, step, steps, draw_probes)
                if first_order
                else None,
                part=slice(process.rank, None, process.world_size),
                all_reduce=add_over_ranks if process.world_size > 1 else None,
            )
            figures = measure(milestone)
            if process.first:
                write_json(file, figures)
        wait_for_ranks()
        return [read_json(file) for file in files]

    def _first_order(
        self,
        name: str,
        model: Transformer,
        step: int,
        steps: list[int],
        draw_probes: Mapping[str, Callable[[int], Sequence[Batch]]],
    ) -> FirstOrder:
        """What the optimizer does after so many steps of a run that is looked at after `steps`."""
        optim, place = self.config.optim, steps.index(step)
        optimizers = (
            open_optimizers(self.milestone(name, step), model, optim)
            if step
            else make_optimizers(model, optim)
        )
        clipped = (steps[place - 1], step) if step else (0, 1)
        clip = mean_clip(self.folder(name), optim, *clipped)
        at_end = place in (0, len(steps) - 1)
        return FirstOrder(
            rate=rates_at(optim, steps)[place],
            linear_step=partial(linear_step, model, optimizers, step, clip),
            weight_decay=decays(model, optimizers),
            loss_rows={
                probe: Joined([draw(number) for number in range(LOSS_DRAWS)])
                for probe, draw in draw_probes.items()
                if at_end
            },
        )

    def simulated_names(self, method: str) -> Iterator[str]:
        """Names of the runs that a method simulates."""
        return (f"{method}-simulated-{number}" for number in itertools.count(1))

    def _draw_probes(
        self, capability: str, plan: BatchPlan, fixed_rows: int | None
    ) -> Callable[[int], Sequence[Batch]]:
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
        return drawn_equally(serving, plan, fixed_rows, here)

    def remove_states(self) -> None:
        """Deletes the trainings' states and milestones; their metrics stay."""
        wait_for_ranks()  # others may still read what was measured
        for proxy in self.out.glob(f"{PROXIES}*/*") if ranks().first else ():
            for folder in (proxy / RESUME, proxy / MILESTONES):
                shutil.rmtree(folder, ignore_errors=True)


def shares_key(shares: Mapping[str, float]) -> SharesKey:
    """The same for shares that differ in rounding alone."""
    return tuple(sorted((name, round(share, 12)) for name, share in shares.items() if share))


def _own_part(jobs: list[Any]) -> list[Any]:
    """This rank's part of jobs that are divided over all ranks."""
    process = ranks()
    return jobs[process.rank :: process.world_size]


def here(batch: Batch) -> Batch:
    """The batch on this rank's device."""
    return to_device(batch, device())
