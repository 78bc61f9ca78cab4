"""The one training loop: pre-training, distillation, context extension, annealing, SFT and QAT
differ in its arguments.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from pocketlm.model.arithmetic import on_threads
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.busy import BusyMonitor
from pocketlm.train.checkpoint import SaveConfig, StateWriter
from pocketlm.train.distributed.fsdp import (
    clip_gradients,
    empty_copy,
    gather_for_muon,
    gather_model,
    shard_model,
    sum_over_ranks,
    to_device,
)
from pocketlm.train.distributed.ranks import all_reduce_sum, ranks
from pocketlm.train.health import LossMonitor, check_finite, token_digest
from pocketlm.train.losses import LossFn
from pocketlm.train.metrics import Metrics, NoMetrics, read_metrics
from pocketlm.train.milestones import Milestones
from pocketlm.train.optim import (
    OnNonfinite,
    OptimConfig,
    compute_settings,
    computing,
    describe,
    lr_at,
    make_optimizers,
)
from pocketlm.train.prefetch import prefetched, ready
from pocketlm.train.resume import load_state, threads_of
from pocketlm.train.signals import stop_requests

# pure: the same step gives the same rows, so the data position is the step
Batches = Callable[[int], list[Batch]]


def train(
    model: Transformer,
    batches: Batches,
    loss_fn: LossFn,
    config: OptimConfig,
    out: Path,
    *,
    label: str,
    save: SaveConfig,
    prefetch: bool = True,
    milestones: Milestones | None = None,
) -> Transformer:
    """The model after config.num_steps steps. Stopped at any moment and called again, it ends with
    the same bits.

    So it does on the same processor, with as many processes; the number of threads is that with
    which it began. State goes to out/resume each `save.every_steps` steps, at the end, and on
    Ctrl-C or SIGTERM. A loss or gradient that is not finite never touches the weights. Called by
    several ranks, each with batches of its own, they train one model; the first alone gets it
    whole, and logs. A request to stop on any rank ends all after the same step.

    prefetch: the next step's batches are made in a thread while a step runs. False: they are made
    when the step before has updated the weights, as batches that the model itself wrote need.
    milestones: checkpoints to keep on the way, in out/milestones.
    """
    whole = empty_copy(model)
    model = shard_model(model, config.shard_over)
    optimizers = make_optimizers(model, config)
    first_step = load_state(model, optimizers, out)
    model.train()
    settings, where = compute_settings(model, config), next(model.parameters()).device
    monitor, metrics = LossMonitor(read_metrics(out, first_step)), NoMetrics()
    last_step, batches = config.num_steps - 1, ready(batches, where)
    busy = BusyMonitor(label)
    try:
        with (
            computing(model, settings),
            on_threads(threads_of(out, label)),
            stop_requests() as stop,
            StateWriter(out, save) as states,
            prefetched(batches, last_step) if prefetch else nullcontext(batches) as batches,
        ):
            for step in range(first_step, config.num_steps):
                lr, micro_batches = lr_at(config, step), batches(step)
                if step == first_step:
                    how = describe(settings, model.config, micro_batches[0], where)
                    if ranks().first:
                        print(f"  {label}: {how}", file=sys.stderr, flush=True)
                        metrics = Metrics(out, label, config.num_steps, step)
                loss, grad_norm, tokens = train_step(
                    model,
                    optimizers,
                    micro_batches,
                    loss_fn,
                    lr,
                    config.grad_clip,
                    step,
                    config.on_nonfinite,
                )
                states.check()
                done, notes = step + 1, monitor.record(step, loss, grad_norm)
                stopping, digest = all_reduce_sum(stop.is_set(), token_digest(micro_batches))
                metrics.log(step, loss, lr, grad_norm, tokens, int(digest), notes)
                if ranks().first:
                    busy.look()
                if milestones and milestones.is_due(done, config.num_steps):
                    milestones.save(out, done, model, whole, optimizers)
                if done % save.every_steps == 0 or done == config.num_steps or stopping:
                    metrics.flush()
                    states.write(model, optimizers, done)
                if stopping:
                    raise KeyboardInterrupt
    finally:
        metrics.close()
    return gather_model(model, whole)


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    micro_batches: list[Batch],
    loss_fn: LossFn,
    lr: float,
    grad_clip: float,
    step: int,
    on_nonfinite: OnNonfinite = "stop",
) -> tuple[float, float, int]:
    """(mean loss, gradient norm, tokens) of one update, of all ranks: the gradients of their
    micro-batches accumulate to that of one batch.
    """
    sizes = [(batch.num_labels, batch.divisor, batch.input_ids.numel()) for batch in micro_batches]
    num_labels, divisor, tokens = all_reduce_sum(*map(sum, zip(*sizes, strict=True)))
    if num_labels == 0 or divisor == 0:
        raise ValueError(
            f"step {step}: no label counts in the whole batch; every token is masked or padding"
        )
    where, parts = next(model.parameters()).device, []
    for number, batch in enumerate(micro_batches, start=1):
        sum_over_ranks(model, number == len(micro_batches))
        loss = loss_fn(model, to_device(batch, where)) / divisor
        loss.backward()
        parts.append(loss.detach())
    *losses, grad_norm = read_figures([*parts, clip_gradients(model, grad_clip)])
    (total,) = all_reduce_sum(sum(losses))
    update = check_finite(step, total, grad_norm, micro_batches, losses, on_nonfinite)
    gather_for_muon(optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_share", 1.0)
        if update:
            optimizer.step()
        optimizer.zero_grad()
    return total, grad_norm, int(tokens)


def read_figures(figures: list[Tensor]) -> list[float]:
    """The numbers that a device computed. It is waited for here, and in a step nowhere else: what
    is not finite must not reach the weights.
    """
    return torch.stack([figure.double() for figure in figures]).tolist()
