"""What the stages that do not train cost: curating, choosing, scoring, merging, exporting."""

from math import comb

import numpy as np

from pocketlm.data.mixing.methods import gradient_rows, num_simulated_runs
from pocketlm.estimate.corpora import BYTES_PER_TOKEN, source_size
from pocketlm.estimate.stage import NO_TRAINING, Corpus, Known, Stage, counted, one_input
from pocketlm.estimate.work import Work
from pocketlm.model.costs import flops_of, num_parameters
from pocketlm.runner.record import Call
from pocketlm.runner.schedule import runs_on_all_ranks

# Bytes a token of a teacher on disk by TeachConfig.min_gain, as benchmarks/teacher_cache.py printed
# them for SmolLM2-135M
CACHED_BYTES = {0.02: 37.2, 0.01: 58.3, 0.005: 92.5, 0.002: 170.4}
MANY_BATCHES = 13_440  # 2^7 x 3 x 5 x 7
# of text, by one process: encoding, measured (docs/benchmarks.md)
CURATED_BYTES_PER_SECOND = 5.5e6
# Bytes a weight of an exported file, full and with four bits, and weights written a second, asked
# and compared with the model: measured on one core with 21M weights
EXPORTED = {
    "hf": (4.0, 4.0, 15e6),
    "gguf": (2.0, 0.57, 1.1e6),
    "pte": (4.0, 0.57, 0.23e6),
    "mlx": (2.0, 0.57, 15e6),
    "compressed-tensors": (2.0, 0.57, 15e6),
}


def curate_cost(call: Call, known: Known) -> Stage:
    """Counted once it is done; before that as the papers' tables and files on disk tell."""
    config = call.config
    domains = {source.name: source.domain for source in config.sources}
    known.corpora[call.folder] = counted(call.folder) or Corpus(domains=domains)
    if call.state() == "done":
        files = [path.stat().st_size for path in call.folder.rglob("*") if path.is_file()]
        tokens = sum((known.corpora[call.folder].tokens or {}).values())
        return Stage(call=call, tokens=tokens, disk=sum(files))
    sizes = {source.name: source_size(source) for source in config.sources}
    sized = {name: size for name, size in sizes.items() if size is not None}
    uncounted = [name for name in sizes if name not in sized]
    if not sized:
        note = f"how much {', '.join(uncounted)} holds is known when it is done"
        return Stage(call=call, notes=(note,))
    tokens = sum(size.tokens for size in sized.values())
    sources = sorted({size.source for size in sized.values()})
    notes = [f"before filters, by {'; '.join(sources)}; time of one process"]
    if uncounted:
        notes.append(f"not counted: {', '.join(uncounted)}")
    width = 2 if config.vocab_size and config.vocab_size <= 1 << 16 else 4
    return Stage(
        call=call,
        tokens=tokens,
        other_seconds=tokens * BYTES_PER_TOKEN / CURATED_BYTES_PER_SECOND,
        disk=int(tokens * (width + BYTES_PER_TOKEN)),  # shards, and documents as text
        at_least=bool(uncounted),
        notes=tuple(notes),
    )


def mix_cost(call: Call, known: Known) -> Stage:
    """A proxy's training for each mix and for what its method trains, the gradients at milestones
    of simulated runs and at their start, and held-out text at the end.
    """
    config, corpus = call.config, known.corpus(one_input(call, "corpus"))
    work = Work(
        model=config.proxy,
        optim=config.optim,
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        copies=config.num_runs(len(set(corpus.domains.values())) if corpus else 1),
    )
    if corpus is None:
        return Stage(call=call, notes=("the sources of its corpus are unknown",))
    domains = len(set(corpus.domains.values()))
    rows = sum(
        gradient_rows(method, config.rows_per_step, len(corpus.domains), domains)
        for method in config.methods.values()
    )
    row = flops_of(config.proxy, 1, config.seq_len)
    simulated = sum(num_simulated_runs(method, domains) for method in config.methods.values())
    measured = config.num_runs(domains) - simulated
    held_out = measured * domains * config.validation_tokens / config.seq_len
    return Stage(
        call=call,
        work=work,
        other_flops=int(rows * row.training() + held_out * row.forward),
        tokens=work.tokens,
        disk=0,
    )


def leave_one_out_cost(call: Call, known: Known) -> Stage:
    """A proxy's training on all sources and without each, and the probe text of every capability
    at the end of each.
    """
    config, corpus = call.config, known.corpus(one_input(call, "corpus"))
    if corpus is None:
        return Stage(call=call, notes=("the sources of its corpus are unknown",))
    copies = (len(corpus.domains) + 1) * config.num_seeds
    work = Work(
        model=config.proxy,
        optim=config.optim,
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        copies=copies,
    )
    row = flops_of(config.proxy, 1, config.seq_len)
    capabilities = len(set(corpus.domains.values()))
    probed = (copies + 1) * capabilities * config.probe_tokens / config.seq_len
    return Stage(
        call=call, work=work, other_flops=int(probed * row.forward), tokens=work.tokens, disk=0
    )


def probes_cost(call: Call, known: Known) -> Stage:
    """A forward pass of the asker over what the corpus holds out for probes, and over the top share
    of it for each capability that a source serves; as if nothing fell to the quality score.
    """
    config, asker = call.config, one_input(call, "asker")
    corpus, shape = known.corpus(one_input(call, "corpus")), known.model(asker)
    if corpus is None or corpus.probe_tokens is None:
        note = "how much its corpus holds out for probes is known when that is done"
        return Stage(call=call, notes=(note,))
    times = {name: 0 for sources in config.membership.values() for name in sources}
    for sources in config.membership.values():
        for name in sources:
            times[name] += 1
    held_out = {name: corpus.probe_tokens.get(name, 0) for name in times}
    notes = ("the scorer of quality is not counted",) if config.scorer else ()
    if asker is None:
        tokens = sum(held_out.values())
        return Stage(
            call=call, tokens=tokens, disk=0, other_seconds=0.0, at_least=True, notes=notes
        )
    if shape is None:
        return Stage(call=call, notes=("its asker is unknown",))
    tokens = sum(int(held_out[n] * (1 + config.top_share * times[n])) for n in times)
    like = Work(
        model=shape,
        optim=NO_TRAINING,
        seq_len=config.ask_tokens,
        rows_per_step=config.batch_rows * batches_at_once(call),
        micro_batch_size=config.batch_rows,
    )
    row = flops_of(shape, 1, config.ask_tokens)
    return Stage(
        call=call,
        like=like,
        other_flops=int(tokens / config.ask_tokens * row.forward),
        tokens=tokens,
        disk=tokens * (2 if shape.vocab_size <= 1 << 16 else 4),
        at_most=True,
        notes=notes,
    )


def select_cost(call: Call, known: Known) -> Stage:
    """A forward and a backward pass to the embedding for every candidate, and a product with the
    direction of each probe set; for DataInf two passes before that over the rows of its Hessian.

    No gradients of weights are computed, so the backward pass takes as much as the forward pass;
    of probe rows the output layer's is, from logits that are computed once more.
    """
    config = call.config
    corpus, shape = known.corpus(one_input(call, "corpus")), known.model(one_input(call, "model"))
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
    hessian = 0
    if config.score == "datainf":
        hessian = len(there) * config.hessian_rows * config.seq_len
    flops = (
        (tokens + probes + 2 * hessian) * both_passes
        + (tokens * domains + 2 * probes + hessian * (3 + domains)) * row.head
    ) / config.seq_len
    like = Work(
        model=shape,
        optim=NO_TRAINING,
        seq_len=config.seq_len,
        rows_per_step=config.batch_rows * batches_at_once(call),
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


def batches_at_once(call: Call) -> int:
    """How many of its batches ranks may compute side by side: as many as any usual number of ranks
    divides, or one where the first rank computes alone.
    """
    return MANY_BATCHES if runs_on_all_ranks(call.config) else 1


def teach_cost(call: Call, known: Known) -> Stage:
    """A forward pass over the corpus, and what is kept of it: as another teacher's was measured."""
    known.cached.add(call.folder)
    config, shape = call.config, known.model(one_input(call, "teacher"))
    corpus = known.corpus(one_input(call, "selection") or one_input(call, "corpus"))
    if corpus is None or corpus.tokens is None or shape is None:
        return Stage(call=call, notes=("its corpus is not counted yet, or its teacher is unknown",))
    tokens = sum(
        count for name, count in corpus.tokens.items() if name in (config.sources or corpus.tokens)
    )
    rows = max(1, config.batch_tokens // config.window)
    like = Work(
        model=shape,
        optim=NO_TRAINING,
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
        notes=("disk as for SmolLM2-135M; it is measured, and printed, when the stage begins",),
    )


def cached_bytes(min_gain: float) -> float:
    """Bytes a token of a teacher on disk, between the gains that were measured; beyond them that of
    the last.
    """
    gains = np.log(sorted(CACHED_BYTES))
    sizes = np.log([CACHED_BYTES[gain] for gain in sorted(CACHED_BYTES)])
    return float(np.exp(np.interp(np.log(min_gain), gains, sizes)))


def merge_cost(call: Call, known: Known) -> Stage:
    """The validation rows forward through every merge of a grid, or forward and backward at each
    step down the slopes; as many others through what is reported.
    """
    config, models = call.config, call.inputs["models"]
    paths = models if isinstance(models, list) else [models] if models else []
    shape, corpus = (
        (known.model(paths[0]) if paths else None),
        known.corpus(one_input(call, "corpus")),
    )
    known.models[call.folder] = shape
    if shape is None or corpus is None:
        return Stage(call=call, notes=("its models or its corpus are unknown",))
    rows = config.validation_rows * len(set(corpus.domains.values()))
    row = flops_of(shape, 1, config.seq_len)
    plain = len(paths) + 2 + bool(call.inputs.get("trunk"))  # each model, and two averages
    method = config.method(len(paths))
    if method != "slopes":
        combinations = comb(config.resolution + len(paths) - 1, len(paths) - 1) + 1
        tried = combinations if method == "grid" else 1
        flops = (tried + plain) * row.forward
    else:
        tried = config.num_steps + len(paths)
        flops = config.num_steps * row.training() + (len(paths) + plain) * row.forward
    like = Work(
        model=shape,
        optim=NO_TRAINING,
        seq_len=config.seq_len,
        rows_per_step=config.validation_rows * batches_at_once(call),
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


def export_cost(call: Call, known: Known) -> Stage:
    """Files of the sizes that each format has; writing and asking them takes minutes, and no
    device.
    """
    shape = known.model(one_input(call, "model"))
    if shape is None:
        return Stage(call=call, notes=("its model is unknown",))
    weights, rounded = num_parameters(shape), one_input(call, "model") in known.four_bits
    rows = [EXPORTED[name] for name in call.config.formats]
    disk = sum(weights * (short if rounded else full) for full, short, _ in rows)
    seconds = sum(weights / pace for *_, pace in rows)
    return Stage(call=call, tokens=0, disk=int(disk), other_seconds=seconds)
