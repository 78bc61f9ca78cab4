"""How much of each of your folders to train on:

    python examples/mix_study.py knowledge=manuals/ code=src/ maths=exercises.jsonl OUT

Each DOMAIN=FOLDER (or file) of text is a source, and its domain, one of code, maths, knowledge and
recall, says which capability its held-out text measures. A proxy of 1.3 million parameters is
trained under three mixes, by size, in equal parts and as utilities of gradients say (MobileLLM-Pro,
section 5), and measured on text that was held out. Minutes on a laptop; how little such a study may
be worth at this size stands in docs/results/mixing.md.
"""

import json
import sys
from pathlib import Path

from pocketlm.corpus.sources import LocalSource
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.model_config import ModelConfig
from pocketlm.runner.run import Run
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.train.optim import OptimConfig

PROXY = ModelConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    rope_theta=10_000.0,
    qk_norm_weight=True,
    initializer_range=0.08,
)


def main(
    sources: list[tuple[str, Path]], out: Path, *, steps: int = 100, proxy: ModelConfig = PROXY
) -> dict:
    """What mix.json says of each mix: its shares, and bits a byte of held-out text.

    sources: (domain, folder or file) of each.
    """
    rows = tuple(
        LocalSource(name=path.stem, domain=domain, path=str(path)) for domain, path in sources
    )
    with Run(out) as run:
        corpus = run(
            curate,
            CurateConfig(
                name="corpus",
                sources=rows,
                vocab_size=proxy.vocab_size,
                validation_share=0.1,  # folders may be small; some of it chooses, the rest reports
            ),
        )
        counted = json.loads((corpus / "curation.json").read_text())["sources"].values()
        tokens = sum(source["kept"]["train"]["tokens"] for source in counted)
        mix = run(
            find_mix,
            MixConfig(
                name="mix",
                methods={
                    "by size": ProportionalMix(),
                    "equal": UniformMix(),
                    "utility": UtilityMix(num_gradient_probes=4),
                },
                selected="by size",
                proxy=proxy,
                optim=OptimConfig(
                    lr=1e-2,
                    num_steps=steps,
                    warmup_steps=steps // 10,
                    final_lr_share=0.1,
                    optimizer="muon",
                ),
                seq_len=proxy.max_position_embeddings,
                rows_per_step=8,
                micro_batch_size=8,
                budget_tokens=2 * tokens,  # of the training to come: two passes over all of it
                max_epochs=4.0,  # and at most four over a source that is weighed up
                seed=1,
            ),
            corpus=corpus,
        )
    return json.loads((mix / "mix.json").read_text())["mixes"]


if __name__ == "__main__":
    *words, out = sys.argv[1:] or [""]
    if not words or not all("=" in word for word in words):
        sys.exit(__doc__)
    pairs = [(domain, Path(path)) for domain, path in (word.split("=", 1) for word in words)]
    for name, mix in main(pairs, Path(out)).items():
        shares = ", ".join(f"{source} {share:.0%}" for source, share in mix["shares"].items())
        print(f"{name:8}  {mix['bits_per_byte']['mean']:.3f} bits a byte  {shares}")
