"""Which kernel computes attention: one function chooses, and says why."""

from dataclasses import dataclass

from pocketlm.model.kernels.blockwise import BLOCKWISE, is_faster
from pocketlm.model.kernels.flex import FLEX
from pocketlm.model.kernels.kernel import AttentionCase, Kernel
from pocketlm.model.kernels.sdpa import SDPA
from pocketlm.model.kernels.varlen import VARLEN, flash_attention

KERNELS = {kernel.name: kernel for kernel in (SDPA, FLEX, VARLEN, BLOCKWISE)}
ATTENTION = ("auto", *KERNELS)  # what a config may name


@dataclass(frozen=True)
class Choice:
    kernel: Kernel
    reason: str


def choose_kernel(name: str, case: AttentionCase) -> Choice:
    """The kernel for a case. name: one of ATTENTION; "auto" takes the fastest that serves.

    ValueError: the named kernel cannot serve the case, with what to take instead; or none can.
    """
    if name not in ATTENTION:
        raise ValueError(f"attention {name!r} is unknown; known: {', '.join(ATTENTION)}")
    if name != "auto":
        problem = KERNELS[name].refusal(case)
        if problem:
            raise ValueError(f"attention={name} cannot serve this training: it {problem}")
        return Choice(KERNELS[name], "named by the config")
    if case.on == "cpu":
        return _on_cpu(case)
    if not case.packed and not case.windowed:
        return _whole_rows(case)
    refusals = []
    for kernel in (VARLEN, FLEX, SDPA):
        problem = kernel.refusal(case)
        if problem is None:
            refused = f" ({'; '.join(refusals)})" if refusals else ""
            return Choice(kernel, f"documents or windows on {case.on}{refused}")
        refusals.append(f"{kernel.name} {problem}")
    raise ValueError(f"no attention kernel serves this training: {'; '.join(refusals)}")


def _whole_rows(case: AttentionCase) -> Choice:
    """sdpa, but varlen where a later FlashAttention than torch's own is here: 3 made nanochat's
    training 9 % faster (its dev/LOG.md).
    """
    if case.on == "cuda" and VARLEN.refusal(case) is None and flash_attention() != "FA2":
        return Choice(VARLEN, f"whole rows, and {flash_attention()} is here")
    return Choice(SDPA, "whole rows need no mask")


def _on_cpu(case: AttentionCase) -> Choice:
    if case.packed or case.windowed:
        return Choice(BLOCKWISE, "documents or windows, without a mask of all pairs")
    if is_faster(case):
        return Choice(BLOCKWISE, "faster than sdpa for short rows of wide heads")
    return Choice(SDPA, "whole rows need no mask")
