"""Your own model: a checkpoint that is there already, and your chats or text, to a 4-bit file for a
phone.

    pocketlm import HuggingFaceTB/SmolLM2-135M
    pocketlm run recipes/specialize.py models/SmolLM2-135M --chats chats.jsonl --out runs/mine

The base is a folder: one that pocketlm wrote or imported, or a Hugging Face one that `pocketlm
import` would read (config.json, safetensors, tokenizer.json). Its tokenizer is kept. Chats are
JSONL with "messages", or "prompt" and "response", on each line; text is a file or folder of .txt,
.md, .rst, .py, .jsonl, .json or .parquet. Give either or both: text is read first, as in
pre-training, then the chats teach the answers. The four-bit model is then trained to answer as the
full one does (Pro, phase 4), and the very grid it was trained on goes into the files.
"""

from pathlib import Path
from typing import Any

from pocketlm.corpus.sources import LocalSource
from pocketlm.model.lora import LoRA
from pocketlm.stages.chats import ChatsConfig, check_chats
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.formats import FormatsConfig, check_formats
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.train.optim import OptimConfig

# share of the steps: our choice; R1 takes 0.03 in general SFT and 0.1 in reasoning SFT
WARMUP = 0.05
SCHEME = "int4_group32"  # Pro, table 3, CPU; the only one with a .pte


def recipe(
    run,
    base: Path,
    *,
    chats: Path | None = None,
    text: Path | None = None,
    context: int = 1024,
    steps: int = 300,
    rows: int = 8,
    lr: float = 2e-5,
    lora: int = 0,
    int4_steps: int = 150,
    scheme: str = SCHEME,
    formats: str = "gguf,pte,hf",
    suite: Path | None = None,
    benchmarks: Path | None = None,
):
    """A base model, and your own chats or text, to a fine-tuned 4-bit model and its files.

    BASE is a checkpoint folder; `pocketlm import` makes one of a hub id or a .gguf.

    --chats: JSONL, each line {"messages": [...]} or {"prompt": ..., "response": ...}

    --text: a file or folder of .txt .md .rst .py .jsonl .json .parquet, read as in pre-training,
    before the chats

    --context: tokens a row; at most what the base admits. Longer chats are left out.

    --steps: of each training stage; int4-steps: of training on the 4-bit grid

    --rows: a step; lr: the peak, 2e-5 for a model of 1B, more for a smaller one (R1 takes 5e-6 to
    8e-5)

    --lora: learn the chats in factors of this rank beside frozen weights, merged at the end: less
    memory, and a rate some ten times as high; 0 trains all weights

    --scheme: int4_group32, Pro's for CPUs, or int4_channel, its other one (then --formats without
    pte)

    --formats: of gguf, pte, hf, with commas

    --suite: what to measure base, tuned and 4-bit model on at the end: JSONL with "prompt" and
    "answer" on each line, or names of benchmarks with commas (arc_easy,hellaswag)

    --benchmarks: a folder with the benchmarks' files; without it the hub is read
    """
    if chats is None and text is None:
        raise ValueError(
            'nothing to learn from: give --chats FILE.jsonl ("messages", or "prompt" and '
            '"response", on each line), --text FILE or FOLDER, or both'
        )

    wanted = tuple(word.strip() for word in formats.split(",") if word.strip())
    if "pte" in wanted and scheme != SCHEME:
        raise ValueError(
            f"--scheme {scheme} has no .pte, whose 4-bit kernels need {SCHEME}; give --formats "
            "gguf,hf"
        )

    def schedule(count: int) -> OptimConfig:
        return OptimConfig(
            lr=lr,
            num_steps=count,
            warmup_steps=int(count * WARMUP),
            final_lr_share=0.0,
            weight_decay=0.0,
        )

    # Before anything trains: what the files cannot hold, such as this tokenizer, is said now.
    run(
        check_formats,
        FormatsConfig(name="formats", formats=wanted, scheme=scheme, context_length=context),
        model=base,
    )

    # Yours as it is: no quality filter, no near-duplicate search; only what stands there twice is
    # read once.
    given = {"text": text, "chats": chats}
    sources = tuple(
        LocalSource(name=name, domain="knowledge", path=str(path), filters=(), near_dedup=False)
        for name, path in given.items()
        if path is not None
    )
    corpus = run(
        curate,
        CurateConfig(
            name="corpus",
            sources=sources,
            tokenizer=str(base),
            max_chars=20_000,
            validation_share=0.0,
            probe_share=0.0,
        ),
    )
    model = base
    layout: dict[str, Any] = {
        "seq_len": context,
        "rows_per_step": rows,
        "micro_batch_size": 1,
        "seed": 1,
    }
    on_text = {"text": 1.0}
    # what is wrong with the chats is said before the text is read for hours
    if text is not None and chats is not None:
        config = ChatsConfig(name="chats-check", seq_len=context, sources=("chats",))
        run(check_chats, config, corpus=corpus, model=base)
    if text is not None:
        config = PretrainConfig(name="adapted", optim=schedule(steps), shares=on_text, **layout)
        model = run(pretrain, config, corpus=corpus, model=model)
    if chats is not None:
        factors = LoRA(rank=lora, alpha=2.0 * lora) if lora else None
        config = FinetuneConfig(
            name="chat", optim=schedule(steps), sources=("chats",), lora=factors, **layout
        )
        model = run(finetune, config, corpus=corpus, model=model)
    learnt: dict[str, Any] = {"sources": ("chats",)} if chats is not None else {"shares": on_text}
    config = QuantizeConfig(
        name="int4", scheme=scheme, optim=schedule(int4_steps), **learnt, **layout
    )
    int4 = run(quantize, config, corpus=corpus, model=model)
    files = run(
        export,
        ExportConfig(name="files", formats=wanted, context_length=context),
        model=int4,
        corpus=corpus,
    )
    if suite is not None:
        ours = {model.name: model, "int4": int4} | (
            {"model.gguf": files / "model.gguf"} if "gguf" in wanted else {}
        )
        config = EvaluateConfig(
            name="evaluation",
            suites=(str(suite),) if suite.is_file() else tuple(str(suite).split(",")),
            labels=("base", *ours),
            data=None if benchmarks is None else str(benchmarks),
        )
        run(evaluate, config, models=[base, *ours.values()])
    return files
