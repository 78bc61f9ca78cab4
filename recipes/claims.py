"""Claims of MobileLLM-R1 and MobileLLM-Pro, each tested beside its controls at a size that anybody
can repeat.

    pocketlm run recipes/claims.py
    pocketlm run recipes/claims.py --claim positional_distillation --seeds 3

A claim is a function: it trains its arms once for each seed, evaluates them, and leaves the verdict
to conditions that were written before the runs (the Goal lists below). A condition is shown where
the whole 90 % interval of its mean over the seeds meets it, refuted where none of it does, unclear
otherwise. The page is claims.md in the folder of the last stage.
"""

from dataclasses import replace
from functools import cache

from pocketlm.corpus.sources import (
    FactSource,
    LanguageReferenceSource,
    ProblemSource,
    RecallSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.model.transformer import ModelConfig
from pocketlm.report.goals import Goal
from pocketlm.stages.claims_page import ClaimsPageConfig, claims_page
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.judge import JudgeConfig, judge
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.train.losses import Distillation
from pocketlm.train.optim import OptimConfig

FAMILIES = (
    "chain_sum",
    "leg_counting",
    "simple_equations",
    "complex_arithmetic",
    "simple_geometry",
)

# ---- Pro, section 5: implicit positional distillation ----

WINDOW, LONG, TRAINED_LONG = 256, 1024, 1280
# A small window of local attention, dense facts and a low RoPE base make looking up learnable in
# two million tokens, and make the base fail beyond its window, so that there is something to show.
LOOK_UP = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=1_000.0,
    qk_norm_weight=True,
    layer_types=("sliding_attention", "full_attention", "full_attention"),
    sliding_window=4,
    initializer_range=0.08,
)


def facts(name: str, seed: int, count: int, facts_range, gap_words, chars: int, num_names=None):
    return FactSource(
        name=name,
        domain="knowledge",
        seed=seed,
        count=count,
        facts_range=facts_range,
        gap_words=gap_words,
        chars=chars,
        num_names=num_names,
    )


FACTS = CurateConfig(
    name="facts",
    sources=(
        # rows of 64, 128 and 256 tokens: the facts alone, then with more and more text between
        facts("facts-64", 1, 9_000, (3, 5), (0,), 100),
        facts("facts-128", 2, 2_500, (2, 6), (0, 2, 4, 8), 215),
        facts("facts-256", 3, 8_000, (2, 8), (2, 4, 7, 14, 28), 490),
        # the teacher's long documents, and the student's short ones: there names come again
        facts("facts-long", 4, 900, (4, 24), (20,), 2_900),
        facts("facts-short", 5, 14_000, (2, 5), (4,), 110, num_names=80),
        LanguageReferenceSource(name="reference", domain="knowledge"),
    ),
    vocab_size=LOOK_UP.vocab_size,
    suites=(),
    validation_share=0.02,
    probe_share=0.0,
)
MUON = OptimConfig(lr=1e-2, num_steps=100, warmup_steps=10, final_lr_share=1.0, optimizer="muon")
TO_ZERO = replace(MUON, final_lr_share=0.0)
# 4,096 tokens a step in each phase: the rows get longer, the loss is never taken across documents
LOOK_UP_PHASES = (
    (64, 64, "facts-64", 125),
    (128, 32, "facts-128", 50),
    (256, 16, "facts-256", 450),
)
EXTEND = ExtendConfig(
    name="extend",
    optim=TO_ZERO,
    seq_len=TRAINED_LONG,  # in packed rows the longest distances are rare: train beyond the claim
    rows_per_step=3,
    micro_batch_size=3,
    seed=0,
    rope_theta_factor=4.0,
    shares={"facts-short": 1.0},
)
NEEDLES = EvaluateConfig(
    name="needles",
    suites=(),
    needle="fact",
    distractors=4,
    needle_tokens=(WINDOW, LONG),
    needle_trials=200,
    haystack=("reference",),
    bits_tokens=4_000,
    bits_window=WINDOW,
)
IPD_ARMS = {
    "base": "phase 1: windows of 256, RoPE theta 1,000",
    "teacher": "the base trained on at theta x 10, on long documents, by labels",
    "theta": "control: the base at theta x 4, nothing trained",
    "theta-10": "control: the base at theta x 10, nothing trained",
    "ipd": "IPD: theta x 4, the teacher's distribution on packed short documents",
    "labels": "control: theta x 4, labels of the same packed short documents",
    "masked": "control: IPD, documents masked from one another",
}


def positional_distillation(run, seeds, steps, shared):
    def needle(text, arm, tokens, compared_to=None, **limit):
        measure = f"needle {tokens}"
        return Goal(text=text, model=arm, measure=measure, compared_to=compared_to, **limit)

    config = JudgeConfig(
        name="positional-distillation",
        claim="Implicit positional distillation carries look-up to four times the window, from "
        "short documents alone.",
        source="MobileLLM-Pro, section 5",
        parts=(
            needle("the base finds facts in its window", "base", WINDOW, at_least=0.9),
            needle("it does not beyond", "base", LONG, at_most=0.4),
            needle("IPD finds them at 4 x the window", "ipd", LONG, at_least=0.9),
            needle("more than theta alone", "ipd", LONG, "theta", at_least=0.1),
            needle("more than labels", "ipd", LONG, "labels", at_least=0.1),
            needle("documents must see each other", "ipd", LONG, "masked", at_least=0.1),
            needle("the short window stays", "ipd", WINDOW, "base", at_least=-0.03),
        ),
        arms=IPD_ARMS,
        measures=(f"needle {LONG}", f"needle {WINDOW}", "bits knowledge"),
        note="The task is easier than a needle in running text: a fact is six tokens, names are "
        "two syllables of one token each, four other facts distract. The teacher is the base's own "
        "continuation, not a larger model. Theta alone is a control that the paper lacks.",
    )
    corpus = run(curate, FACTS)
    evaluations = []
    for seed in seeds:
        model = None
        for seq_len, rows, source, count in LOOK_UP_PHASES:
            last = source == "facts-256"
            phase = PretrainConfig(
                name=f"look-up-{seq_len}-{seed}",
                model=LOOK_UP if model is None else None,
                optim=steps(replace(MUON, final_lr_share=0.1 if last else 1.0), count),
                seq_len=seq_len,
                rows_per_step=rows,
                micro_batch_size=rows,
                shares={source: 1.0},
                separate_documents=True,
                seed=seed,
            )
            model = run(pretrain, phase, corpus=corpus, **({"model": model} if model else {}))
        base = model
        extend = replace(EXTEND, seed=seed, optim=steps(EXTEND.optim, 200))
        teacher = run(
            extend_context,
            replace(
                extend,
                name=f"teacher-{seed}",
                optim=steps(replace(TO_ZERO, lr=6e-3), 100),
                rope_theta_factor=10.0,
                shares={"facts-long": 1.0},
            ),
            corpus=corpus,
            model=base,
        )
        theta, theta_10 = (
            run(
                extend_context,
                replace(extend, name=name, optim=None, shares=None, rope_theta_factor=factor),
                corpus=corpus,
                model=base,
            )
            for name, factor in ((f"theta-{seed}", 4.0), (f"theta-10-{seed}", 10.0))
        )
        ipd, masked = (
            run(
                extend_context,
                replace(extend, name=f"{name}-{seed}", separate_documents=name == "masked"),
                corpus=corpus,
                model=base,
                teacher=teacher,
            )
            for name in ("ipd", "masked")
        )
        labels = run(
            extend_context, replace(extend, name=f"labels-{seed}"), corpus=corpus, model=base
        )
        evaluations.append(
            run(
                evaluate,
                replace(NEEDLES, name=f"needles-{seed}", labels=tuple(IPD_ARMS), needle_seed=seed),
                models=[base, teacher, theta, theta_10, ipd, labels, masked],
                corpus=corpus,
            )
        )
    return run(judge, config, evaluations=evaluations)


# ---- distillation, deep and thin, the order of fine-tuning ----

TEXT = CurateConfig(
    name="text",
    sources=(
        ProblemSource(name="problems", domain="maths", families=FAMILIES, count=30_000, seed=1),
        RecallSource(name="recall", domain="knowledge", count=4_000, seed=3, pairs_range=(1, 3)),
        LanguageReferenceSource(name="reference", domain="knowledge"),
        StdlibDocstringsSource(name="docstrings", domain="knowledge", max_bytes=1_000_000),
        StdlibCodeSource(name="code", domain="code", max_bytes=2_000_000, split_code=True),
    ),
    vocab_size=1024,
    suites=("pocket",),
    validation_share=0.03,
    probe_share=0.0,
)
SHARES = {"problems": 0.4, "reference": 0.15, "docstrings": 0.15, "code": 0.3}
SMALL = replace(
    LOOK_UP,
    num_hidden_layers=6,
    rope_theta=10_000.0,
    layer_types=ModelConfig.local_global(6, every=3),
    sliding_window=64,
)
LARGER = replace(
    SMALL, hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=3
)
PHASE = PretrainConfig(
    name="phase",
    optim=replace(MUON, lr=2e-2, final_lr_share=0.1),
    seq_len=WINDOW,
    rows_per_step=8,
    micro_batch_size=8,
    shares=SHARES,
    seed=0,
)
HELD_OUT = EvaluateConfig(
    name="held-out", suites=(), bits_tokens=12_000, bits_window=WINDOW, speed_tokens=64
)
DOMAINS = ("bits mean", "bits maths", "bits knowledge", "bits code")


class Shared:
    """What several claims begin with: one corpus, and of each seed one small model."""

    def __init__(self, run, steps):
        self.text = cache(lambda: run(curate, TEXT))

        @cache
        def base(seed):
            optim = steps(PHASE.optim, 200)
            phase = replace(PHASE, name=f"base-{seed}", model=SMALL, optim=optim, seed=seed)
            return run(pretrain, phase, corpus=self.text())

        self.base = base


def at_most(text, arm, compared_to, limit=0.0):
    return Goal(text=text, model=arm, compared_to=compared_to, measure="bits mean", at_most=limit)


def distillation(run, seeds, steps, shared):
    arms = {
        "base": "200 steps by labels",
        "teacher": "a larger network, 400 steps by labels",
        "labels": "the base, 100 steps more by labels",
        "kd": "the same steps by the teacher's distribution",
        "mixed": "half of each loss",
        "self": "control: the base is its own teacher",
        "longer": "control: labels for the operations that kd takes, 180 steps",
    }
    config = JudgeConfig(
        name="distillation",
        claim="In mid-training a teacher's distribution teaches more than labels.",
        source="MobileLLM-R1, section 6; MobileLLM-Pro, section on distillation",
        parts=(
            at_most("less loss than labels in as many tokens", "kd", "labels"),
            at_most("less loss than labels in as many operations", "kd", "longer"),
            at_most("it is the teacher, not its softness", "kd", "self"),
            at_most("the teacher is the better model", "teacher", "labels"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="Bits per byte of held-out text of the training sources. One teacher for all seeds.",
    )
    corpus = shared.text()
    wide = replace(PHASE, name="larger", model=LARGER, optim=steps(PHASE.optim, 400), seed=1)
    teacher = run(pretrain, wide, corpus=corpus)
    evaluations = []
    for seed in seeds:
        base = shared.base(seed)
        # R1 goes on at nine tenths of the rate at which pre-training ended
        fade = replace(MUON, lr=1.8e-3, warmup_steps=0, final_lr_share=0.0)
        models = {"base": base, "teacher": teacher}
        for arm, count, teachers, share in (
            ("labels", 100, {}, 0.0),
            ("kd", 100, {"teacher": teacher}, 0.0),
            ("mixed", 100, {"teacher": teacher}, 0.5),
            ("self", 100, {"teacher": base}, 0.0),
            ("longer", 180, {}, 0.0),
        ):
            on = replace(
                PHASE,
                name=f"after-{arm}-{seed}",
                optim=steps(fade, count),
                seed=seed,
                distillation=Distillation(label_share=share),
            )
            models[arm] = run(pretrain, on, corpus=corpus, model=base, **teachers)
        evaluations.append(compared(run, f"distilled-{seed}", models, arms, corpus))
    return run(judge, config, evaluations=evaluations)


def compared(run, name, models, arms, corpus, config=HELD_OUT):
    labelled = replace(config, name=name, labels=tuple(arms))
    return run(evaluate, labelled, models=[models[arm] for arm in arms], corpus=corpus)


# equal parameters to 3 %: layers, width, inner width, heads, heads of keys and values
DEPTHS = {"thin": (12, 96, 272, 3, 1), "middle": (6, 128, 384, 4, 2), "wide": (3, 192, 470, 6, 3)}


def deep_and_thin(run, seeds, steps, shared):
    arms = {"thin": "12 layers of 96", "middle": "6 layers of 128", "wide": "3 layers of 192"}
    config = JudgeConfig(
        name="deep-and-thin",
        claim="Of networks of one size, deep and thin ones learn more than shallow and wide ones.",
        source="MobileLLM (2024), section 2",
        parts=(
            at_most("twelve layers beat three", "thin", "wide"),
            at_most("twelve layers beat six", "thin", "middle"),
            at_most("six layers beat three", "middle", "wide"),
        ),
        arms=arms,
        measures=(*DOMAINS, "tokens_per_second"),
        note="1.3 million parameters, 0.8 million tokens, one learning rate for all three. Tokens "
        "per second are of decoding by the checkpoint on this machine.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        models = {}
        for arm, (layers, width, inner, heads, kv_heads) in DEPTHS.items():
            shape = replace(
                SMALL,
                num_hidden_layers=layers,
                hidden_size=width,
                intermediate_size=inner,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                layer_types=(),
                sliding_window=None,
            )
            phase = replace(PHASE, model=shape, optim=steps(PHASE.optim, 400), seed=seed)
            models[arm] = run(pretrain, replace(phase, name=f"{arm}-{seed}"), corpus=corpus)
        evaluations.append(compared(run, f"depths-{seed}", models, arms, corpus))
    return run(judge, config, evaluations=evaluations)


def fine_tuning_order(run, seeds, steps, shared):
    arms = {
        "order": "200 steps of recall, then 200 of worked problems",
        "joint": "400 steps of both together",
        "reversed": "control: 200 steps of problems, then 200 of recall",
        "problems": "control: 400 steps of problems alone",
    }

    def solved(text, compared_to):
        return Goal(text=text, model="order", compared_to=compared_to, at_least=0.0)

    config = JudgeConfig(
        name="fine-tuning-order",
        claim="General fine-tuning, then reasoning, solves more than both together.",
        source="MobileLLM-R1, table 8",
        parts=(
            solved("more than both together", "joint"),
            solved("more than the other order", "reversed"),
        ),
        arms=arms,
        measures=("accuracy",),
        note="General conversations are questions about notes here, reasoning ones are generated "
        "problems with worked solutions; as many steps in each arm.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        base = shared.base(seed)

        def tuned(name, count, sources, model, seed=seed):
            config = FinetuneConfig(
                name=f"{name}-{seed}",
                optim=steps(replace(TO_ZERO, warmup_steps=10), count),
                seq_len=WINDOW,
                rows_per_step=8,
                micro_batch_size=8,
                seed=seed,
                sources=sources,
            )
            return run(finetune, config, corpus=corpus, model=model)

        general = tuned("general", 200, ("recall",), base)
        reasoning = tuned("reasoning", 200, ("problems",), base)
        models = {
            "order": tuned("order", 200, ("problems",), general),
            "joint": tuned("joint", 400, ("recall", "problems"), base),
            "reversed": tuned("reversed", 200, ("recall",), reasoning),
            "problems": tuned("problems", 400, ("problems",), base),
        }
        solving = replace(HELD_OUT, suites=("pocket",), bits_tokens=0, batch_size=120)
        evaluations.append(compared(run, f"solved-{seed}", models, arms, corpus, solving))
    return run(judge, config, evaluations=evaluations)


CLAIMS = {
    "positional_distillation": positional_distillation,
    "distillation": distillation,
    "deep_and_thin": deep_and_thin,
    "fine_tuning_order": fine_tuning_order,
}


def recipe(run, *, claim: str = "all", seeds: int = 3, first_seed: int = 201, effort: float = 1.0):
    """claim: one of them, or all. seeds: how many runs of each arm. first_seed: of the runs; seeds
    101 to 103 were used while the settings were chosen (docs/log.md). effort: how many steps each
    training takes.
    """
    if claim not in ("all", *CLAIMS):
        raise ValueError(f"claim {claim!r} is unknown; known: all, {', '.join(CLAIMS)}")
    if seeds < 1:
        raise ValueError(f"seeds {seeds} must be at least 1; a verdict needs two")

    def steps(optim: OptimConfig, count: int) -> OptimConfig:
        count = max(2, round(count * effort))
        return replace(optim, num_steps=count, warmup_steps=min(optim.warmup_steps, count // 2))

    chosen = CLAIMS if claim == "all" else {claim: CLAIMS[claim]}
    numbers = range(first_seed, first_seed + seeds)
    shared = Shared(run, steps)
    verdicts = [function(run, numbers, steps, shared) for function in chosen.values()]
    return run(claims_page, ClaimsPageConfig(name="claims"), claims=verdicts)
