"""Training health: a loss or gradient that is not finite never reaches the weights, and a spike of
the loss is logged.

Earlier losses are read from metrics.jsonl, so that a resumed training judges as an unbroken one
does.
"""

import hashlib
import math
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist

from pocketlm.model.batch import Batch
from pocketlm.train.distributed.ranks import ranks
from pocketlm.train.optim import OnNonfinite

# OLMo-core's SkipStepOptimizer: the losses compared with, and how far off them is a spike
WINDOW, SIGMAS = 128, 6.0
LEAST_LOSSES = WINDOW // 2  # as there: fewer say too little of how far losses spread
# steps in a row: beyond, the training has diverged, and skipping would hide it (our choice)
MOST_SKIPPED = 10
LISTED_ROWS = 32


def check_finite(
    step: int,
    loss: float,
    grad_norm: float,
    micro_batches: Sequence[Batch],
    losses: Sequence[float],
    on_nonfinite: OnNonfinite,
) -> bool:
    """Whether the step's gradient may update the weights. False: skip it, which is printed on
    stderr with the batch's rows.

    loss and grad_norm are those of all ranks together, so all ranks decide alike; losses are this
    rank's, of each micro-batch. FloatingPointError instead of False where on_nonfinite is "stop".
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return True
    problem = (
        f"step {step}: loss {loss}, gradient norm {grad_norm}; the weights are untouched. "
        f"{_culprits(micro_batches, losses)}"
    )
    if on_nonfinite == "stop":
        raise FloatingPointError(
            f"{problem}\nLower lr, take such rows out of the corpus, or set optim.on_nonfinite=skip"
        )
    _print(f"{problem}; the step is skipped")
    return False


def _culprits(micro_batches: Sequence[Batch], losses: Sequence[float]) -> str:
    """The rows of all ranks' micro-batches whose loss is not finite, in words; of all, where only
    the gradient is not.
    """
    bad = [b for b, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
    parts = [
        [row for batch in bad for row in batch.rows],
        [row for batch in micro_batches for row in batch.rows],
    ]
    gathered = [parts] * ranks().world_size
    if len(gathered) > 1:
        dist.all_gather_object(gathered, parts)
    rows = [row for part in gathered for row in part[0]]
    which = "Rows with such a loss" if rows else "Rows of the batch"
    rows = rows or [row for part in gathered for row in part[1]]
    names = ", ".join(f"{source} {number}" for source, number in rows[:LISTED_ROWS])
    more = f" and {len(rows) - LISTED_ROWS} more" if len(rows) > LISTED_ROWS else ""
    return f"{which} (source, number): {names}{more}"


class LossMonitor:
    """Follows the losses of one training: logs spikes, counts skipped steps, and stops when too
    many come in a row.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        """rows: the lines of metrics.jsonl before the step that training goes on from."""
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.skipped_in_a_row = 0
        for row in rows:
            self._count(row["loss"], "skipped" in row)

    def record(self, step: int, loss: float, grad_norm: float) -> dict[str, Any]:
        """Notes for the step's line in metrics.jsonl: how many steps were skipped, a spike in
        sigmas, or nothing.

        FloatingPointError after MOST_SKIPPED skipped steps in a row.
        """
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        sigmas = 0.0 if skipped else sigmas_above(loss, self.losses)
        self._count(loss, skipped)
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"step {step}: no loss and gradient was finite in {MOST_SKIPPED} steps in a row; "
                "lower lr"
            )
        if skipped:
            return {"skipped": self.skipped}
        if sigmas <= SIGMAS:
            return {}
        _print(
            f"step {step}: loss {loss:.4f} is {sigmas:.1f} sigma above the last "
            f"{len(self.losses) - 1} losses"
        )
        return {"spike": round(sigmas, 2)}

    def _count(self, loss: float, skipped: bool) -> None:
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if not skipped:
            self.losses.append(loss)


def sigmas_above(loss: float, before: Sequence[float]) -> float:
    """By how many standard deviations a loss exceeds the mean of those before; 0 where these are
    too few or all alike.
    """
    if len(before) < LEAST_LOSSES:
        return 0.0
    spread = statistics.stdev(before)
    return (loss - statistics.fmean(before)) / spread if spread > 0 else 0.0


def token_digest(micro_batches: Sequence[Batch]) -> int:
    """A number for the rows, tokens and labels, that a step reads; neither their order nor
    micro-batches change it.

    A sum over rows of 40 bits each, so that the digests of ranks add up, exactly in float64, to
    that of the whole batch. Padding, whose document is negative, is not part of a row.
    """
    total = 0
    for batch in micro_batches:
        for number, (ids, labels) in enumerate(zip(batch.input_ids, batch.labels, strict=True)):
            if batch.doc_ids is not None:
                inside = batch.doc_ids[number] >= 0
                ids, labels = ids[inside], labels[inside]
            row = hashlib.blake2b(ids.numpy().tobytes(), digest_size=5)
            row.update(labels.numpy().tobytes())
            total += int.from_bytes(row.digest())
    return total


def _print(text: str) -> None:
    """One line on stderr, by the first rank."""
    if ranks().first:
        print(text, file=sys.stderr, flush=True)
