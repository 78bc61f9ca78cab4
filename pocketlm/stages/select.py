"""Select: keep the samples that still help the current model, and weigh the sources by them (R1's
mid-training, section 6).

Co-evolution, R1's rounds of selecting and training, is a loop in a recipe: as many rounds as there
may be are called, and each selection has that of the round before as `previous`. One that finds too
little positive influence (`stop_below`) writes so; training with it, and every round after, passes
the model through unchanged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from rich.console import Console
from torch import Tensor

from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.datainf import DAMPING, SCORES, Score, score_directions
from pocketlm.data.influence import influence
from pocketlm.data.probe_sets import ProbeSets, open_probe_sets
from pocketlm.data.score_files import ScoreFiles, like_lengths
from pocketlm.data.selection import (
    CHOICES,
    SELECTION,
    Filter,
    Scored,
    SharesBy,
    StopOn,
    choose,
    stopped,
)
from pocketlm.data.shards import Shard, write_shard
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.checkpoint import RESUME
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import (
    add_over_ranks,
    device,
    ranks,
    shows_progress,
    wait_for_ranks,
)
from pocketlm.train.optim import dtype_of

HISTOGRAM_SAMPLE = 400  # scores of each source kept for the report


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """candidate_tokens: how much of each source is scored. Longer documents are scored, and kept,
    by pieces of seq_len.

    probe_rows: rows of each capability's probe set. batch_rows: pieces scored at a time.
    budget_tokens, max_epochs: no source repeats more often in the training that follows.
    compute_dtype: of matrix products.

    score: "datainf", R1's, with hessian_rows pieces of each source for its Hessian and this
    damping; "adam", gradients scaled by root mean squares of the probes'. filter: a piece is kept
    where its influence is positive: "joint", in the mean over capabilities (R1), or
    "per_capability", on one at least of those that its source serves; "random" is the control of
    "joint": as many pieces of each source, drawn by the seed. shares_by: of the sources,
    "density", the mean influence of what was kept (R1), or "kept", its tokens. stop_below: the
    share of positive influence under which no round is worth it, 0 for never; stop_on: counted by
    "mass", influence x tokens, or by "samples". sources: those that are scored, and probes of them;
    empty: all.
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
    score: Score = "adam"
    hessian_rows: int = 64
    damping: float = DAMPING
    filter: Filter = "joint"
    shares_by: SharesBy = "density"
    stop_below: float = 0.0
    stop_on: StopOn = "mass"
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, known in {"score": SCORES, **CHOICES}.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} {getattr(self, field)!r} is unknown; known: {', '.join(known)}"
                )
        if self.hessian_rows < 1 or not self.damping > 0 or not 0 <= self.stop_below <= 1:
            raise ValueError(
                f"hessian_rows {self.hessian_rows} must be at least 1, damping {self.damping} "
                f"positive, stop_below {self.stop_below} a share from 0 to 1"
            )
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype {self.compute_dtype!r} is unknown; known: auto, float32, bfloat16"
            )

    def summary(self) -> str:
        return (
            f"up to {self.candidate_tokens:,} tokens of each source scored by {self.score}, "
            f"{self.probe_rows:,} probe rows a domain"
        )


def select(
    config: SelectConfig,
    out: Path,
    *,
    corpus: Path,
    model: Path,
    probes: Path | None = None,
    previous: Path | None = None,
) -> Path:
    """`out`, with shards/ of the kept pieces (influence above 0) and selection.json: shares,
    counts, what the filter drops of each capability, a sample of scores, and whether a round is
    still worth it.

    probes: what build_probes wrote; without it held-out text as it is. Shares are R1's influence
    densities (equations 5 and 6): the token-weighted mean influence of what was kept. The ranks
    divide the batches of every source, each whole on one of them, so that a score does not depend
    on how many there are; batches that were scored before the stage was interrupted are not scored
    again. previous: the selection of the round before; where that one stopped, so does this, and
    scores nothing.
    """
    shards = open_shards(corpus, "train", config.sources)
    network, tokenizer = load_checkpoint(model)
    groups = {
        name: Candidates(config, name, shard, tokenizer.eos_id) for name, shard in shards.items()
    }
    reason = stopped(previous) if previous else None
    if reason is None:
        network.eval().requires_grad_(False)  # activations alone are kept for the backward pass
        network.to(device())
        network.compute = ComputeSettings(dtype=dtype_of(config.compute_dtype, device()))
        sets = open_probe_sets(corpus, probes, config.sources)
        directions = _directions(config, network, sets, groups, tokenizer.eos_id)

        for name, source in groups.items():
            score(source, network, directions, score_files(config, out, name, source))
        wait_for_ranks()  # none looks for files that go when the first returns
        if ranks().first:
            write_selection(config, out, groups, sets, network.config.vocab_size)
    elif ranks().first:
        write_stopped(out, reason, list(groups), network.config.vocab_size)
    return out


def write_selection(
    config: SelectConfig,
    out: Path,
    groups: dict[str, "Candidates"],
    sets: ProbeSets,
    vocab_size: int,
) -> None:
    """shards/ and selection.json, from the scores of all ranks; prints what is dropped."""
    capabilities = sets.capabilities
    sources = {
        name: Scored(score_files(config, out, name, source).read(len(capabilities)), source.sizes)
        for name, source in groups.items()
    }
    selection = choose(config, sources, capabilities)
    for name, values in selection.influence.items():
        pieces = (groups[name].pieces[number] for number in np.flatnonzero(values > 0))
        with write_folder(out / "shards" / name) as folder:
            write_shard(folder, "train", pieces, vocab_size=vocab_size)
    console = Console(stderr=True, highlight=False)
    for name, figures in selection.content["capabilities"].items():
        documents, mass = figures["documents"], figures["positive_mass"]
        share = mass["after"] / mass["before"] if mass["before"] else 0.0
        console.print(
            f"  {name}: {documents['kept']:,} of {documents['of']:,} pieces kept, with {share:.1%} "
            "of the positive influence on its probe set",
            soft_wrap=True,
        )
    if selection.content["stopped"]:
        console.print(f"  {selection.content['stopped']}; this round is the last", soft_wrap=True)
    influence = {
        name: [round(float(value), 6) for value in values[:HISTOGRAM_SAMPLE]]
        for name, values in selection.influence.items()
    }
    how = {"score": config.score, "filter": config.filter, "shares_by": config.shares_by}
    write_json(out / SELECTION, {**selection.content, "influence": influence, **how})


def write_stopped(out: Path, reason: str, sources: list[str], vocab_size: int) -> None:
    """The selection of a round after the last: nothing of any source, and why."""
    Console(stderr=True, highlight=False).print(f"  nothing is scored: {reason}", soft_wrap=True)
    for name in sources:
        with write_folder(out / "shards" / name) as folder:
            write_shard(folder, "train", [], vocab_size=vocab_size)
    nothing = {"shares": {}, "kept": {}, "density": {}, "influence": {}, "capabilities": {}}
    write_json(out / SELECTION, {**nothing, "stopped": reason})


# ---- candidates and their scores ----


class Candidates:
    """Pieces of a source that are scored. sizes: their tokens, int64 [N]."""

    def __init__(self, config: SelectConfig, name: str, shard: Shard, eos_id: int) -> None:
        self.name, self.eos_id = name, eos_id
        self.pieces = candidates(shard, config, name)
        self.sizes = np.asarray([len(piece) for piece in self.pieces], dtype=np.int64)

    def batch(self, places: np.ndarray) -> Batch:
        return padded([self.pieces[place] for place in places], self.eos_id)

    def first_batches(self, num_pieces: int, rows: int) -> list[Batch]:
        """Batches of the first so many pieces, which are drawn as all are."""
        return [self.batch(places) for places in like_lengths(self.sizes[:num_pieces], rows)]


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


def score_files(config: SelectConfig, out: Path, name: str, source: Candidates) -> ScoreFiles:
    return ScoreFiles(out / RESUME / "scores" / name, source.sizes, config.batch_rows)


def score(source: Candidates, network: Transformer, directions: Tensor, files: ScoreFiles) -> None:
    """This rank's part of the pieces scored."""

    def scores(places: np.ndarray) -> np.ndarray:
        batch = to_device(source.batch(places), device())
        return influence(network, batch, directions).double().cpu().numpy()

    process, label = ranks(), f"  influence of {source.name}"
    part = slice(process.rank, None, process.world_size)
    files.write(scores, part, label, show=shows_progress())


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


# ---- directions ----


def _directions(
    config: SelectConfig,
    network: Transformer,
    sets: ProbeSets,
    groups: dict[str, Candidates],
    eos_id: int,
) -> Tensor:
    """[C, M, V, D]: of each capability, its batches divided over the ranks."""
    samples: list[Batch] = []
    if config.score == "datainf":
        for source in groups.values():
            samples += source.first_batches(config.hessian_rows, config.batch_rows)
    process = ranks()
    return score_directions(
        config.score,
        network,
        _probes(config, sets, eos_id),
        [to_device(batch, device()) for batch in samples],
        damping=config.damping,
        part=slice(process.rank, None, process.world_size),
        all_reduce=add_over_ranks,
    )


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
