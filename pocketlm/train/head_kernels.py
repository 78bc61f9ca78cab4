"""Which code computes cross-entropy at the head: ours, or a library's, by one line of a config.

All keep the logits of a batch from existing at once. Ours (vocab_loss.py) also learns from a
teacher, sums gradients in float32, and is what "auto" takes: on a GPU nobody has measured the four
yet (`benchmarks/gpu.py` does). What the others are, as read in their code:

torch: F.linear_cross_entropy, of torch itself. It returns bfloat16 sums for bfloat16 products,
which is too coarse for a loss to be followed, so that losses of single tokens are requested and
summed in float32: their backward pass computes the logits once more.
liger: Liger's fused linear cross-entropy, in Triton; it waits for the GPU twice.
cce: Apple's Cut Cross-Entropy, in Triton, without its filter of small gradients, which pre-training
would lose.

Shapes: N tokens, D hidden, V vocabulary
"""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX
from pocketlm.train.lazy_logits import LazyLogits
from pocketlm.train.vocab_blocks import tokens_at_a_time

PACKAGES = {"torch": "torch", "liger": "liger_kernel", "cce": "cut_cross_entropy"}
HEAD_LOSSES = ("auto", "chunked", *PACKAGES)  # what a config may name


def is_ours(name: str) -> bool:
    """Whether the named choice is vocab_loss.py's own code."""
    return name in ("auto", "chunked")


def refusal(name: str, where: torch.device, *, weights: bool, teacher: bool) -> str | None:
    """Why this choice cannot serve, and what to take instead; None where it can. weights: tokens
    count differently. teacher: there is a divergence from one.
    """
    if is_ours(name):
        return None
    if name not in PACKAGES:
        return f"is unknown; known: {', '.join(HEAD_LOSSES)}"
    if teacher:
        return "has no divergence from a teacher; take chunked"
    if name != "torch" and where.type != "cuda":
        return f"is written for CUDA, not for {where.type}; take chunked"
    if name == "liger" and weights:
        return "counts each token alike, and here they have weights; take chunked"
    if importlib.util.find_spec(PACKAGES[name]) is None:
        return (
            f"needs the package {PACKAGES[name]}, which is not installed; install it or take auto"
        )
    return None


def library_loss(name: str, model: LazyLogits, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Float32 sum over N tokens of the cross-entropy with labels [N], each times its weight [N].
    ValueError where the library cannot serve.
    """
    where = model.x.device
    problem = refusal(name, where, weights=weights is not None, teacher=False)
    if problem:
        raise ValueError(f"head_loss={name} {problem}")
    assert model.weight is not None
    dtype = model.dtype or model.x.dtype
    x, weight = model.x.to(dtype), model.weight.to(dtype)
    if name == "liger":
        return _liger(x, weight, labels).float()
    losses = BY_TOKEN[name](x, weight, labels).float()
    return (losses if weights is None else losses * weights).sum()


def _torch(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """[N], in the dtype of x; sums inside in float32."""
    size = tokens_at_a_time(len(x), len(weight) * x.dtype.itemsize, x.device)
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=max(1, size),
        acc_policy="balanced" if x.is_cuda else "accurate",
        acc_dtype=torch.float32 if x.dtype.itemsize == 2 else None,
    )
    return F.linear_cross_entropy(x, weight, labels, reduction="none", options=options)


def _liger(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The sum; the weight's gradient adds up in float32."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction  # type: ignore[import-not-found]

    # after the labels: bias, weights of words, ignored label, z-loss, smoothing, reduction, soft
    # cap, whether to return the z-loss, dtype of the weight's gradient
    options = (None, None, IGNORE_INDEX, 0.0, 0.0, "sum", None, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(x, weight, labels, *options)[0]


def _cce(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """[N]. Gradients add up in float32, and none is left out."""
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return linear_cross_entropy(
        x,
        weight,
        labels,
        reduction="none",
        filter_eps=None,
        accum_e_fp32=True,
        accum_c_fp32=True,
        impl="cce",
    )


BY_TOKEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"torch": _torch, "cce": _cce}
