"""The curate stage: the files it leaves, what each of its fields changes, and how it resumes."""

import gzip
import json
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pocketlm.corpus import read_step
from pocketlm.corpus.dedup import MinHash, content_hash
from pocketlm.corpus.documents import SPLITS, read_documents
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.sources import LocalSource, StdlibCodeSource
from pocketlm.data.shards import open_shard
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.stages import curate as stage
from pocketlm.stages.curate import CurateConfig, curate

WORDS = [
    start + end
    for start in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti")
    for end in ("lan", "mer", "rit", "sol")
]


def story(seed: int) -> str:
    words = random.Random(seed)
    return ". ".join(" ".join(words.choices(WORDS, k=9)) for _ in range(4)) + "."


@pytest.fixture
def config(tmp_path):
    """60 stories and 40 worked sums, with one of each thing that is to be left out."""
    stories = [{"text": story(number)} for number in range(60)]
    asked = (
        "Which of the seven old bridges over the river was the first one to be rebuilt in stone?"
    )
    bad = [
        "short",
        story(3),
        story(4).replace("ban", "bon") + " End.",
        f"They said: {asked} Nobody knew that.",
    ]
    rows = stories + [{"text": text} for text in bad]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums = [
        {"prompt": f"What is {n} + 7?", "response": f"#### {n + 7}", "answer": str(n + 7)}
        for n in range(40)
    ]
    sums.append(sums[0])
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    problems = [{"prompt": asked, "answer": "none"}, {"prompt": "What is 5 + 7?", "answer": "12"}]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return CurateConfig(
        name="corpus",
        sources=(
            LocalSource(name="stories", domain="knowledge", path=str(tmp_path / "stories.jsonl")),
            LocalSource(name="sums", domain="maths", path=str(tmp_path / "sums.jsonl")),
        ),
        vocab_size=300,
        suites=(str(tmp_path / "exam.jsonl"),),
        validation_share=0.1,
        probe_share=0.1,
    )


def run(config, out):
    out.mkdir(exist_ok=True)
    return curate(config, out)


def contents(out):
    """All files but the one that tells the time."""
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.name != "throughput.json")
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def counts(out):
    return json.loads((out / "curation.json").read_text())["sources"]


def test_each_thing_that_is_left_out_is_counted_and_shown(config, tmp_path):
    told = json.loads((run(config, tmp_path / "out") / "curation.json").read_text())
    stories, sums = told["sources"]["stories"], told["sources"]["sums"]
    assert stories["dropped"] == {
        "length": 1,
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "contaminated": 1,
    }
    assert sums["dropped"] == {"exact_duplicate": 1, "contaminated": 1}
    for source in (stories, sums):
        kept = sum(split["documents"] for split in source["kept"].values())
        assert source["read"]["documents"] == kept + sum(source["dropped"].values())
    assert sums["domain"] == "maths" and stories["read"]["documents"] == 64
    assert told["examples"]["length"] == ["short"] and "exam" in told["examples"]["contaminated"][0]
    assert (
        told["tokenizer"]["vocab_size"] == 300
        and told["tokenizer"]["bytes_per_token"]["stories"] > 1
    )


def test_shards_hold_the_documents_in_order_each_after_its_bos(config, tmp_path):
    out = run(config, tmp_path / "out")
    tokenizer = Tokenizer.load(out / "tokenizer")
    for source in ("stories", "sums"):
        for split in SPLITS:
            shard, documents = (
                open_shard(out, source, split),
                list(read_documents(out, source, split)),
            )
            assert len(shard) == len(documents) > 0
            for number, document in enumerate(documents):
                ids = shard.document(number).tolist()
                assert ids[0] == tokenizer.bos_id and tokenizer.decode(ids[1:]) == document.text


def test_no_document_is_in_two_splits(config, tmp_path):
    out = run(config, tmp_path / "out")
    splits = [
        {d.text for s in ("stories", "sums") for d in read_documents(out, s, split)}
        for split in SPLITS
    ]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_the_same_config_gives_the_same_bytes(config, tmp_path):
    assert contents(run(config, tmp_path / "a")) == contents(run(config, tmp_path / "b"))


@pytest.mark.parametrize("stopped_at", ["second source", "tokenizer", "second shard", "summary"])
def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(
    config, tmp_path, monkeypatch, stopped_at
):
    # the second source repeats a story of the first: duplicates are known across the interruption
    (tmp_path / "sums.jsonl").write_text(
        (tmp_path / "sums.jsonl").read_text() + json.dumps({"text": story(5)})
    )
    whole = contents(run(config, tmp_path / "whole"))
    assert counts(tmp_path / "whole")["sums"]["dropped"]["exact_duplicate"] == 2
    places = {
        "second source": (read_step.PartWriter, "finish"),
        "tokenizer": (stage, "_tokenizer"),
        "second shard": (stage, "write_shard"),
        "summary": (stage, "_summary"),
    }
    module, name = places[stopped_at]
    original, seen = getattr(module, name), []

    def stop(*arguments, **options):
        seen.append(1)
        if len(seen) == 1 + stopped_at.startswith("second"):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out")
    monkeypatch.setattr(module, name, original)
    assert not (tmp_path / "out" / "curation.json").exists()
    assert contents(run(config, tmp_path / "out")) == whole


def test_a_source_that_fails_midway_leaves_nothing_half_done_and_finished_ones_are_not_read_again(
    config, tmp_path
):
    good = (tmp_path / "sums.jsonl").read_text()
    (tmp_path / "sums.jsonl").write_text(good + "{broken\n")
    with pytest.raises(ValueError, match=r"source 'sums': .*sums\.jsonl:42:2: not JSON"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "documents").exists()
    assert [p.name for p in (tmp_path / "out" / "resume" / "parts").iterdir()] == ["00000"]
    (tmp_path / "sums.jsonl").write_text(good)
    (tmp_path / "stories.jsonl").write_text("no longer read")
    assert counts(run(config, tmp_path / "out"))["stories"]["read"]["documents"] == 64


def test_files_and_documents_left_out_are_told_in_the_terminal_and_in_curation_json(
    config, tmp_path, capsys
):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(story(100 + number))
    (folder / "a.csv").write_text("x,y")
    own = LocalSource(name="folder", domain="knowledge", path=str(folder))
    sources = (own, replace(config.sources[1], near_dedup=False))
    told = counts(run(replace(config, sources=sources, suites=()), tmp_path / "out"))
    unread = {"kind_not_read": {"count": 1, "names": ["a.csv"]}}
    assert told["folder"]["files"] == {"found": 13, "read": 12, "unread": unread}
    lines = capsys.readouterr().err
    line = (
        "warning: source folder: 12 of 13 files read; 12 documents kept, 0 left out; files not "
        "read: kind_not_read 1 (a.csv)"
    )
    assert line in lines
    assert (
        "warning: source sums: 1 of 1 files read; 40 documents kept, 1 left out (exact_duplicate 1)"
        in lines
    )
    (folder / "a.csv").rename(folder / ".a.csv")
    run(replace(config, sources=(own,)), tmp_path / "hidden")
    # nobody misses a hidden file
    assert "\nsource folder: 12 of 13 files read" in "\n" + capsys.readouterr().err


def test_files_that_a_byte_cap_keeps_from_being_read_are_counted(config, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(story(100 + number))
    own = LocalSource(name="folder", domain="knowledge", path=str(folder), max_bytes=900)
    told = counts(run(replace(config, sources=(own,), vocab_size=262), tmp_path / "out"))["folder"]
    assert (
        told["capped"] and "not read to its end: max_bytes was reached" in capsys.readouterr().err
    )
    files = told["files"]
    left = files["unread"]["after_max_bytes"]
    assert files["read"] + left["count"] == files["found"] == 12 and 1 < files["read"] < 8
    assert left["names"][0] == f"{files['read']:02}.txt"


def test_what_a_filter_cuts_out_of_documents_is_counted(config, tmp_path, capsys):
    notice = "# Copyright 2020 Somebody. All rights reserved.\n# Licensed under nothing.\n"
    code = "".join(
        f"def add_{n}(first, second):\n    return first + second + {n}\n\n" for n in range(9)
    )
    (tmp_path / "a.py").write_text(notice + code)
    own = LocalSource(name="code", domain="code", path=str(tmp_path / "a.py"))
    told = counts(run(replace(config, sources=(own,), vocab_size=262), tmp_path / "out"))["code"]
    assert told["shortened"] == {"documents": 1, "bytes": len(notice)} and not told["capped"]
    assert f"1 shortened by {len(notice)} bytes in all" in capsys.readouterr().err


CHANGES = {
    "sources": lambda c: (replace(c.sources[0], max_bytes=5000), c.sources[1]),
    "vocab_size": lambda c: 280,
    "tokenizer_sample_bytes": lambda c: 3000,
    "max_chars": lambda c: 120,
    "thresholds": lambda c: Thresholds(min_chars=1),
    "minhash": lambda c: MinHash(num_buckets=1, hashes_per_bucket=112),
    "suites": lambda c: (),
    "ngram": lambda c: 20,
    "validation_share": lambda c: 0.3,
    "probe_share": lambda c: 0.0,
    "seed": lambda c: 1,
    "part_bytes": lambda c: 3000,
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_what_is_written(config, tmp_path, field):
    changed = replace(config, **{field: CHANGES[field](config)})
    assert contents(run(changed, tmp_path / "changed")) != contents(run(config, tmp_path / "same"))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_benchmarks_of_a_folder_are_kept_out_and_the_hub_is_not_asked(
    config, tmp_path, packed, monkeypatch
):
    import datasets

    def offline(*arguments, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    asked = "Which of the seven old bridges over the river was the first to fall into the water?"
    rows = (tmp_path / "stories.jsonl").read_text()
    told = {"text": f"He wondered for years: {asked} " + story(900)}
    (tmp_path / "stories.jsonl").write_text(rows + json.dumps(told) + "\n")
    (tmp_path / "benchmarks").mkdir()
    query = {"query": f"Question: {asked}\nAnswer:", "choices": ["one", "two"], "gold": 0}
    line = (json.dumps(query) + "\n").encode()
    file = tmp_path / "benchmarks" / f"arc_easy_test.jsonl{packed}"
    file.write_bytes(gzip.compress(line) if packed else line)
    config = replace(config, suites=("arc_easy",), suites_data=str(tmp_path / "benchmarks"))
    assert Path(config.suites_data) in config.reads()
    out = run(config, tmp_path / "out")
    assert counts(out)["stories"]["dropped"]["contaminated"] == 1
    assert not any(asked in d.text for s in SPLITS for d in read_documents(out, "stories", s))
    example = json.loads((out / "curation.json").read_text())["examples"]["contaminated"][0]
    assert example.startswith("arc_easy: which of the seven old bridges")


def test_a_folder_that_lacks_a_benchmark_stops_curation_before_any_source_is_read(config, tmp_path):
    given = replace(config, suites=("arc_easy", "piqa"), suites_data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no arc_easy_test\.jsonl .*put it there"):
        run(given, tmp_path / "out")
    assert not (tmp_path / "out" / "resume" / "parts").exists()
    missing = replace(given, suites_data=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"none: no such folder; .*suites_data"):
        run(missing, tmp_path / "out")
    with pytest.raises(ValueError, match="no suite is named whose problems it holds"):
        replace(given, suites=())


def test_an_interrupted_call_of_a_version_without_a_folder_of_benchmarks_goes_on(
    config, tmp_path, monkeypatch
):
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "suites_data"}
    call = ", ".join(f"{name}={value!r}" for name, value in values.items())
    sources = {s.name: {"parts": [], "unread": {}, "limit": None} for s in config.sources}
    plan = {"call": content_hash(f"CurateConfig({call})"), "sources": sources}
    work = tmp_path / "out" / "resume"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr(stage, "_read", lambda *given: 1 / 0)
    for given, there in ((config, True), (replace(config, suites_data=str(tmp_path)), False)):
        (work / "read before").touch()
        with pytest.raises(ZeroDivisionError):
            curate(given, tmp_path / "out")
        assert (work / "read before").exists() is there


def test_a_tokenizer_can_be_brought(config, tmp_path):
    own = run(config, tmp_path / "a") / "tokenizer"
    brought = replace(config, vocab_size=None, tokenizer=str(own))
    assert contents(run(brought, tmp_path / "b")) == contents(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
        run(replace(brought, tokenizer=str(tmp_path)), tmp_path / "c")


def test_the_options_of_a_source_change_what_is_kept(config, tmp_path):
    stories, sums = config.sources
    loose = replace(stories, near_dedup=False, filters=())
    dropped = counts(run(replace(config, sources=(loose, sums)), tmp_path / "out"))["stories"][
        "dropped"
    ]
    assert dropped == {"exact_duplicate": 1, "contaminated": 1}
    prose = replace(stories, filters=("length", "prose"))  # the stories are not in English
    with pytest.raises(
        ValueError, match=r"'stories' .*no document is left: dropped by prose \(62\), length"
    ):
        run(replace(config, sources=(prose, sums)), tmp_path / "prose")
    searched = replace(
        config, sources=(stories, replace(sums, near_dedup=True, filters=("length",)))
    )
    with pytest.raises(
        ValueError, match=r"'sums' .*no document is left: dropped by length \(41\); loosen"
    ):
        run(searched, tmp_path / "other")


def test_templates_survive_unless_near_duplicates_are_searched_among_them(config, tmp_path):
    text = (
        "Tom buys {0} red apples and then {1} green ones at the big market; he now has {2} in his "
        "brown bag."
    )
    rows = [{"prompt": text.format(n, 3, "many"), "response": f"#### {n + 3}"} for n in range(50)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert counts(run(config, tmp_path / "a"))["sums"]["dropped"] == {}
    sources = (config.sources[0], replace(config.sources[1], near_dedup=True))
    assert (
        counts(run(replace(config, sources=sources), tmp_path / "b"))["sums"]["dropped"][
            "near_duplicate"
        ]
        > 40
    )


def test_code_is_split_into_definitions_and_a_byte_cap_holds(tmp_path):
    source = StdlibCodeSource(name="code", domain="code", max_bytes=60_000, split_code=True)
    config = CurateConfig(name="corpus", sources=(source,), vocab_size=300)
    out = run(config, tmp_path / "out")
    kept = counts(out)["code"]["kept"]
    assert 40_000 < sum(split["bytes"] for split in kept.values()) <= 60_000
    files = [{d.id.split("#")[0] for d in read_documents(out, "code", split)} for split in SPLITS]
    assert not files[0] & files[1] | files[0] & files[2], "definitions of one file share a split"
    assert any("#" in d.id for d in read_documents(out, "code", "train"))


def test_an_empty_source_is_named(config, tmp_path):
    (tmp_path / "sums.jsonl").write_text("\n\n")
    empty = (
        r"source 'sums' \(.*sums\.jsonl\) is empty: nothing was read "
        r"\(files not read: empty 1 \(sums\.jsonl\)\)"
    )
    with pytest.raises(ValueError, match=empty):
        run(config, tmp_path / "out")
    tiny = replace(config, sources=(replace(config.sources[0], max_bytes=10),))
    with pytest.raises(ValueError, match="the first is longer than max_bytes 10"):
        run(tiny, tmp_path / "tiny")


def test_a_missing_source_stops_the_stage_before_any_work(config, tmp_path):
    (tmp_path / "sums.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"source 'sums': .*sums\.jsonl: no such file"):
        run(config, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"sources": (*c.sources, c.sources[0])}, "'stories' stands there twice"),
        (lambda c: {"sources": ()}, "sources is empty"),
        (lambda c: {"vocab_size": None}, "give one of vocab_size"),
        (lambda c: {"tokenizer": "x"}, "give one of vocab_size"),
        (lambda c: {"probe_share": 1.5}, r"probe_share is 1\.5"),
        (lambda c: {"probe_share": 0.9}, "leave nothing to train on"),
        (lambda c: {"ngram": 0}, "ngram is 0"),
        (lambda c: {"executor": "cluster:9"}, "executor is 'cluster:9'; use local:N"),
        (lambda c: {"executor": "local:no"}, "local:N needs a number of processes from 1 on"),
    ],
)
def test_a_wrong_config_says_which_field(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change(config))


def test_a_text_that_spells_a_special_token_is_plain_text_and_stops_nothing(config, tmp_path):
    rows = [{"text": story(200 + number)} for number in range(5)]
    spelt = "It ends with <|endoftext|> and goes on behind it, as text. " + story(300)
    (tmp_path / "stories.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"text": spelt}])
    )
    sources = (replace(config.sources[0], filters=()),)
    config = replace(config, sources=sources, validation_share=0.0, probe_share=0.0)
    out = run(config, tmp_path / "out")
    tokenizer, shard = Tokenizer.load(out / "tokenizer"), open_shard(out, "stories", "train")
    ids = shard.document(len(shard) - 1).tolist()
    assert ids.count(tokenizer.bos_id) == 1 and tokenizer.decode(ids[1:]) == spelt
