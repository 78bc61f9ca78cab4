"""Evaluate: models, and the exported files themselves, on problems, held-out text and needles, in
one table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pocketlm.corpus.recall_notes import draw_notes
from pocketlm.data.corpus_folder import held_out_texts
from pocketlm.data.shards import open_shard
from pocketlm.eval.harness import Result, best_constant_answer, solve
from pocketlm.eval.latency import measure_speed
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.eval.retrieval import find_needles, needle_trials
from pocketlm.eval.suites import Suite, load_suite
from pocketlm.export.runtimes import label_of, opened, size_of
from pocketlm.model.files import write_json, write_text
from pocketlm.model.generate import LanguageModel
from pocketlm.model.json_shape import read_object
from pocketlm.problems.generated import generate_problems

NEEDLE_SEED = 7_000_000  # no training source is drawn with it


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure. suite: a name or a .jsonl file. labels: a name for each model; empty takes
    folder and file names.

    bits_tokens: held-out text of each domain (0: none). needle_tokens: context lengths to search a
    needle in, each with needle_trials trials, hidden in held-out text of the sources `haystack`.
    """

    name: str
    suite: str
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 160
    batch_size: int = 32
    bits_tokens: int = 0
    bits_window: int = 256
    needle_tokens: tuple[int, ...] = ()
    needle_trials: int = 50
    haystack: tuple[str, ...] = ()
    speed_tokens: int = 32

    def reads(self) -> list[Path]:
        """The user's own suite file, when it is one: when it changes, so does the stage."""
        return (
            [Path(self.suite)]
            if self.suite.endswith(".jsonl") or Path(self.suite).is_file()
            else []
        )

    def summary(self) -> str:
        needles = (
            f", needles in {'/'.join(map(str, self.needle_tokens))} tokens"
            if self.needle_tokens
            else ""
        )
        return f"suite {self.suite}{needles}"


def evaluate(
    config: EvaluateConfig, out: Path, *, models: list[Path], corpus: Path | None = None
) -> Path:
    """`out`, with evaluation.json (figures of every model) and transcripts/<label>.jsonl (every
    answer).

    Held-out text and needles need the `corpus`: its validation split, and its knowledge text as
    haystack.
    """
    suite = load_suite(config.suite, generate_problems)
    labels = config.labels or tuple(label_of(path) for path in models)
    if len(labels) != len(models) or len(set(labels)) != len(labels):
        raise ValueError(
            f"{config.name}.labels must be {len(models)} different names, one for each model; got "
            f"{list(labels)}"
        )
    if corpus is None and (config.bits_tokens or config.needle_tokens):
        raise ValueError(f"{config.name}: bits_tokens and needle_tokens need a corpus as input")
    found: dict[str, Any] = {}
    columns = (
        TextColumn("  {task.description:<44}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    (out / "transcripts").mkdir(exist_ok=True)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(models))
        for label, path in zip(labels, models, strict=True):
            done = out / f".{label}.json"
            if not done.is_file():
                with opened(path) as model:
                    figures, result = measure(
                        config,
                        model,
                        suite,
                        corpus,
                        lambda what, label=label: progress.update(
                            bar, description=f"{label}: {what}"
                        ),
                    )
                write_transcripts(out / "transcripts" / f"{label}.jsonl", result)
                write_json(done, {"path": path.name, "bytes": size_of(path), **figures})
            found[label] = read_object(done)
            progress.advance(bar)
    told = {"suite": config.suite, "max_new_tokens": config.max_new_tokens, "models": found}
    write_json(out / "evaluation.json", told)
    return out


def measure(
    config: EvaluateConfig, model: Any, suite: Suite, corpus: Path | None, tell: Any
) -> tuple[dict[str, Any], Result]:
    """(the figures of one opened model, its answers)."""
    tell("problems")
    result = solve(model, suite, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    figures: dict[str, Any] = {
        "accuracy": result.accuracy,
        "answers_cut": result.answers_cut,  # at max_new_tokens, or the model's length
        "problems": result.problems,
        "constant_answer": best_constant_answer(suite),
    }
    if corpus is not None and config.bits_tokens:
        tell("bits per byte")
        texts = held_out_texts(corpus, model.tokenizer, "validation", config.bits_tokens)
        window = min(config.bits_window, model.max_length)
        figures["bits_per_byte"] = {
            domain: bits_per_byte(model, own, window) for domain, own in texts.items()
        }
    if corpus is not None and config.needle_tokens:
        haystack = [
            model.tokenizer.decode(
                shard.document(number)[len(model.tokenizer.document_start) :].tolist()
            )
            for shard in (open_shard(corpus, name, "validation") for name in config.haystack)
            for number in range(len(shard))
        ]
        figures["needle"] = {}
        # asked beyond its window too: that is the figure before context extension
        if isinstance(model, LanguageModel):
            model.max_length = max(model.max_length, *config.needle_tokens)
        for tokens in config.needle_tokens:
            tell(f"needles in {tokens} tokens")
            notes = draw_notes(NEEDLE_SEED, held_out=True)
            trials = needle_trials(
                model.tokenizer, tokens, config.needle_trials, NEEDLE_SEED, haystack, notes
            )
            figures["needle"][str(tokens)] = find_needles(model, trials)
    tell("speed")
    speed = measure_speed(model, config.speed_tokens, config.speed_tokens, repeats=3)
    figures["tokens_per_second"] = speed["decode_tokens_per_second"]
    return figures, result


def write_transcripts(file: Path, result: Result) -> None:
    import json

    write_text(
        file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.transcripts)
    )
