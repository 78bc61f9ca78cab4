"""A replay of RegMix's published runs: how well laws fitted on small proxies order larger models.

python benchmarks/mix_replay.py FOLDER [--runs 32 64 128] [--seeds 5]

FOLDER holds the .csv files of the folder `data` of github.com/sail-sg/regmix: 512 mixes with losses
of a 1M model to fit on, and 256 others with losses of a 1M and of a 60M model, and 64 of a 1B
model, to predict. Laws are fitted on N random ones of the 512, with several seeds. rho: Spearman's
rank correlation of prediction and loss over the pool; regret: the loss of the mix with the least
prediction, less that of the pool's best mix, in nats a token. Exits with 1 where an acceptance
threshold is missed.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketlm.data.mixing.laws import FITS, Array, choose_law
from pocketlm.data.rank_correlation import spearman

POOLS = {"1M": "1m", "60M": "60m", "1B": "1B"}  # by the size of the model: part of the file's name
MIX, LOSS = "train_the_pile_", "metric/the_pile_"
TARGETS = ("Pile-CC", "mean of domains")
LAWS = (*FITS, "auto")
FOLDS = 5


@dataclass(frozen=True)
class Runs:
    """sources, domains: names. shares [runs, sources], losses [runs, domains] in nats a token."""

    sources: list[str]
    domains: list[str]
    shares: Array
    losses: Array


@dataclass(frozen=True)
class Outcome:
    """rho and regret in one pool: of each seed."""

    rho: list[float]
    regret: list[float]


@dataclass(frozen=True)
class Threshold:
    """What is accepted in the pool 1B with so many runs: of a target and a law."""

    target: str
    law: str
    num_runs: int
    least_rho: float
    most_regret: float


THRESHOLDS = (
    Threshold("Pile-CC", "log_linear", 64, 0.97, 0.005),
    Threshold("mean of domains", "auto", 64, 0.70, 0.02),
)
# (target, law, number of runs, pool) -> outcome
Outcomes = dict[tuple[str, str, int, str], Outcome]


def read_table(path: Path, prefix: str) -> tuple[list[str], dict[str, list[float]]]:
    """(column names without their prefix, numbers of each row by its index)."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    wrong = [name for name in header[1:] if not name.startswith(prefix)]
    if header[0] != "index" or wrong:
        raise SystemExit(f"{path}: columns must be index and {prefix}...; it has {wrong or header}")
    names = [name.removeprefix(prefix).removesuffix("_val_loss") for name in header[1:]]
    return names, {index: [float(value) for value in values] for index, *values in rows}


def read_runs(mixes: Path, losses: Path) -> Runs:
    """Runs that are in both files, in the order of their mixes; mixes are divided by their sum, for
    the published ones are rounded.
    """
    if missing := [str(path) for path in (mixes, losses) if not path.is_file()]:
        raise SystemExit(f"no {', '.join(missing)}; FOLDER is RegMix's folder of .csv files")
    sources, shares = read_table(mixes, MIX)
    domains, measured = read_table(losses, LOSS)
    both = [index for index in shares if index in measured]
    rows = np.array([shares[index] for index in both])
    return Runs(
        sources,
        domains,
        rows / rows.sum(axis=1, keepdims=True),
        np.array([measured[index] for index in both]),
    )


def read_pools(folder: Path) -> tuple[Runs, dict[str, Runs]]:
    """(the runs to fit on, those to predict by the size of their model)."""
    train = read_runs(folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv")
    pools = {
        size: read_runs(folder / f"test_mixture_{name}.csv", folder / f"test_pile_loss_{name}.csv")
        for size, name in POOLS.items()
    }
    for size, pool in pools.items():
        if (pool.sources, pool.domains) != (train.sources, train.domains):
            raise SystemExit(f"{folder}: the columns of {size} are not those to fit on")
    return train, pools


def judge(predicted: Array, losses: Array) -> tuple[float, float]:
    """(rho, regret) of one prediction of a pool."""
    regret = losses[np.argmin(predicted)] - losses.min()
    return spearman(predicted, losses) or 0.0, float(regret)


def replay(
    train: Runs, pools: Mapping[str, Runs], sizes: Sequence[int], seeds: Iterable[int]
) -> tuple[Outcomes, list[str]]:
    """(every outcome, the law that `auto` took for each domain and seed at the last size)."""
    outcomes: Outcomes = {}
    single = train.domains.index("pile_cc")
    chosen: list[str] = []
    for size in sizes:
        chosen = []
        for seed in seeds:
            drawn = np.random.default_rng(seed).permutation(len(train.shares))[:size]
            shares, losses = train.shares[drawn], train.losses[drawn]
            auto = choose_law(shares, losses, tuple(FITS), FOLDS, seed).chosen
            chosen += auto.chosen
            laws = {name: fit(shares, losses) for name, fit in FITS.items()} | {"auto": auto}
            for law, fitted in laws.items():
                for pool, runs in pools.items():
                    predicted = fitted.predict(runs.shares)
                    judged = (
                        judge(predicted[:, single], runs.losses[:, single]),
                        judge(predicted.mean(axis=1), runs.losses.mean(axis=1)),
                    )
                    for target, (rho, regret) in zip(TARGETS, judged, strict=True):
                        outcome = outcomes.setdefault((target, law, size, pool), Outcome([], []))
                        outcome.rho.append(rho)
                        outcome.regret.append(regret)
    return outcomes, chosen


def print_table(outcomes: Outcomes, sizes: Sequence[int]) -> None:
    for target in TARGETS:
        print(f"\n{target}: mean over seeds (least rho, most regret at 1B)\n")
        print("| N | law | rho 1M | rho 60M | rho 1B | regret 1B |")
        print("|---|---|---|---|---|---|")
        for size in sizes:
            for law in LAWS:
                by_pool = {pool: outcomes[target, law, size, pool] for pool in POOLS}
                rhos = " | ".join(f"{np.mean(by_pool[pool].rho):.3f}" for pool in POOLS)
                large = by_pool["1B"]
                print(
                    f"| {size} | {law} | {rhos} ({min(large.rho):.3f}) | "
                    f"{np.mean(large.regret):.4f} ({max(large.regret):.4f}) |"
                )


def missed(outcomes: Outcomes, sizes: Sequence[int]) -> list[str]:
    """The thresholds that the mean over seeds does not meet, of the sizes that were replayed."""
    lines = []
    for limit in THRESHOLDS:
        if limit.num_runs in sizes:
            outcome = outcomes[limit.target, limit.law, limit.num_runs, "1B"]
            rho, regret = float(np.mean(outcome.rho)), float(np.mean(outcome.regret))
            met = rho >= limit.least_rho and regret <= limit.most_regret
            line = (
                f"{limit.target}, {limit.law}, N = {limit.num_runs}, 1B: rho {rho:.3f} (at least "
                f"{limit.least_rho}), regret {regret:.4f} (at most {limit.most_regret})"
            )
            print(f"{'met' if met else 'MISSED'}: {line}")
            lines += [] if met else [line]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    train, pools = read_pools(given.folder)
    counts = ", ".join(f"{len(runs.shares)} of {size}" for size, runs in pools.items())
    print(
        f"{len(train.shares)} runs to fit on, to predict {counts}; {len(train.sources)} sources, "
        f"{len(train.domains)} domains, {given.seeds} seeds"
    )
    began = time.process_time()
    outcomes, chosen = replay(train, pools, given.runs, range(given.seeds))
    print_table(outcomes, given.runs)
    taken = ", ".join(f"{name} {chosen.count(name) / len(chosen):.0%}" for name in FITS)
    print(f"\nauto at N = {given.runs[-1]} took {taken} of domains and seeds")
    print(f"{time.process_time() - began:.0f} processor seconds\n")
    if missed(outcomes, given.runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
