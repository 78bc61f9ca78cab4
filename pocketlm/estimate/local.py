"""How long a step takes on this machine's processor: measured."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from pocketlm.estimate.work import Work
from pocketlm.model.batch import Batch
from pocketlm.model.costs import flops_of, num_parameters
from pocketlm.model.quant import prepare, scheme
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.loop import train_step
from pocketlm.train.losses import LossFn, distillation_loss, next_token_loss
from pocketlm.train.memory import free_bytes
from pocketlm.train.optim import make_optimizers, product_dtype

# of a step that is tried as it is: about a second on two cores; of others a small part is tried
TRIED_FLOPS = 2e11
TRIED_TOKENS = 256  # of that part: one row
REPEATS, ENOUGH_SECONDS = 3, 1.0  # at least so many tries, and so long


def describe() -> dict[str, Any]:
    """This machine, as a report names it."""
    return {"name": "this", "kind": "cpu", "threads": torch.get_num_threads()}


def step_seconds(work: Work) -> float | None:
    """Of one step, by trying: the step itself where it is small, else one and two layers of its
    width and vocabulary.

    None where even those do not fit into half of the free memory.
    """
    work = replace(work, optim=replace(work.optim, num_steps=1, warmup_steps=0), copies=1)
    if work.micro_batches * work.micro_batch_flops() <= TRIED_FLOPS:
        return _tried(work)
    return _composed(work)


@cache
def _tried(work: Work) -> float:
    """Seconds of one real step on random tokens."""
    model = Transformer(work.model)
    if work.scheme:
        prepare(model, scheme(work.scheme))
    model.train()
    loss_fn: LossFn = next_token_loss
    if work.teacher:
        loss_fn = distillation_loss(live_teacher(Transformer(work.teacher), work.optim))
    model.compute = ComputeSettings(dtype=product_dtype(work.optim, torch.device("cpu")))
    optimizers = make_optimizers(model, work.optim)
    batches = [_batch(work)] * work.micro_batches
    return _best(lambda: train_step(model, optimizers, batches, loss_fn, 1e-6, 1.0, 0))


def _composed(work: Work) -> float | None:
    """From the pace of a layer and of the head, timed on a row of TRIED_TOKENS, and of the update,
    timed by itself.
    """
    seq_len = min(TRIED_TOKENS, work.seq_len)
    shapes = [
        replace(work.model, num_hidden_layers=n, layer_types=(), layer_repeats=1) for n in (1, 2)
    ]
    one, two = (
        replace(
            work,
            model=shape,
            seq_len=seq_len,
            rows_per_step=1,
            micro_batch_size=1,
            masked=False,
            teacher=None,
            scheme=None,
        )
        for shape in shapes
    )
    if two.memory("cpu", 1).peak > free_bytes(torch.device("cpu")) / 2:
        return None
    update = _update_seconds_a_parameter()
    first, second = (
        max(0.0, _tried(work) - update * num_parameters(work.model)) for work in (one, two)
    )
    layer = max(second - first, second / 20)
    layer_flops, whole = (
        flops_of(work.model, 1, seq_len),
        flops_of(work.model, work.micro_batch_size, work.seq_len),
    )
    layer_pace = (layer_flops.training() - 3 * layer_flops.head) / work.model.applications / layer
    head_pace = 3 * layer_flops.head / max(first - layer, first / 20)
    body = whole.training(recomputed=work.recomputed) - 3 * whole.head
    if work.teacher:
        taught = flops_of(work.teacher, work.micro_batch_size, work.seq_len)
        body += taught.products + taught.attention
    head = work.micro_batch_flops() - body
    return work.micro_batches * (body / layer_pace + head / head_pace) + update * num_parameters(
        work.model
    )


@cache
def _update_seconds_a_parameter() -> float:
    """Of AdamW, timed on four million weights."""
    weight = torch.nn.Parameter(torch.zeros(2**22))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-6, fused=True)
    return _best(optimizer.step) / weight.numel()


def _best(tried: Callable[[], object]) -> float:
    """The least seconds of several calls after a first one: whatever else the machine does only
    makes them more.
    """
    tried()
    seconds: list[float] = []
    while len(seconds) < REPEATS or sum(seconds) < ENOUGH_SECONDS:
        started = time.perf_counter()
        tried()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _batch(work: Work) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        work.model.vocab_size, (work.micro_batch_size, work.seq_len), generator=generator
    )
    if not work.masked:
        return Batch(input_ids=ids, labels=ids)
    places = torch.arange(work.seq_len).expand_as(ids)
    half = max(1, work.seq_len // 2)  # two documents a row
    return Batch(input_ids=ids, labels=ids, positions=places % half, doc_ids=places // half)
