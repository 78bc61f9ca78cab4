"""What a training stage tells while it runs: a live line, metrics.jsonl, and TensorBoard files beside it."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class Metrics:
    """Owner of one stage's metrics files and progress bar. Opened at `first_step`, later lines of an earlier try are dropped."""

    def __init__(self, out: Path, label: str, num_steps: int, first_step: int) -> None:
        self.file = out / "metrics.jsonl"
        self._keep_before(first_step)
        self.lines = open(self.file, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total} steps  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self.task = self.progress.add_task(label, total=num_steps, completed=first_step, figures="")
        self.progress.start()
        self.last = time.perf_counter()

    def log(self, step: int, loss: float, lr: float, grad_norm: float, tokens: int) -> None:
        """One finished step: mean loss in nats a label, learning rate, gradient norm, tokens read."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        speed = tokens / seconds
        row = {
            "step": step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": tokens,
            "tokens_per_second": round(speed, 1),
            "seconds": round(seconds, 4),
        }
        self.lines.write(json.dumps(row) + "\n")
        for name in ("loss", "lr", "grad_norm", "tokens_per_second"):
            self.board.add_scalar(name, row[name], step)
        self.progress.update(self.task, completed=step + 1, figures=f"loss {loss:.3f}  {speed:,.0f} tokens/s")

    def flush(self) -> None:
        self.lines.flush()

    def close(self) -> None:
        self.progress.stop()
        self.lines.close()
        self.board.close()

    def _keep_before(self, first_step: int) -> None:
        """Cut metrics.jsonl at the step training goes on from; a line torn by a crash goes too."""
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < first_step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        self.file.write_text("".join(kept), encoding="utf-8")


class Silence:
    """What other ranks than the first have for metrics."""

    def log(self, step: int, loss: float, lr: float, grad_norm: float, tokens: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
