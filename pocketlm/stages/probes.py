"""Build probes: of each source's held-out text the few documents that show a capability (R1,
section 5.1.1).

A quality score, a language model asked twice, semantic deduplication, a size; then each source's
documents go to the probe sets of the capabilities that it serves.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pocketlm.data.probe_building.ask import CAPABILITY_PROMPTS, PLACE, REASONING_PROMPT, asker_of
from pocketlm.data.probe_building.embedding import EMBEDDERS, EmbedderName
from pocketlm.data.probe_building.quality import open_scorer
from pocketlm.data.probe_building.scores import Documents, Scorer
from pocketlm.data.probe_building.sets import (
    Members,
    Ranked,
    examples,
    of_size,
    top,
    without_duplicates,
    write_sets,
)
from pocketlm.data.score_files import ScoreFiles
from pocketlm.data.shards import list_sources, open_shard
from pocketlm.inference.open import open_model
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ComputeSettings
from pocketlm.train.checkpoint import RESUME
from pocketlm.train.distributed.ranks import device, ranks, shows_progress, wait_for_ranks
from pocketlm.train.optim import dtype_of


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """membership: the sources that serve each capability; a source may serve several. left_out:
    sources of the corpus that serve none.

    scorer: of quality: a folder or hub id of a sequence classifier with one output (FINEWEB_EDU is
    R1's), or a .jsonl file of {"text", "label"}, from which a light one is trained here; None
    passes that step over. min_quality: the least score that stays. prompt, capability_prompts: what
    the asker reads, the text at {text}. top_share: of a source's documents those that stay, by each
    of the two. ask_tokens: of a text that are read. embedder, max_cosine: texts nearer to each
    other than that are one; 0.8 suits both embedders (docs/pipeline.md). documents_per_cluster
    are compared with each other. examples_per_source: of each capability, the best. batch_rows:
    texts scored at a time. seed: draws the first centres of clusters, and ranks documents where
    nothing scores them.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    membership: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()
    scorer: str | None = None
    min_quality: float = 4.0
    prompt: str = REASONING_PROMPT
    capability_prompts: dict[str, str] = field(default_factory=lambda: dict(CAPABILITY_PROMPTS))
    top_share: float = 0.10
    ask_tokens: int = 1024
    embedder: EmbedderName = "hashed"
    max_cosine: float = 0.8
    documents_per_cluster: int = 2000
    examples_per_source: int = 10_000
    batch_rows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.membership:
            raise ValueError("membership names no capability; give each the sources that serve it")
        for capability, sources in self.membership.items():
            if not sources:
                raise ValueError(
                    f"membership.{capability} has no source; name one, or leave it out"
                )
            if "/" in capability or capability.startswith("."):
                raise ValueError(f"capability {capability!r} cannot be the name of a folder")
        prompts = {"prompt": self.prompt}
        prompts |= {f"capability_prompts.{k}": v for k, v in self.capability_prompts.items()}
        if wrong := [name for name, prompt in prompts.items() if PLACE not in prompt]:
            raise ValueError(f"{wrong[0]} has no {PLACE}, where the text would stand")
        if self.embedder not in EMBEDDERS:
            raise ValueError(
                f"embedder {self.embedder!r} is unknown; known: {', '.join(EMBEDDERS)}"
            )
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share {self.top_share} is not in (0, 1]")
        counts = ("ask_tokens", "documents_per_cluster", "examples_per_source", "batch_rows")
        if small := [name for name in counts if getattr(self, name) < 1]:
            raise ValueError(f"{small[0]} {getattr(self, small[0])} is below 1")

    def summary(self) -> str:
        return (
            f"{', '.join(self.membership)}; quality of {self.min_quality:g} by "
            f"{self.scorer or 'none'}, top {self.top_share:.0%} asked twice, up to "
            f"{self.examples_per_source:,} documents of each source"
        )

    def reads(self) -> list[Path]:
        """The user's own folder or file of the scorer: when it changes, so does the stage."""
        path = Path(self.scorer).expanduser() if self.scorer else None
        return [path] if path and path.exists() else []


def build_probes(
    config: ProbeConfig, out: Path, *, corpus: Path, asker: Path | None = None
) -> Path:
    """`out`, with probes/<capability>/<source>, shards of what stays, and probes.json: what each
    step kept of each source, with examples of kept and dropped.

    Documents are of the corpus's probe split, from which nothing is trained; raise its probe_share
    in curate where too few stay. asker: any model that opens here; without it, as without a scorer,
    the step is passed over, and probes.json says so. The ranks divide the texts to score, and what
    was scored before the stage was interrupted is not scored again.
    """
    check_sources(config, corpus)
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    names = sorted({name for sources in config.membership.values() for name in sources})
    building = Building(
        config, out, {n: Documents(n, open_shard(corpus, n, "probe"), tokenizer) for n in names}
    )
    sources = {name: drawn_order(config, name, len(building.documents[name])) for name in names}
    sources = building.by_quality(sources)
    sources, members = building.by_answers(sources, asker)
    wait_for_ranks()  # others may still read scores, which go when the first rank returns
    if ranks().first:
        members, step = without_duplicates(
            building.documents,
            members,
            sources,
            embedder=config.embedder,
            max_cosine=config.max_cosine,
            documents_per_cluster=config.documents_per_cluster,
            seed=config.seed,
        )
        members, sizes = of_size(building.documents, members, config.examples_per_source)
        steps = [*building.steps, step, *sizes]
        write_sets(config.name, out, building.documents, members, steps, tokenizer)
    return out


def check_sources(config: ProbeConfig, corpus: Path) -> None:
    """ValueError for a source that the corpus lacks, or one of it that nothing says of."""
    there = list_sources(corpus)
    serving = {name for sources in config.membership.values() for name in sources}
    named = serving | set(config.left_out)
    if unknown := sorted(named - set(there)):
        raise ValueError(
            f"{config.name}: {corpus} has no source {unknown[0]!r}; it has {', '.join(there)}"
        )
    if idle := sorted(set(there) - named):
        raise ValueError(
            f"{config.name}: source {idle[0]!r} serves no capability; name it in membership, or in "
            "left_out"
        )
    if both := sorted(serving & set(config.left_out)):
        raise ValueError(f"{config.name}: source {both[0]!r} is in membership and in left_out")


def drawn_order(config: ProbeConfig, source: str, count: int) -> Ranked:
    """All documents of a source, ranked by chance."""
    draw = np.random.default_rng((config.seed, sum(source.encode())))
    return dict(enumerate(draw.random(count).tolist()))


class Building:
    """Documents as they are scored and become fewer. steps: what each did, for probes.json."""

    def __init__(self, config: ProbeConfig, out: Path, documents: dict[str, Documents]) -> None:
        self.config, self.out, self.documents = config, out, documents
        self.steps: list[dict[str, Any]] = []

    def by_quality(self, sources: dict[str, Ranked]) -> dict[str, Ranked]:
        """The documents of at least min_quality."""
        if self.config.scorer is None:
            self.steps.append({"step": "quality", "skipped": "no scorer in the config"})
            return sources
        scorer, facts = open_scorer(self.config.scorer, self.config.embedder, device())
        enough = {"at_least": self.config.min_quality}
        return self.scored(
            "quality", sources, scorer, lambda s: s >= self.config.min_quality, facts | enough
        )

    def by_answers(
        self, sources: dict[str, Ranked], asker: Path | None
    ) -> tuple[dict[str, Ranked], Members]:
        """(the top share of each source by the general prompt, of these the top share by the prompt
        of each capability that the source serves).
        """
        served = self.config.membership
        if asker is None:
            for step in ("ask", "ask_by_capability"):
                self.steps.append({"step": step, "skipped": "no asker"})
            return sources, {name: {s: sources[s] for s in served[name]} for name in served}
        if missing := [name for name in served if name not in self.config.capability_prompts]:
            raise ValueError(
                f"{self.config.name}.capability_prompts has none for {missing[0]!r}; write one"
            )
        members: Members = {}
        with opened_asker(asker) as model:
            facts = {"by": asker.name, "top_share": self.config.top_share}
            scorer = self._asker(model, "prompt", self.config.prompt)
            sources = self.scored("ask", sources, scorer, self._top, facts)
            for name in served:
                prompt = self.config.capability_prompts[name]
                members[name] = self.scored(
                    "ask_by_capability",
                    {source: sources[source] for source in served[name]},
                    self._asker(model, f"capability_prompts.{name}", prompt),
                    self._top,
                    facts,
                    capability=name,
                )
        return sources, members

    def _asker(self, model: Runtime, prompt_name: str, prompt: str) -> Scorer:
        where = f"{self.config.name}.{prompt_name}"
        return asker_of(model, prompt, self.config.ask_tokens, where)

    def _top(self, scores: np.ndarray) -> np.ndarray:
        return top(scores, ceil(self.config.top_share * len(scores)))

    def scored(
        self,
        step: str,
        sources: Mapping[str, Ranked],
        scorer: Scorer,
        rule: Callable[[np.ndarray], np.ndarray],
        facts: dict[str, Any],
        capability: str | None = None,
    ) -> dict[str, Ranked]:
        """What `rule` keeps of each source, ranked by these scores; all ranks divide the texts."""
        process, files = ranks(), {}
        folder = self.out / RESUME / "scores" / (f"{step}-{capability}" if capability else step)
        for source, ranked in sources.items():
            documents, numbers = self.documents[source], np.asarray(sorted(ranked), dtype=np.int64)
            lengths = documents.lengths(numbers)
            files[source] = numbers, ScoreFiles(folder / source, lengths, self.config.batch_rows)
            files[source][1].write(
                partial(_scores_of, scorer, documents, numbers),
                slice(process.rank, None, process.world_size),
                f"  {step} of {source}",
                show=shows_progress(),
            )
        wait_for_ranks()
        kept: dict[str, Ranked] = {}
        record: dict[str, Any] = {}
        for source, (numbers, file) in files.items():
            scores, cut = file.read(2).T
            stays = rule(scores)
            pairs = zip(numbers[stays].tolist(), scores[stays].tolist(), strict=True)
            kept[source] = dict(pairs)
            record[source] = {"of": len(scores), "kept": int(stays.sum()), "cut": int(cut.sum())}
            record[source]["examples"] = examples(self.documents[source], numbers, scores, stays)
        named = {"capability": capability} if capability else {}
        self.steps.append({"step": step, **named, **facts, "sources": record})
        return kept


def _scores_of(
    scorer: Scorer, documents: Documents, numbers: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """[n, 2] of the documents with the numbers at these places: the score, and whether the text was
    cut.
    """
    return np.stack(scorer(documents.texts(numbers[places])), 1)


@contextmanager
def opened_asker(asker: Path) -> Iterator[Runtime]:
    """The model on this rank's device; our own network with its products in what that multiplies
    fastest.
    """
    with closing(open_model(asker, device=device())) as model:
        if isinstance(model, LanguageModel):
            model.model.compute = ComputeSettings(dtype=dtype_of("auto", device()))
        yield model
