"""Duplicates found on disk, by tasks: what one pass finds that has everything in memory."""

import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from pocketlm.corpus import read_step, work
from pocketlm.corpus.dedup import MinHash, content_hash
from pocketlm.corpus.documents import SPLITS, read_documents
from pocketlm.corpus.duplicates import minhash_config
from pocketlm.corpus.sources import LocalSource
from pocketlm.corpus.word_split import WORDS
from pocketlm.data.shards import open_shard
from pocketlm.stages.curate import CurateConfig, curate

LETTERS = "aeiounrstlm"


def write_rows(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def drawn_texts(seed: int, count: int) -> list[str]:
    """Texts of which many repeat an earlier one, word for word or but for a word, in chains."""
    randoms = random.Random(seed)
    words = ["".join(randoms.choices(LETTERS, k=randoms.randint(3, 8))) for _ in range(300)]
    pool = [" ".join(randoms.choices(words, k=50)) for _ in range(5)]
    texts = []
    for _ in range(count):
        kind = randoms.random()
        if kind < 0.4:
            text = " ".join(randoms.choices(words, k=randoms.randint(4, 70)))
        elif kind < 0.6:
            text = randoms.choice(pool)
        else:
            parts = randoms.choice(pool).split()
            parts[randoms.randrange(len(parts))] = "changed"
            text = " ".join(parts)
        pool.append(text)
        texts.append(text)
    return texts


@pytest.fixture
def config(tmp_path):
    """Three sources that repeat each other; the second searches no near duplicates, the third is
    capped.
    """
    plain = {"domain": "knowledge", "filters": ()}
    paths = [
        str(write_rows(tmp_path / f"{name}.jsonl", drawn_texts(1, count)))
        for name, count in (("a", 60), ("b", 90), ("c", 140))
    ]
    sources = (
        LocalSource(name="a", path=paths[0], **plain),
        LocalSource(name="b", path=paths[1], near_dedup=False, **plain),
        LocalSource(name="c", path=paths[2], max_bytes=3000, **plain),
    )
    return CurateConfig(
        name="corpus",
        sources=sources,
        vocab_size=270,
        validation_share=0.1,
        probe_share=0.1,
        executor="local:1",
    )


def texts_kept_in_one_pass(config: CurateConfig) -> dict[str, set[str]]:
    """What one process keeps that remembers every text and every band."""
    signatures = MinhashDedupSignature("unused", minhash_config(config.minhash), language=WORDS)  # type: ignore[arg-type]
    hashes, bands = set(), set()
    kept = {}
    for source in config.sources:
        assert isinstance(source, LocalSource)
        kept[source.name], size = set(), 0
        for line in Path(source.path).read_text().splitlines():
            text = json.loads(line)["text"]
            shingles = signatures.get_shingles(text)
            searched = source.near_dedup is not False and len(shingles)
            signature = signatures.get_signature(shingles) if searched else []
            own = {(number, tuple(band)) for number, band in enumerate(signature)}
            if content_hash(text) in hashes or own & bands:
                continue
            if source.max_bytes and size + len(text.encode()) > source.max_bytes:
                break
            size += len(text.encode())
            hashes.add(content_hash(text))
            bands |= own
            kept[source.name].add(text)
    return kept


def run(config, out):
    out.mkdir(exist_ok=True)
    return curate(config, out)


def contents(out):
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.name != "throughput.json")
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def kept_texts(out, name):
    return [d.text for split in SPLITS for d in read_documents(out, name, split)]


@pytest.mark.parametrize("part_bytes", [2000, 10**9])
def test_the_first_of_each_group_is_kept_as_in_one_pass_over_all_sources(
    config, tmp_path, part_bytes
):
    config = replace(config, part_bytes=part_bytes)
    out = run(config, tmp_path / "out")
    counts = json.loads((out / "curation.json").read_text())["sources"]
    for name, texts in texts_kept_in_one_pass(config).items():
        found = kept_texts(out, name)
        assert set(found) == texts and len(found) == len(texts) > 5
        dropped = counts[name]["dropped"]
        assert counts[name]["read"]["documents"] == len(found) + sum(dropped.values())
    assert counts["a"]["dropped"].keys() == {"exact_duplicate", "near_duplicate"}
    assert "near_duplicate" not in counts["b"]["dropped"] and counts["c"]["capped"]


def test_a_capped_source_is_read_on_where_duplicates_left_room(config, tmp_path):
    """All of the first kilobytes stand in another source, so one reading is not enough."""
    lines = Path(config.sources[0].path).read_text().splitlines()
    first = [json.loads(line)["text"] for line in lines]
    write_rows(tmp_path / "c.jsonl", first + drawn_texts(9, 300))
    config = replace(
        config, sources=(config.sources[0], replace(config.sources[2], max_bytes=5000))
    )
    out = run(config, tmp_path / "out")
    assert set(kept_texts(out, "c")) == texts_kept_in_one_pass(config)["c"]
    counts = json.loads((out / "curation.json").read_text())["sources"]["c"]
    size = sum(split["bytes"] for split in counts["kept"].values())
    assert counts["capped"] and 4000 < size <= 5000 < counts["read"]["bytes"]


def test_every_minhash_field_changes_what_is_kept(config, tmp_path):
    kept = []
    for number, setting in enumerate(
        ({}, {"num_buckets": 60, "hashes_per_bucket": 1}, {"shingle_words": 1}, {"seed": 2})
    ):
        changed = replace(config, sources=config.sources[:1], minhash=MinHash(**setting))
        kept.append(kept_texts(run(changed, tmp_path / str(number)), "a"))
    assert len(kept[1]) < len(kept[0]) and len(kept[2]) < len(kept[0]) and kept[3] != kept[1]
    with pytest.raises(ValueError, match="num_buckets is 0"):
        MinHash(num_buckets=0)


def test_rows_of_a_shard_in_parts_are_those_of_one_in_one_file(config, tmp_path):
    whole = run(config, tmp_path / "whole")
    parts = run(replace(config, part_bytes=2000), tmp_path / "parts")
    assert len(list((parts / "shards" / "b").glob("train-*.tokens.npy"))) > 3
    assert not (parts / "shards" / "b" / "train.tokens.npy").exists()
    for name in "abc":
        for split in SPLITS:
            one, other = (open_shard(out, name, split) for out in (whole, parts))
            assert one.offsets.tolist() == other.offsets.tolist()
            assert one.tokens[:].tolist() == other.tokens[:].tolist()
            size = len(one.tokens)
            assert len(other.tokens) == size
            for start in range(0, size, 97):
                assert (
                    one.tokens[start : start + 129].tolist()
                    == other.tokens[start : start + 129].tolist()
                )
            assert [one.document(n).tolist() for n in range(len(one))] == [
                other.document(n).tolist() for n in range(len(other))
            ]
            assert list(read_documents(whole, name, split)) == list(
                read_documents(parts, name, split)
            )


def packed(file: Path) -> Path:
    """The file, packed; itself it goes."""
    whole = file.with_name(f"{file.name}.zst")
    whole.write_bytes(zstandard.ZstdCompressor().compress(file.read_bytes()))
    file.unlink()
    return whole


def test_a_part_of_a_packed_file_that_was_killed_is_read_again_and_no_other(tmp_path, monkeypatch):
    """And what a task is sent does not grow with the evaluations or the parts."""
    write_rows(tmp_path / "a.jsonl", drawn_texts(1, 60))
    write_rows(tmp_path / "b.jsonl", drawn_texts(2, 200))
    packed(tmp_path / "b.jsonl")
    config = config_of(tmp_path, "local:1")
    expected = contents(run(config, tmp_path / "whole"))
    read, steps = [], []
    read_part = read_step.read_part

    def failing(source, place, reading):
        read.append((source.name, place))
        for number, document in enumerate(read_part(source, place, reading)):
            if len(read) == 5 and number == 3:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(read_step, "read_part", failing)
    run_tasks = work.run_tasks
    monkeypatch.setattr(
        work, "run_tasks", lambda *given: steps.append(given[1]) or run_tasks(*given)
    )
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "resume" / "plan.json").read_text())
    parts = [(name, part) for name in "ab" for part, _ in plan["sources"][name]["parts"]]
    assert len(plan["sources"]["b"]["parts"]) >= 4
    assert contents(run(config, tmp_path / "out")) == expected
    assert read == [*parts[:5], *parts[4:]]
    exam = [{"prompt": text, "answer": "none"} for text in drawn_texts(5, 400)]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    many = replace(config, suites=(str(tmp_path / "exam.jsonl"),), part_bytes=2000)
    run(many, tmp_path / "many")
    few, more = (len(pickle.dumps(step)) for step in (steps[0][0], steps[-2][0]))
    assert more <= few + 20


def test_any_number_of_processes_writes_the_same_bytes(config, tmp_path):
    sources = (replace(config.sources[0], path=str(packed(tmp_path / "a.jsonl"))),)
    config = replace(config, part_bytes=9000, sources=(*sources, *config.sources[1:]))
    expected = contents(run(config, tmp_path / "1"))
    for number in (2, 3):
        out = run(replace(config, executor=f"local:{number}"), tmp_path / str(number))
        assert contents(out) == expected
        told = json.loads((out / "throughput.json").read_text())
        assert told.pop("executor") == f"local:{number}"
        assert told.keys() == {"read", "duplicates", "tokenizer", "encode"}
        assert all(phase["seconds"] >= 0 for phase in told.values())


SCRIPT = """
import sys
from pathlib import Path
from test_corpus_duplicates import config_of
from pocketlm.stages.curate import curate
# on the outermost level, as people write scripts: processes of the pool must not run it again
curate(config_of(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[3]))
"""


def config_of(folder: Path, executor: str) -> CurateConfig:
    """Two sources in some ten parts."""
    sources = tuple(
        LocalSource(name=name, domain="knowledge", path=str(folder / file), filters=())
        for name, file in (("a", "a.jsonl"), ("b", "b.jsonl.zst"))
    )
    return CurateConfig(
        name="corpus", sources=sources, vocab_size=270, part_bytes=12_000, executor=executor
    )


@pytest.mark.parametrize("executor", ["local:1", "local:2"])
def test_a_curation_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, executor):
    for name, seed in (("a", 1), ("b", 2)):
        write_rows(tmp_path / f"{name}.jsonl", drawn_texts(seed, 100))
    packed(tmp_path / "b.jsonl")
    expected = contents(run(config_of(tmp_path, "local:1"), tmp_path / "whole"))
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "out").mkdir()
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent.parent}"}
    words = [tmp_path / "script.py", tmp_path, executor, tmp_path / "out"]
    randoms, kills, returncode = random.Random(4), 0, None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not (tmp_path / "out" / "resume" / "plan.json").exists():
            time.sleep(0.01)
        try:
            # the first kills may fall anywhere; the later, the longer it may go on
            returncode = process.wait(timeout=randoms.uniform(0, 1.0 + kills))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert returncode == 0 and kills
    assert contents(tmp_path / "out") == expected


SLURM = {
    # runs the tasks of an array one after another, as a queue would, and says its number
    "sbatch": """#!/usr/bin/env python3
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
folder = os.environ["FAKE_SLURM"]
with open(f"{folder}/calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:-1]) + "\\n" + script + "\\n")
first, last = re.search(r"--array=(\\d+)-(\\d+)", script).groups()
for task in range(int(first), int(last) + 1):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here"}
    environment |= {"RUN_OFFSET": "0", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "-c", script], env=environment, stdout=subprocess.DEVNULL,
                   stderr=open(f"{folder}/log", "a"))
print("Submitted batch job 7")
""",
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
""",
    "scontrol": "#!/bin/bash\necho here\n",
    "squeue": "#!/bin/bash\nexit 0\n",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands; datatrove's own executor calls them."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(script)
        (folder / name).chmod(stat.S_IRWXU)
    root = Path(__file__).parent.parent.parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def test_slurm_jobs_write_the_same_bytes(config, tmp_path, slurm):
    config = replace(config, sources=config.sources[:2], part_bytes=20_000)
    expected = contents(run(config, tmp_path / "here"))
    out = run(replace(config, executor="slurm:cpu-short"), tmp_path / "cluster")
    assert contents(out) == expected
    calls = (slurm / "calls").read_text()
    assert "#SBATCH --partition=cpu-short" in calls and "launch_pickled_pipeline" in calls


def test_the_mistake_of_a_slurm_job_is_the_error_of_the_stage(config, tmp_path, slurm):
    file = Path(config.sources[1].path)
    file.write_text(file.read_text() + "{broken\n")
    broken = replace(config, sources=config.sources[1:2], executor="slurm:cpu-short")
    with pytest.raises(ValueError, match=r"source 'b': .*b\.jsonl:91:2: not JSON"):
        run(broken, tmp_path / "cluster")


def test_slurm_without_its_commands_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="there is no sbatch here; start this on a login node"):
        run(replace(config, executor="slurm:cpu"), tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer").exists()
