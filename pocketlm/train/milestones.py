"""Milestones: checkpoints of a training at even spacing, kept as Hugging Face folders.

R1's influence scores read ten of them (section 4). Those of a simulated run have the optimizer's
state too, which tells what its next step would do (first_order.py). They are written before the
state of the same step, so that a training resumed from a state has every milestone up to there,
whole.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.files import write_folder
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import open_safetensors
from pocketlm.train.checkpoint import Optimizers, named_tensors, optimizer_parameters
from pocketlm.train.distributed.fsdp import gather_copy
from pocketlm.train.distributed.ranks import ranks, wait_for_ranks
from pocketlm.train.optim import OptimConfig, make_optimizers

MILESTONES = "milestones"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Milestones:
    """How many checkpoints to keep of a training; the last is that of its end (our choice).
    tokenizer: saved with each. optimizer: whether its state is saved beside the weights, without
    Adam's momentum.
    """

    count: int
    tokenizer: Tokenizer
    optimizer: bool = False

    def is_due(self, steps_done: int, num_steps: int) -> bool:
        """Whether one is kept after so many of the steps: `count` times, rounded up to a step."""
        return self.count * steps_done // num_steps > self.count * (steps_done - 1) // num_steps

    def save(
        self,
        out: Path,
        steps_done: int,
        model: Transformer,
        empty: Transformer,
        optimizers: Optimizers,
    ) -> None:
        """Writes out/milestones/step-N; all ranks call it together. empty: as for `gather_copy`."""
        whole = gather_copy(model, empty)
        state = _whole_state(model, optimizers) if self.optimizer else {}
        if ranks().first:
            with write_folder(out / MILESTONES / f"step-{steps_done:08d}") as folder:
                save_checkpoint(folder, whole, self.tokenizer)
                if state:
                    save_file(state, folder / OPTIMIZER)
        wait_for_ranks()  # a slow disk takes longer than a collective waits


def _whole_state(model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """The optimizers' state of every parameter, whole, on the CPU; all ranks call it together."""
    state = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()
        for name, tensor in named_tensors(model, optimizers)
        if not name.startswith("model/") and not name.endswith("/exp_avg")
    }
    return state if ranks().first else {}


def open_optimizers(folder: Path, model: Transformer, config: OptimConfig) -> Optimizers:
    """The optimizers of a whole model with the state that a milestone has of them."""
    optimizers = make_optimizers(model, config)
    with open_safetensors(folder / OPTIMIZER) as file:
        names = list(file.keys())
        for optimizer in optimizers:
            for prefix, parameter in optimizer_parameters(model, optimizer):
                for name in (name for name in names if name.startswith(prefix)):
                    value = file.get_tensor(name)
                    # Adam's count of steps stays where it is cheap to read
                    value = value.to(parameter.device) if value.dim() else value
                    optimizer.state[parameter][name.removeprefix(prefix)] = value
    return optimizers
