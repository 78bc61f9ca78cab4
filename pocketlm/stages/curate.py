"""Curate: sources -> clean documents -> token shards, with a count and examples of whatever was
left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pocketlm.corpus.clean import EXAMPLES, Cleaner, Report, write_splits
from pocketlm.corpus.decontaminate import EvaluationIndex
from pocketlm.corpus.dedup import DuplicateIndex, MinHash
from pocketlm.corpus.documents import SPLITS, read_documents
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.reading import source_line
from pocketlm.corpus.sources import Source, check_source
from pocketlm.data.encoding import encode_documents
from pocketlm.data.shards import read_shard, write_shard
from pocketlm.eval.suites.named import load_problems, named_suites
from pocketlm.model.files import read_json, write_folder, write_json
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer

REPORT = "source.json"


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """What to read, what to leave out, how to cut it up.

    vocab_size, tokenizer: exactly one. The size of a tokenizer to train on tokenizer_sample_bytes
    of the training text, or the folder of one to use. max_chars: longer texts are cut at line
    breaks into several documents; longer conversations are dropped (counted under "length").
    validation_share, probe_share: of each source's documents, by the hash of their content and the
    seed. suites: evaluations (names or files) whose problems must not be trained on, found by
    n-grams of `ngram` words.
    """

    name: str
    sources: tuple[Source, ...]
    vocab_size: int | None = None
    tokenizer: str | None = None
    tokenizer_sample_bytes: int = 4_000_000
    max_chars: int = 100_000
    thresholds: Thresholds = field(default_factory=Thresholds)
    minhash: MinHash = field(default_factory=MinHash)
    suites: tuple[str, ...] = ()
    ngram: int = 13
    validation_share: float = 0.01
    probe_share: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"sources: {', '.join(map(repr, twice))} stands there twice; names must differ"
            )
        if not names:
            raise ValueError("sources is empty; name at least one")
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError(
                "give one of vocab_size, to train a tokenizer, and tokenizer, a folder that holds "
                "one"
            )
        for name in ("validation_share", "probe_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it is a share, from 0 to below 1"
                )
        if self.validation_share + self.probe_share >= 1:
            raise ValueError(
                "validation_share + probe_share leave nothing to train on; keep their sum below 1"
            )
        for name in ("tokenizer_sample_bytes", "max_chars", "ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def summary(self) -> str:
        tokenizer = (
            f"{self.vocab_size:,} tokens"
            if self.vocab_size
            else f"the tokenizer of {self.tokenizer}"
        )
        rows = [f"{source.name} ({source.dataset or source.kind})" for source in self.sources]
        return f"{len(rows)} sources, {tokenizer}: {', '.join(rows)}"

    def reads(self) -> list[Path]:
        """The user's own files this stage reads: when one changes, so does the stage."""
        named = (
            [source.path for source in self.sources]
            + [self.tokenizer]
            + [suite for suite in self.suites if suite.endswith(".jsonl") or Path(suite).is_file()]
        )
        return [Path(path).expanduser() for path in named if path]


def curate(config: CurateConfig, out: Path) -> Path:
    """`out`, holding tokenizer/, documents/, shards/ and curation.json; a line on each source goes
    to the terminal.

    Each source runs through its filters, exact duplicates, contamination and near duplicates, in
    this order. Duplicates are searched across sources; the source named first keeps the text. A
    finished source is not read again, so an interrupted call goes on where it stopped, and ends
    with the same bytes. FileNotFoundError or ValueError name the source, file and line that cannot
    be read, or the filters that left nothing of a source.
    """
    for source in config.sources:
        check_source(source)
    given = Tokenizer.load(Path(config.tokenizer).expanduser()) if config.tokenizer else None
    prompts = {
        name: [problem.prompt for suite in named_suites([name]) for problem in load_problems(suite)]
        for name in config.suites
    }
    cleaner = Cleaner(
        thresholds=config.thresholds,
        max_chars=config.max_chars,
        duplicates=DuplicateIndex(config.minhash),
        evaluation=EvaluationIndex(prompts, ngram=config.ngram),
    )
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for source in config.sources:
            _collect(source, config, cleaner, out, progress)
        tokenizer = _tokenizer(config, given, out)
        for source in config.sources:
            _encode(source, out, tokenizer, progress)
    summary = _summary(config, out, tokenizer)
    for name, told in summary["sources"].items():
        Console(stderr=True).print(
            source_line(name, told), markup=False, highlight=False, soft_wrap=True
        )
    write_json(out / "curation.json", summary)
    return out


def _collect(
    source: Source, config: CurateConfig, cleaner: Cleaner, out: Path, progress: Progress
) -> None:
    """Write out/documents/<source>, or where it stands from an earlier call, take note of what is
    in it.
    """
    folder = out / "documents" / source.name
    bar = progress.add_task(f"read {source.name}", total=source.max_bytes or source.count, told="")
    if folder.is_dir():
        for split in SPLITS:
            cleaner.remember(source, read_documents(out, source.name, split))
        progress.update(bar, total=1, completed=1, told="finished before")
        return
    report = Report()
    with write_folder(folder) as partial:
        documents = cleaner.clean(source, report, _teller(progress, bar, source))
        shares = {"validation_share": config.validation_share, "probe_share": config.probe_share}
        kept = write_splits(documents, partial, **shares, seed=config.seed)
        told = {"files": report.reading.summary(), "read": report.read, "capped": report.capped}
        told |= {"dropped": report.dropped, "shortened": report.shortened, "kept": kept}
        told["examples"] = report.examples
        write_json(partial / REPORT, told)
    progress.update(bar, total=1, completed=1)


def _tokenizer(config: CurateConfig, given: Tokenizer | None, out: Path) -> Tokenizer:
    """The tokenizer of this corpus, in out/tokenizer: the given one, or one trained on its training
    text.
    """
    folder = out / "tokenizer"
    if not folder.is_dir():
        if config.vocab_size is not None:
            given = train_tokenizer(_tokenizer_sample(config, out), config.vocab_size)
        assert given is not None
        with write_folder(folder) as partial:
            given.save(partial)
    return Tokenizer.load(folder)


def _tokenizer_sample(config: CurateConfig, out: Path) -> Iterator[str]:
    """Training texts of about tokenizer_sample_bytes, spread evenly over each source.

    Every source gives the same number of bytes; what a small one lacks, the larger ones give.
    """
    names = [source.name for source in config.sources]
    sizes = {
        name: read_json(out / "documents" / name / REPORT)["kept"]["train"]["bytes"]
        for name in names
    }
    left, shares = float(config.tokenizer_sample_bytes), {}
    for number, name in enumerate(sorted(names, key=lambda name: sizes[name])):
        taken = min(sizes[name], left / (len(names) - number))
        left, shares[name] = left - taken, taken / max(1, sizes[name])
    for name in names:
        for number, document in enumerate(read_documents(out, name, "train")):
            if int((number + 1) * shares[name]) > int(number * shares[name]):
                yield document.text


def _encode(source: Source, out: Path, tokenizer: Tokenizer, progress: Progress) -> None:
    """Write out/shards/<source>: each document its start, then its text."""
    folder = out / "shards" / source.name
    bar = progress.add_task(f"encode {source.name}", total=len(SPLITS), told="")
    if folder.is_dir():
        progress.update(bar, completed=len(SPLITS), told="finished before")
        return
    with write_folder(folder) as partial:
        for split in SPLITS:
            texts = (document.text for document in read_documents(out, source.name, split))
            write_shard(
                partial, split, encode_documents(texts, tokenizer), vocab_size=tokenizer.vocab_size
            )
            progress.advance(bar)


def _summary(config: CurateConfig, out: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """curation.json: what each source gave, what each filter dropped, how far the tokenizer
    compresses.
    """
    sources, examples, bytes_per_token = {}, {}, {}
    for source in config.sources:
        report = read_json(out / "documents" / source.name / REPORT)
        kept = report["kept"]
        for split in SPLITS:
            kept[split]["tokens"] = len(read_shard(out / "shards" / source.name, split).tokens)
        counts = {name: told for name, told in report.items() if name != "examples"}
        sources[source.name] = {"domain": source.domain, **counts}
        for name, texts in report["examples"].items():
            shown = examples.setdefault(name, [])
            shown += texts[: EXAMPLES - len(shown)]
        start = len(tokenizer.document_start)  # it is no text
        text_tokens = sum(split["tokens"] - start * split["documents"] for split in kept.values())
        size = sum(split["bytes"] for split in kept.values())
        bytes_per_token[source.name] = round(size / max(1, text_tokens), 4)
    told = {"vocab_size": tokenizer.vocab_size, "bytes_per_token": bytes_per_token}
    return {"sources": sources, "examples": examples, "tokenizer": told}


def _teller(progress: Progress, bar: TaskID, source: Source) -> Callable[[Report], None]:
    """Moves a source's bar, and says how much was kept and left out."""

    def tell(report: Report) -> None:
        done = report.read["documents"] if source.max_bytes is None else report.kept["bytes"]
        left_out = report.read["documents"] - report.kept["documents"]
        told = (
            f"{report.kept['bytes'] / 1e6:.1f} MB kept, {left_out:,} of "
            f"{report.read['documents']:,} left out"
        )
        unread = report.reading.summary()
        if unread["unread"]:
            told += f", {unread['found'] - unread['read']:,} files not read"
        progress.update(bar, completed=done, told=told)

    return tell
