"""The plan's speed model: its constants fitted to published trainings, the error of the fit, and of
each left out in turn.

    python benchmarks/plan_fit.py

Errors are predicted over published time, less 1. "left out": predicted by constants fitted to the
others. Below, trainings that were never fitted, MobileLLM-R1's own among them.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np

from pocketlm.estimate.published import FITTED, HELD_OUT, Published
from pocketlm.estimate.speed import FIT, Fit, step_seconds

START = Fit(utilisation=0.7, eager_passes=6.0, fused_passes=2.0, exposed=0.1)
# A constant e times its start counts as a misfit of so much: nine rows alone would let one run off
# to absurd values
PRIOR = 0.15


def main() -> None:
    found = fitted(FITTED)
    print("constants:", ", ".join(f"{f.name} {getattr(found, f.name):.4f}" for f in fields(found)))
    print(f"in speed.py: {FIT}\n")
    own, left_out = [], []
    for number, row in enumerate(FITTED):
        own.append(log_error(row, found))
        left_out.append(log_error(row, fitted(FITTED[:number] + FITTED[number + 1 :])))
        missed = f"{percent(own[-1])}, left out {percent(left_out[-1])}"
        print(f"{row.name:45} {row.tokens_per_second:9,.0f} tokens/s {missed}, MFU {mfu(row):.0%}")
    print(f"typical error (root mean square): {spread(own):.1%}, left out {spread(left_out):.1%}\n")
    for row in HELD_OUT:
        assert row.days is not None
        error = log_error(row, found)
        days = f"{row.days:4.1f} days published, {row.days * math.exp(error):4.1f} predicted"
        print(f"{row.name:40} {days} {percent(error)}, MFU {mfu(row):.0%}")


def log_error(row: Published, fit: Fit) -> float:
    """Log of predicted over published time."""
    seconds = step_seconds(row.work, row.device, row.count, fused=row.fused, fit=fit)
    return math.log(row.tokens_per_second * seconds / (row.work.tokens / row.count))


def fitted(rows: Sequence[Published]) -> Fit:
    """The constants of least squared log errors, by Gauss and Newton in their logarithms."""
    start = np.log(astuple(START))
    at = start.copy()

    def misfits(logs: np.ndarray) -> np.ndarray:
        fit = Fit(**dict(zip((f.name for f in fields(Fit)), np.exp(logs), strict=True)))
        return np.array([*(log_error(row, fit) for row in rows), *(PRIOR * (logs - start))])

    step = np.ones(len(at))
    while np.abs(step).max() > 1e-6:
        here = misfits(at)
        slopes = np.stack(
            [(misfits(at + nudge) - here) / 1e-4 for nudge in np.eye(len(at)) * 1e-4], 1
        )
        step = np.clip(np.linalg.lstsq(slopes, here, rcond=None)[0], -0.5, 0.5)
        at = at - step
    return Fit(
        **dict(zip((f.name for f in fields(Fit)), (float(x) for x in np.exp(at)), strict=True))
    )


def mfu(row: Published) -> float:
    """The share of the peak that the published pace makes, by FLOPs as the plan counts them."""
    return row.tokens_per_second * row.work.flops / row.work.tokens / row.device.flops


def spread(errors: Sequence[float]) -> float:
    return math.exp(math.sqrt(sum(e * e for e in errors) / len(errors))) - 1


def percent(error: float) -> str:
    return f"{math.exp(error) - 1:+.1%}"


if __name__ == "__main__":
    main()
