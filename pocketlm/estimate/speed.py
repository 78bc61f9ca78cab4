"""How long a step takes on a device: products, passes over activations, and what of the
communication is not hidden.

seconds of a micro-batch = FLOPs / (peak x utilisation) + passes x kept bytes / bandwidth + exposed
x communication

The four constants were fitted to published trainings (published.py) by benchmarks/plan_fit.py,
which prints the error. A narrow network has more bytes for each FLOP, so its utilisation comes out
lower without a rule of its own for width.
"""

from dataclasses import dataclass

from pocketlm.estimate.devices import Device
from pocketlm.estimate.work import Work
from pocketlm.model.costs import StockShape, kept_bytes, num_parameters


@dataclass(frozen=True, kw_only=True)
class Fit:
    """utilisation: of the peak, by products alone. passes: over the bytes a forward pass keeps, by
    kernels that follow one another (eager), and by compiled or hand-fused ones. exposed: share of
    the communication that computing does not hide."""

    utilisation: float
    eager_passes: float
    fused_passes: float
    exposed: float


FIT = Fit(utilisation=0.527, eager_passes=13.14, fused_passes=1.534, exposed=0.1128)

# typical error of a published training's time by constants fitted to the others
LEFT_OUT_ERROR = 0.10


def step_seconds(work: Work, device: Device, count: int, *, fused: bool, fit: Fit = FIT) -> float:
    """Of one step on so many devices."""
    ranks = work.ranks(count)
    shape = {
        "rows": work.micro_batch_size,
        "seq_len": work.seq_len,
        "product_bytes": 2,
        "device": "cuda",
    }
    bytes_passed = kept_bytes(work.model, **shape)
    if work.teacher is not None:  # a forward pass alone, about a third of forward and backward
        bytes_passed += kept_bytes(work.teacher, **shape) // 3
    passes = fit.fused_passes if fused else fit.eager_passes
    micro_batch = (
        work.micro_batch_flops() / (device.flops * fit.utilisation)
        + passes * bytes_passed / device.bandwidth
    )
    micro_batch += fit.exposed * communication_seconds(work, device, ranks)
    # AdamW reads four numbers and writes three
    update = 28 * num_parameters(work.model) / ranks / device.bandwidth
    return work.micro_batches / ranks * micro_batch + update


def communication_seconds(work: Work, device: Device, ranks: int) -> float:
    """Of a micro-batch: weights gathered twice and gradients sharded, in float32 (FSDP2), the
    slowest wire deciding.
    """
    shards = work.shards(ranks, device.per_machine)
    wire = device.link if shards <= device.per_machine else device.network
    sizes = 12 * num_parameters(work.model)
    if work.teacher:  # a network of transformers has its weights in bfloat16
        sizes += (2 if isinstance(work.teacher, StockShape) else 4) * num_parameters(work.teacher)
    # gradients of machines
    between = 8 * num_parameters(work.model) / shards / device.network if shards < ranks else 0.0
    return sizes * (shards - 1) / shards / wire + between
