"""Select: keep the samples that still help the current model, and weigh the sources by them (R1's
mid-training, section 6).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards, source_domains
from pocketlm.data.influence import influence, probe_directions
from pocketlm.data.mixture import cap_repetition
from pocketlm.data.shards import Shard, write_shard
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.transformer import Transformer

HISTOGRAM_SAMPLE = 400  # scores of each source kept for the report


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """candidate_tokens: how much of each source is scored. Longer documents are scored, and kept,
    by pieces of seq_len.

    probe_rows: rows of each capability's probe set. budget_tokens, max_epochs: no source repeats
    more often in the training that follows.
    """

    name: str
    seq_len: int
    candidate_tokens: int
    probe_rows: int
    batch_rows: int
    budget_tokens: int
    max_epochs: float
    seed: int

    def summary(self) -> str:
        return (
            f"up to {self.candidate_tokens:,} tokens of each source scored, {self.probe_rows:,} "
            "probe rows a domain"
        )


def select(config: SelectConfig, out: Path, *, corpus: Path, model: Path) -> Path:
    """`out`, with shards/ of the kept pieces (influence above 0) and selection.json: shares,
    counts, a sample of scores.

    Shares are R1's influence densities (equations 5 and 6): the token-weighted mean influence of
    what was kept.
    """
    network, tokenizer = load_checkpoint(model)
    network.eval()
    domains = source_domains(corpus)
    network.requires_grad_(False)  # activations alone are kept for the backward pass
    directions = probe_directions(network, _probes(config, corpus, domains, tokenizer.eos_id))
    # every capability counts the same: the mean of the scores is the score of the mean
    direction = directions.mean(0, keepdim=True)
    summary: dict[str, dict] = {"kept": {}, "influence": {}, "density": {}}
    tokens: dict[str, int] = {}
    for name, shard in open_shards(corpus, "train").items():
        pieces = candidates(shard, config, name)
        scores = score(network, pieces, direction, config, tokenizer.eos_id, name)
        kept = [piece for piece, value in zip(pieces, scores, strict=True) if value > 0]
        sizes = np.asarray([len(piece) for piece in pieces])
        tokens[name] = int(sizes[scores > 0].sum())
        density = float((scores * sizes)[scores > 0].sum() / tokens[name]) if kept else 0.0
        summary["density"][name] = density
        summary["kept"][name] = {"documents": len(kept), "of": len(pieces), "tokens": tokens[name]}
        summary["influence"][name] = [round(float(s), 6) for s in scores[:HISTOGRAM_SAMPLE]]
        with write_folder(out / "shards" / name) as folder:
            write_shard(
                folder,
                "train",
                [piece.tolist() for piece in kept],
                vocab_size=network.config.vocab_size,
            )
    total = sum(summary["density"].values())
    if total == 0:
        raise ValueError(
            f"{config.name}: no sample of any source has positive influence; nothing is left to "
            "train on (R1 stops here)"
        )
    densities = {name: density / total for name, density in summary["density"].items()}
    usable = {name: count for name, count in tokens.items() if count}
    shares = cap_repetition(
        {n: densities[n] for n in usable}, usable, config.budget_tokens, config.max_epochs
    )
    shares |= {name: 0.0 for name in tokens if name not in shares}
    write_json(out / "selection.json", {"shares": shares, **summary})
    return out


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


def score(
    model: Transformer,
    pieces: list[np.ndarray],
    direction: Tensor,
    config: SelectConfig,
    eos_id: int,
    label: str,
) -> np.ndarray:
    """Joint influence of each piece on all probe sets, every capability counting the same: float
    array [pieces].
    """
    found = np.zeros(len(pieces))
    # like lengths together: little padding
    order = np.argsort([len(piece) for piece in pieces], kind="stable")
    for first in track(
        range(0, len(order), config.batch_rows),
        f"  influence of {label}",
        console=Console(stderr=True),
    ):
        chosen = order[first : first + config.batch_rows]
        batch = padded([pieces[i] for i in chosen], eos_id)
        found[chosen] = influence(model, batch, direction)[:, 0].numpy()
    return found


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


def _probes(
    config: SelectConfig, corpus: Path, domains: dict[str, str], eos_id: int
) -> dict[str, list[Batch]]:
    """Batches of each capability's probe split, its sources taking turns."""
    by_domain: dict[str, list[Batch]] = {}
    shards = open_shards(corpus, "probe")
    for domain in sorted(set(domains.values())):
        own = [
            TextRows(shards[name], config.seq_len, eos_id)
            for name in shards
            if domains[name] == domain
        ]
        rows = [source[i] for i in range(config.probe_rows) for source in own if i < len(source)][
            : config.probe_rows
        ]
        size = config.batch_rows
        by_domain[domain] = [
            collate(rows[i : i + size], separate_documents=False) for i in range(0, len(rows), size)
        ]
    return by_domain
