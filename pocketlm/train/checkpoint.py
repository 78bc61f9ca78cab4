"""Sharded training checkpoints under out/resume, readable at another world size (resume.py reads
them).

A state is a folder step-N. Each rank writes its shards, rank-00000.safetensors and so on;
state.json holds the step, on what it was computed, the bytes and SHA-256 of each file, and of each
tensor its shape and the places of its pieces. A rank that loads reads the parts of pieces that it
needs (resharding), so 4 ranks may write and 3 read. Ranks exchange nothing to write: each puts its
files into the folder. torch.distributed.checkpoint is not used: its index is a pickle, and its
safetensors reader takes a missing shard for a smaller tensor.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pocketlm.model.arithmetic import arithmetic
from pocketlm.model.files import read_json, write_json
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.ranks import barrier, ranks
from pocketlm.train.distributed.sharded_tensors import Piece, Saved, local_piece, write_pieces
from pocketlm.train.manifest import MANIFEST, digest_of, manifest_digest

RESUME = "resume"
# how long rank 0 waits for the files of the others; a dead rank ends the run long before
RANKS_TIMEOUT_SECONDS = 600
# the same where training failed, so that a rank may be dead: within the 30 s that torchrun grants
FAILED_SECONDS = 10
Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How often training writes its state, and which states are kept while the stage runs (our
    choices).

    keep_last: the newest states; the second replaces a damaged newest one. keep_every_steps: states
    of these steps are never dropped, to go back to when a run went wrong long ago: delete the newer
    ones and run again. With all of resume/ they are deleted when the stage is finished, for nothing
    goes back then.
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
        self.failed = threading.Event()  # training did, so other ranks' files may never come
        self.written = threading.Event()  # this rank's file of the last state

    def write(self, model: Transformer, optimizers: Optimizers, step: int) -> None:
        """Begin to write out/resume/step-N; returns when the copy is made."""
        self.finish()
        pieces = {
            name: piece
            for name, tensor in named_tensors(model, optimizers)
            if (piece := local_piece(tensor))
        }
        self.written.clear()
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
            self.written.wait()
            self.check()
            # a rank that died is noticed here, at once; by the file that does not come, after
            # minutes
            barrier()
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
        # a request to stop: the state was promised
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
        self.failed.set()
        if self.thread:
            self.thread.join()
        if self.error:
            error.add_note(f"{self.error}\n" + "\n".join(getattr(self.error, "__notes__", [])))

    def _write(self, step: int, pieces: dict[str, Piece]) -> None:
        partial = self.out / RESUME / f"partial-{step:08d}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            write_rank_file(partial, pieces)
            pieces.clear()  # its memory goes before the files of other ranks are waited for
            self.written.set()
            if ranks().first:
                publish(partial, self.out / RESUME / f"step-{step:08d}", step, self.failed)
                drop_old(self.out, self.config)
        except BaseException as error:
            error.add_note(f"(while the state of step {step} was written to {partial})")
            self.error = error
        finally:
            self.written.set()


# ---- what a state holds ----


def named_tensors(model: Transformer, optimizers: Optimizers) -> Iterator[tuple[str, Tensor]]:
    """All that training changes: model/NAME, and AdamW/NAME/KEY for each optimizer's state of a
    parameter.
    """
    yield from ((f"model/{name}", tensor) for name, tensor in model.state_dict().items())
    for optimizer in optimizers:
        for prefix, parameter in optimizer_parameters(model, optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                yield f"{prefix}{key}", value


def optimizer_parameters(
    model: Transformer, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(prefix of its state's names, parameter) of all that the optimizer updates."""
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in moved:
            yield f"{type(optimizer).__name__}/{name}/", parameter


def saved_states(out: Path) -> list[Path]:
    """The states under out/resume, oldest first."""
    return sorted((out / RESUME).glob("step-*"))


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


# ---- writing ----


def write_rank_file(partial: Path, pieces: dict[str, Piece]) -> None:
    """Writes this rank's file, and rank-N.json beside it, which says that it is whole."""
    file = partial / f"rank-{ranks().rank:05d}.safetensors"
    tensors = write_pieces(file, pieces)
    _to_disk(file)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": digest_of(file)}}
    write_json(file.with_suffix(".json"), {"files": files, "tensors": tensors})


def publish(partial: Path, folder: Path, step: int, failed: threading.Event) -> None:
    """Rank 0: the manifest over the files of all ranks, once each is whole, and the folder's final
    name.
    """
    notes = _notes_of_ranks(partial, failed)
    files: dict[str, Any] = {}
    tensors: Saved = {}
    for note in notes:
        content = read_json(note)
        files |= content["files"]
        for name, entry in content["tensors"].items():
            tensors.setdefault(name, {**entry, "pieces": []})["pieces"] += entry["pieces"]
    manifest = {
        "step": step,
        "world_size": len(notes),
        "arithmetic": arithmetic(len(notes)),
        "files": files,
        "tensors": tensors,
    }
    write_json(partial / MANIFEST, {**manifest, "sha256": manifest_digest(manifest)})
    for note in notes:
        note.unlink()
    _to_disk(partial)
    # fails where a state of that name is: what was published is never written over
    partial.rename(folder)
    _to_disk(folder.parent)


def _notes_of_ranks(partial: Path, failed: threading.Event) -> list[Path]:
    """The rank-N.json of every rank, waited for; not for long where training failed. TimeoutError:
    they do not come.
    """
    began = time.monotonic()
    while len(notes := sorted(partial.glob("rank-*.json"))) < ranks().world_size:
        patience = FAILED_SECONDS if failed.is_set() else RANKS_TIMEOUT_SECONDS
        if time.monotonic() > began + patience:
            raise TimeoutError(
                f"{partial}: only {len(notes)} of {ranks().world_size} ranks wrote their files in "
                f"{patience} s; "
                "is it on a file system that all of them share?"
            )
        time.sleep(0.02)
    return notes


def drop_old(out: Path, config: SaveConfig) -> None:
    """Deletes the states beyond the newest keep_last, except those of keep_every_steps."""
    for old in saved_states(out)[: -config.keep_last]:
        if config.keep_every_steps is None or step_of(old) % config.keep_every_steps:
            # so that a kill in between leaves no torn state
            dropped = old.with_name(f"partial-old-{step_of(old):08d}")
            old.rename(dropped)
            shutil.rmtree(dropped)


def _to_disk(path: Path) -> None:
    """Returns when a file, or a folder's entries, are flushed to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
