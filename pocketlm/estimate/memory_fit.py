"""Where a stage needs more memory than a device has: what weighs, and what would fit."""

from collections.abc import Iterator
from dataclasses import replace

from pocketlm.estimate.devices import Device
from pocketlm.estimate.work import Work
from pocketlm.train.memory import TrainingMemory

# (parts of TrainingMemory, the field's word for them)
PARTS = (
    (("weights", "gradients", "states"), "weights, gradients and optimizer"),
    (("kept", "recomputed"), "activations"),
    (("loss", "table"), "loss"),
    (("teacher", "teacher_pass"), "teacher"),
)


def memory_parts(memory: TrainingMemory) -> str:
    """What weighs most, on one line: "activations 61 GB, teacher 12 GB"."""
    sizes = {words: sum(getattr(memory, name) for name in names) for names, words in PARTS}
    heavy = sorted(sizes.items(), key=lambda item: -item[1])
    parts = [f"{words} {size / 1e9:.0f} GB" for words, size in heavy if size >= memory.peak / 20]
    return ", ".join(parts)


def fitting_settings(name: str, work: Work, device: Device, count: int) -> str:
    """The first change of the config, gentlest first, with which the stage fits; else what of it
    does not fit whatever is set.
    """
    for changes, changed in variants(work):
        ranks = changed.ranks(count)
        enough = changed.memory("cuda", ranks, device.per_machine).peak <= device.memory_bytes
        if enough and ranks >= work.ranks(count):
            settings = " ".join(f"--set {name}.{key}={value}" for key, value in changes.items())
            return f"fits with {settings}"
    least = list(variants(work))[-1][1]
    need = least.memory("cuda", least.ranks(count), device.per_machine)
    return (
        f"even one row at a time with activation checkpointing needs {need.peak / 1e9:.0f} GB "
        f"({memory_parts(need)}): take more devices, larger ones"
        + (", or a smaller teacher" if work.teacher else "")
    )


def variants(work: Work) -> Iterator[tuple[dict[str, object], Work]]:
    """(settings, the work with them): smaller micro-batches, then activation checkpointing with
    each, then weights shared over all ranks. A step keeps its rows.
    """
    sizes = [size for size in _halves(work.micro_batch_size) if work.rows_per_step % size == 0]
    for shard_over in dict.fromkeys((work.optim.shard_over, "all")):
        for recompute in dict.fromkeys((work.optim.checkpoint_every_n_blocks, 1)):
            for size in sizes:
                changes: dict[str, object] = {}
                if size != work.micro_batch_size:
                    changes["micro_batch_size"] = size
                if recompute != work.optim.checkpoint_every_n_blocks:
                    changes["optim.checkpoint_every_n_blocks"] = recompute
                if shard_over != work.optim.shard_over:
                    changes["optim.shard_over"] = shard_over
                optim = replace(
                    work.optim, checkpoint_every_n_blocks=recompute, shard_over=shard_over
                )
                yield changes, replace(work, micro_batch_size=size, optim=optim)


def _halves(size: int) -> list[int]:
    return [size] if size == 1 else [size, *_halves(size // 2)]
