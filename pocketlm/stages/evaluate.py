"""Evaluate: models, and the exported files themselves, on suites, held-out text and needles, in one
table.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pocketlm.corpus.recall_notes import draw_notes
from pocketlm.data.corpus_folder import held_out_texts
from pocketlm.data.shards import open_shard
from pocketlm.eval.answers_file import keep_to, transcript
from pocketlm.eval.compared import paired_differences, pairs_of
from pocketlm.eval.figures import figures_of
from pocketlm.eval.harness import Share, run_suite
from pocketlm.eval.latency import measure_speed
from pocketlm.eval.look_up import VALUE_TOKENS, fact_trials
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.eval.rank_me import rank_of_states
from pocketlm.eval.retrieval import find_needles, needle_trials
from pocketlm.eval.suites.loaded import LoadedSuite, all_loaded, with_sandbox
from pocketlm.eval.suites.named import named_suites, without
from pocketlm.export.text_agreement import refuse_other_text
from pocketlm.inference.digest import sha256_of
from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.open import TRANSFORMERS, label_of, opened, size_of
from pocketlm.inference.runtime import Runtime
from pocketlm.model.files import write_json
from pocketlm.model.hub_folder import model_at
from pocketlm.model.json_shape import read_object
from pocketlm.model.weights import count_numbers
from pocketlm.train.distributed.ranks import on_first_rank, ranks, wait_for_ranks

NEEDLE_SEED = 7_000_000  # no training source is drawn with it


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure. suites: names (eval/suites), protocols, or .jsonl files. labels: a name for
    each model; empty takes folder and file names.

    data: a folder with the benchmarks' files; None reads them from the hub. limit: so
    many documents of each suite, of all its families; None takes all. max_new_tokens: None takes
    each suite's own.
    bits_tokens: held-out text of each domain (0: none). rank_tokens: as much for RankMe of the last
    hidden states (eval/rank_me.py). needle_tokens: context lengths to search a
    needle in, each with needle_trials trials, hidden in held-out text of the sources `haystack`.
    needle: a note and a question about it, or a fact whose beginning is repeated (easier:
    eval/look_up.py), with `distractors` other facts in the text. needle_seed: of the trials.
    needle_labels: of the models to search with; empty: all.
    unsafe_exec: where no sandbox of the operating system holds, run programs that a model wrote
    with limits alone. without: suites of a protocol that are not measured, by benchmark or row.
    baseline: a folder or hub id that is measured too, in transformers.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    suites: tuple[str, ...]
    labels: tuple[str, ...] = ()
    data: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    bits_tokens: int = 0
    bits_window: int = 256
    rank_tokens: int = 0
    needle_tokens: tuple[int, ...] = ()
    needle_trials: int = 50
    haystack: tuple[str, ...] = ()
    needle: Literal["note", "fact"] = "note"
    distractors: int = 0
    needle_seed: int = NEEDLE_SEED
    needle_labels: tuple[str, ...] = ()
    speed_tokens: int = 32
    runtime: str | None = None  # what computes the folders among the models (inference/open.py)
    unsafe_exec: bool = False
    without: tuple[str, ...] = ()
    baseline: str | None = None

    def __post_init__(self) -> None:
        for field in ("limit", "max_new_tokens", "batch_size"):
            if (number := getattr(self, field)) is not None and number < 1:
                raise ValueError(f"{self.name}.{field} is {number}; it must be at least 1")
        if not (self.suites or self.bits_tokens or self.rank_tokens or self.needle_tokens):
            raise ValueError(
                f"{self.name}: nothing to measure; name suites, bits_tokens, rank_tokens or "
                "needle_tokens"
            )
        if self.needle not in ("note", "fact"):
            raise ValueError(f"{self.name}.needle {self.needle!r} is unknown; known: note, fact")
        if self.distractors and self.needle != "fact":
            raise ValueError(f"{self.name}.distractors are facts: set needle to fact")

    def reads(self) -> list[Path]:
        """The user's own suite files and benchmarks: when one changes, so does the stage."""
        files = [Path(suite) for suite in self.suites if is_suite_file(suite)]
        if self.baseline is not None and Path(self.baseline).is_dir():  # else it is the hub's
            files.append(Path(self.baseline))
        return files if self.data is None else [*files, Path(self.data).expanduser()]

    def summary(self) -> str:
        needles = (
            f", needles in {'/'.join(map(str, self.needle_tokens))} tokens"
            if self.needle_tokens
            else ""
        )
        plural = "s" * (len(self.suites) > 1)
        suites = f"suite{plural} {', '.join(self.suites)}" if self.suites else "no suite"
        return suites + needles


def is_suite_file(name: str) -> bool:
    """Whether a suite's name is a file's."""
    return name.endswith(".jsonl") or Path(name).is_file()


def evaluate(
    config: EvaluateConfig, out: Path, *, models: list[Path], corpus: Path | None = None
) -> Path:
    """`out`, with evaluation.json (figures of every model, and how an exported file differs from
    its model) and transcripts/<label>.<suite>.jsonl (every answer).

    An interrupted call goes on with the answers it kept; ValueError where they are to other
    documents, or programs were judged in another sandbox. An exported file is compared, document by
    document, with the last checkpoint before it in `models`, the baseline with the first. Held-out
    text and needles need the `corpus`: its validation split, and its knowledge text as haystack.
    Several ranks share the documents of each suite; what else is measured, the first measures.
    """
    placed = _placed(config, models)
    if unknown := sorted(set(config.needle_labels) - set(placed)):
        raise ValueError(
            f"{config.name}.needle_labels: {', '.join(unknown)} is none of {', '.join(placed)}"
        )
    if corpus is None and (config.bits_tokens or config.rank_tokens or config.needle_tokens):
        raise ValueError(
            f"{config.name}: bits_tokens, rank_tokens and needle_tokens need a corpus as input"
        )
    named = named_suites(config.suites) if config.suites else ()
    suites = without(named, config.without)
    left_out = [suite.name for suite in named if suite not in suites]
    data = None if config.data is None else Path(config.data).expanduser()
    if config.max_new_tokens is not None:
        suites = [replace(suite, max_new_tokens=config.max_new_tokens) for suite in suites]
    tests = all_loaded(suites, data, config.limit)
    tests = with_sandbox(tests, unsafe_exec=config.unsafe_exec)
    figures: dict[str, Any] = {}

    def prepare() -> None:
        (out / "transcripts").mkdir(exist_ok=True)
        keep_to(out, {test.suite.name: test.basis() for test in tests})

    on_first_rank(prepare)
    # what is finished is asked before the first rank can finish more
    done = {label for label in placed if (out / f".{label}.json").is_file()}
    wait_for_ranks()
    with _progress() as progress:
        documents = sum(test.count for test in tests)
        bar = progress.add_task("", total=len(placed) * documents)
        for label, (path, runtime) in placed.items():
            finished = out / f".{label}.json"
            if label not in done:
                report = _reporter(progress, bar, label)
                answers = partial(transcript, out, label)
                described = {"path": path.name, "bytes": size_of(path), "sha256": sha256_of(path)}
                if runtime is not None:
                    described["runtime"] = runtime
                if path.is_dir() and any(path.glob("model*.safetensors")):  # no adapter's folder
                    described["parameters"] = count_numbers(path)
                searched = not config.needle_labels or label in config.needle_labels
                placed_config = replace(config, runtime=runtime)
                measured = measure(
                    placed_config, path, tests, corpus, answers, report, needles=searched
                )
                if ranks().first:
                    write_json(finished, {**described, **measured})
                wait_for_ranks()
            figures[label] = read_object(finished)
            progress.update(bar, completed=len(figures) * documents)
    if not ranks().first:
        return out
    baseline = list(placed)[-1] if config.baseline is not None else None
    pairs = pairs_of({label: path for label, (path, _) in placed.items()}, baseline)
    write_json(
        out / "evaluation.json",
        {
            "suites": {test.suite.name: test.described() for test in tests},
            "models": figures,
            "differences": paired_differences(out, [test.suite for test in tests], pairs),
            "left_out": left_out,
        },
    )
    return out


def _placed(config: EvaluateConfig, models: list[Path]) -> dict[str, tuple[Path, str | None]]:
    """{label: (path, what computes a folder)} of the models, and of the baseline behind them.
    ValueError: labels that are not one for each model, or not all different.
    """
    labels = config.labels or tuple(label_of(path) for path in models)
    if len(labels) != len(models) or len(set(labels)) != len(labels):
        raise ValueError(
            f"{config.name}.labels must be {len(models)} different names, one for each model; got "
            f"{list(labels)}"
        )
    placed: dict[str, tuple[Path, str | None]] = {
        label: (path, config.runtime if path.is_dir() else None)
        for label, path in zip(labels, models, strict=True)
    }
    if config.baseline is not None:
        baseline = f"{Path(config.baseline).name}-{TRANSFORMERS}"
        if baseline in placed:
            raise ValueError(f"{config.name}: a model is called {baseline}, as the baseline is")
        placed[baseline] = (model_at(config.baseline), TRANSFORMERS)
    return placed


def measure(
    config: EvaluateConfig,
    path: Path,
    tests: Sequence[LoadedSuite],
    corpus: Path | None,
    answers: Callable[[str], Path],
    report: Callable[[str, int], None],
    *,
    needles: bool = True,
) -> dict[str, Any]:
    """The figures of one model; its answers to a suite are kept in the file answers(suite).
    report(what, documents): the progress callback, with how many documents are done. needles:
    whether they are searched, where the config has any.
    """
    figures: dict[str, Any] = {"suites": {}}
    before = 0
    with opened(path, runtime=config.runtime) as model:
        check_text(path, model)
        for test in (test.drawn_for(model.tokenizer) for test in tests):
            name = test.suite.name

            def progress(answered: int, name: str = name, before: int = before) -> None:
                report(name, before + answered)

            progress(0)
            rows = run_suite(
                model,
                test.suite,
                test.problems,
                test.shots,
                batch_size=config.batch_size,
                path=answers(name),
                progress=progress,
                share=Share(ranks().rank, ranks().world_size, wait_for_ranks),
            )
            figures["suites"][name] = figures_of(test.suite, rows)
            before += test.count
        if not ranks().first:
            return figures
        if corpus is not None and config.bits_tokens:
            report("bits per byte", before)
            texts = held_out_texts(corpus, model.tokenizer, "validation", config.bits_tokens)
            window = min(config.bits_window, model.max_length)
            figures["bits_per_byte"] = {
                domain: bits_per_byte(model, documents, window)
                for domain, documents in texts.items()
            }
        if corpus is not None and config.rank_tokens:
            texts = held_out_texts(corpus, model.tokenizer, "validation", config.rank_tokens)
            window = min(config.bits_window, model.max_length)
            documents = [text for domain in texts.values() for text in domain]
            figures["rank_me"] = rank_of_states(model, documents, window)
        report("speed", before)
        speed = measure_speed(model, config.speed_tokens, config.speed_tokens, repeats=3)
    if corpus is not None and config.needle_tokens and needles:
        report("needles", before)
        figures["needle"] = _needles(config, path, corpus)
    figures["tokens_per_second"] = speed["decode_tokens_per_second"]
    return figures


def check_text(path: Path, model: Runtime) -> None:
    """Nothing, or a ValueError where llama.cpp reads hard texts as other ids than those that a
    .gguf is given here. What cannot be alike is printed.
    """
    if path.suffix == ".gguf":
        rows = read_header(path).tensors["token_embd.weight"][0]
        for note in refuse_other_text(path, model.tokenizer, rows):
            print(f"{path.name}: {note}", file=sys.stderr)


def _needles(config: EvaluateConfig, path: Path, corpus: Path) -> dict[str, dict[str, Any]]:
    """How many needles are found at each context length, beyond the model's own too: that is the
    figure before context extension.
    """
    figures = {}
    with opened(path, runtime=config.runtime, context_length=max(config.needle_tokens)) as model:
        haystack = [
            model.tokenizer.decode(
                shard.document(number)[len(model.tokenizer.document_start) :].tolist()
            )
            for shard in (open_shard(corpus, name, "validation") for name in config.haystack)
            for number in range(len(shard))
        ]
        for tokens in config.needle_tokens:
            task = (model.tokenizer, tokens, config.needle_trials, config.needle_seed, haystack)
            if config.needle == "fact":
                trials = fact_trials(*task, config.distractors)
                figures[str(tokens)] = find_needles(model, trials, VALUE_TOKENS)
            else:
                trials = needle_trials(*task, draw_notes(config.needle_seed, held_out=True))
                figures[str(tokens)] = find_needles(model, trials)
    return figures


def _progress() -> Progress:
    columns = (
        TextColumn("  {task.description:<44}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not ranks().first)


def _reporter(progress: Progress, bar: Any, label: str) -> Callable[[str, int], None]:
    """Moves the bar on from where this model begins."""
    begin = progress.tasks[bar].completed

    def report(what: str, documents: int) -> None:
        progress.update(bar, description=f"{label}: {what}", completed=begin + documents)

    return report
