"""The blockwise attention kernel beside torch's own: forward and backward of one layer, in turns.

    python benchmarks/attention.py                                      # on one thread
    python benchmarks/attention.py --threads 2 --lengths 256 512 1024 2048
    python benchmarks/attention.py --threads 2 --head-dim 32            # as narrow as the demo's

6 query heads on 2, 4 rows, bfloat16, documents of 90 tokens in the packed rows. `ratio` is the
median over rounds of (torch's seconds / ours): against SDPA with is_causal for whole rows, and with
a mask of all pairs for packed documents and for windows, as SDPA needs one there.
"""

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.kernels.blockwise import blockwise_attention

B, H, K = 4, 6, 2  # rows, query heads, kv heads
DOCUMENT, WINDOW = 90, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--head-dim", type=int, default=64, help="width of a head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for length in arguments.lengths:
        for name, begins, window in cases(length):
            first = begins
            if window is not None:
                first = torch.maximum(first, torch.arange(length) - (window - 1))
            row = compare(name, length, arguments.head_dim, first, arguments.rounds)
            print(json.dumps({**row, "threads": arguments.threads}), flush=True)


def cases(length: int) -> list[tuple[str, Tensor, int | None]]:
    """(name, where each token's document begins [1, T], window) of each case."""
    place = torch.arange(length)[None]
    whole = torch.zeros_like(place)
    return [
        ("causal", whole, None),
        ("window", whole, WINDOW),
        ("documents", place // DOCUMENT * DOCUMENT, None),
    ]


def compare(name: str, length: int, head_dim: int, first: Tensor, rounds: int) -> dict:
    """Seconds of both, and the median of the ratios of neighbouring calls, after one that does not
    count.
    """
    q, k, v = (
        torch.randn(B, heads, length, head_dim, dtype=torch.bfloat16, requires_grad=True)
        for heads in (H, K, K)
    )
    place = torch.arange(length)
    pairs = (place[None] <= place[:, None]) & (place[None] >= first[0][:, None])  # [T, T]

    def torchs() -> Tensor:
        mask = {"is_causal": True} if name == "causal" else {"attn_mask": pairs}
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **mask)  # type: ignore[arg-type]

    ours_seconds, sdpa_seconds = [], []
    for _ in range(rounds + 1):
        ours_seconds.append(seconds(lambda: blockwise_attention(q, k, v, first)))
        sdpa_seconds.append(seconds(torchs))
    ratio = median(
        theirs / ours for ours, theirs in zip(ours_seconds[1:], sdpa_seconds[1:], strict=True)
    )
    return {
        "case": name,
        "tokens": length,
        "head_dim": head_dim,
        "ours_ms": round(1e3 * median(ours_seconds[1:]), 1),
        "sdpa_ms": round(1e3 * median(sdpa_seconds[1:]), 1),
        "ratio": round(ratio, 2),
    }


def seconds(attend: Callable[[], Tensor]) -> float:
    """Of a forward and a backward pass."""
    started = perf_counter()
    attend().float().sum().backward()
    return perf_counter() - started


if __name__ == "__main__":
    main()
