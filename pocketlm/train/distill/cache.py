"""A teacher cache on disk: its distributions for whole documents, looked up by a document's content
and not by its place.

    begun.json       what the entries depend on: the teacher's digest, tokenizer, vocabulary,
    window, min_gain
    shares.npy       float32 [V], the tail prior (codec.py), in logs
    00000.bin        documents, encoded, end to end; 00000.index.npy beside it until all is done
    index.npy        for each document: its key, shard, place, tokens, entries, checksum, KL error;
    sorted by key
    teacher.json     written last: sizes and sha256 of the files, and what was measured

A document's key is a hash of its token ids, so packing, order, seed, micro-batch and ranks may
change, and several students may read one cache. A shard is there when its index is; a folder
without teacher.json is never read.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketlm.inference.stock_network import StockNetwork
from pocketlm.model.batch import Batch
from pocketlm.model.files import read_json, write_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.codec import (
    Encoded,
    decode,
    from_bytes,
    id_bits,
    size_in_bytes,
    to_bytes,
)
from pocketlm.train.lazy_logits import SparseScores

DONE, BEGUN, INDEX, PRIOR = "teacher.json", "begun.json", "index.npy", "shares.npy"
FORMAT = 1
ENTRY = np.dtype(
    [
        ("key", "<u8", 2),
        ("start", "<u8"),
        ("shard", "<u4"),
        ("tokens", "<u4"),
        ("entries", "<u8"),
        ("crc32", "<u4"),
        ("kl", "<f4"),
    ]
)


# ---- what a cache is of ----


def model_digest(model: Transformer | StockNetwork) -> str:
    """16 hex digits of a network: its shape and its weights, whatever files they lay in."""
    whole = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return whole.hexdigest()[:16]


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """16 hex digits of a vocabulary: the text of each id."""
    return hashlib.sha256(repr(sorted(tokenizer.backend.get_vocab().items())).encode()).hexdigest()[
        :16
    ]


# ---- writing ----


class CacheWriter:
    """The owner of an unfinished cache. Whole shards are kept; `done` holds the keys of their
    documents.
    """

    def __init__(self, folder: Path, made_of: dict[str, Any]) -> None:
        """ValueError: the folder was begun with another teacher, or otherwise."""
        self.folder = folder
        begun = folder / BEGUN
        if begun.is_file():
            check_same_teacher(read_json(begun), made_of, folder)
        else:
            write_json(begun, made_of)
        self.bits = id_bits(made_of["vocab_size"])
        self.index = [
            np.load(file, allow_pickle=False) for file in sorted(folder.glob("[0-9]*.index.npy"))
        ]
        self.done = {entry["key"].tobytes() for shard in self.index for entry in shard}

    def tail_prior(self) -> np.ndarray | None:
        """The tail prior as it was estimated when the cache was begun, or None."""
        file = self.folder / PRIOR
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def write_tail_prior(self, prior: np.ndarray) -> None:
        _write_array(self.folder / PRIOR, prior)

    def write_shard(self, documents: dict[bytes, tuple[Encoded, float]]) -> None:
        """The next shard: these documents, and the KL error of each. It counts from when its index
        has its name.
        """
        number = len(self.index)
        index = np.zeros(len(documents), ENTRY)
        partial = self.folder / f".{number:05}.bin.partial"
        start = 0
        with open(partial, "wb") as file:
            for entry, (key, (coded, kl)) in zip(index, documents.items(), strict=True):
                raw = to_bytes(coded, self.bits)
                file.write(raw)
                halves = np.frombuffer(key, "<u8")
                facts = (halves, start, number, len(coded), len(coded.ids), zlib.crc32(raw), kl)
                for name, value in zip(ENTRY.names or (), facts, strict=True):
                    entry[name] = value
                start += len(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / f"{number:05}.bin")
        _write_array(self.folder / f"{number:05}.index.npy", index)
        self.index.append(index)
        self.done.update(documents)

    def finish(self, facts: dict[str, Any]) -> None:
        """One index of all shards, and teacher.json, with which the cache is whole."""
        index = np.concatenate(self.index)
        index = index[np.lexsort((index["key"][:, 1], index["key"][:, 0]))]
        _write_array(self.folder / INDEX, index)
        shards = [f"{number:05}.bin" for number in range(len(self.index))]
        files = {name: _file_facts(self.folder / name) for name in (BEGUN, PRIOR, INDEX, *shards)}
        stored = sum(files[name]["bytes"] for name in shards)
        tokens = int(index["tokens"].sum())
        error = float(index["kl"].sum(dtype=np.float64)) / tokens
        sums = {
            "documents": len(index),
            "tokens": tokens,
            "bytes_per_token": stored / tokens,
            "kl": error,
        }
        write_json(self.folder / DONE, {"format": FORMAT, **facts, **sums, "files": files})
        for file in self.folder.glob("[0-9]*.index.npy"):
            file.unlink()


def check_same_teacher(begun: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """ValueError names what differs between how a cache was begun and how it is to go on."""
    different = [
        f"{name}: {begun.get(name)} -> {wanted[name]}"
        for name in wanted
        if begun.get(name) != wanted[name]
    ]
    if different:
        raise ValueError(
            f"{folder} was begun otherwise ({'; '.join(different)}); delete the folder, or give "
            "another one to this teacher"
        )


def _write_array(path: Path, array: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _file_facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


# ---- reading ----


@dataclass(frozen=True)
class Cache:
    """An opened cache. A document is checked against its checksum when it is first read."""

    folder: Path
    made_of: dict[str, Any]
    facts: dict[str, Any]  # teacher.json
    tail_prior: torch.Tensor  # [V]
    index: np.ndarray
    shards: Sequence[np.ndarray]
    checked: set[bytes] = field(default_factory=set)

    def find(self, key: bytes) -> np.void | None:
        """The index's entry for a document, or None."""
        high, low = np.frombuffer(key, "<u8")
        at = int(np.searchsorted(self.index["key"][:, 0], high))
        while at < len(self.index) and self.index[at]["key"][0] == high:
            if self.index[at]["key"][1] == low:
                return self.index[at]
            at += 1
        return None

    def read(self, key: bytes, first: int, stop: int) -> Encoded | None:
        """Tokens first..stop - 1 of a document, or None where the cache does not hold it.
        ValueError: damaged.
        """
        entry = self.find(key)
        if entry is None:
            return None
        tokens, start, shard = int(entry["tokens"]), int(entry["start"]), int(entry["shard"])
        bits = id_bits(self.made_of["vocab_size"])
        raw = self.shards[shard][start : start + size_in_bytes(tokens, int(entry["entries"]), bits)]
        if key not in self.checked:
            if zlib.crc32(raw.tobytes()) != entry["crc32"]:
                raise ValueError(
                    f"{self.folder}/{shard:05}.bin is damaged at byte {start}; restore it, or "
                    "teach again"
                )
            self.checked.add(key)
        return from_bytes(raw, tokens, bits, first, stop)


def open_cache(folder: Path) -> Cache:
    """The finished cache in `folder`. FileNotFoundError or ValueError name the file that is
    missing, cut or damaged.

    All files are checked by their sizes, and all but the shards, whose documents have checksums of
    their own, by sha256.
    """
    if not (folder / DONE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {DONE}: it is no teacher cache, or one not yet finished; run teach"
        )
    facts = read_json(folder / DONE)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{folder / DONE}: format {facts.get('format')!r} is unknown; this version reads "
            f"{FORMAT}"
        )
    for name, entry in facts["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            raise ValueError(
                f"{path} has {size or 'no'} bytes, not {entry['bytes']}; restore it, or teach again"
            )
        if path.suffix != ".bin" and _file_facts(path) != entry:
            raise ValueError(
                f"{path} is damaged: its sha256 is another; restore it, or teach again"
            )
    prior = torch.from_numpy(np.load(folder / PRIOR, allow_pickle=False))
    index = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
    shards = [
        np.memmap(folder / name, np.uint8, "r")
        for name in sorted(facts["files"])
        if name.endswith(".bin")
    ]
    return Cache(folder, read_json(folder / BEGUN), facts, prior, index, shards)


def cached_scores(cache: Cache, batch: Batch) -> SparseScores:
    """Log-probabilities [B x T, V] for a batch that names its documents. ValueError: one is not in
    the cache.
    """
    assert batch.spans is not None
    where, T = batch.input_ids.device, batch.input_ids.shape[1]
    prior = cache.tail_prior.to(where)
    # padding, which is in no span, has no label
    levels = torch.zeros(batch.input_ids.numel(), 1, device=where)
    parts = []
    for span in batch.spans:
        coded = cache.read(span.key, span.offset, span.offset + span.stop - span.start)
        if coded is None:
            source, number = batch.rows[span.row] if batch.rows else ("the batch", span.row)
            raise ValueError(
                missing(cache, f"tokens {span.start}-{span.stop - 1} of row {number} of {source}")
            )
        first = span.row * T + span.start
        sparse = decode(coded, prior)
        levels[first : first + len(coded)] = sparse.levels
        parts.append((sparse.owners + first, sparse.ids, sparse.values))
    owners, ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
    order = ids.argsort(stable=True)
    return SparseScores(owners[order], ids[order], values[order], levels, prior)


def missing(cache: Cache, what: str) -> str:
    return (
        f"{cache.folder} holds nothing for {what}: it was made from another corpus, or "
        "conversations in another chat "
        "template; run teach on this one"
    )
