"""Duplicates found on disk: which documents are alike, by sorted files of hashes and signatures.

Near duplicates share one of `num_buckets` bands of MinHash values (datatrove's signatures and its
bucket step); exact ones share 8 bytes of a hash of their text (of 10^9 texts two differ and share
them with probability 0.03). Memory holds one range of hashes, or the matches of one bucket.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig

from pocketlm.corpus.dedup import MinHash
from pocketlm.corpus.executors import Place, run_tasks
from pocketlm.corpus.read_step import HASH, load_records, part_folder
from pocketlm.corpus.word_split import WORDS
from pocketlm.model.files import write_folder

RANGE_BYTES = 128 << 20  # of hashes, sorted in memory at once
TASK_BYTES = 8 << 20  # of hashes and signatures, at least, that one task works on
BUCKET_BYTES = 1 << 30  # of signatures, compared by one task
SIGNATURES_AT_ONCE = 256  # read of each file; datatrove's default of 5 spends its time in reading
# one document of a group whose members share a hash or a band
MEMBER = np.dtype([("task", "<u4"), ("item", "<u4"), ("group", "<u8")])


class Signatures(MinhashDedupSignature):
    """datatrove's signature step, with this project's words; it passes nothing on."""

    def __init__(self, folder: Path, minhash: MinHash) -> None:
        super().__init__(str(folder), minhash_config(minhash), language=WORDS)  # type: ignore[arg-type]

    def get_shingles(self, text: str) -> np.ndarray:
        # accents cost a pass over every character, and ASCII text has none
        self.config.norm_config = TextNormConfig(norm_unicode_diacritics=not text.isascii())
        return super().get_shingles(text)


def minhash_config(minhash: MinHash) -> MinhashConfig:
    return MinhashConfig(
        n_grams=minhash.shingle_words,
        num_buckets=minhash.num_buckets,
        hashes_per_bucket=minhash.hashes_per_bucket,
        seed=minhash.seed,
        # datatrove 0.10 hands str to xxhash, which xxhash 4 refuses
        hash_config=HashConfig(hash_fc="sha1"),
    )


@dataclass(frozen=True, kw_only=True)
class GroupStep:
    """A step of datatrove's: ranges of hashes, and buckets of signatures, to groups of documents.

    There are num_ranges ranges and as many buckets as datatrove's step needs tasks; each task works
    on units_per_task of them, one after another. A unit leaves `members.bin`, by task and document,
    and `starts.npy`: where each read task's members begin.
    """

    work: Path
    num_parts: int
    num_ranges: int
    num_buckets: int
    units_per_task: int
    minhash: MinHash

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        first = rank * self.units_per_task
        for unit in range(first, min(first + self.units_per_task, self.num_units)):
            if part_folder(self.work / "groups", unit).is_dir():
                continue  # of a task that was interrupted
            members = self._exact(unit) if unit < self.num_ranges else self._near(unit)
            members.sort(order=["task", "item"])
            with write_folder(part_folder(self.work / "groups", unit)) as folder:
                (folder / "members.bin").write_bytes(members.tobytes())
                starts = np.searchsorted(members["task"], np.arange(self.num_parts + 1))
                np.save(folder / "starts.npy", starts.astype(np.int64), allow_pickle=False)

    @property
    def num_units(self) -> int:
        return self.num_ranges + self.num_buckets

    def _near(self, unit: int) -> np.ndarray:
        """Members of groups that share a band, of one bucket."""
        config, bucket = minhash_config(self.minhash), unit - self.num_ranges
        matches = self.work / "matches" / f"{bucket:05d}"
        MinhashDedupBuckets(
            str(self.work / "signatures"),
            str(matches),
            config=config,
            lines_to_buffer=SIGNATURES_AT_ONCE,
        ).run(None, bucket, self.num_buckets)  # type: ignore[arg-type]
        return _chained(next(matches.glob("*.dups")))

    def _exact(self, unit: int) -> np.ndarray:
        """Members of groups of equal hashes, of one range."""
        bounds = [unit * 2**64 // self.num_ranges, (unit + 1) * 2**64 // self.num_ranges]
        hashes, members = [], []
        for part in range(self.num_parts):
            records = load_records(part_folder(self.work / "parts", part) / "hashes.bin", HASH)
            first = np.searchsorted(records["hash"], np.uint64(bounds[0]))
            last = len(records)
            if bounds[1] < 2**64:
                last = np.searchsorted(records["hash"], np.uint64(bounds[1]))
            in_range = records[first:last]
            hashes.append(in_range["hash"])
            members.append(np.zeros(len(in_range), dtype=MEMBER))
            members[-1]["task"], members[-1]["item"] = part, in_range["item"]
        values, documents = np.concatenate(hashes), np.concatenate(members)
        order = np.argsort(values, kind="stable")
        values, documents = values[order], documents[order]
        same = values[1:] == values[:-1]
        documents["group"] = np.cumsum(np.concatenate([[0], ~same])) if len(values) else 0
        in_group = np.concatenate([same, [False]]) | np.concatenate([[False], same])
        return documents[in_group[: len(values)]]


def _chained(matches: Path) -> np.ndarray:
    """Members of groups that share a band. A file of matches holds, of each group in its order, the
    first and the second, the second and the third, and so on: (file, document) twice.
    """
    pairs = load_records(matches, np.dtype("<u4")).reshape(-1, 4)
    if not len(pairs):
        return np.zeros(0, dtype=MEMBER)
    begins = np.ones(len(pairs), dtype=bool)
    begins[1:] = (pairs[1:, :2] != pairs[:-1, 2:]).any(axis=1)
    group = np.cumsum(begins) - 1
    members = np.zeros(len(pairs) + int(begins.sum()), dtype=MEMBER)
    firsts = members[: int(begins.sum())]
    firsts["task"], firsts["item"] = pairs[begins, 0], pairs[begins, 1]
    firsts["group"] = group[begins]
    others = members[len(firsts) :]
    others["task"], others["item"], others["group"] = pairs[:, 2], pairs[:, 3], group
    return members


@dataclass(frozen=True)
class Groups:
    """The groups of all documents, on disk. `near` numbers a task's documents among those whose
    near duplicates are searched.
    """

    folder: Path
    num_ranges: int
    num_files: int

    def sizes(self) -> list[int]:
        """How many groups each file may name."""
        return [
            int(members["group"].max()) + 1 if len(members) else 0
            for members in map(self._members, range(self.num_files))
        ]

    def of_task(self, task: int, near_items: np.ndarray) -> np.ndarray:
        """[members] of one task's documents in reading order: item, file, group."""
        rows = []
        for file in range(self.num_files):
            starts = np.load(part_folder(self.folder, file) / "starts.npy", mmap_mode="r")
            members = self._members(file)[int(starts[task]) : int(starts[task + 1])]
            row = np.empty(len(members), dtype=[("item", "i8"), ("file", "i8"), ("group", "i8")])
            row["item"] = members["item"]
            if file >= self.num_ranges and len(members):
                row["item"] = near_items[members["item"]]
            row["file"], row["group"] = file, members["group"]
            rows.append(row)
        joined = np.concatenate(rows)
        joined.sort(order=["item", "file"])
        return joined

    def _members(self, file: int) -> np.ndarray:
        return load_records(part_folder(self.folder, file) / "members.bin", MEMBER)


def find_groups(
    place: Place, work: Path, num_parts: int, minhash: MinHash, num_near: int
) -> Groups:
    """The groups of what the read tasks left in `work`; finished tasks are not repeated.

    num_near: documents whose near duplicates are searched; none: no bucket is looked into.
    """
    config, num_buckets = minhash_config(minhash), 0
    if num_near:
        for file in (work / "signatures").glob("*/*.sig"):
            if not file.stat().st_size:
                file.unlink()
        num_buckets = config.num_buckets * _tasks_per_bucket(work, config, num_near)
    parts = [part_folder(work / "parts", number) for number in range(num_parts)]
    total = sum((part / "hashes.bin").stat().st_size for part in parts)
    num_ranges = max(1, math.ceil(total / RANGE_BYTES))
    # small ones together: a task of its own costs some hundredths of a second
    unit_bytes = max(1, num_near * _signature_bytes(config) * config.num_buckets + total)
    unit_bytes = math.ceil(unit_bytes / (num_ranges + num_buckets))
    step = GroupStep(
        work=work,
        num_parts=num_parts,
        num_ranges=num_ranges,
        num_buckets=num_buckets,
        units_per_task=max(1, TASK_BYTES // unit_bytes),
        minhash=minhash,
    )
    run_tasks(
        place, [step], math.ceil(step.num_units / step.units_per_task), work / "logs" / "groups"
    )
    return Groups(work / "groups", num_ranges, step.num_units)


def _signature_bytes(config: MinhashConfig) -> int:
    """Of one document in one bucket."""
    return 8 * config.hashes_per_bucket + 4


def _tasks_per_bucket(work: Path, config: MinhashConfig, num_near: int) -> int:
    """datatrove cuts a bucket at places of its first file, which must hold one for each task."""
    size = num_near * _signature_bytes(config)
    first = min((work / "signatures" / "bucket_000").glob("*.sig"))
    lines = first.stat().st_size // _signature_bytes(config)
    return max(1, min(math.ceil(size / BUCKET_BYTES), lines))
