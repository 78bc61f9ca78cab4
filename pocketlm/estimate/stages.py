"""What each stage of a recipe will train, write and read, from its call alone: shapes are followed
from stage to stage.

A stage that is not in COSTS, and whatever hangs on something that is not there yet, is told as
unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.data.mixing.methods import num_gradient_probes
from pocketlm.estimate.work import Work
from pocketlm.model.checkpoint import shape_of
from pocketlm.model.costs import flops_of
from pocketlm.model.json_shape import TEXT, WHOLE, read_object
from pocketlm.model.transformer import ModelConfig
from pocketlm.runner.record import Call
from pocketlm.train.distill.teacher import is_cached
from pocketlm.train.optim import OptimConfig

# Bytes a token of a teacher on disk by TeachConfig.min_gain, as benchmarks/teacher_cache.py printed
# them for SmolLM2-135M
CACHED_BYTES = {0.02: 37.2, 0.01: 58.3, 0.005: 92.5, 0.002: 170.4}
# of a stage that does not train
_NOTHING = OptimConfig(lr=1.0, num_steps=1, warmup_steps=0, final_lr_share=1.0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. tokens, flops, disk: None where it is not known. At most: what is told is an upper
    bound.

    work: what it trains. like, other_flops: what else it computes, at the pace of a training like
    this. disk: bytes that stay. resume: bytes beside them until it is finished.
    """

    call: Call
    work: Work | None = None
    like: Work | None = None
    other_flops: int = 0
    tokens: int | None = None
    disk: int | None = None
    resume: int = 0
    at_most: bool = False
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int | None:
        if self.work is None and self.like is None:
            return None
        return (self.work.flops if self.work else 0) + self.other_flops


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """domains: of each source. tokens: for training, of each source; None where curate has not
    counted them yet.
    """

    domains: dict[str, str]
    tokens: dict[str, int] | None = None


@dataclass
class Known:
    """What the stages so far leave behind, by folder; anything else is looked up on disk. taught:
    teachers on disk.
    """

    models: dict[Path, ModelConfig | None] = field(default_factory=dict)
    corpora: dict[Path, Corpus] = field(default_factory=dict)
    taught: set[Path] = field(default_factory=set)

    def model(self, path: Path | None) -> ModelConfig | None:
        if path is None:
            return None
        if path in self.models:
            return self.models[path]
        return shape_of(path) if (path / "config.json").is_file() else None

    def corpus(self, path: Path | None) -> Corpus | None:
        if path is None or path in self.corpora:
            return self.corpora.get(path) if path else None
        return _counted(path)


def plan_stages(calls: list[Call]) -> list[Stage]:
    """Every stage of a dry pass, in order."""
    known = Known()
    return [COSTS.get(call.record["stage"], _unknown)(call, known) for call in calls]


# ---- stages that train ----


def _pretrain(call: Call, known: Known) -> Stage:
    shape = call.config.model or known.model(_one(call, "model"))
    return _training(call, known, shape, masked=call.config.separate_documents, teacher="teacher")


def _finetune(call: Call, known: Known) -> Stage:
    return _training(call, known, known.model(_one(call, "model")), masked=True, teacher="teacher")


def _extend(call: Call, known: Known) -> Stage:
    config, shape = call.config, known.model(_one(call, "model"))
    if shape is not None:
        theta = shape.rope_theta * config.rope_theta_factor
        shape = replace(shape, max_position_embeddings=config.seq_len, rope_theta=theta)
    return _training(call, known, shape, masked=False, teacher="teacher")


def _quantize(call: Call, known: Known) -> Stage:
    shape = known.model(_one(call, "model"))
    teacher = "teacher" if call.inputs.get("teacher") else "model"
    return _training(
        call,
        known,
        shape,
        masked=call.config.shares is None,
        teacher=teacher,
        scheme=call.config.scheme,
    )


def _training(
    call: Call,
    known: Known,
    shape: ModelConfig | None,
    *,
    masked: bool,
    teacher: str | None = None,
    scheme: str | None = None,
) -> Stage:
    """A stage that goes through the training loop, or where optim is None only writes its model
    again.
    """
    known.models[call.folder] = shape
    config, optim, taught_by = (
        call.config,
        call.config.optim,
        _one(call, teacher) if teacher else None,
    )
    if taught_by in known.taught or is_cached(taught_by):
        taught_by = None  # what is read from disk computes nothing
    tokens = optim.num_steps * config.rows_per_step * config.seq_len if optim else 0
    taught = known.model(taught_by)
    lacking = [
        f"input {name} is not there: its shape is unknown" for name in ("model",) if shape is None
    ]
    if optim and taught_by and taught is None:
        lacking.append(f"the shape of the teacher {taught_by} is unknown")
    if shape is None or (lacking and optim):
        return Stage(call=call, tokens=tokens, notes=tuple(lacking))
    work = Work(
        model=shape,
        optim=optim or _NOTHING,
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        masked=masked,
        teacher=taught,
        scheme=scheme,
        save=config.save,
    )
    if optim is None:
        return Stage(call=call, like=work, tokens=0, disk=work.checkpoint_bytes)
    return Stage(
        call=call, work=work, tokens=tokens, disk=work.checkpoint_bytes, resume=work.resume_bytes
    )


# ---- stages that choose data ----


def _curate(call: Call, known: Known) -> Stage:
    """Counted once it is done; before that nobody knows what the filters leave."""
    domains = {source.name: source.domain for source in call.config.sources}
    known.corpora[call.folder] = _counted(call.folder) or Corpus(domains=domains)
    if call.state() != "done":
        width = (
            ""
            if call.config.vocab_size is None
            else f"; {2 if call.config.vocab_size <= 1 << 16 else 4} bytes a token"
        )
        return Stage(
            call=call, notes=(f"how much its sources hold is known when it is done{width}",)
        )
    files = {path: path.stat().st_size for path in call.folder.rglob("*") if path.is_file()}
    tokens = sum((known.corpora[call.folder].tokens or {}).values())
    return Stage(call=call, tokens=tokens, disk=sum(files.values()))


def _mix(call: Call, known: Known) -> Stage:
    """A proxy's training for each mix and each simulated run, the gradients of that run's probes,
    and held-out text at the end.
    """
    config, corpus = call.config, known.corpus(_one(call, "corpus"))
    work = Work(
        model=config.proxy,
        optim=config.optim,
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        copies=config.num_runs,
    )
    if corpus is None:
        return Stage(call=call, notes=("the sources of its corpus are unknown",))
    domains = len(set(corpus.domains.values()))
    probes = sum(num_gradient_probes(method) for method in config.methods.values())
    rows = config.rows_per_step * probes * (len(corpus.domains) + domains)
    row = flops_of(config.proxy, 1, config.seq_len)
    held_out = len(config.methods) * domains * config.validation_tokens / config.seq_len
    return Stage(
        call=call,
        work=work,
        other_flops=int(rows * row.training() + held_out * row.forward),
        tokens=work.tokens,
        disk=0,
    )


def _select(call: Call, known: Known) -> Stage:
    """A forward and a backward pass to the embedding for every candidate, and a product with the
    mean direction of the probes.

    No gradients of weights are computed, so the backward pass takes as much as the forward pass;
    of probe rows the output layer's is, from logits that are computed once more.
    """
    config = call.config
    corpus, shape = known.corpus(_one(call, "corpus")), known.model(_one(call, "model"))
    if corpus is not None:
        known.corpora[call.folder] = corpus
    if corpus is None or shape is None:
        return Stage(call=call, notes=("its corpus or its model is unknown",))
    limit: int = config.candidate_tokens + config.seq_len  # the last piece is taken whole
    there = corpus.tokens or dict.fromkeys(corpus.domains, limit)
    tokens = sum(min(limit, count) for count in there.values())
    domains = len(set(corpus.domains.values()))
    probes = domains * config.probe_rows * config.seq_len
    row = flops_of(shape, 1, config.seq_len)
    both_passes = 2 * row.products + 3.5 * row.attention + 2 * row.head
    flops = ((tokens + probes) * both_passes + (tokens + 2 * probes) * row.head) / config.seq_len
    like = Work(
        model=shape,
        optim=_NOTHING,
        seq_len=config.seq_len,
        rows_per_step=config.batch_rows,
        micro_batch_size=config.batch_rows,
    )
    notes = () if corpus.tokens else ("at most: its corpus is not counted yet",)
    return Stage(
        call=call,
        like=like,
        other_flops=int(flops),
        tokens=tokens,
        disk=tokens * (2 if shape.vocab_size <= 1 << 16 else 4),
        at_most=True,
        notes=notes,
    )


def _teach(call: Call, known: Known) -> Stage:
    """A forward pass over the corpus, and what is kept of it: told as another teacher's was
    measured.
    """
    known.taught.add(call.folder)
    config, shape = call.config, known.model(_one(call, "teacher"))
    corpus = known.corpus(_one(call, "selection") or _one(call, "corpus"))
    if corpus is None or corpus.tokens is None or shape is None:
        return Stage(call=call, notes=("its corpus is not counted yet, or its teacher is unknown",))
    tokens = sum(
        count for name, count in corpus.tokens.items() if name in (config.sources or corpus.tokens)
    )
    rows = max(1, config.batch_tokens // config.window)
    like = Work(
        model=shape,
        optim=_NOTHING,
        seq_len=config.window,
        rows_per_step=rows,
        micro_batch_size=rows,
    )
    return Stage(
        call=call,
        like=like,
        other_flops=int(tokens / config.window * flops_of(shape, 1, config.window).forward),
        tokens=tokens,
        disk=int(tokens * cached_bytes(config.min_gain)),
        at_most=True,
        notes=("disk as for SmolLM2-135M; it is measured, and told, when the stage begins",),
    )


def cached_bytes(min_gain: float) -> float:
    """Bytes a token of a teacher on disk, between the gains that were measured; beyond them that of
    the last.
    """
    gains = np.log(sorted(CACHED_BYTES))
    sizes = np.log([CACHED_BYTES[gain] for gain in sorted(CACHED_BYTES)])
    return float(np.exp(np.interp(np.log(min_gain), gains, sizes)))


def _merge(call: Call, known: Known) -> Stage:
    """The validation rows forward through every merge of a grid, or forward and backward at each
    step down the slopes; as many others through what is reported.
    """
    config, models = call.config, call.inputs["models"]
    paths = models if isinstance(models, list) else [models] if models else []
    shape, corpus = (known.model(paths[0]) if paths else None), known.corpus(_one(call, "corpus"))
    known.models[call.folder] = shape
    if shape is None or corpus is None:
        return Stage(call=call, notes=("its models or its corpus are unknown",))
    rows = config.validation_rows * len(set(corpus.domains.values()))
    row = flops_of(shape, 1, config.seq_len)
    plain = len(paths) + 2 + bool(call.inputs.get("trunk"))  # each model, and two averages
    if config.method(len(paths)) == "grid":
        tried = comb(config.resolution + len(paths) - 1, len(paths) - 1) + 1
        flops = (tried + plain) * row.forward
    else:
        tried = config.num_steps + len(paths)
        flops = config.num_steps * row.training() + (len(paths) + plain) * row.forward
    like = Work(
        model=shape,
        optim=_NOTHING,
        seq_len=config.seq_len,
        rows_per_step=rows,
        micro_batch_size=config.validation_rows,
    )
    return Stage(
        call=call,
        like=like,
        other_flops=int(rows * flops),
        tokens=(tried + plain) * rows * config.seq_len,
        disk=like.checkpoint_bytes,
        at_most=True,
    )


def _unknown(call: Call, known: Known) -> Stage:
    """A stage whose cost nobody worked out. Its model is known where it has written one."""
    known.models[call.folder] = (
        shape_of(call.folder) if (call.folder / "config.json").is_file() else None
    )
    return Stage(call=call, notes=("not estimated",))


COSTS: dict[str, Callable[[Call, Known], Stage]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "extend_context": _extend,
    "quantize": _quantize,
    "curate": _curate,
    "find_mix": _mix,
    "select": _select,
    "teach": _teach,
    "merge": _merge,
}


def _one(call: Call, name: str) -> Path | None:
    """The path of an input, or None where there is none."""
    value: Any = call.inputs.get(name)
    return value if isinstance(value, Path) else None


def _counted(folder: Path) -> Corpus | None:
    """A corpus as its curation.json tells it, or None where there is none."""
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
    )
