"""One stage as the plan sees it, and what the stages before it are known to leave behind."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketlm.estimate.teachers import shape_on_disk
from pocketlm.estimate.work import Work
from pocketlm.model.json_shape import TEXT, WHOLE, read_object
from pocketlm.model.model_config import ModelConfig
from pocketlm.runner.record import Call
from pocketlm.train.optim import OptimConfig

# of a stage that does not train
NO_TRAINING = OptimConfig(lr=1.0, num_steps=1, warmup_steps=0, final_lr_share=1.0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. tokens, flops, disk: None where unknown. at_most, at_least: tokens, FLOPs, time
    and disk are bounds.

    work: what it trains. like, other_flops: what else it computes, at the pace of a training like
    this. other_seconds: of work without products, of one process. disk: bytes that stay. resume:
    bytes beside them until it is finished.
    """

    call: Call
    work: Work | None = None
    like: Work | None = None
    other_flops: int = 0
    other_seconds: float | None = None
    tokens: int | None = None
    disk: int | None = None
    resume: int = 0
    at_most: bool = False
    at_least: bool = False
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int | None:
        if self.work is None and self.like is None:
            return None if self.other_seconds is None else 0
        return (self.work.flops if self.work else 0) + self.other_flops


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """domains: of each source. tokens, probe_tokens: for training and for probes, of each source;
    None where curate has not counted them yet.
    """

    domains: dict[str, str]
    tokens: dict[str, int] | None = None
    probe_tokens: dict[str, int] | None = None


@dataclass
class Known:
    """What the stages so far leave behind, by folder; anything else is looked up on disk. cached:
    folders of teachers on disk, which cost a student nothing. four_bits: of models on that grid.
    """

    models: dict[Path, ModelConfig | None] = field(default_factory=dict)
    corpora: dict[Path, Corpus] = field(default_factory=dict)
    cached: set[Path] = field(default_factory=set)
    four_bits: set[Path] = field(default_factory=set)

    def model(self, path: Path | None) -> ModelConfig | None:
        if path is None:
            return None
        return self.models[path] if path in self.models else shape_on_disk(path)

    def corpus(self, path: Path | None) -> Corpus | None:
        if path is None or path in self.corpora:
            return self.corpora.get(path) if path else None
        return counted(path)


def one_input(call: Call, name: str) -> Path | None:
    """The path of an input, or None where there is none."""
    value: Any = call.inputs.get(name)
    return value if isinstance(value, Path) else None


def counted(folder: Path) -> Corpus | None:
    """A corpus as its curation.json counts it, or None where there is none."""
    if not (folder / "curation.json").is_file():
        return None
    sources = read_object(folder / "curation.json").object("sources")
    return Corpus(
        domains={name: sources.object(name).typed("domain", TEXT) for name in sources},
        tokens={
            name: sources.object(name)
            .object("kept")
            .object("train")
            .typed("tokens", WHOLE, least=0)
            for name in sources
        },
        probe_tokens={
            name: sources.object(name)
            .object("kept")
            .object("probe", None)
            .typed("tokens", WHOLE, 0, least=0)
            for name in sources
        },
    )
