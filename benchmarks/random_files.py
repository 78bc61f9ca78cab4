"""A published shape with random weights, as files whose speed and size can be measured.

    python benchmarks/random_files.py r1-140m files
    pocketlm bench files/checkpoint files/model.gguf files/model.pte --threads 1

checkpoint: float32. model.gguf: Q4_0. model.pte: int4 in groups of 32, int8 activations.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pocketlm.corpus.python_docs import read_language_reference
from pocketlm.export.gguf import write_gguf
from pocketlm.export.pte import write_pte
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.presets import PRESETS
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", default="checkpoint,gguf,pte")
    parser.add_argument("--context", type=int, default=8192, help="the longest text of the files")
    arguments = parser.parse_args()
    formats = arguments.formats.split(",")
    config = replace(
        PRESETS[arguments.preset], max_position_embeddings=arguments.context, initializer_range=0.05
    )
    model = Transformer(config, seed=1).eval()
    tokenizer = train_tokenizer([page.text for page in read_language_reference()], 2048)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if "checkpoint" in formats:
        (out / "checkpoint").mkdir()
        save_checkpoint(out / "checkpoint", model, tokenizer)
    if "gguf" in formats:
        write_gguf(model, tokenizer, out / "model.gguf", dtype="q4_0")
    if "pte" in formats:
        write_pte(
            prepare(model, CPU), tokenizer, out / "model.pte", context_length=arguments.context
        )


if __name__ == "__main__":
    main()
