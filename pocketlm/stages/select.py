"""Select: keep the samples that still help the current model, and weigh the sources by them (R1's
mid-training, section 6).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.influence import influence, probe_directions
from pocketlm.data.mixture import Shares, cap_repetition
from pocketlm.data.probe_sets import ProbeSets, open_probe_sets
from pocketlm.data.shards import Shard, write_shard
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.transformer import ComputeSettings
from pocketlm.train.checkpoint import RESUME
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import barrier, device, ranks, shows_progress
from pocketlm.train.optim import dtype_of

HISTOGRAM_SAMPLE = 400  # scores of each source kept for the report
# of a source's scores: few enough to read, and each soon written (a rank waits at most 10 minutes)
MAX_FILES = 8192

Scorer = Callable[[Batch], np.ndarray]  # float64 [rows]


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """candidate_tokens: how much of each source is scored. Longer documents are scored, and kept,
    by pieces of seq_len.

    probe_rows: rows of each capability's probe set. batch_rows: pieces scored at a time.
    budget_tokens, max_epochs: no source repeats more often in the training that follows.
    compute_dtype: of matrix products.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    seq_len: int
    candidate_tokens: int
    probe_rows: int
    batch_rows: int
    budget_tokens: int
    max_epochs: float
    seed: int
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype {self.compute_dtype!r} is unknown; known: auto, float32, bfloat16"
            )

    def summary(self) -> str:
        return (
            f"up to {self.candidate_tokens:,} tokens of each source scored, {self.probe_rows:,} "
            "probe rows a domain"
        )


def select(
    config: SelectConfig, out: Path, *, corpus: Path, model: Path, probes: Path | None = None
) -> Path:
    """`out`, with shards/ of the kept pieces (influence above 0) and selection.json: shares,
    counts, a sample of scores.

    probes: what build_probes wrote; without it held-out text as it is. Shares are R1's influence
    densities (equations 5 and 6): the token-weighted mean influence of what was kept. The ranks
    divide the batches of every source, each whole on one of them, so that a score does not depend
    on how many there are; batches that were scored before the stage was interrupted are not scored
    again.
    """
    network, tokenizer = load_checkpoint(model)
    network.eval().requires_grad_(False)  # activations alone are kept for the backward pass
    network.to(device())
    network.compute = ComputeSettings(dtype=dtype_of(config.compute_dtype, device()))
    process = ranks()
    directions = probe_directions(
        network,
        _probes(config, open_probe_sets(corpus, probes), tokenizer.eos_id),
        part=slice(process.rank, None, process.world_size),
        all_reduce=_sum_over_ranks,
    )
    # every capability counts the same: the mean of a sample's scores is its score in their mean
    direction = directions.mean(0, keepdim=True)
    del directions

    def scorer(batch: Batch) -> np.ndarray:
        scores = influence(network, to_device(batch, device()), direction)
        return scores[:, 0].double().cpu().numpy()

    groups = {}
    for name, shard in open_shards(corpus, "train").items():
        groups[name] = Candidates(config, name, shard, tokenizer.eos_id)
        score(groups[name], scorer, out / RESUME / name)
    barrier()
    if process.first:
        write_selection(config, out, groups, network.config.vocab_size)
    return out


def write_selection(
    config: SelectConfig, out: Path, sources: dict[str, "Candidates"], vocab_size: int
) -> None:
    """shards/ and selection.json, from the scores of all ranks."""
    summary: dict[str, dict[str, Any]] = {"kept": {}, "influence": {}, "density": {}}
    tokens: dict[str, int] = {}
    for name, source in sources.items():
        scores = source.read(out / RESUME / name)
        kept = np.flatnonzero(scores > 0)
        tokens[name] = int(source.sizes[kept].sum())
        weighted = float((scores * source.sizes)[kept].sum())
        summary["density"][name] = weighted / tokens[name] if len(kept) else 0.0
        summary["kept"][name] = {"documents": len(kept), "of": len(scores), "tokens": tokens[name]}
        summary["influence"][name] = [round(float(s), 6) for s in scores[:HISTOGRAM_SAMPLE]]
        pieces = (source.pieces[number] for number in kept)
        with write_folder(out / "shards" / name) as folder:
            write_shard(folder, "train", pieces, vocab_size=vocab_size)
    shares = density_shares(config, summary["density"], tokens)
    write_json(out / "selection.json", {"shares": shares, **summary})


def density_shares(
    config: SelectConfig, density: dict[str, float], tokens: dict[str, int]
) -> Shares:
    """Shares in proportion to density, none beyond max_epochs passes over what was kept."""
    total = sum(density.values())
    if total == 0:
        raise ValueError(
            f"{config.name}: no sample of any source has positive influence; nothing is left to "
            "train on (R1 stops here)"
        )
    usable = {name: count for name, count in tokens.items() if count}
    shares = cap_repetition(
        {name: density[name] / total for name in usable},
        usable,
        config.budget_tokens,
        config.max_epochs,
    )
    return {name: shares.get(name, 0.0) for name in tokens}


# ---- candidates and their scores ----


class Candidates:
    """Pieces of a source that are scored, and the batches in which they are: of like lengths, which
    leaves little padding. A group of batches has a file of scores.
    """

    def __init__(self, config: SelectConfig, name: str, shard: Shard, eos_id: int) -> None:
        self.name, self.eos_id = name, eos_id
        self.pieces = candidates(shard, config, name)
        self.sizes = np.asarray([len(piece) for piece in self.pieces], dtype=np.int64)
        order = np.argsort(self.sizes, kind="stable")
        rows = config.batch_rows
        batches = [order[first : first + rows] for first in range(0, len(order), rows)]
        size = max(1, -(-len(batches) // MAX_FILES))
        self.groups = [batches[first : first + size] for first in range(0, len(batches), size)]

    def batches(self, group: int) -> Iterator[Batch]:
        for numbers in self.groups[group]:
            yield padded([self.pieces[number] for number in numbers], self.eos_id)

    def read(self, folder: Path) -> np.ndarray:
        """The score of each piece, float64, from the files of all groups."""
        scores = np.zeros(len(self.pieces))
        for number, group in enumerate(self.groups):
            scores[np.concatenate(group)] = np.load(folder / f"{number}.npy", allow_pickle=False)
        return scores


def candidates(shard: Shard, config: SelectConfig, source: str) -> list[np.ndarray]:
    """Documents in a shuffled order that the seed sets, cut into pieces of seq_len + 1 tokens, up
    to candidate_tokens.
    """
    order = np.random.default_rng((config.seed, sum(source.encode()))).permutation(len(shard))
    pieces: list[np.ndarray] = []
    taken = 0
    for number in order:
        ids = shard.document(int(number))
        for start in range(0, len(ids), config.seq_len):
            piece = ids[start : start + config.seq_len + 1]
            if len(piece) < 2:
                continue
            if taken >= config.candidate_tokens:
                return pieces
            pieces.append(piece)
            taken += len(piece)
    return pieces


def score(source: Candidates, scorer: Scorer, folder: Path) -> None:
    """This rank's groups of batches scored, each in folder/NUMBER.npy, but for those there."""
    folder.mkdir(parents=True, exist_ok=True)
    process = ranks()
    label = f"  influence of {source.name}"
    for group in track(
        range(process.rank, len(source.groups), process.world_size),
        label,
        console=Console(stderr=True),
        disable=not shows_progress(),
    ):
        file = folder / f"{group}.npy"
        if not file.is_file():
            scores = np.concatenate([scorer(batch) for batch in source.batches(group)])
            partial = file.with_suffix(".partial.npy")
            np.save(partial, scores, allow_pickle=False)
            partial.rename(file)


def padded(pieces: list[np.ndarray], eos_id: int) -> Batch:
    """One batch of pieces, each a row of its own; what is past a piece's end counts for nothing."""
    rows = []
    longest = max(len(piece) for piece in pieces) - 1
    for piece in pieces:
        ids = np.full(longest, eos_id)
        labels = np.full(longest, IGNORE_INDEX)
        ids[: len(piece) - 1], labels[: len(piece) - 1] = piece[:-1], piece[1:]
        rows.append((ids, labels, np.zeros(longest, dtype=np.int64)))
    return collate(rows, separate_documents=False)


# ---- probes ----


def _probes(config: SelectConfig, sets: ProbeSets, eos_id: int) -> dict[str, list[Batch]]:
    """Batches of each capability's probe set, its sources taking turns."""
    probes: dict[str, list[Batch]] = {}
    for capability, shards in sets.shards.items():
        serving = [TextRows(shard, config.seq_len, eos_id) for shard in shards.values()]
        rows = [
            source[i] for i in range(config.probe_rows) for source in serving if i < len(source)
        ][: config.probe_rows]
        size = config.batch_rows
        probes[capability] = [
            to_device(collate(rows[i : i + size], separate_documents=False), device())
            for i in range(0, len(rows), size)
        ]
    return probes


def _sum_over_ranks(tensor: Tensor) -> None:
    """The tensor summed over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
