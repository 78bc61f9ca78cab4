"""Training metrics: a progress bar, metrics.jsonl, and TensorBoard files beside it."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from pocketlm.model.files import write_text
from pocketlm.train.distributed.ranks import shows_progress

METRICS = "metrics.jsonl"


class Metrics:
    """Owner of one stage's metrics files and progress bar. Opened at `first_step`, later lines of
    an earlier try are dropped.
    """

    def __init__(self, out: Path, label: str, num_steps: int, first_step: int) -> None:
        kept = read_metrics(out, first_step)
        self.file = write_text(out / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self.lines = open(self.file, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed}/{task.total} steps  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.progress = Progress(
            *columns, console=console, refresh_per_second=4, disable=not shows_progress()
        )
        self.task = self.progress.add_task(label, total=num_steps, completed=first_step, figures="")
        self.progress.start()
        self.last = time.perf_counter()

    def log(
        self,
        step: int,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens: int,
        token_digest: int,
        notes: dict[str, Any],
    ) -> None:
        """One finished step: mean loss in nats a label, learning rate, gradient norm, tokens read
        and which; the notes of LossMonitor.

        A figure that is not finite is written as null: JSON has no other word for it.
        """
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        speed = tokens / seconds
        row = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens": tokens,
            "token_digest": f"{token_digest:x}",
            "tokens_per_second": round(speed, 1),
            "seconds": round(seconds, 4),
            **notes,
        }
        self.lines.write(json.dumps(row) + "\n")
        for name in ("loss", "lr", "grad_norm", "tokens_per_second"):
            if row[name] is not None:
                self.tensorboard.add_scalar(name, row[name], step)
        self.progress.update(
            self.task, completed=step + 1, figures=f"loss {loss:.3f}  {speed:,.0f} tokens/s"
        )

    def flush(self) -> None:
        """Returns when all lines are on the disk."""
        self.lines.flush()
        os.fsync(self.lines.fileno())

    def close(self) -> None:
        self.progress.stop()
        self.lines.close()
        self.tensorboard.close()


class NoMetrics:
    """The metrics of other ranks than the first: none."""

    def log(self, *figures: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def read_metrics(out: Path, before_step: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of the steps before one; a line torn by a crash ends them."""
    file, rows = out / METRICS, []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] < before_step:
            rows.append(row)
    return rows
