"""Steps of every training on a CUDA device that is not there: what shapes, dtypes and devices say.

For a process that has loaded fake_device's guard. torch's fake tensors have no values: operators
refuse to mix devices and dtypes as on a GPU, and whatever would make the host wait for a value
(`.item()`, `bool()`, `nonzero()`) raises.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as torch_flex

from pocketlm.model.batch import Batch, laid_out
from pocketlm.model.kernels import flex
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.train import loop
from pocketlm.train.distill import teacher as teachers
from pocketlm.train.losses import Distillation, LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, compute_settings, describe, make_optimizers
from pocketlm.train.token_log_probs import token_log_probs

CUDA = torch.device("cuda", 0)
OPTIM = OptimConfig(lr=1e-3, num_steps=2, warmup_steps=0, final_lr_share=1.0, compile="no")
CONFIG = small(
    num_attention_heads=4,
    num_key_value_heads=2,
    layer_types=(GLOBAL, LOCAL),
    sliding_window=24,
    max_position_embeddings=64,
)


def batch_of(kind: str) -> Batch:
    """ "rows", of one document each; "packed", documents with labels that do not count; "weighted",
    the same with a weight for each label.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, (2, 64), generator=generator)
    if kind == "rows":
        return Batch(input_ids=ids, labels=ids)
    place = torch.arange(64).expand(2, 64)
    labels = ids.masked_fill(place % 3 == 0, -100)
    weights = torch.rand(2, 64, generator=generator) if kind == "weighted" else None
    return Batch(
        input_ids=ids, labels=labels, positions=place % 20, doc_ids=place // 20, weights=weights
    )


def preference(model: Transformer, batch: Batch) -> Tensor:
    """A function of single tokens' log-probabilities, as losses of answers are."""
    return -F.logsigmoid(token_log_probs(model, batch).sum(1)).sum()


def waiting(model: Transformer, batch: Batch) -> Tensor:
    """A loss that asks the device for a value, so that the proof can fail."""
    loss = next_token_loss(model, batch)
    return loss / loss.item()


def mixed(model: Transformer, batch: Batch) -> Tensor:
    """A loss that mixes devices, so that the proof can fail."""
    return next_token_loss(model, batch) + torch.ones(1, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    batch: str = "packed"
    loss: LossFn | None = next_token_loss  # None: by a teacher
    label_share: float = 0.0
    scheme: str | None = None
    tied: bool = True
    optim: OptimConfig = OPTIM


CASES = {
    "pretrain": Case(batch="rows"),
    "pretrain, documents apart": Case(),
    "untied head": Case(tied=False),
    "finetune, weighted": Case(batch="weighted"),
    "distil": Case(batch="rows", loss=None),
    "distil and labels, packed": Case(loss=None, label_share=0.3),
    "prefer": Case(loss=preference),
    "muon": Case(optim=replace(OPTIM, optimizer="muon")),
    "checkpointing": Case(optim=replace(OPTIM, checkpoint_every_n_blocks=1)),
    "float32": Case(optim=replace(OPTIM, compute_dtype="float32")),
    "sdpa": Case(optim=replace(OPTIM, attention="sdpa")),
    "flex": Case(optim=replace(OPTIM, attention="flex")),
    "varlen": Case(optim=replace(OPTIM, attention="varlen")),
    "varlen on whole rows": Case(batch="rows", optim=replace(OPTIM, attention="varlen")),
    "loss by torch": Case(optim=replace(OPTIM, head_loss="torch")),
    "loss by torch, weighted": Case(batch="weighted", optim=replace(OPTIM, head_loss="torch")),
    **{f"quantize, {name}": Case(loss=None, scheme=name) for name in SCHEMES},
    "a loss that waits": Case(loss=waiting),
    "a loss that mixes devices": Case(loss=mixed),
}


def network(seed: int = 0, *, tied: bool = True, scheme: str | None = None) -> Transformer:
    """One on the fake device, whose weights have no values."""
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, tie_word_embeddings=tied), seed=seed)
        if scheme:
            prepare(model, SCHEMES[scheme])
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(empty, p.requires_grad)
    return model


@contextmanager
def fake_device(seen: dict[str, Any]) -> Iterator[None]:
    """Tensors on CUDA can be made here, and a step's only look at values is counted."""

    def read(figures: list[Tensor]) -> list[float]:
        seen["waits"] = seen.get("waits", 0) + 1
        assert all(figure.device == CUDA for figure in figures)
        return [1.0] * len(figures)

    attention = F.scaled_dot_product_attention

    def attend(*args: Any, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        # together they leave torch nothing but the kernel that stores all scores
        assert attn_mask is None or not options.get("enable_gqa")
        return attention(*args, attn_mask=attn_mask, **options)

    patched = [
        (F, "scaled_dot_product_attention", attend),
        (loop, "read_figures", read),
        (teachers, "shard_model", lambda model, *_, **__: model),
        # flex compiles by itself on CUDA, and has no kernel for a fake tensor
        (flex, "_compiled", lambda: torch_flex.flex_attention),
        (torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        (torch_flex, "_validate_device", lambda *_: None),
    ]
    before = [getattr(place, name) for place, name, _ in patched]
    with ExitStack() as stack:
        for (place, name, value), old in zip(patched, before, strict=True):
            setattr(place, name, value)
            stack.callback(setattr, place, name, old)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def loss_of(case: Case) -> LossFn:
    if case.loss is not None:
        return case.loss
    live = teachers.live_teacher(network(1), case.optim)
    return distillation_loss(live, Distillation(label_share=case.label_share))


def step(case: Case) -> dict[str, Any]:
    """Two updates, the first of two micro-batches."""
    seen: dict[str, Any] = {}
    batch = laid_out(batch_of(case.batch))
    with fake_device(seen):
        model = network(tied=case.tied, scheme=case.scheme)
        loss_fn: Callable[[Transformer, Batch], Tensor] = loss_of(case)
        model.compute = compute_settings(model, case.optim)
        seen["how"] = describe(model.compute, model.config, batch, CUDA)
        optimizers = make_optimizers(model, case.optim)
        for micro_batches in ([batch, batch], [batch]):
            loop.train_step(model, optimizers, micro_batches, loss_fn, 1e-3, 1.0, 0)
        states = [x for one in optimizers for s in one.state.values() for x in s.values()]
        held = [*model.parameters(), *(x for x in states if isinstance(x, Tensor))]
        seen["kept"] = sorted({f"{x.device.type} {x.dtype}" for x in held})
    return seen


def result(case: Case) -> dict[str, Any]:
    try:
        return step(case)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Prints one JSON object: of each case an error, or what was seen."""
    print(json.dumps({name: result(case) for name, case in CASES.items()}))
