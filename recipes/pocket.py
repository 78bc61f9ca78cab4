"""Every stage of MobileLLM-R1 and MobileLLM-Pro on one laptop CPU, from raw text to a 4-bit model
that reasons, in minutes.

The text is what any Python has: its standard library, its language reference, its docstrings, and
problems with worked solutions that reasoning-gym draws. Read the constants for what each stage
does, and the function below for the order.
"""

from dataclasses import replace

from pocketlm.corpus.sources import (
    LanguageReferenceSource,
    NoteSource,
    ProblemSource,
    RecallSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.transformer import ModelConfig
from pocketlm.report.goals import Goal
from pocketlm.stages.bench import BenchConfig, bench
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
from pocketlm.train.optim import OptimConfig

VOCAB_SIZE = 1024
WINDOW = 256  # tokens a row in pre-training
LONG_WINDOW = 4 * WINDOW
FAMILIES = (
    "chain_sum",
    "leg_counting",
    "simple_equations",
    "complex_arithmetic",
    "simple_geometry",
)

CORPUS = CurateConfig(
    name="corpus",
    sources=(
        ProblemSource(name="problems", domain="maths", families=FAMILIES, count=30_000, seed=1),
        NoteSource(name="notes", domain="knowledge", count=5_000, seed=2, pairs_range=(1, 3)),
        RecallSource(name="recall", domain="knowledge", count=2_000, seed=3, pairs_range=(1, 3)),
        LanguageReferenceSource(name="reference", domain="knowledge"),
        StdlibDocstringsSource(name="docstrings", domain="knowledge", max_bytes=1_000_000),
        StdlibCodeSource(name="code", domain="code", max_bytes=2_000_000, split_code=True),
    ),
    vocab_size=VOCAB_SIZE,
    suites=("pocket",),
    validation_share=0.02,
    probe_share=0.02,
)

# Deep and thin (MobileLLM 2024), grouped queries and tied embeddings (both), QK-norm (R1), local
# and global layers (Pro).
STUDENT = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=10_000.0,
    # heads of 32 channels without a learned scale cannot attend sharply enough (docs/log.md)
    qk_norm_weight=True,
    layer_types=ModelConfig.local_global(6, every=3),
    sliding_window=64,
    # about 1 / sqrt(hidden_size); the papers' 0.02 is for widths of 576 and more (docs/log.md)
    initializer_range=0.08,
)
TEACHER = replace(
    STUDENT, hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=3
)
PROXY = replace(
    STUDENT,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=3,
    layer_types=ModelConfig.local_global(3),
)

# R1's schedule (linear, to a tenth in pre-training and to zero after), betas and decay; Muon in
# place of Adam (docs/log.md)
FADE = OptimConfig(lr=2e-2, num_steps=1, warmup_steps=0, final_lr_share=0.1, optimizer="muon")
ANNEAL = replace(FADE, final_lr_share=0.0)
PHASE = PretrainConfig(
    name="phase", optim=FADE, seq_len=WINDOW, rows_per_step=8, micro_batch_size=8, seed=11
)

MIX = MixConfig(
    name="mix",
    methods={
        "found": UtilityMix(
            num_gradient_probes=20,
            # R1 weighs alike; this model is to solve problems
            probe_weights={"maths": 2.0, "code": 1.0, "knowledge": 1.0},
        ),
        "uniform": UniformMix(),
        "proportional": ProportionalMix(),
    },
    selected="found",
    proxy=PROXY,
    optim=replace(FADE, num_steps=80, warmup_steps=8),
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    budget_tokens=1_500_000,
    max_epochs=4.0,
    seed=12,
)
SELECT = SelectConfig(
    name="select",
    seq_len=WINDOW,
    candidate_tokens=20_000,
    probe_rows=24,
    batch_rows=12,
    budget_tokens=200_000,
    max_epochs=4.0,
    seed=13,
)
EXTEND = ExtendConfig(
    name="long",
    optim=ANNEAL,
    seq_len=LONG_WINDOW,
    rows_per_step=2,
    micro_batch_size=2,
    seed=14,
    rope_theta_factor=4.0,
    shares={"notes": 0.5, "problems": 0.2, "reference": 0.1, "docstrings": 0.1, "code": 0.1},
)
CHAT = FinetuneConfig(
    name="chat",
    optim=ANNEAL,
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    seed=15,
    sources=("problems", "recall"),
)
INT4 = QuantizeConfig(
    name="int4",
    scheme="int4_group32",
    optim=ANNEAL,
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    seed=16,
    sources=("problems", "recall"),
)
EVALUATE = EvaluateConfig(
    name="evaluation",
    suites=("pocket",),
    labels=("base", "mid", "long", "merged", "chat", "ptq", "int4", "model.gguf", "model.pte"),
    batch_size=120,
    bits_tokens=2_000,
    bits_window=WINDOW,
    needle_tokens=(WINDOW, 2 * WINDOW, LONG_WINDOW),
    haystack=("docstrings",),
)
# a difference of two shares of 360 problems has a standard error of up to 3.7 points: our choice
BEYOND_NOISE = 0.05
GOALS = (
    Goal(
        text="the int4 .gguf solves 70 % in llama.cpp",
        model="model.gguf",
        at_least=0.70,
        beside=("base", "chat"),
    ),
    Goal(
        text="the int4 .pte solves 70 % in ExecuTorch",
        model="model.pte",
        at_least=0.70,
        beside=("base", "chat"),
    ),
    Goal(
        text="QAT stays within 2 points of its full-precision parent",
        model="int4",
        compared_to="chat",
        at_least=-0.02,
        beside=("ptq",),
    ),
    Goal(
        text="after context extension the needle is found at 4x the window in 90 % of trials",
        model="long",
        measure=f"needle {LONG_WINDOW}",
        at_least=0.90,
        beside=("mid",),
        tried="notes with one to four facts in a quarter to all of the rows, facts asked once or "
        "twice and answered by the bare value or in the note's words, documents apart and packed, "
        "AdamW and Muon, learning rates, windows, RoPE theta, first weights: with a million tokens "
        "the network guesses the value at any length. See docs/log.md.",
    ),
)
CLAIMS = (
    Goal(
        text=(
            "R1: mid-training on samples of positive influence, with a teacher, solves more than "
            "the base"
        ),
        model="mid",
        compared_to="base",
        at_least=BEYOND_NOISE,
    ),
    Goal(
        text="Pro: positional distillation carries retrieval beyond the window",
        model="long",
        compared_to="mid",
        measure=f"needle {LONG_WINDOW}",
        at_least=0.02,  # one trial
    ),
    Goal(
        text="Pro: merged specialists solve more than the trunk they left",
        model="merged",
        compared_to="long",
        at_least=BEYOND_NOISE,
    ),
    Goal(
        text="Pro: training on the grid (QAT) solves more than rounding (PTQ)",
        model="int4",
        compared_to="ptq",
        at_least=BEYOND_NOISE,
    ),
)


def recipe(run, *, effort: float = 1.0):
    """effort: how many steps each training stage takes; 1.0 is the demo, of about fifteen
    minutes.
    """

    def steps(count: int, optim: OptimConfig, lr: float, warmup: float = 0.05) -> OptimConfig:
        count = max(2, round(count * effort))
        return replace(optim, num_steps=count, lr=lr, warmup_steps=int(count * warmup))

    corpus = run(curate, CORPUS)
    mix = run(find_mix, MIX, corpus=corpus)

    # The teacher: a larger network by the same recipe in short, then trained on long rows, as Pro's
    # teacher was.
    wide = run(
        pretrain,
        replace(PHASE, name="teacher-short", model=TEACHER, optim=steps(350, FADE, 2e-2)),
        corpus=corpus,
        mix=mix,
    )
    teacher = run(
        extend_context,
        replace(EXTEND, name="teacher", optim=steps(50, ANNEAL, 4e-3)),
        corpus=corpus,
        model=wide,
    )

    # R1: pre-training in two phases, then two rounds of selecting what still helps and distilling
    # on it.
    phase1 = run(
        pretrain,
        replace(PHASE, name="phase1", model=STUDENT, optim=steps(200, FADE, 2e-2)),
        corpus=corpus,
        mix=mix,
    )
    base = trunk = run(
        pretrain,
        replace(PHASE, name="base", optim=steps(200, FADE, 2e-2)),
        corpus=corpus,
        mix=mix,
        model=phase1,
    )
    rounds = []
    for turn in (1, 2):
        chosen = run(
            select,
            replace(SELECT, name=f"select{turn}", seed=12 + turn),
            corpus=corpus,
            model=trunk,
        )
        trunk = run(
            pretrain,
            replace(PHASE, name=f"mid{turn}", optim=steps(60, ANNEAL, 1e-2)),
            corpus=corpus,
            model=trunk,
            selection=chosen,
            teacher=wide,
        )
        rounds += [chosen, trunk]
    mid = trunk

    # Pro: context extension by implicit positional distillation, specialists and their merge.
    long = run(
        extend_context,
        replace(EXTEND, optim=steps(60, ANNEAL, 4e-3)),
        corpus=corpus,
        model=mid,
        teacher=teacher,
    )
    branches = {
        "maths": {"problems": 0.9, "notes": 0.1},
        "code": {"code": 0.7, "problems": 0.2, "notes": 0.1},
    }
    specialists = run.side_by_side(
        pretrain,
        [
            replace(PHASE, name=f"branch-{domain}", shares=shares, optim=steps(40, ANNEAL, 4e-3))
            for domain, shares in branches.items()
        ],
        corpus=corpus,
        model=long,
    )
    merged = run(
        merge,
        MergeConfig(name="merged", resolution=10, seq_len=WINDOW, validation_rows=8),
        corpus=corpus,
        models=specialists,
        trunk=long,
    )

    # Conversations, four bits, and the files that ship.
    chat = run(finetune, replace(CHAT, optim=steps(800, ANNEAL, 1e-2)), corpus=corpus, model=merged)
    ptq = run(quantize, replace(INT4, name="ptq", optim=None), model=chat)
    int4 = run(quantize, replace(INT4, optim=steps(100, ANNEAL, 1e-3)), model=chat, corpus=corpus)
    files = run(export, ExportConfig(name="files"), model=int4, corpus=corpus)
    models = [base, mid, long, merged, chat, ptq, int4, files / "model.gguf", files / "model.pte"]
    evaluation = run(evaluate, EVALUATE, models=models, corpus=corpus)
    speed = run(bench, BenchConfig(name="speed", contexts=(128, LONG_WINDOW)), models=models[-3:])
    made = [phase1, base, *rounds, long, *specialists, merged, chat, ptq, int4, files]
    everything = [corpus, mix, wide, teacher, *made, speed]
    return run(
        report,
        ReportConfig(
            name="report",
            title="pocketlm: from raw text to a 4-bit model that reasons",
            goals=GOALS,
            claims=CLAIMS,
        ),
        stages=everything,
        evaluation=evaluation,
    )
