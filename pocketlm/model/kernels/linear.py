"""Matrix products with a weight: torch's own, and one for the few rows of a decoding step."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x [..., I] times weight [O, I]; with a dtype both are cast to it first, and so is the result.

    A decoding step's few rows go as a batch of four products, each with a quarter of the weight:
    MKL's product of one row reads it at a third of the memory's pace (0.79 ms against 0.26, 2048 x
    576 floats, torch 2.13, AMD EPYC).
    """
    if dtype is not None:
        return F.linear(x.to(dtype), weight.to(dtype))
    (outputs, inputs), rows = weight.shape, x.numel() // x.shape[-1]
    few = (
        rows <= (8 if outputs >= inputs else 1)
        and weight.is_cpu
        and torch.is_inference_mode_enabled()
    )
    # a small one stays in the processor's cache
    if not few or outputs % 4 or weight.numel() < 2**18:
        return F.linear(x, weight)
    columns = x.reshape(rows, inputs).t().expand(4, inputs, rows)
    return (
        torch.bmm(weight.view(4, -1, inputs), columns)
        .view(outputs, rows)
        .t()
        .reshape(*x.shape[:-1], outputs)
    )
