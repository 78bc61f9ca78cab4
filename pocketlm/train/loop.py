"""The one training loop: pre-training, distillation, context extension, annealing, SFT and QAT differ in its arguments."""

from collections.abc import Callable
from pathlib import Path

import torch

from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer, set_compute_dtype
from pocketlm.train.guard import OnNonfinite, Watch, may_update, token_digest
from pocketlm.train.losses import LossFn
from pocketlm.train.metrics import Metrics, read_metrics
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers, product_dtype
from pocketlm.train.state import SaveConfig, StateWriter, load_state
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
    save: SaveConfig,
) -> Transformer:
    """The model after config.num_steps steps. Stopped at any moment and called again, it ends with the same bits.

    State goes to out/resume each `save.every_steps` steps, at the end, and on Ctrl-C or SIGTERM.
    A loss or gradient that is not finite never touches the weights.
    """
    optimizers = make_optimizers(model, config)
    first_step = load_state(model, optimizers, out)
    model.train()
    dtype = product_dtype(config, next(model.parameters()).device)
    set_compute_dtype(model, dtype)
    label += " (bfloat16)" if dtype else " (float32)"
    watch = Watch(read_metrics(out, first_step))
    metrics = Metrics(out, label, config.num_steps, first_step)
    try:
        with stop_requests() as stop, StateWriter(out, save) as states:
            for step in range(first_step, config.num_steps):
                lr, micro_batches = lr_at(config, step), batches(step)
                loss, grad_norm, tokens = train_step(
                    model, optimizers, micro_batches, loss_fn, lr, config.grad_clip, step, config.on_nonfinite
                )
                told = watch.see(step, loss, grad_norm)
                metrics.log(step, loss, lr, grad_norm, tokens, token_digest(micro_batches), told)
                states.check()
                done = step + 1
                if done % save.every_steps == 0 or done == config.num_steps or stop.is_set():
                    metrics.flush()
                    states.write(model, optimizers, done)
                if stop.is_set():
                    raise KeyboardInterrupt
    finally:
        metrics.close()
        set_compute_dtype(model, None)
    return model


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
    """(mean loss, gradient norm, tokens) of one update. Micro-batches add up to the gradient of the whole batch."""
    num_labels = sum(batch.num_labels for batch in micro_batches)
    if num_labels == 0:
        raise ValueError(f"step {step}: no label counts in the whole batch; every token is masked or padding")
    losses = []
    for batch in micro_batches:
        loss = loss_fn(model, batch) / num_labels
        loss.backward()
        losses.append(loss.item())
    total = sum(losses)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip).item()
    update = may_update(step, total, grad_norm, micro_batches, losses, on_nonfinite)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_share", 1.0)
        if update:
            optimizer.step()
        optimizer.zero_grad()
    return total, grad_norm, sum(batch.input_ids.numel() for batch in micro_batches)
