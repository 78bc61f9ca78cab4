"""Every four-bit scheme on a finished run of recipes/pocket.py: rounded alone, and trained as that
run trained its own.

    python benchmarks/four_bit_schemes.py runs/pocket

Prints one JSON line for each: problems solved of the run's suite, and top tokens and KL against the
full-precision model on held-out answers. Steps, learning rate and rows are those of the run's stage
`int4`. --schemes takes some of them.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from pocketlm.eval.agreement import agreement
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.files import read_json
from pocketlm.model.quant import SCHEMES
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import real_passages
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.train.optim import OptimConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    arguments = parser.parse_args()
    run = arguments.run
    told = read_json(run / "int4" / "stage.json")["config"]
    optim = OptimConfig(
        **{name: value for name, value in told.pop("optim").items() if name != "class"}
    )
    config = QuantizeConfig(**{**told, "sources": tuple(told["sources"])}, optim=optim)
    parent = LanguageModel.open(run / "chat")
    passages = real_passages(parent, config.seq_len, run / "corpus")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"full precision": run / "chat"}
        for scheme in arguments.schemes:
            for name, how in (("rounded", None), ("trained", optim)):
                folder = Path(scratch) / f"{scheme}-{name}"
                folder.mkdir()
                own = replace(config, name=folder.name, scheme=scheme, optim=how)
                folders[f"{scheme}, {name}"] = quantize(
                    own, folder, model=run / "chat", corpus=run / "corpus"
                )
        measure = EvaluateConfig(
            name="evaluation", suites=("pocket",), labels=tuple(folders), batch_size=120
        )
        evaluate(measure, Path(scratch), models=list(folders.values()))
        models = read_json(Path(scratch) / "evaluation.json")["models"]
        for label, folder in folders.items():
            found = agreement(parent, LanguageModel.open(folder), passages)
            solved = models[label]["suites"]["pocket"]["value"]
            figures = {"solved": solved, "top": found.top_token, "kl": found.kl}
            print(json.dumps({"model": label, **figures}), flush=True)


if __name__ == "__main__":
    main()
