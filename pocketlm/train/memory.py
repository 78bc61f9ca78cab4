"""How much memory a training stage needs, computed before its first step: on a machine that lacks
it the stage ends with one message, not a kill.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch

from pocketlm.model.costs import (
    StockShape,
    block_matrices,
    head_parameters,
    kept_bytes,
    num_parameters,
)
from pocketlm.model.model_config import ModelConfig
from pocketlm.train.distributed.fsdp import mesh_shape
from pocketlm.train.distributed.ranks import device, ranks
from pocketlm.train.optim import OptimConfig, product_dtype
from pocketlm.train.vocab_blocks import block_bytes, tokens_at_a_time

# of the loss's blocks of logits, in float32: both sides' logs, terms, slopes, gradients
BLOCKS_AT_ONCE = 8
# Of the estimate, which is within a few percent of what is alive at once (benchmarks/memory.py).
# The C library keeps freed blocks on top, up to three quarters as much again: that is not counted,
# for it is no reason to refuse
MARGIN = 0.1


class Trained(Protocol):
    """The fields of a training stage's config that decide how much it holds."""

    @property
    def name(self) -> str: ...
    @property
    def optim(self) -> OptimConfig | None: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def rows_per_step(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of one rank, by what they are for. `peak` is the most that is there at once.

    weights, gradients, states: of the student, float32. kept: what its forward pass leaves for the
    backward pass. loss: the head's gradient, and blocks of logits. table: the gradient of the token
    table once more, for it is made dense before it is added. recomputed: of a block that the
    backward pass recomputes. teacher: its weights. loading: them once more, in the files' form.
    teacher_pass: what its forward pass holds. saving: the copy of weights and states that is
    written to disk.
    """

    weights: int
    gradients: int
    states: int
    kept: int
    loss: int
    table: int
    recomputed: int
    teacher: int
    loading: int
    teacher_pass: int
    saving: int
    accumulates: bool  # several micro-batches a step, so gradients stay through the forward pass

    @property
    def peak(self) -> int:
        """The largest of: loading the teacher; the end of a forward pass, with the loss; the end of
        a backward pass; a save.

        Up to `saving` more where a state is still being written when the next step is at its peak.
        """
        always = self.weights + self.states + self.teacher
        forward = (
            always
            + self.kept
            + max(self.loss, self.teacher_pass)
            + (self.gradients if self.accumulates else 0)
        )
        recomputing = (
            always
            + self.kept
            + self.recomputed
            + self.table
            + (self.gradients if self.accumulates else 0)
        )
        backward = always + self.gradients + self.table * (2 if self.accumulates else 1)
        return max(
            self.weights + self.teacher + self.loading,
            forward,
            recomputing,
            backward,
            always + self.saving,
        )


def training_memory(
    model: ModelConfig,
    optim: OptimConfig,
    *,
    rows: int,
    seq_len: int,
    accumulates: bool,
    masked: bool,
    saves: bool,
    teacher: ModelConfig | None = None,
    on_grid: bool = False,
    device: str = "cpu",
    shards: int = 1,
    trained: int | None = None,
) -> TrainingMemory:
    """What training holds with micro-batches of rows x seq_len tokens, the model sharded over
    `shards` ranks.

    masked: documents of a row are kept apart. saves: states are written, if only at the end.
    on_grid: training for four bits. Of a sharded model a block's weights are whole when it runs,
    the table's and the head's always, and gradients too while they add up. trained: of frozen
    weights so many beside them are trained (LoRA); None: all. What the process holds before is not
    in it; on CUDA the copies that are saved and loaded are in the processor's memory.
    """
    N, parameters, where = rows * seq_len, num_parameters(model), torch.device(device)
    narrow = product_dtype(optim, where)
    product_bytes = narrow.itemsize if narrow else 4
    table = 4 * head_parameters(model)
    # one state, not two
    inner = model.num_hidden_layers * block_matrices(model) if optim.optimizer == "muon" else 0
    states = 4 * 2 * (parameters - inner) // shards + 4 * inner  # Muon's are whole on each rank
    weights = 4 * parameters // shards + (_whole(model) if shards > 1 else 0)
    learnt = parameters if trained is None else trained
    if trained is not None:
        weights, states = weights + 4 * trained // shards, 4 * 2 * trained // shards
    of_token = model.vocab_size * product_bytes * (2 if teacher else 1)
    logits = tokens_at_a_time(N, of_token, where) * of_token
    blocks = min(BLOCKS_AT_ONCE * block_bytes(where), 4 * N * model.vocab_size * BLOCKS_AT_ONCE)
    # chosen rows, their gradient, and them in products
    hidden = N * model.hidden_size * (4 + 4 + product_bytes)
    loss = (table if trained is None else 0) + hidden + blocks + logits
    if teacher:
        loss += 4 * N * teacher.hidden_size
    frozen = _frozen(teacher, product_bytes, shards) if teacher else 0
    grid = head_parameters(model) * product_bytes if on_grid else 0  # the head's weight on its grid
    body = {"product_bytes": product_bytes, "masked": masked, "device": device}
    whole = kept_bytes(model, rows, seq_len, on_grid=on_grid, attention=optim.attention, **body)
    return TrainingMemory(
        weights=weights,
        gradients=4 * learnt // (1 if accumulates else shards),
        states=states,
        kept=kept_bytes(
            model,
            rows,
            seq_len,
            on_grid=on_grid,
            checkpoint_every_n_blocks=optim.checkpoint_every_n_blocks,
            attention=optim.attention,
            **body,
        )
        + grid,
        loss=loss,
        table=table if trained is None else 0,
        recomputed=whole // model.applications if optim.checkpoint_every_n_blocks else 0,
        teacher=frozen,
        loading=frozen if device == "cpu" else 0,
        teacher_pass=kept_bytes(teacher, rows, seq_len, **body) // teacher.applications
        + _mask_bytes(teacher, rows, seq_len, product_bytes, masked)
        if teacher
        else 0,
        saving=4 * parameters // shards + states if saves and device == "cpu" else 0,
        accumulates=accumulates,
    )


def _frozen(teacher: ModelConfig, product_bytes: int, shards: int) -> int:
    """Bytes of a teacher's weights on a rank: float32, of a network of transformers as wide as its
    products.
    """
    stock = isinstance(teacher, StockShape)
    weights = num_parameters(teacher) * (product_bytes if stock else 4) // shards
    return weights + (_whole(teacher, product_bytes) if shards > 1 else 0)


def _mask_bytes(
    teacher: ModelConfig, rows: int, seq_len: int, product_bytes: int, masked: bool
) -> int:
    """Of a network of transformers: a byte for each pair of tokens and kind of mask, and one mask
    as torch's attention adds it to the scores. Ours has none.
    """
    masks = teacher.local_masks + masked if isinstance(teacher, StockShape) else 0
    return rows * seq_len**2 * (masks + product_bytes) if masks else 0


def _whole(model: ModelConfig, product_bytes: int = 4) -> int:
    """Bytes of what a rank gathers: the block that runs and the next one, the token table, the
    head.
    """
    if isinstance(model, StockShape):
        return product_bytes * (2 * model.largest_block + model.outside_blocks)
    tables = 1 if model.tie_word_embeddings else 2
    return 4 * (2 * block_matrices(model) + tables * head_parameters(model))


def check_memory(
    config: Trained,
    model: ModelConfig,
    *,
    masked: bool,
    teacher: ModelConfig | None = None,
    on_grid: bool = False,
    trained: int | None = None,
) -> None:
    """Nothing, or a ValueError where a training stage clearly needs more memory than is free, with
    what to change.

    Clearly: the estimate less MARGIN exceeds it. Ranks of one machine share its memory; each GPU
    has its own.
    """
    if config.optim is None:
        return
    world_size, where = ranks().world_size, device()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    need = training_memory(
        model,
        config.optim,
        rows=config.micro_batch_size,
        seq_len=config.seq_len,
        accumulates=config.rows_per_step > config.micro_batch_size * world_size,
        masked=masked,
        saves=True,
        teacher=teacher,
        on_grid=on_grid,
        device=where.type,
        shards=mesh_shape(config.optim.shard_over, world_size, local)[-1],
        trained=trained,
    )
    free = free_bytes(where) // (local if where.type == "cpu" else 1)
    if need.peak * (1 - MARGIN) <= free:
        return
    names = ("weights", "gradients", "states", "saving", "kept", "loss", "teacher")
    parts = ", ".join(f"{name} {_gib(size)}" for name in names if (size := getattr(need, name)))
    of_each = " on each rank" if world_size > 1 else ""
    raise ValueError(
        f"{config.name} needs about {_gib(need.peak)} of memory{of_each} and {_gib(free)} are free "
        f"({parts}). "
        f"{_remedy(config, config.optim, need)}"
    )


def _remedy(config: Trained, optim: OptimConfig, need: TrainingMemory) -> str:
    """What to change, by what weighs most."""
    model = need.weights + need.gradients + need.states
    elsewhere = "more ranks, which share it (torchrun), or a machine with more memory."
    if need.teacher > max(model, need.kept):
        return f"The teacher weighs most: take a smaller one, {elsewhere}"
    if model > need.kept:
        return f"The model itself weighs most: take a smaller one, {elsewhere}"
    recompute = (
        ""
        if optim.checkpoint_every_n_blocks == 1
        else f" or set {config.name}.optim.checkpoint_every_n_blocks=1, which takes more time"
    )
    if config.micro_batch_size == 1:
        return f"One row weighs most: lower {config.name}.seq_len {config.seq_len}{recompute}."
    return (
        f"What {config.micro_batch_size} rows leave for the backward pass weighs most: lower "
        f"{config.name}."
        f"micro_batch_size (a step keeps all its rows){recompute}."
    )


def free_bytes(where: torch.device) -> int:
    """Bytes this process may still take: free memory of the GPU, or of the machine, or of its
    control group if that is less.
    """
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    return min([psutil.virtual_memory().available, *_control_group_bytes()])


def _control_group_bytes(
    root: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What each memory limit above this process leaves (containers, Slurm); none outside Linux.
    Version 2, then version 1.
    """
    if not memberships.is_file():
        return []
    limits = []
    for line in memberships.read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / controllers
            folders = [base / place.lstrip("/"), *(base / place.lstrip("/")).parents]
            limits += [
                free
                for folder in folders
                if folder.is_relative_to(base) and (free := _free(folder)) is not None
            ]
    return limits


def _free(folder: Path) -> int | None:
    """Limit less use of one control group, without the file cache that the kernel gives back; None
    without a limit.
    """
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            lines = (
                (folder / "memory.stat").read_text().splitlines()
                if (folder / "memory.stat").is_file()
                else []
            )
            cache = next(
                (int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0
            )
            return max(0, int(text) - int((folder / used).read_text()) + cache)
    return None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
