"""Fine-tune a base on your chats and ship it: python examples/finetune_and_ship.py BASE CHATS OUT

BASE is a checkpoint folder (`pocketlm import HuggingFaceTB/SmolLM2-135M` makes one). CHATS is JSONL
with "messages", or "prompt" and "response", on each line. OUT is where every stage puts its folder.
recipes/specialize.py is the same with flags, checks before anything trains, and an exam at the end.
"""

import sys
from pathlib import Path

from pocketlm.corpus.sources import LocalSource
from pocketlm.runner.run import Run
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.train.optim import OptimConfig


def main(
    base: Path,
    chats: Path,
    out: Path,
    *,
    steps: int = 200,
    context: int = 512,
    min_agreement: float = 0.985,
) -> Path:
    """The .gguf: the fine-tuned model in four bits, which in llama.cpp must have the same likeliest
    token as here for at least `min_agreement` of all tokens.
    """
    source = LocalSource(name="chats", domain="knowledge", path=str(chats), near_dedup=False)
    optim = OptimConfig(
        lr=8e-5, num_steps=steps, warmup_steps=steps // 20, final_lr_share=0.0, weight_decay=0.0
    )
    rows = {"seq_len": context, "rows_per_step": 4, "micro_batch_size": 1, "seed": 1}
    with Run(out) as run:
        corpus = run(
            curate,
            CurateConfig(
                name="corpus",
                sources=(source,),
                tokenizer=str(base),
                validation_share=0.0,
                probe_share=0.0,
            ),
        )
        chat = run(
            finetune,
            FinetuneConfig(name="chat", optim=optim, sources=("chats",), **rows),
            corpus=corpus,
            model=base,
        )
        int4 = run(
            quantize,
            QuantizeConfig(
                name="int4", scheme="int4_group32", optim=optim, sources=("chats",), **rows
            ),
            corpus=corpus,
            model=chat,
        )
        files = run(
            export,
            ExportConfig(
                name="files", formats=("gguf",), context_length=context, min_agreement=min_agreement
            ),
            model=int4,
            corpus=corpus,
        )
    return files / "model.gguf"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    file = main(*map(Path, sys.argv[1:]))
    print(f"talk to it: pocketlm chat {file}")
