"""Bench: speed and size of models and exported files, each alone in a process, beside what memory
would allow.
"""

import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

from pocketlm.eval.hardware import available_cores, memory_bytes, peak_memory_bytes, read_bandwidth
from pocketlm.eval.latency import measure_speed
from pocketlm.inference.open import RUNTIMES, labels_of, opened, prepare_runtime, size_of
from pocketlm.model.files import write_json
from pocketlm.model.json_shape import read_object

CONTEXTS = (128, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure. contexts: full lengths in tokens, the last `new_tokens` of them made by the
    model; empty takes 128, 1,024, 2,048, 4,096 and 8,192, as far as each model goes. repeats: runs
    of which the median counts, after one that does not. threads: of every runtime alike; None takes
    the physical cores. runtime: what computes the folders among the models, of open.py's RUNTIMES;
    None takes our own network where it knows the model_type, else transformers.
    """

    name: str
    contexts: tuple[int, ...] = ()
    new_tokens: int = 32
    repeats: int = 3
    threads: int | None = None
    runtime: str | None = None

    def __post_init__(self) -> None:
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise ValueError(f"runtime {self.runtime!r} is unknown; known: {', '.join(RUNTIMES)}")
        if self.new_tokens < 2 or self.repeats < 1:
            raise ValueError(
                f"new_tokens {self.new_tokens} and repeats {self.repeats}: at least 2 tokens and 1 "
                "run are needed"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}: at least 1 is needed")
        for context in self.contexts or CONTEXTS:
            if context <= self.new_tokens:
                raise ValueError(
                    f"context {context} has no room for a prompt before {self.new_tokens} new "
                    "tokens; "
                    "give longer contexts, or fewer new tokens"
                )

    def runtime_of(self, path: Path) -> str | None:
        """The choice for this model: a file has a runtime of its own."""
        return self.runtime if path.is_dir() else None

    def summary(self) -> str:
        where = f", folders in {self.runtime}" if self.runtime else ""
        return f"contexts {'/'.join(map(str, self.contexts or CONTEXTS))}{where}"


def bench(config: BenchConfig, out: Path, *, models: list[Path], draft: Path | None = None) -> Path:
    """`out`, with bench.json: the figures of each model, named as `measure` names them.

    draft: a smaller .gguf that proposes tokens for the models, which are .gguf files then: what it
    gains each (serve/speculation.py) stands with their figures.

    A model that is measured is not measured again. ValueError where a context that was asked for is
    longer than a model's; of the usual ones those that are longer are left out, and named.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    models = [Path(path) for path in models]
    for path in models:
        if draft is not None and path.suffix != ".gguf":
            raise ValueError(f"{path}: only a .gguf takes a draft model; export it to gguf first")
    if config.contexts:
        for path in models:
            with opened(path, runtime=config.runtime_of(path)) as model:
                chosen_contexts(config, path, model.max_length)
    threads = config.threads or available_cores()
    figures_by_label: dict[str, Any] = {}
    columns = (TextColumn("  {task.description:<60}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("")
        for label, path in zip(labels_of(models), models, strict=True):
            done = out / f".{label}.json"

            def report(what: str, label: str = label) -> None:
                progress.update(bar, description=f"{label}: {what}")

            if not done.is_file():
                figures = in_own_process(report, config, path, threads)
                if draft is not None:
                    figures["draft"] = gained(config, path, Path(draft), threads, report)
                write_json(done, figures)
            figures_by_label[label] = read_object(done)
    bandwidth = max(figures["bandwidth_bytes_per_second"] for figures in figures_by_label.values())
    for figures in figures_by_label.values():
        for row in figures["contexts"].values():
            row["share_of_limit"] = share_of_limit(row, bandwidth)
    record = {
        "new_tokens": config.new_tokens,
        "repeats": config.repeats,
        "threads": threads,
        "bandwidth_bytes_per_second": bandwidth,
        "models": figures_by_label,
    }
    write_json(out / "bench.json", record)
    return out


def gained(
    config: BenchConfig, path: Path, draft: Path, threads: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """What a draft model gains a .gguf."""
    from pocketlm.serve.speculation import gain_of_draft

    return gain_of_draft(
        path,
        draft,
        new_tokens=config.new_tokens,
        repeats=config.repeats,
        threads=threads,
        report=report,
    )


def share_of_limit(row: dict[str, Any], bandwidth: float) -> float | None:
    """Decode as a share of the tokens a second at which memory could be read; None where step_bytes
    is not known.

    Above 1 where a model stays in the processor's caches. The bandwidth is the best after any of
    the run's models.
    """
    return (
        None
        if row["step_bytes"] is None
        else row["decode_tokens_per_second"] * row["step_bytes"] / bandwidth
    )


def chosen_contexts(
    config: BenchConfig, path: Path, max_length: int
) -> tuple[list[int], list[int]]:
    """(contexts to measure, contexts left out), both ascending; ValueError where one was asked for
    and is too long.
    """
    contexts = sorted(set(config.contexts or CONTEXTS))
    fitting = [context for context in contexts if context <= max_length]
    if len(fitting) < len(contexts) and (config.contexts or not fitting):
        raise ValueError(
            f"{path}: its longest text is {max_length} tokens, so there is no context "
            f"{contexts[len(fitting)]}; "
            f"give contexts up to {max_length}"
        )
    return fitting, contexts[len(fitting) :]


def measure(
    config: BenchConfig, path: Path, threads: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of one model, in a process that does nothing else.

    load_seconds: from the call that opens the file to the first token after a prompt of one, so
    with everything that is read or laid out late; without the import of Python packages.
    peak_memory_bytes: the most resident until then, of which `memory_before_bytes` were there
    before the file: Python, torch and the runtime. step_bytes: what one token at the end of the
    context must read: every weight once, and the keys and values it sees.
    """
    runtime = config.runtime_of(path)
    prepare_runtime(path, runtime)
    before = memory_bytes()
    report("opening")
    started = perf_counter()
    with opened(path, runtime=runtime, threads=threads) as model:
        next(
            iter(
                model.stream(
                    model.tokenizer.document_start or [0], max_new_tokens=1, stop_ids=set()
                )
            )
        )
        load_seconds = perf_counter() - started
        contexts, left_out = chosen_contexts(config, path, model.max_length)
        rows: dict[str, dict[str, Any]] = {}
        for context in contexts:
            speed = measure_speed(
                model,
                context - config.new_tokens,
                config.new_tokens,
                config.repeats,
                report=lambda what, context=context: report(f"{context} tokens, {what}"),
            )
            rows[str(context)] = {
                **speed,
                **asdict(model.memory(context)),
                "peak_memory_bytes": peak_memory_bytes(),
            }
        longest, peak = model.max_length, peak_memory_bytes()
    report("memory bandwidth")
    bandwidth = read_bandwidth()
    return {
        "path": path.name,
        "bytes": size_of(path),
        "max_length": longest,
        "load_seconds": load_seconds,
        "peak_memory_bytes": peak,
        "memory_before_bytes": before,
        "bandwidth_bytes_per_second": bandwidth,
        "contexts": rows,
        "left_out": left_out,
    }


def in_own_process(
    report: Callable[[str], None], config: BenchConfig, path: Path, threads: int
) -> dict[str, Any]:
    """What `measure` returns or raises, from a new process: its peak of memory is this model's
    alone.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, config, path, threads), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, content = receiver.recv()
            if kind == "error":
                raise content
            if kind == "figures":
                return content
            report(content)
    except EOFError:
        process.join()
        raise ValueError(
            f"{path}: the process that measured it ended with status {process.exitcode}"
            f"{', killed: was the memory enough?' if process.exitcode == -signal.SIGKILL else ''}"
        ) from None
    finally:
        process.kill()
        process.join()


def _answer(pipe: Any, config: BenchConfig, path: Path, threads: int) -> None:
    # Ctrl-C is for the process that waits, and it ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(
            ("figures", measure(config, path, threads, lambda what: pipe.send(("progress", what))))
        )
    except Exception as error:
        pipe.send(("error", error))
