"""Resume training from the newest whole state under out/resume, written by any number of ranks."""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from pocketlm.model.arithmetic import arithmetic, threads_to_go_on
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import open_safetensors
from pocketlm.train.checkpoint import RESUME, Optimizers, optimizer_parameters, saved_states
from pocketlm.train.distributed.ranks import all_reduce_min, barrier, ranks
from pocketlm.train.distributed.sharded_tensors import Saved, fill, filled_like
from pocketlm.train.manifest import damage, read_manifest


def load_state(model: Transformer, optimizers: Optimizers, out: Path) -> int:
    """Fill model and optimizers from the newest whole state; the step to go on with, 0 when there
    is none.

    All ranks call it together. A damaged state is named on stderr, set aside, and the one before it
    used; ValueError when every one is damaged, or when the state is another model's.
    """
    if ranks().first:
        for leftover in (out / RESUME).glob("partial*"):
            shutil.rmtree(leftover)
    barrier()
    folder, manifest = newest_whole(out)
    if folder is None:
        return 0
    refuse_another_model(model, optimizers, folder, manifest["tensors"])
    with contextlib.ExitStack() as stack, torch.no_grad():
        opened = {
            name: stack.enter_context(open_safetensors(folder / name)) for name in manifest["files"]
        }
        for name, tensor in model.state_dict().items():
            fill(tensor, f"model/{name}", manifest["tensors"], opened)
        for optimizer in optimizers:
            # its momentum is whole on each rank: see gather_for_muon
            replicated = isinstance(optimizer, torch.optim.Muon)
            for prefix, parameter in optimizer_parameters(model, optimizer):
                for name in [name for name in manifest["tensors"] if name.startswith(prefix)]:
                    value = filled_like(
                        parameter, name, manifest["tensors"], opened, replicated=replicated
                    )
                    optimizer.state[parameter][name.removeprefix(prefix)] = value
    return manifest["step"]


def threads_of(out: Path, label: str) -> int:
    """How many threads every rank trains on after `load_state`: those of the state, where
    `threads_to_go_on` allows; the first rank prints a change.
    """
    number = 0
    if ranks().first:
        states = saved_states(out)
        begun = read_manifest(states[-1])[0].get("arithmetic") if states else None
        number, line = threads_to_go_on(begun, arithmetic(ranks().world_size), label)
        if line:
            print(line, file=sys.stderr, flush=True)
    return -all_reduce_min(-number)


def newest_whole(out: Path) -> tuple[Path | None, dict[str, Any]]:
    """(the newest state that is as it was written, its manifest); (None, {}) where none was ever
    written.
    """
    broken: dict[Path, str] = {}
    for folder in reversed(saved_states(out)):
        manifest, problem = read_manifest(folder)
        problem = problem or damage(folder, manifest)
        if not problem:
            _set_aside(broken, folder)
            return folder, manifest
        broken[folder] = problem
    if broken:
        problems = "".join(f"\n  {problem}" for problem in broken.values())
        raise ValueError(
            f"no state in {out / RESUME} is whole:{problems}\nDelete that folder to begin this "
            "stage anew."
        )
    return None, {}


def refuse_another_model(
    model: Transformer, optimizers: Optimizers, folder: Path, saved: Saved
) -> None:
    """Nothing, or a ValueError that lists the names and shapes on which the state and the model
    disagree.
    """
    shapes = {f"model/{name}": list(tensor.shape) for name, tensor in model.state_dict().items()}
    prefixes = tuple(
        prefix for optimizer in optimizers for prefix, _ in optimizer_parameters(model, optimizer)
    )
    problems = [f"{name} is not in it" for name in shapes if name not in saved]
    problems += [
        f"{name} is not in the model"
        for name in saved
        if not name.startswith(prefixes) and name not in shapes
    ]
    problems += [
        f"{name} is {saved[name]['shape']} there and {shape} in the model"
        for name, shape in shapes.items()
        if name in saved and saved[name]["shape"] != shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{folder} is the state of another model or optimizer:\n  "
            + "\n  ".join(problems[:8])
            + more
            + f"\n"
            f"Give this stage another folder, or delete {folder.parent} to begin it anew."
        )


def _set_aside(broken: dict[Path, str], used: Path) -> None:
    """Rank 0 says which states are damaged and gives them another name; they stay to be looked
    at.
    """
    for folder, problem in broken.items() if ranks().first else ():
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(
            f"{problem}; set aside as {aside.name}, training goes on from {used}",
            file=sys.stderr,
            flush=True,
        )
