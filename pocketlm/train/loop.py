"""The one training loop: pre-training, distillation, context extension, annealing, SFT and QAT
differ in its arguments.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from pocketlm.model.arithmetic import on_threads
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig, StateWriter, load_state, threads_of
from pocketlm.train.distributed.fsdp import (
    add_up,
    clip_gradients,
    gather_for_muon,
    gathered,
    hollow,
    placed,
    spread,
    sum_over_ranks,
)
from pocketlm.train.distributed.ranks import ALONE, Ranks, ranks
from pocketlm.train.health import Watch, may_update, token_digest
from pocketlm.train.losses import LossFn
from pocketlm.train.metrics import Metrics, Silence, read_metrics
from pocketlm.train.optim import (
    OnNonfinite,
    OptimConfig,
    compute_settings,
    computing,
    describe,
    lr_at,
    make_optimizers,
)
from pocketlm.train.prefetch import made_ahead
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
) -> Transformer:
    """The model after config.num_steps steps. Stopped at any moment and called again, it ends with
    the same bits.

    So it does on the same processor, with as many processes; the number of threads is that with
    which it began. State goes to out/resume each `save.every_steps` steps, at the end, and on
    Ctrl-C or SIGTERM. A loss or gradient that is not finite never touches the weights. Called by
    several ranks, each with batches of its own, they train one model; the first alone is handed it
    whole, and tells how it goes. Asked to stop on any, all leave after the same step.
    """
    own, whole = ranks(), hollow(model)
    model = spread(model, config.shard_over)
    optimizers = make_optimizers(model, config)
    first_step = load_state(model, optimizers, out)
    model.train()
    settings = compute_settings(model, config)
    if first_step < config.num_steps:
        batch = batches(first_step)[0]
        label += f" ({describe(settings, model.config, batch, next(model.parameters()).device)})"
    watch = Watch(read_metrics(out, first_step))
    metrics = Metrics(out, label, config.num_steps, first_step) if own.first else Silence()
    try:
        with (
            computing(model, settings),
            on_threads(threads_of(out, label)),
            stop_requests() as stop,
            StateWriter(out, save) as states,
            made_ahead(batches, config.num_steps - 1) as batches,
        ):
            for step in range(first_step, config.num_steps):
                lr, micro_batches = lr_at(config, step), batches(step)
                loss, grad_norm, tokens = train_step(
                    model,
                    optimizers,
                    micro_batches,
                    loss_fn,
                    lr,
                    config.grad_clip,
                    step,
                    own,
                    config.on_nonfinite,
                )
                states.check()
                done, told = step + 1, watch.see(step, loss, grad_norm)
                asked_to_stop, digest = add_up(own, stop.is_set(), token_digest(micro_batches))
                metrics.log(step, loss, lr, grad_norm, tokens, int(digest), told)
                if done % save.every_steps == 0 or done == config.num_steps or asked_to_stop:
                    metrics.flush()
                    states.write(model, optimizers, done)
                if asked_to_stop:
                    raise KeyboardInterrupt
    finally:
        metrics.close()
    return gathered(model, whole)


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    micro_batches: list[Batch],
    loss_fn: LossFn,
    lr: float,
    grad_clip: float,
    step: int,
    own: Ranks = ALONE,
    on_nonfinite: OnNonfinite = "stop",
) -> tuple[float, float, int]:
    """(mean loss, gradient norm, tokens) of one update, of all ranks: their micro-batches add up to
    one batch's gradient.
    """
    sizes = [(batch.num_labels, batch.input_ids.numel()) for batch in micro_batches]
    num_labels, tokens = add_up(own, *(sum(size) for size in zip(*sizes, strict=True)))
    if num_labels == 0:
        raise ValueError(
            f"step {step}: no label counts in the whole batch; every token is masked or padding"
        )
    losses, where = [], next(model.parameters()).device
    for number, batch in enumerate(micro_batches, start=1):
        sum_over_ranks(model, number == len(micro_batches))
        loss = loss_fn(model, placed(batch, where)) / num_labels
        loss.backward()
        losses.append(loss.item())
    (total,) = add_up(own, sum(losses))
    grad_norm = clip_gradients(model, grad_clip)
    update = may_update(step, total, grad_norm, micro_batches, losses, on_nonfinite, own)
    gather_for_muon(optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_share", 1.0)
        if update:
            optimizer.step()
        optimizer.zero_grad()
    return total, grad_norm, int(tokens)
