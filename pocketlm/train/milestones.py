"""Milestones: checkpoints of a training at even spacing, kept as Hugging Face folders.

R1's influence scores read ten of them (section 4). They are written before the state of the same
step, so that a training resumed from a state has every milestone up to there, whole.
"""

from dataclasses import dataclass
from pathlib import Path

from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.files import write_folder
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.fsdp import gather_copy
from pocketlm.train.distributed.ranks import ranks

MILESTONES = "milestones"


@dataclass(frozen=True)
class Milestones:
    """How many checkpoints to keep of a training; the last is that of its end (our choice).
    tokenizer: saved with each.
    """

    count: int
    tokenizer: Tokenizer

    def is_due(self, steps_done: int, num_steps: int) -> bool:
        """Whether one is kept after so many of the steps: `count` times, rounded up to a step."""
        return self.count * steps_done // num_steps > self.count * (steps_done - 1) // num_steps

    def save(self, out: Path, steps_done: int, model: Transformer, empty: Transformer) -> None:
        """Writes out/milestones/step-N; all ranks call it together. empty: as for `gather_copy`."""
        whole = gather_copy(model, empty)
        if ranks().first:
            with write_folder(out / MILESTONES / f"step-{steps_done:08d}") as folder:
                save_checkpoint(folder, whole, self.tokenizer)
