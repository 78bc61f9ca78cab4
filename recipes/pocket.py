"""Every stage of MobileLLM-R1 and MobileLLM-Pro on one laptop CPU, from raw text to a 4-bit model that reasons, in minutes.

The text is what any Python has: its standard library, its language reference, its docstrings, and problems with worked
solutions that reasoning-gym draws. Read the constants for what each stage does, and the function below for the order.
"""

from dataclasses import replace

from pocketlm.corpus.sources import Source
from pocketlm.eval.suites import POCKET_FAMILIES
from pocketlm.model.transformer import ModelConfig, local_global_layers
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.longcontext import ExtendConfig, extend_context
from pocketlm.stages.merge import MergeConfig, merge
from pocketlm.stages.mix import MixConfig, find_mix
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.stages.report import ReportConfig, report
from pocketlm.stages.select import SelectConfig, select
from pocketlm.train.optim import OptimConfig

VOCAB_SIZE = 1024
WINDOW = 256  # tokens a row in pre-training
LONG_WINDOW = 4 * WINDOW

CORPUS = CurateConfig(
    name="corpus",
    sources=(
        Source(name="problems", domain="maths", kind="problems", families=POCKET_FAMILIES, count=20_000, seed=1),
        Source(name="notes", domain="knowledge", kind="notes", count=4_000, seed=2, pairs_range=(1, 4)),
        Source(name="reference", domain="knowledge", kind="language_reference"),
        Source(name="docstrings", domain="knowledge", kind="stdlib_docstrings", max_bytes=1_500_000),
        Source(name="code", domain="code", kind="stdlib_code", max_bytes=2_500_000, split_code=True),
    ),
    vocab_size=VOCAB_SIZE,
    suites=("pocket",),
    validation_share=0.02,
    probe_share=0.02,
)

# Deep and thin (MobileLLM 2024), grouped queries and tied embeddings (both), QK-norm (R1), local and global layers (Pro).
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
    qk_norm_weight=True,  # a head of 32 without a learned scale cannot attend sharply enough (docs/log.md)
    layer_types=local_global_layers(6, every=3),
    sliding_window=64,
)
TEACHER = replace(STUDENT, hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=3)
PROXY = replace(STUDENT, hidden_size=64, intermediate_size=192, num_hidden_layers=3, layer_types=local_global_layers(3))

LR = 4.0e-3  # R1, pre-training, at every size
FADE = OptimConfig(lr=LR, num_steps=1, warmup_steps=0, final_lr_share=0.1)  # R1: linear to a tenth of the peak
ANNEAL = replace(FADE, final_lr_share=0.0)  # R1, mid-training and SFT: linear to zero
ROWS = {"rows_per_step": 8, "micro_batch_size": 8}
PHASE = PretrainConfig(name="phase", optim=FADE, seq_len=WINDOW, **ROWS, seed=11)

MIX = MixConfig(
    name="mix",
    proxy=PROXY,
    optim=replace(FADE, num_steps=120, warmup_steps=12),
    seq_len=WINDOW,
    rows_per_step=8,
    looks=12,
    temperature=1.0,
    probe_weights={"maths": 2.0, "code": 1.0, "knowledge": 1.0},  # R1 weighs alike; this model is to solve problems
    budget_tokens=2_500_000,
    max_epochs=4.0,
    seed=12,
)
SELECT = SelectConfig(
    name="select",
    seq_len=WINDOW,
    candidate_tokens=60_000,
    probe_rows=32,
    batch_rows=16,
    budget_tokens=400_000,
    max_epochs=4.0,
    seed=13,
)
MATHS = {"problems": 0.9, "notes": 0.1}
CODE = {"code": 0.6, "problems": 0.3, "notes": 0.1}


def recipe(run, *, effort: float = 1.0):
    """effort: how many steps each training stage takes, 1.0 being the demo's fifteen minutes."""

    def steps(count: int, optim: OptimConfig, lr: float, warmup: float = 0.05) -> OptimConfig:
        count = max(2, round(count * effort))
        return replace(optim, num_steps=count, lr=lr, warmup_steps=int(count * warmup))

    corpus = run(curate, CORPUS)
    mix = run(find_mix, MIX, corpus=corpus)

    # The teacher: the same recipe in short, on a larger network, up to the long window.
    teacher = run(pretrain, replace(PHASE, name="teacher", model=TEACHER, optim=steps(600, FADE, LR)), corpus=corpus, mix=mix)
    teacher = run(
        pretrain,
        replace(PHASE, name="teacher-anneal", shares=MATHS, optim=steps(200, ANNEAL, LR / 2)),
        corpus=corpus,
        model=teacher,
    )

    # Pre-training in two phases, mid-training in two rounds of select and distil (R1).
    trunk = run(pretrain, replace(PHASE, name="phase1", model=STUDENT, optim=steps(600, FADE, LR)), corpus=corpus, mix=mix)
    base = trunk = run(
        pretrain,
        replace(PHASE, name="phase2", shares={"problems": 0.7, "notes": 0.1, "code": 0.1, "docstrings": 0.05, "reference": 0.05}, optim=steps(600, FADE, LR)),
        corpus=corpus,
        model=trunk,
    )
    return base, teacher
