"""Every stage of MobileLLM-R1 and MobileLLM-Pro on one laptop CPU, from raw text to a 4-bit model
that reasons, in minutes.

The text is what any Python has: its standard library, its language reference, its docstrings; and
what is drawn here: problems with worked solutions from reasoning-gym, and facts to look up, which a
text tells once and asks again. Read the constants for what each stage does, and the function below
for the order.

One part is missing: R1 distils its mid-training from a model of 8 billion parameters. A teacher
that is better than this student takes more time than the demo has, so mid-training is by labels
here. The distillations shown are Pro's: over long windows, and from the model to its 4-bit self.
"""

from dataclasses import replace

from pocketlm.corpus.sources import (
    FactSource,
    LanguageReferenceSource,
    ProblemSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.model_config import ModelConfig
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
from pocketlm.stages.reinforce import ReinforceConfig, reinforce
from pocketlm.stages.report import ReportConfig, report
from pocketlm.stages.select import SelectConfig, select
from pocketlm.train.optim import OptimConfig

VOCAB_SIZE = 1024
WINDOW = 256  # tokens a row in pre-training
LONG_WINDOW = 4 * WINDOW  # what the extension claims
TRAINED_LONG = 6 * WINDOW  # in packed rows the longest distances are rare: train beyond the claim
FAMILIES = (
    "chain_sum",
    "leg_counting",
    "simple_equations",
    "complex_arithmetic",
    "simple_geometry",
)


def facts(name: str, seed: int, count: int, facts_range, gap_words, chars: int, num_names=None):
    return FactSource(
        name=name,
        domain="recall",
        seed=seed,
        count=count,
        facts_range=facts_range,
        gap_words=gap_words,
        chars=chars,
        num_names=num_names,
    )


CORPUS = CurateConfig(
    name="corpus",
    sources=(
        ProblemSource(name="problems", domain="maths", families=FAMILIES, count=30_000, seed=1),
        # rows of 64, 128 and 256 tokens: the facts alone, then with more and more text between
        facts("facts-64", 2, 9_000, (3, 5), (0,), 100),
        facts("facts-128", 3, 2_500, (2, 6), (0, 2, 4, 8), 215),
        # many facts: of few, each comes again soon, and looking far back is not learnt
        facts("facts", 4, 8_000, (4, 16), (2, 4, 7, 14, 28), 490),
        # the teacher's long documents, and the student's short ones: there names come again
        facts("facts-long", 5, 900, (4, 24), (20,), 3_500),
        facts("facts-short", 6, 14_000, (2, 5), (4,), 110, num_names=80),
        LanguageReferenceSource(name="reference", domain="knowledge"),
        StdlibDocstringsSource(name="docstrings", domain="knowledge", max_bytes=1_000_000),
        StdlibCodeSource(name="code", domain="code", max_bytes=2_000_000, split_code=True),
    ),
    vocab_size=VOCAB_SIZE,
    suites=("pocket",),
    validation_share=0.02,
    probe_share=0.02,
)
MIXED = ("problems", "facts", "reference", "docstrings", "code")

# Grouped queries and tied embeddings (both papers), QK-norm (R1), local and global layers (Pro).
# Looking up is learnt within two million tokens where the local window is small, the RoPE base low
# and the layers few (docs/log.md, recipes/claims.py); such a base also fails beyond its window, so
# that extending it has something to do.
STUDENT = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=1_000.0,
    # heads of 32 channels without a learned scale cannot attend sharply enough (docs/log.md)
    qk_norm_weight=True,
    layer_types=("sliding_attention", "full_attention", "full_attention"),
    sliding_window=4,  # Pro's is 512 of 131,072 tokens: the same share of the long window
    # about 1 / sqrt(hidden_size); the papers' 0.02 is for widths of 576 and more (docs/log.md)
    initializer_range=0.08,
)
PROXY = replace(STUDENT, hidden_size=64, intermediate_size=192)

# R1's betas and decay; Muon in place of Adam (docs/log.md)
STEADY = OptimConfig(lr=1e-2, num_steps=100, warmup_steps=10, final_lr_share=1.0, optimizer="muon")
TO_ZERO = replace(STEADY, final_lr_share=0.0)
# 4,096 tokens a step in each: longer rows, facts further apart
PHASES = ((64, 64, "facts-64", 125), (128, 32, "facts-128", 50), (WINDOW, 16, "facts", 300))
BASE = PretrainConfig(
    name="base",
    # linear, as R1; to a fifth, from which the annealing after it goes on
    optim=replace(STEADY, final_lr_share=0.2),
    seq_len=WINDOW,
    rows_per_step=16,
    micro_batch_size=16,
    # labels across packed documents would teach that looking up ends at a document's border
    separate_documents=True,
    seed=11,
)
# R1's mid-training begins at nine tenths of the rate at which pre-training ends
MID = replace(
    BASE,
    name="mid",
    optim=replace(TO_ZERO, lr=1.8e-3, warmup_steps=0),
    rows_per_step=8,
    micro_batch_size=8,
)

MIX = MixConfig(
    name="mix",
    methods={
        "found": UtilityMix(
            num_gradient_probes=4,
            step_sizes=(1.0,),
            # R1 weighs alike; this model is to solve problems, and to look things up
            probe_weights={"maths": 2.0, "recall": 2.0, "code": 1.0, "knowledge": 1.0},
        ),
        "uniform": UniformMix(),
        "proportional": ProportionalMix(),
    },
    # of six ways at a size like this none beat the mix by size (docs/results/mixing.md)
    selected="proportional",
    proxy=PROXY,
    optim=replace(STEADY, num_steps=60, warmup_steps=6, final_lr_share=0.1),
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    budget_tokens=1_500_000,
    max_epochs=4.0,
    seed=12,
    sources=MIXED,
    validation_tokens=4_000,
)
SELECT = SelectConfig(
    name="select",
    seq_len=WINDOW,
    candidate_tokens=30_000,
    probe_rows=24,
    batch_rows=12,
    budget_tokens=100_000,
    max_epochs=4.0,
    seed=13,
    # by the mean over capabilities the filter drops most of what one of them alone wants
    filter="per_capability",
    sources=MIXED,
)
TEXT = {"problems": 0.4, "code": 0.3, "docstrings": 0.15, "reference": 0.15}


def beside_text(source: str, share: float) -> dict[str, float]:
    """The shares of one source and of text, so that the short window is not unlearnt."""
    return {source: share, **{name: (1 - share) * part for name, part in TEXT.items()}}


EXTEND = ExtendConfig(
    name="long",
    optim=TO_ZERO,
    seq_len=TRAINED_LONG,
    rows_per_step=3,
    micro_batch_size=3,
    seed=14,
    rope_theta_factor=4.0,
    shares=beside_text("facts-short", 0.9),
)
CHAT = FinetuneConfig(
    name="chat",
    optim=TO_ZERO,
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    seed=15,
    sources=("problems",),
)
# --with-rl: after a short fine-tuning, as MobileLLM-R1 section 7.4 finds rewards to help before SFT
RL = ReinforceConfig(
    name="rl",
    optim=OptimConfig(lr=3e-4, num_steps=60, warmup_steps=3, final_lr_share=1.0),
    loss="grpo",
    prompts_per_step=16,
    samples_per_prompt=8,
    max_new_tokens=96,
    micro_batch_size=64,
    seq_len=WINDOW,
    seed=16,
    families=FAMILIES,
)
QAT = replace(TO_ZERO, warmup_steps=4)
INT4 = QuantizeConfig(
    name="int4",
    scheme="int4_group32",
    optim=QAT,
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    seed=16,
    sources=("problems",),
)
EVALUATE = EvaluateConfig(
    name="evaluation",
    suites=("pocket",),
    batch_size=360,
    bits_tokens=6_000,
    bits_window=WINDOW,
    needle="fact",
    distractors=4,
    needle_tokens=(WINDOW, LONG_WINDOW),
    needle_trials=200,
    needle_labels=("mid", "theta", "long"),
    needle_seed=17,
    haystack=("reference",),
    speed_tokens=16,
)
NEEDLE = f"needle {LONG_WINDOW}"
GOALS = (
    Goal(
        text="the int4 .gguf solves 95 % in llama.cpp",
        model="model.gguf",
        at_least=0.95,
        beside=("base", "chat"),
    ),
    Goal(
        text="the int4 .pte solves 95 % in ExecuTorch",
        model="model.pte",
        at_least=0.95,
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
        measure=NEEDLE,
        at_least=0.90,
        beside=("mid", "theta"),
    ),
)
CLAIMS = (
    Goal(
        text="R1: mid-training on samples of positive influence lowers held-out bits a byte",
        model="mid",
        compared_to="base",
        measure="bits mean",
        at_most=0.0,
    ),
    Goal(
        text="R1: it solves no fewer problems than the base",
        model="mid",
        compared_to="base",
        at_least=0.0,
    ),
    Goal(
        text="before extension facts are found within the window",
        model="mid",
        measure=f"needle {WINDOW}",
        at_least=0.9,
    ),
    Goal(text="and not at 4x of it", model="mid", measure=NEEDLE, at_most=0.4),
    Goal(
        text="Pro: positional distillation finds more than a larger RoPE base alone",
        model="long",
        compared_to="theta",
        measure=NEEDLE,
        at_least=0.10,
    ),
    Goal(
        text="Pro: the merge is no worse than its first specialist, in bits a byte",
        model="merged",
        compared_to="branch-maths",
        measure="bits mean",
        at_most=0.0,
    ),
    Goal(
        text="Pro: nor than its second",
        model="merged",
        compared_to="branch-code",
        measure="bits mean",
        at_most=0.0,
    ),
    Goal(
        # the standard error of a share of 98 % of 360 problems is 0.7 points
        text="Pro: training on the grid (QAT) is within noise of rounding (PTQ) or better",
        model="int4",
        compared_to="ptq",
        at_least=-0.014,
    ),
)


def recipe(run, *, effort: float = 1.0, seed: int = 0, with_rl: bool = False):
    """effort: how many steps each training stage takes; 1.0 is the demo, of about ten minutes.
    seed: is added to that of every stage but the corpus. with_rl: also learn from rewards after a
    short fine-tuning, beside rejection sampling and a reward by chance: some ten minutes more, and
    no gain was seen yet (docs/log.md).
    """

    def drawn(config, **changes):
        """The stage's config with its steps and its seed."""
        config = replace(config, **changes, seed=config.seed + seed)
        return config if config.optim is None else replace(config, optim=steps(config.optim))

    def steps(optim: OptimConfig) -> OptimConfig:
        count = max(2, round(optim.num_steps * effort))
        return replace(optim, num_steps=count, warmup_steps=min(optim.warmup_steps, count // 2))

    def at(optim: OptimConfig, count: int, lr: float | None = None) -> OptimConfig:
        return replace(optim, num_steps=count, lr=lr or optim.lr)

    corpus = run(curate, CORPUS)
    mix = run(find_mix, replace(MIX, seed=MIX.seed + seed), corpus=corpus)

    # Pre-training: looking up in rows that get longer, then all text in the shares of the mix.
    model, made = None, []
    for seq_len, rows, source, count in PHASES:
        phase = drawn(
            BASE,
            name=f"rows-{seq_len}",
            model=None if model else STUDENT,
            optim=at(STEADY, count),
            seq_len=seq_len,
            rows_per_step=rows,
            micro_batch_size=rows,
            shares={source: 1.0},
        )
        model = run(pretrain, phase, corpus=corpus, **({"model": model} if model else {}))
        made.append(model)
    base = trunk = run(
        pretrain, drawn(BASE, optim=at(BASE.optim, 300)), corpus=corpus, mix=mix, model=model
    )

    # R1's mid-training: two rounds of selecting what still helps, and of training on it.
    made.append(base)
    for name, turn, lr in (("mid1", 1, 1.8e-3), ("mid", 2, 0.9e-3)):
        chosen = run(
            select,
            replace(SELECT, name=f"select{turn}", seed=SELECT.seed + turn + seed),
            corpus=corpus,
            model=trunk,
        )
        optim = replace(at(MID.optim, 50, lr), final_lr_share=0.5 if turn == 1 else 0.0)
        trunk = run(
            pretrain,
            drawn(MID, name=name, optim=optim),
            corpus=corpus,
            model=trunk,
            selection=chosen,
        )
        made += [chosen, trunk]
    mid = trunk

    # Pro: implicit positional distillation from a teacher that has read long documents. Beside it
    # the larger RoPE base alone, a control that the paper lacks.
    teacher = run(
        extend_context,
        drawn(
            EXTEND,
            name="teacher",
            optim=at(TO_ZERO, 100, 6e-3),
            rope_theta_factor=10.0,
            shares=beside_text("facts-long", 0.8),
        ),
        corpus=corpus,
        model=mid,
    )
    theta = run(
        extend_context,
        drawn(EXTEND, name="theta", optim=None, shares=None),
        corpus=corpus,
        model=mid,
    )
    long = run(
        extend_context,
        drawn(EXTEND, optim=at(TO_ZERO, 250)),
        corpus=corpus,
        model=mid,
        teacher=teacher,
    )

    # Pro: specialists and their merge.
    branches = {
        "maths": {"problems": 0.8, "facts": 0.2},
        "code": {"code": 0.5, "docstrings": 0.2, "reference": 0.1, "facts": 0.2},
    }
    specialists = run.side_by_side(
        pretrain,
        [
            drawn(MID, name=f"branch-{domain}", shares=shares, optim=at(TO_ZERO, 40, 4e-3))
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
    chat = run(finetune, drawn(CHAT, optim=at(TO_ZERO, 700)), corpus=corpus, model=merged)
    ptq = run(quantize, drawn(INT4, name="ptq", optim=None), model=chat)
    int4 = run(quantize, drawn(INT4, optim=at(QAT, 80, 1e-3)), model=chat, corpus=corpus)
    files = run(export, ExportConfig(name="files"), model=int4, corpus=corpus)
    if with_rl:
        cold = run(
            finetune,
            drawn(CHAT, name="cold-start", optim=at(TO_ZERO, 120)),
            corpus=corpus,
            model=merged,
        )
        arms = {"rl": "grpo", "rl-rejection": "rejection", "rl-chance": "grpo"}
        learnt = [
            run(
                reinforce,
                drawn(
                    RL, name=name, loss=loss, reward="chance" if name == "rl-chance" else "answer"
                ),
                model=cold,
            )
            for name, loss in arms.items()
        ]
        evaluation = EvaluateConfig(
            name="evaluation-rl", suites=("pocket",), batch_size=360, speed_tokens=16
        )
        run(evaluate, evaluation, models=[cold, *learnt])
    models = {"base": base, "mid": mid, "theta": theta, "long": long}
    models |= {path.name: path for path in (*specialists, merged, chat, ptq, int4)}
    models |= {name: files / name for name in ("model.gguf", "model.pte")}
    evaluation = run(
        evaluate,
        replace(EVALUATE, labels=tuple(models), needle_seed=EVALUATE.needle_seed + seed),
        models=list(models.values()),
        corpus=corpus,
    )
    speed = run(
        bench,
        BenchConfig(name="speed", contexts=(128, LONG_WINDOW)),
        models=[int4, models["model.gguf"], models["model.pte"]],
    )
    made += [teacher, theta, long, *specialists, merged, chat, ptq, int4, files]
    return run(
        report,
        ReportConfig(
            name="report",
            title="pocketlm: from raw text to a 4-bit model that reasons",
            goals=GOALS,
            claims=CLAIMS,
        ),
        stages=[corpus, mix, *made, speed],
        evaluation=evaluation,
    )
