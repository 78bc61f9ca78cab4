"""Curate: sources -> clean documents -> token shards, with a count and examples of whatever was
left out.

The work is datatrove's tasks: each reads one part of a source, then what is alike is found in
sorted files, one pass decides what stays, and each part is encoded by a task again. So any number
of processes or machines share it, memory does not grow with the corpus, and the bytes are the same.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pocketlm.corpus.decisions import Outcome, TooShort, decide, read_part_record
from pocketlm.corpus.dedup import MinHash
from pocketlm.corpus.documents import SPLITS, SplitRule
from pocketlm.corpus.duplicates import Signatures, find_groups
from pocketlm.corpus.encode_step import EncodeStep
from pocketlm.corpus.executors import Place
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.kept import KeptDocuments, link, text_of
from pocketlm.corpus.parts import check_source
from pocketlm.corpus.progress import Bar, progress_bars
from pocketlm.corpus.read_step import EXAMPLES, ReadStep, part_folder, write_evaluations
from pocketlm.corpus.reading import source_line
from pocketlm.corpus.sources import LocalSource, Source
from pocketlm.corpus.work import Work
from pocketlm.data.encoding import encode_documents
from pocketlm.data.shards import join_shards, read_shard, write_shard
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
    n-grams of `ngram` words. suites_data: the folder with the benchmarks' files, as `pocketlm eval
    --data` reads it; None reads them from the hub. part_bytes: what one task reads, about; it
    decides into how many files a source is written. executor: where tasks run, "local:N" (processes
    of this computer), "slurm:PARTITION" or "ray:ADDRESS"; None: as many processes as cores, as far
    as the work is worth it. It changes nothing of what is written.
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
    suites_data: str | None = None
    ngram: int = 13
    validation_share: float = 0.01
    probe_share: float = 0.01
    seed: int = 0
    part_bytes: int = 256_000_000
    executor: str | None = field(default=None, compare=False)

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
        for name in ("tokenizer_sample_bytes", "max_chars", "ngram", "part_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.suites_data is not None and not self.suites:
            raise ValueError(
                f"suites_data is {self.suites_data}, but no suite is named whose problems it "
                "holds; name some in suites"
            )
        if self.executor is not None:
            Place.parse(self.executor)

    @property
    def split_rule(self) -> SplitRule:
        return SplitRule(
            validation_share=self.validation_share, probe_share=self.probe_share, seed=self.seed
        )

    def summary(self) -> str:
        tokenizer = (
            f"{self.vocab_size:,} tokens"
            if self.vocab_size
            else f"the tokenizer of {self.tokenizer}"
        )
        rows = [f"{source.name} ({source.contents})" for source in self.sources]
        return f"{len(rows)} sources, {tokenizer}: {', '.join(rows)}"

    def reads(self) -> list[Path]:
        """The user's own files this stage reads: when one changes, so does the stage."""
        named = (
            [source.path for source in self.sources if isinstance(source, LocalSource)]
            + [self.tokenizer, self.suites_data]
            + [suite for suite in self.suites if suite.endswith(".jsonl") or Path(suite).is_file()]
        )
        return [Path(path).expanduser() for path in named if path]


def curate(config: CurateConfig, out: Path) -> Path:
    """`out`, holding tokenizer/, documents/, shards/, curation.json and throughput.json; a line on
    each source goes to the terminal.

    Each document runs through its filters, exact duplicates, contamination and near duplicates, in
    this order. Duplicates are searched across sources; the source named first keeps the text.
    Finished tasks are not repeated, so an interrupted call goes on where it stopped, and ends with
    the same bytes. FileNotFoundError or ValueError name the source, file and line that cannot be
    read, or the filters that left nothing of a source.
    """
    for source in config.sources:
        check_source(source)
    given = Tokenizer.load(Path(config.tokenizer).expanduser()) if config.tokenizer else None
    # as a version without suites_data wrote it, whose interrupted call goes on
    call = repr(replace(config, executor=None)).replace(", suites_data=None", "", 1)
    work = Work(out.absolute() / "resume", config.sources, config.part_bytes, call)
    place = Place.parse(config.executor) if config.executor else work.worth()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}")
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *times, console=Console(stderr=True)) as progress:
        outcomes = _read(config, work, place, progress)
        begun = time.monotonic()
        tokenizer = _tokenizer(config, given, out, work, outcomes)
        work.seconds["tokenizer"] = time.monotonic() - begun
        _encode(work, out.absolute() / "tokenizer", place, progress, outcomes)
    for name, outcome in outcomes.items():
        _publish(out, work, name, outcome)
    summary = _summary(config, out, tokenizer)
    for name, counts in summary["sources"].items():
        line = source_line(name, counts)
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
    throughput = work.write_throughput(out / "throughput.json", place)
    Console(stderr=True).print(throughput, markup=False, highlight=False, soft_wrap=True)
    write_json(out / "curation.json", summary)
    shutil.rmtree(work.folder)
    return out


def _read(config: CurateConfig, work: Work, place: Place, progress: Progress) -> dict[str, Outcome]:
    """Every part read, duplicates found, and decided what stays."""
    data = None if config.suites_data is None else Path(config.suites_data).expanduser()
    prompts = {
        name: [p.prompt for suite in named_suites([name]) for p in load_problems(suite, data)]
        for name in config.suites
    }
    evaluations = write_evaluations(work.folder, prompts)
    searched = any(source.near_dedup is not False for source in config.sources)
    unread = {name: source["unread"] for name, source in work.plan["sources"].items()}
    (work.folder / "progress").mkdir(exist_ok=True)
    bars = [work.bar(name) for name in work.sources]
    while True:
        work.forget_short_parts()
        step = ReadStep(
            plan=work.plan_file,
            sources=config.sources,
            folder=work.folder / "parts",
            progress=work.folder / "progress",
            thresholds=config.thresholds,
            max_chars=config.max_chars,
            evaluations=evaluations,
            ngram=config.ngram,
            rule=config.split_rule,
        )
        steps: list[Any] = [step]
        if searched:
            steps.append(Signatures(work.folder / "signatures", config.minhash))
        with progress_bars(progress, bars, work.folder / "progress"):
            work.timed("read", place, steps, len(work.tasks))
        begun = time.monotonic()
        num_near = sum(read_part_record(work.folder, n)["near"] for n in range(len(work.tasks)))
        groups = find_groups(place, work.folder, len(work.tasks), config.minhash, num_near)
        try:
            outcomes = decide(work.tasks, unread, groups, work.folder, config.split_rule)
        except TooShort as short:
            work.read_further(short.tasks)
            continue
        work.seconds["duplicates"] = time.monotonic() - begun
        return outcomes


def _tokenizer(
    config: CurateConfig,
    given: Tokenizer | None,
    out: Path,
    work: Work,
    outcomes: dict[str, Outcome],
) -> Tokenizer:
    """The tokenizer of this corpus, in out/tokenizer: the given one, or one trained on its training
    text.
    """
    folder = out / "tokenizer"
    if not folder.is_dir():
        if config.vocab_size is not None:
            sample = _tokenizer_sample(config.tokenizer_sample_bytes, work, outcomes)
            given = train_tokenizer(sample, config.vocab_size)
        assert given is not None
        with write_folder(folder) as partial:
            given.save(partial)
    return Tokenizer.load(folder)


def _tokenizer_sample(sample_bytes: int, work: Work, outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Training texts of about sample_bytes, spread evenly over each source.

    Every source gives the same number of bytes; what a small one lacks, the larger ones give.
    """
    sizes = {name: outcome.kept["train"]["bytes"] for name, outcome in outcomes.items()}
    missing, shares = float(sample_bytes), {}
    for number, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        taken = min(sizes[name], missing / (len(sizes) - number))
        missing, shares[name] = missing - taken, taken / max(1, sizes[name])
    for name, outcome in outcomes.items():
        number = 0
        for task in work.numbers(name):
            for line in KeptDocuments(work.folder, task, outcome.moves).lines("train"):
                if int((number + 1) * shares[name]) > int(number * shares[name]):
                    yield text_of(line)
                number += 1


def _encode(
    work: Work, tokenizer: Path, place: Place, progress: Progress, outcomes: dict[str, Outcome]
) -> None:
    (work.folder / "encoding").mkdir(exist_ok=True)
    moves = tuple(outcomes[task.source.name].moves for task in work.tasks)
    step = EncodeStep(
        work=work.folder,
        tokenizer=tokenizer,
        moves=moves,
        encode=encode_documents,
        write_shard=write_shard,
    )
    tasks = {name: work.numbers(name) for name in work.sources}
    bars = [Bar(f"encode {name}", numbers, len(numbers), True) for name, numbers in tasks.items()]
    with progress_bars(progress, bars, work.folder / "encoding"):
        work.timed("encode", place, [step], len(work.tasks))


def _publish(out: Path, work: Work, name: str, outcome: Outcome) -> None:
    """out/documents/<source> and out/shards/<source>, by second names of what tasks wrote."""
    done = work.folder / "published" / name
    if done.is_file():
        return
    parts = [part_folder(work.folder / "encoded", number) for number in work.numbers(name)]
    with write_folder(out / "documents" / name) as folder:
        for split in SPLITS:
            for number, part in enumerate(parts):
                whole = f"{split}.jsonl" if len(parts) == 1 else f"{split}-{number:05d}.jsonl"
                link(part / f"{split}.jsonl", folder / whole)
        write_json(folder / REPORT, outcome.report())
    with write_folder(out / "shards" / name) as folder:
        for split in SPLITS:
            join_shards(parts, folder, split, link)
    done.parent.mkdir(exist_ok=True)
    done.touch()


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
        counts = {name: part for name, part in report.items() if name != "examples"}
        sources[source.name] = {"domain": source.domain, **counts}
        for name, texts in report["examples"].items():
            kept_texts = examples.setdefault(name, [])
            kept_texts += texts[: EXAMPLES - len(kept_texts)]
        start = len(tokenizer.document_start)  # it is no text
        text_tokens = sum(split["tokens"] - start * split["documents"] for split in kept.values())
        size = sum(split["bytes"] for split in kept.values())
        bytes_per_token[source.name] = round(size / max(1, text_tokens), 4)
    measured = {"vocab_size": tokenizer.vocab_size, "bytes_per_token": bytes_per_token}
    return {"sources": sources, "examples": examples, "tokenizer": measured}
