"""Detect weights that are already on a four-bit grid, in a checkpoint that does not say so, and
refuse to quantize them again.

Such are the values of a four-bit model saved as floats: our own `hf` export, a Q4_0 file that was
imported, Meta's *-int4-cpu. On their own grid they may be rounded as often as one likes. On any
other, however near, they lose twice: of random weights a bfloat16 copy moves 28 % of the values
once more, and torchao's choice of scales 88 %.

Shapes: O outputs (rows), I inputs, N groups looked at
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pocketlm.model.transformer import Transformer

# neighbours that share a scale in every 4-bit format of note, or a part of those that do
GROUP = 32
LEVELS = 16
# of each tensor, evenly spread: a second for all of Pro's (this and the next two: our choice)
SAMPLED_GROUPS = 4096
# weights other than zero that a group needs to count: pruned and empty ones do not
FEWEST = 8
ROUNDED_SHARE = 0.9  # of the groups that count; of weights that were never rounded it is 0


def refuse_rounding_again(
    model: Transformer, regrid: Callable[[Tensor], Tensor], what: str
) -> None:
    """Nothing, or a ValueError that names a tensor of four-bit values which `regrid` would not give
    back to the bit.

    regrid: a weight [O, I] to the values it would have. what: the caller, for the message.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or not is_rounded(module.weight):
            continue
        weight = module.weight.detach().float()
        rounded = regrid(weight)
        if not torch.equal(rounded, weight):
            error = float((rounded - weight).norm() / weight.norm())
            raise ValueError(
                f"{name}.weight holds values that were rounded to four bits before (at most "
                f"{LEVELS} among {GROUP} "
                f"neighbours), and {what} would round them once more, by {error:.2g} of their size "
                "(relative RMS). Start "
                "from the full-precision parent or from the checkpoint that was trained in four "
                "bits, which says so in "
                "config.json; as f16 or f32 the values stay what they are"
            )


def is_rounded(weight: Tensor) -> bool:
    """Whether a weight [O, I] looks as if it lay on a 4-bit grid: nearly no 32 neighbours hold more
    than 16 values.
    """
    width = weight.shape[1] // GROUP * GROUP
    groups = weight.detach()[:, :width].reshape(-1, GROUP)
    if not len(groups):
        return False
    chosen = torch.linspace(0, len(groups) - 1, min(len(groups), SAMPLED_GROUPS)).long()
    values = groups[chosen].float().sort(-1).values  # [N, 32]
    fresh = torch.ones_like(values, dtype=torch.bool)
    fresh[:, 1:] = values[:, 1:] != values[:, :-1]
    there = values != 0
    distinct = (fresh & there).sum(-1)  # beside zero
    counted = (there.sum(-1) >= FEWEST) & (distinct > 1)
    repeats = distinct <= 0.75 * there.sum(-1)  # a pruned group has few values, but each once
    rounded = counted & repeats & (fresh.sum(-1) <= LEVELS)
    return bool(counted.any()) and int(rounded.sum()) >= ROUNDED_SHARE * int(counted.sum())
