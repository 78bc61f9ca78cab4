"""The one training loop: pre-training, distillation, context extension, annealing, SFT and QAT differ in its arguments."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.loading import made_ahead
from pocketlm.train.losses import LossFn
from pocketlm.train.metrics import Metrics
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers, set_computing
from pocketlm.train.state import load_state, save_state
from pocketlm.train.stopping import stop_requests

Batches = Callable[[int], list[Batch]]  # pure: the same step gives the same rows, so the data position is the step


def train(
    model: Transformer,
    batches: Batches,
    loss_fn: LossFn,
    config: OptimConfig,
    out: Path,
    *,
    label: str,
    save_every_steps: int,
) -> Transformer:
    """The model after config.num_steps steps. Stopped at any moment and called again, it ends with the same bits.

    State goes to out/resume each `save_every_steps` steps, at the end, and on Ctrl-C or SIGTERM.
    A loss or gradient that is not finite stops before it touches the weights.
    """
    optimizers = make_optimizers(model, config)
    first_step = load_state(model, optimizers, out)
    model.train()
    label += f" ({set_computing(model, config)})"
    metrics = Metrics(out, label, config.num_steps, first_step)
    try:
        with stop_requests() as stop, made_ahead(batches, config.num_steps - 1) as batches:
            for step in range(first_step, config.num_steps):
                lr = lr_at(config, step)
                loss, grad_norm, tokens = train_step(
                    model, optimizers, batches(step), loss_fn, lr, config.grad_clip, step
                )
                metrics.log(step, loss, lr, grad_norm, tokens)
                done = step + 1
                if done % save_every_steps == 0 or done == config.num_steps or stop.is_set():
                    metrics.flush()
                    save_state(model, optimizers, done, out)
                if stop.is_set():
                    raise KeyboardInterrupt
    finally:
        metrics.close()
        set_computing(model, None)
    return model


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    micro_batches: list[Batch],
    loss_fn: LossFn,
    lr: float,
    grad_clip: float,
    step: int,
) -> tuple[float, float, int]:
    """(mean loss, gradient norm, tokens) of one update. Micro-batches add up to the gradient of the whole batch."""
    num_labels = sum(batch.num_labels for batch in micro_batches)
    if num_labels == 0:
        raise ValueError(f"step {step}: no label counts in the whole batch; every token is masked or padding")
    total = 0.0
    for batch in micro_batches:
        loss = loss_fn(model, batch) / num_labels
        loss.backward()
        total += loss.item()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip).item()
    if not (math.isfinite(total) and math.isfinite(grad_norm)):
        raise FloatingPointError(
            f"step {step}: loss {total}, gradient norm {grad_norm}; the weights are untouched. Lower lr?"
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_share", 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return total, grad_norm, sum(batch.input_ids.numel() for batch in micro_batches)
