"""Utilities checked against what they claim: along a simulated run of the demo's proxy, the sum of
share x utility over sources beside the measured fall of each probe's loss, in nats.

    python benchmarks/mix_identity.py                    # three optimizers
    python benchmarks/mix_identity.py --only adamw --lr 1e-4 --steps 160 --milestones 40

The text is the demo's, a part of it: generated problems, notes and recall, and Python's docstrings
and code. "noise" is the standard error of the measured fall over batches of probe rows; "decay" is
weight decay's own part of what is predicted.
"""

import argparse
import runpy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pocketlm.data.mixing.problem import MixProblem
from pocketlm.data.mixing.utility import UtilityMix, utility_mix
from pocketlm.stages.curate import curate
from pocketlm.stages.proxies import Proxies

RECIPE = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "pocket.py"))
PART = {
    "problems": {"count": 3_000},
    "notes": {"count": 600},
    "recall": {"count": 400},
    "docstrings": {"max_bytes": 200_000},
    "code": {"max_bytes": 400_000},
}
DEMO = RECIPE["MIX"].optim
ADAMW = replace(DEMO, optimizer="adamw", compute_dtype="float32")
OPTIMIZERS = {
    # name: (what it is, the optimizer)
    "plain": ("AdamW without momentum", replace(ADAMW, lr=2e-4, beta1=0.0)),
    "adamw": ("AdamW", replace(ADAMW, lr=2e-4)),
    "demo": ("the demo's own, Muon", DEMO),
}


def make_corpus(out: Path) -> Path:
    """A part of the demo's corpus, curated."""
    sources = [
        replace(source, **PART[source.name])
        for source in RECIPE["CORPUS"].sources
        if source.name in PART
    ]
    config = replace(
        RECIPE["CORPUS"], sources=tuple(sources), validation_share=0.05, probe_share=0.1
    )
    out.mkdir()
    return curate(config, out)


def no_losses(mixes: Any) -> Any:
    """Stands for the line search, which the identity does not need."""
    return {name: {"all": 0.0} for name in mixes}


def checked(optim: Any, milestones: int, corpus: Path, out: Path) -> Iterator[tuple[str, Any]]:
    """(probe, its fall as mix.json has it) of one simulated run."""
    proxies = Proxies(replace(RECIPE["MIX"], optim=optim), out, corpus)
    problem = MixProblem(
        tokens=proxies.tokens,
        capabilities=proxies.capabilities,
        budget_tokens=1,
        max_epochs=1.0,
        where="identity",
        simulate=partial(proxies.simulate, proxies.simulated_names("identity")),
        losses=no_losses,
    )
    mix = utility_mix(UtilityMix(num_gradient_probes=milestones), problem)
    for line in mix.warnings:
        print(line)
    yield from mix.details["falls"].items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=OPTIMIZERS, nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--steps", type=int, default=DEMO.num_steps)
    parser.add_argument("--milestones", type=int, default=20)
    parser.add_argument("--lr", type=float, help="of every optimizer, in place of its own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for name in given.only:
            words, optim = OPTIMIZERS[name]
            optim = replace(optim, num_steps=given.steps, lr=given.lr or optim.lr)
            began = time.perf_counter()
            rows = list(checked(optim, given.milestones, corpus, Path(folder) / name))
            print(
                f"\n{words}; {given.steps} steps, lr {optim.lr:g}, {given.milestones} milestones; "
                f"{time.perf_counter() - began:.0f} s"
            )
            print("probe         measured   noise  predicted   decay  predicted / measured")
            for probe, fall in rows:
                print(
                    f"{probe:12} {fall['measured']:9.3f} {fall['noise']:7.3f} "
                    f"{fall['predicted']:10.3f} {fall['weight_decay']:7.3f} "
                    f"{fall['predicted'] / fall['measured']:10.3f}"
                )


if __name__ == "__main__":
    main()
