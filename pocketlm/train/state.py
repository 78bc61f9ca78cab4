"""Where training stands, on disk: weights, the optimizers' state and the step, under out/resume."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from pocketlm.model.checkpoint import read_safetensors
from pocketlm.model.files import read_json
from pocketlm.model.transformer import Transformer
from pocketlm.train.ranks import ranks

RESUME = "resume"


def save_state(model: Transformer, optimizers: list[torch.optim.Optimizer], step: int, out: Path) -> None:
    """Write out/resume/step-N whole, under another name first, then drop the older ones."""
    folder = out / RESUME / f"step-{step:08d}"
    partial = out / RESUME / "partial"
    weights, optimizer = whole(model.state_dict()), whole(optimizer_tensors(model, optimizers))
    if not ranks().first:
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / "model.safetensors")
    save_file(optimizer, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step}))
    partial.rename(folder)
    for old in saved_states(out):
        if old != folder:
            shutil.rmtree(old)


def load_state(model: Transformer, optimizers: list[torch.optim.Optimizer], out: Path) -> int:
    """Fill model and optimizers from the newest saved state; the step to go on with, 0 when there is none."""
    states = saved_states(out)
    if not states:
        return 0
    newest = states[-1]
    weights = read_safetensors(newest / "model.safetensors")
    own = model.state_dict()
    model.load_state_dict({name: _like(tensor, own[name]) for name, tensor in weights.items()})
    tensors = read_safetensors(newest / "optimizer.safetensors")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"{names[id(parameter)]}/"
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key: _like(value, parameter) if value.dim() else value for key, value in state.items()
            }
    return read_json(newest / "state.json")["step"]


def saved_states(out: Path) -> list[Path]:
    """The whole states under out/resume, oldest first."""
    return sorted((out / RESUME).glob("step-*"))


def optimizer_tensors(model: Transformer, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The optimizers' state as flat tensors, named parameter/key."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of all ranks, gathered on each."""
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor shared out over the ranks as the other is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
