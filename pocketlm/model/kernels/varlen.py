"""torch's varlen_attn: FlashAttention over documents of any length, laid end to end. For CUDA.

Neither a mask nor padding: `cu_seqlens` says where each document begins. Its length follows from
the shape of the rows, with documents of no tokens at its end, so that a compiled block meets the
same one in every step.

torch's own kernel is FlashAttention 2. FlashAttention 3 (Hopper) and 4 (Blackwell) take its place
where their packages are installed, which `flash_attention` finds out once.

Shapes: B rows, T tokens, N documents of all rows, H query heads, K kv heads, E head width
"""

import functools
import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel

# cu_seqlens has room for a document of so many tokens each, and for so many at least (our choice)
ROOM_TOKENS, LEAST_DOCUMENTS = 256, 64
DTYPES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256  # of FlashAttention 2
# the major compute capability that each later FlashAttention is written for, and its package
FLASH = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}


class _Prepared(NamedTuple):
    cu_seqlens: Tensor  # int32 [N + 1]: where each document begins in all rows, end to end
    max_seqlen: int
    window: int | None


def attend(q: Tensor, k: Tensor, v: Tensor, prepared: _Prepared) -> Tensor:
    (B, H, T, _), K = q.shape, k.shape[1]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B x T, heads, E]
    # keys before a query: -1 for all
    before = -1 if prepared.window is None else prepared.window - 1
    out = varlen_attn(
        q,
        k,
        v,
        prepared.cu_seqlens,
        prepared.cu_seqlens,
        prepared.max_seqlen,
        prepared.max_seqlen,
        window_size=(before, 0),
        enable_gqa=H != K,
    )
    assert isinstance(out, Tensor)  # no logsumexp was requested
    return out.unflatten(0, (B, T)).transpose(1, 2)


def prepare(case: AttentionCase, documents: Documents | None) -> _Prepared:
    if case.on == "cuda":
        flash_attention()
    if documents is None:  # rows are the documents
        ends = torch.arange(case.rows + 1, dtype=torch.int32, device=case.device) * case.num_tokens
        return _Prepared(ends, case.num_tokens, case.window)
    return _Prepared(documents.cu_seqlens, case.num_tokens, case.window)


def cu_seqlens(starts: Tensor) -> Tensor:
    """int32 [N + 1]: where each document of all rows begins, then their end, as often as there is
    room. starts [B, T]: where in its row each token's document begins.

    Room is for documents of ROOM_TOKENS on average; for shorter ones it doubles until it suffices.
    """
    B, T = starts.shape
    begins = (starts == torch.arange(T, device=starts.device)).flatten().nonzero()[:, 0]
    room = LEAST_DOCUMENTS
    while room < max(len(begins), B * T // ROOM_TOKENS):
        room *= 2
    ends = begins.new_full((room + 1,), B * T, dtype=torch.int32)
    ends[: len(begins)] = begins
    return ends


@functools.cache
def flash_attention() -> str:
    """The FlashAttention that varlen_attn runs on this GPU, as FA2: the latest that is installed
    and written for it, which this activates in torch. ValueError where its package does not load.
    """
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    name, package = FLASH.get(major, ("FA2", ""))
    if not package or not _is_installed(package):
        return "FA2"
    try:
        activate_flash_attention_impl(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{package} is installed and does not load in torch {torch.__version__} "
            f"({str(error).splitlines()[0][:200]}); install the build for this torch, or uninstall "
            "it: torch's own FlashAttention 2 serves too"
        ) from error
    return name


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that would hold it
        return False


def refusal(case: AttentionCase) -> str | None:
    if case.on not in ("cuda", "meta"):
        return f"runs on CUDA alone, not on {case.on}; take blockwise"
    if case.dtype not in DTYPES:
        return (
            f"multiplies bfloat16 or float16, not {str(case.dtype).removeprefix('torch.')}; set "
            "compute_dtype=bfloat16 or take flex"
        )
    if case.head_dim % 8 or case.head_dim > WIDEST_HEAD:
        return (
            f"needs heads of a multiple of 8 channels up to {WIDEST_HEAD}, not {case.head_dim}; "
            "take flex"
        )
    if (
        case.on == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() < (8, 0)
    ):
        return "needs a GPU of compute capability 8.0 (Ampere) or later; take flex"
    return None


def kept_bytes(case: AttentionCase) -> int:
    return case.logsumexp_bytes


VARLEN = Kernel(
    name="varlen",
    refusal=refusal,
    prepare=prepare,
    attend=attend,
    kept_bytes=kept_bytes,
    keeps_result=True,
)
