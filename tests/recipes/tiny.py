"""Every kind of stage of recipes/pocket.py, on networks that learn nothing: what is tested is how
the stages fit.

`folder` holds texts/ (a local source) and exam.jsonl (the suite); conftest.py writes both.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketlm.corpus.sources import LocalSource, NoteSource, ProblemSource, RecallSource
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.model_config import ModelConfig
from pocketlm.report.goals import Goal
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.merge import MergeConfig, merge
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.stages.report import ReportConfig, report
from pocketlm.stages.select import SelectConfig, select
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig

WINDOW, LONG_WINDOW = 64, 256
STEPS = OptimConfig(lr=4e-3, num_steps=4, warmup_steps=1, final_lr_share=0.1, optimizer="muon")
ROWS: dict[str, Any] = {"rows_per_step": 4, "micro_batch_size": 2}
SHAPE = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=10_000.0,
    qk_norm_weight=True,
    layer_types=ModelConfig.local_global(3, every=2),
    sliding_window=32,
    initializer_range=0.08,
)
WIDE = replace(SHAPE, hidden_size=96, num_attention_heads=3)
PHASE = PretrainConfig(
    name="phase", optim=STEPS, seq_len=WINDOW, **ROWS, seed=1, save=SaveConfig(every_steps=2)
)
SELECT = SelectConfig(
    name="select",
    seq_len=WINDOW,
    candidate_tokens=1500,
    probe_rows=3,
    batch_rows=8,
    budget_tokens=2000,
    max_epochs=4.0,
    seed=3,
)
EXTEND = ExtendConfig(
    name="long",
    optim=STEPS,
    seq_len=LONG_WINDOW,
    **ROWS,
    seed=4,
    rope_theta_factor=4.0,
    save=SaveConfig(every_steps=2),
)
CHAT = FinetuneConfig(
    name="chat",
    optim=STEPS,
    seq_len=192,
    **ROWS,
    seed=5,
    sources=("problems", "recall"),
    save=SaveConfig(every_steps=2),
)
INT4 = QuantizeConfig(
    name="int4",
    scheme="int4_group32",
    optim=STEPS,
    seq_len=192,
    **ROWS,
    sources=("problems",),
    save=SaveConfig(every_steps=2),
)
SHARES = {
    "maths": {"problems": 0.75, "recall": 0.25, "notes": 0.0, "texts": 0.0},
    "texts": {"texts": 0.5, "notes": 0.5},
}


def corpus_of(folder: Path) -> CurateConfig:
    """Problems, facts, questions about facts, and the user's own files."""
    return CurateConfig(
        name="corpus",
        sources=(
            ProblemSource(
                name="problems", domain="maths", families=("chain_sum",), count=250, seed=1
            ),
            NoteSource(name="notes", domain="knowledge", count=120, seed=2, pairs_range=(1, 3)),
            RecallSource(name="recall", domain="knowledge", count=120, seed=3, pairs_range=(1, 3)),
            LocalSource(name="texts", domain="code", path=str(folder / "texts"), max_bytes=120_000),
        ),
        vocab_size=SHAPE.vocab_size,
        suites=(str(folder / "exam.jsonl"),),
        validation_share=0.1,
        probe_share=0.1,
    )


def recipe(run, folder: Path, *, short: bool = False, specialists: bool = False):
    """short: the seven stages that test_killed.py interrupts. specialists: three side by side, and
    what they need.
    """
    corpus = run(curate, corpus_of(folder))
    if specialists:
        return branched(run, corpus)
    return interrupted(run, corpus) if short else every_stage(run, folder, corpus)


def branched(run, corpus: Path) -> Path:
    """Three specialists and their merge."""
    uniform = dict.fromkeys(("problems", "notes", "recall", "texts"), 0.25)
    base = run(pretrain, replace(PHASE, name="base", model=SHAPE, shares=uniform), corpus=corpus)
    names = ("problems", "notes", "texts")
    branches = run.side_by_side(
        pretrain,
        [replace(PHASE, name=f"branch-{name}", shares={name: 1.0}) for name in names],
        corpus=corpus,
        model=base,
    )
    return run(
        merge,
        MergeConfig(name="merged", resolution=2, seq_len=32, validation_rows=2),
        corpus=corpus,
        models=branches,
    )


def interrupted(run, corpus: Path) -> Path:
    """From nothing to four bits, by way of a selection and a merge."""
    uniform = dict.fromkeys(("problems", "notes", "recall", "texts"), 0.25)
    shape = replace(SHAPE, max_position_embeddings=CHAT.seq_len)
    base = run(
        pretrain,
        replace(PHASE, name="base", model=shape, shares=uniform, milestones=2),
        corpus=corpus,
    )
    chosen = run(select, SELECT, corpus=corpus, model=base)
    mid = run(
        pretrain,
        replace(PHASE, name="mid"),
        corpus=corpus,
        model=base,
        selection=chosen,
        teacher=base,
    )
    merged = run(
        merge,
        MergeConfig(name="merged", resolution=4, seq_len=32, validation_rows=2),
        corpus=corpus,
        models=[base, mid],
    )
    chat = run(finetune, CHAT, corpus=corpus, model=merged)
    return run(quantize, INT4, corpus=corpus, model=chat)


def every_stage(run, folder: Path, corpus: Path) -> Path:
    """The order of recipes/pocket.py."""
    mix = run(
        find_mix,
        MixConfig(
            name="mix",
            methods={
                "found": UtilityMix(num_gradient_probes=2, step_sizes=(1.0,)),
                "uniform": UniformMix(),
                "proportional": ProportionalMix(),
            },
            selected="found",
            proxy=replace(SHAPE, num_hidden_layers=1, layer_types=(), sliding_window=None),
            optim=STEPS,
            seq_len=WINDOW,
            **ROWS,
            budget_tokens=2000,
            max_epochs=4.0,
            seed=2,
            validation_tokens=300,
        ),
        corpus=corpus,
    )
    wide = run(pretrain, replace(PHASE, name="teacher-short", model=WIDE), corpus=corpus, mix=mix)
    teacher = run(
        extend_context, replace(EXTEND, name="teacher"), corpus=corpus, model=wide, mix=mix
    )
    phase1 = run(pretrain, replace(PHASE, name="phase1", model=SHAPE), corpus=corpus, mix=mix)
    base = run(pretrain, replace(PHASE, name="base"), corpus=corpus, mix=mix, model=phase1)
    chosen = run(select, SELECT, corpus=corpus, model=base)
    mid = run(
        pretrain,
        replace(PHASE, name="mid"),
        corpus=corpus,
        model=base,
        selection=chosen,
        teacher=wide,
    )
    long = run(extend_context, EXTEND, corpus=corpus, model=mid, teacher=teacher, mix=mix)
    branches = run.side_by_side(
        pretrain,
        [replace(PHASE, name=f"branch-{name}", shares=shares) for name, shares in SHARES.items()],
        corpus=corpus,
        model=long,
    )
    merged = run(
        merge,
        MergeConfig(name="merged", resolution=4, seq_len=WINDOW, validation_rows=2),
        corpus=corpus,
        models=branches,
    )
    chat = run(finetune, CHAT, corpus=corpus, model=merged)
    ptq = run(quantize, replace(INT4, name="ptq", optim=None), model=chat)
    int4 = run(quantize, INT4, model=chat, corpus=corpus)
    files = run(export, ExportConfig(name="files", formats=("hf", "gguf")), model=int4)
    evaluation = run(
        evaluate,
        EvaluateConfig(
            name="evaluation",
            suites=(str(folder / "exam.jsonl"),),
            labels=("base", "long", "chat", "ptq", "int4", "model.gguf"),
            max_new_tokens=8,
            bits_tokens=300,
            bits_window=WINDOW,
            haystack=("texts",),
            needle_tokens=(LONG_WINDOW,),
            needle_trials=2,
            speed_tokens=4,
        ),
        models=[base, long, chat, ptq, int4, files / "model.gguf"],
        corpus=corpus,
    )
    goal = Goal(
        text="four bits cost nothing",
        model="int4",
        compared_to="chat",
        at_least=-1.0,
        beside=("ptq",),
    )
    stages = [
        corpus,
        mix,
        wide,
        teacher,
        phase1,
        base,
        chosen,
        mid,
        long,
        *branches,
        merged,
        chat,
        ptq,
        int4,
        files,
    ]
    return run(
        report,
        ReportConfig(name="report", title="A tiny run", goals=(goal,)),
        stages=stages,
        evaluation=evaluation,
    )
