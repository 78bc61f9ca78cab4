"""Where training stands, on disk: states under out/resume that any number of ranks reads again.

A state is a folder step-N. Each rank writes what it holds, rank-00000.safetensors and so on;
state.json tells the step, on what it was computed, the bytes and SHA-256 of each file, and of each
tensor its shape and where its pieces lie. A rank that loads reads the parts of pieces that it
needs, so 4 ranks may write and 3 read. No rank talks to another to write: they meet in the folder.
torch.distributed.checkpoint is not used: its index is a pickle, and its safetensors reader takes a
missing shard for a smaller tensor.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pocketlm.model.arithmetic import arithmetic, threads_to_go_on
from pocketlm.model.files import read_json, write_json
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import open_safetensors
from pocketlm.train.distributed.ranks import least, meet, ranks
from pocketlm.train.distributed.sharded_tensors import (
    Piece,
    Saved,
    fill,
    filled_like,
    own_piece,
    write_pieces,
)
from pocketlm.train.manifest import MANIFEST, damage, digest_of, manifest_digest, read_manifest

RESUME = "resume"
# how long rank 0 waits for the files of the others; a dead rank ends the run long before
RANKS_TIMEOUT_SECONDS = 600
# the same where training failed, so that a rank may be dead: within the 30 s that torchrun grants
ALONE_SECONDS = 10
Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How often training writes its state, and which states stay while the stage runs (our
    choices).

    keep_last: the newest states; the second is what a damaged newest one is replaced by.
    keep_every_steps: milestones, states that the count never drops, to go back to when a run went
    wrong long ago: delete the newer ones and run again. As all of resume/ they go when the stage is
    finished, for nothing goes back then.
    """

    every_steps: int
    keep_last: int = 2
    keep_every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps {self.every_steps} must be at least 1")
        if self.keep_last < 1:
            raise ValueError(
                f"keep_last {self.keep_last} must be at least 1: the state that was just written"
            )
        if self.keep_every_steps is not None and (
            self.keep_every_steps < 1 or self.keep_every_steps % self.every_steps
        ):
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} must be a multiple of every_steps "
                f"{self.every_steps}: "
                "a state that is never written cannot be kept"
            )


class StateWriter:
    """Owner of the thread that writes states. A `with` block: its end waits until what was begun is
    on disk.

    A state is copied to CPU memory (12 bytes for each parameter of this rank, until written) while
    training waits, then written, flushed to disk and renamed while training goes on; never two at
    once. What goes wrong there is raised by the next call of `check` or `write`, or at the end.
    """

    def __init__(self, out: Path, config: SaveConfig) -> None:
        self.out, self.config = out, config
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.alone = threading.Event()  # the training failed, so other ranks' files may never come
        self.own_written = threading.Event()  # this rank's file, of the state begun last

    def write(self, model: Transformer, optimizers: Optimizers, step: int) -> None:
        """Begin to write out/resume/step-N; returns when the copy is made."""
        self.finish()
        pieces = {
            name: piece
            for name, tensor in named_tensors(model, optimizers)
            if (piece := own_piece(tensor))
        }
        self.own_written.clear()
        self.thread = threading.Thread(target=self._write, args=(step, pieces), name="state")
        self.thread.start()

    def check(self) -> None:
        """Nothing, or the error that kept the last state from being written."""
        if self.error:
            error, self.error = self.error, None
            raise error

    def finish(self) -> None:
        """Returns when nothing is being written on any rank; raises what `check` would."""
        if self.thread:
            self.own_written.wait()
            self.check()
            # a rank that died is noticed here, at once; by the file that does not come, after
            # minutes
            meet()
            self.thread.join()
            self.thread = None
        self.check()

    def __enter__(self) -> "StateWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # which asked to stop: the state is what was promised
        if error is None or isinstance(error, KeyboardInterrupt):
            try:
                self.finish()
            except Exception as lost:
                self._give_up(lost)
                raise
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Lets a save that other ranks may still take part in come to its end, but does not wait
        for long.
        """
        self.alone.set()
        if self.thread:
            self.thread.join()
        if self.error:
            error.add_note(f"{self.error}\n" + "\n".join(getattr(self.error, "__notes__", [])))

    def _write(self, step: int, pieces: dict[str, Piece]) -> None:
        partial = self.out / RESUME / f"partial-{step:08d}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            write_own(partial, pieces)
            pieces.clear()  # its memory goes before the files of other ranks are waited for
            self.own_written.set()
            if ranks().first:
                publish(partial, self.out / RESUME / f"step-{step:08d}", step, self.alone)
                drop_old(self.out, self.config)
        except BaseException as error:
            error.add_note(f"(while the state of step {step} was written to {partial})")
            self.error = error
        finally:
            self.own_written.set()


# ---- what a state holds ----


def named_tensors(model: Transformer, optimizers: Optimizers) -> Iterator[tuple[str, Tensor]]:
    """All that changes as training goes on: model/NAME, and ADAMW/NAME/KEY for each optimizer's
    state of a parameter.
    """
    yield from ((f"model/{name}", tensor) for name, tensor in model.state_dict().items())
    for optimizer in optimizers:
        for prefix, parameter in _parameters(model, optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                yield f"{prefix}{key}", value


def _parameters(
    model: Transformer, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(prefix of its state's names, parameter) of all that the optimizer moves."""
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in moved:
            yield f"{type(optimizer).__name__}/{name}/", parameter


# ---- writing ----


def write_own(partial: Path, pieces: dict[str, Piece]) -> None:
    """This rank's file, and rank-N.json beside it, which says that it is whole."""
    file = partial / f"rank-{ranks().rank:05d}.safetensors"
    tensors = write_pieces(file, pieces)
    _to_disk(file)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": digest_of(file)}}
    write_json(file.with_suffix(".json"), {"files": files, "tensors": tensors})


def publish(partial: Path, folder: Path, step: int, alone: threading.Event) -> None:
    """Rank 0: the manifest over the files of all ranks, once each is whole, and the folder's final
    name.
    """
    notes = _notes_of_ranks(partial, alone)
    files: dict[str, Any] = {}
    tensors: Saved = {}
    for told in (read_json(note) for note in notes):
        files |= told["files"]
        for name, entry in told["tensors"].items():
            tensors.setdefault(name, {**entry, "pieces": []})["pieces"] += entry["pieces"]
    told = {"step": step, "world_size": len(notes), "arithmetic": arithmetic(len(notes))}
    manifest = {**told, "files": files, "tensors": tensors}
    write_json(partial / MANIFEST, {**manifest, "sha256": manifest_digest(manifest)})
    for note in notes:
        note.unlink()
    _to_disk(partial)
    # fails where a state of that name is: what was published is never written over
    partial.rename(folder)
    _to_disk(folder.parent)


def _notes_of_ranks(partial: Path, alone: threading.Event) -> list[Path]:
    """The rank-N.json of every rank, waited for; not for long where this one may be alone.
    TimeoutError: they do not come.
    """
    began = time.monotonic()
    while len(notes := sorted(partial.glob("rank-*.json"))) < ranks().world_size:
        patience = ALONE_SECONDS if alone.is_set() else RANKS_TIMEOUT_SECONDS
        if time.monotonic() > began + patience:
            raise TimeoutError(
                f"{partial}: only {len(notes)} of {ranks().world_size} ranks wrote their files in "
                f"{patience} s; "
                "is it on a file system that all of them share?"
            )
        time.sleep(0.02)
    return notes


def drop_old(out: Path, config: SaveConfig) -> None:
    """Takes away the states beyond the newest keep_last that are no milestones."""
    for old in saved_states(out)[: -config.keep_last]:
        if config.keep_every_steps is None or step_of(old) % config.keep_every_steps:
            # so that a kill in between leaves no torn state
            dropped = old.with_name(f"partial-old-{step_of(old):08d}")
            old.rename(dropped)
            shutil.rmtree(dropped)


def _to_disk(path: Path) -> None:
    """Returns when a file or a folder's entries have left memory for the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ----


def load_state(model: Transformer, optimizers: Optimizers, out: Path) -> int:
    """Fill model and optimizers from the newest whole state; the step to go on with, 0 when there
    is none.

    All ranks call it together. A damaged state is named on stderr, set aside, and the one before it
    used; ValueError when every one is damaged, or when the state is another model's.
    """
    if ranks().first:
        for leftover in (out / RESUME).glob("partial*"):
            shutil.rmtree(leftover)
    meet()
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
            # its momentum is whole: see gather_for_muon
            on_each = isinstance(optimizer, torch.optim.Muon)
            for prefix, parameter in _parameters(model, optimizer):
                for name in [name for name in manifest["tensors"] if name.startswith(prefix)]:
                    value = filled_like(
                        parameter, name, manifest["tensors"], opened, on_each=on_each
                    )
                    optimizer.state[parameter][name.removeprefix(prefix)] = value
    return manifest["step"]


def load_milestone(model: Transformer, out: Path, step: int) -> None:
    """Fill a whole model with the weights of the state of one step, which `keep_every_steps` kept.

    Any rank may call it alone. ValueError: that state is not there, or damaged.
    """
    folder = out / RESUME / f"step-{step:08d}"
    manifest, problem = read_manifest(folder)
    for name, entry in manifest.get("files", {}).items():
        if not (folder / name).is_file() or digest_of(folder / name) != entry["sha256"]:
            problem = f"{folder / name} is missing, or not what was written"
    if problem:
        raise ValueError(f"{problem}; delete {folder.parent} to begin this training anew")
    with contextlib.ExitStack() as stack, torch.no_grad():
        opened = {
            name: stack.enter_context(open_safetensors(folder / name)) for name in manifest["files"]
        }
        for name, tensor in model.state_dict().items():
            fill(tensor, f"model/{name}", manifest["tensors"], opened)


def threads_of(out: Path, label: str) -> int:
    """How many threads training goes on with after `load_state`, on every rank: `threads_to_go_on`,
    which the first says.
    """
    number = 0
    if ranks().first:
        states = saved_states(out)
        begun = read_manifest(states[-1])[0].get("arithmetic") if states else None
        number, line = threads_to_go_on(begun, arithmetic(ranks().world_size), label)
        if line:
            print(line, file=sys.stderr, flush=True)
    return -least(-number)


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
        told = "".join(f"\n  {problem}" for problem in broken.values())
        raise ValueError(
            f"no state in {out / RESUME} is whole:{told}\nDelete that folder to begin this stage "
            "anew."
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
        prefix for optimizer in optimizers for prefix, _ in _parameters(model, optimizer)
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


def saved_states(out: Path) -> list[Path]:
    """The states under out/resume, oldest first."""
    return sorted((out / RESUME).glob("step-*"))


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
