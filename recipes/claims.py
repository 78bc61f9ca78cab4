"""Claims of MobileLLM-R1 and MobileLLM-Pro, each tested beside its controls at a size that anybody
can repeat.

    pocketlm run recipes/claims.py
    pocketlm run recipes/claims.py --claim positional_distillation --seeds 3
    pocketlm run recipes/claims.py --study runs/mixing      # and mixing, from a finished study
    pocketlm run recipes/claims.py --more quantization=5    # the seeds that the page asks for

A claim is a function: it trains its arms once for each seed, evaluates them, and leaves the verdict
to conditions that were written before the runs (the Goal lists below). A condition is shown where
the whole 90 % interval of its mean over the seeds meets it, refuted where none of it does, unclear
otherwise. The page is claims.md in the folder of the last stage.

All claims but the first learn from one corpus, with networks of 0.4M parameters, and are measured
in bits per byte of held-out text: what networks of this size solve is decided by few answers.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from pocketlm.corpus.sources import (
    FactSource,
    LanguageReferenceSource,
    ProblemSource,
    RecallSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.model.model_config import ModelConfig
from pocketlm.report.goals import Goal
from pocketlm.stages.claims_page import ClaimsPageConfig, claims_page
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.judge import JudgeConfig, judge
from pocketlm.stages.merge import MergeConfig, merge
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.stages.select import SelectConfig, select
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
    return config, evaluations


# ---- what the other claims begin with ----

SOURCES = (
    ProblemSource(name="problems", domain="maths", families=FAMILIES, count=12_000, seed=1),
    RecallSource(name="recall", domain="knowledge", count=2_000, seed=3, pairs_range=(1, 3)),
    LanguageReferenceSource(name="reference", domain="knowledge"),
    StdlibDocstringsSource(name="docstrings", domain="knowledge", max_bytes=600_000),
    StdlibCodeSource(name="code", domain="code", max_bytes=1_200_000, split_code=True),
)
TEXT = CurateConfig(
    name="text",
    sources=SOURCES,
    vocab_size=1024,
    suites=("pocket",),
    validation_share=0.08,
    probe_share=0.06,
)
KNOWLEDGE = ("recall", "reference", "docstrings")
SHARES = {"problems": 0.4, "recall": 0.1, "reference": 0.1, "docstrings": 0.1, "code": 0.3}
TINY = ModelConfig(  # 0.4M parameters
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=10_000.0,
    qk_norm_weight=True,
    initializer_range=0.1,
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
PRETRAINING = 120  # steps of 2,048 tokens
# what comes after takes steps of 1,024
GO_ON = replace(PHASE, rows_per_step=4, micro_batch_size=4)
# R1 goes on at nine tenths of the rate at which pre-training ended, to zero
MID, MID_STEPS = replace(MUON, lr=1.8e-3, warmup_steps=0, final_lr_share=0.0), 40
# the anneals to zero that specialists and what is quantized come from
ANNEAL = replace(MID, lr=4e-3)
ANNEALED = 40
HELD_OUT = EvaluateConfig(
    name="held-out", suites=(), bits_tokens=8_000, bits_window=WINDOW, speed_tokens=64
)
DOMAINS = ("bits mean", "bits maths", "bits knowledge", "bits code")


class Shared:
    """What several claims begin with: a corpus, and of each seed a base, the same after
    mid-training by labels, and its anneal on all domains alike.
    """

    def __init__(self, run, steps):
        self.text = cache(lambda: run(curate, TEXT))

        @cache
        def base(seed):
            optim = steps(PHASE.optim, PRETRAINING)
            phase = replace(PHASE, name=f"base-{seed}", model=TINY, optim=optim, seed=seed)
            return run(pretrain, phase, corpus=self.text())

        @cache
        def mid(seed):
            phase = replace(GO_ON, name=f"mid-{seed}", optim=steps(MID, MID_STEPS), seed=seed)
            return run(pretrain, phase, corpus=self.text(), model=base(seed))

        @cache
        def annealed(seed):
            shares = {"problems": 1 / 3, "code": 1 / 3} | dict.fromkeys(KNOWLEDGE, 1 / 9)
            optim = steps(ANNEAL, 3 * ANNEALED)
            phase = replace(GO_ON, name=f"annealed-{seed}", optim=optim, shares=shares, seed=seed)
            return run(pretrain, phase, corpus=self.text(), model=base(seed))

        self.base, self.mid, self.annealed = base, mid, annealed


def at_most(text, arm, compared_to, limit=0.0, measure="bits mean"):
    return Goal(text=text, model=arm, compared_to=compared_to, measure=measure, at_most=limit)


def compared(run, name, models, arms, corpus, config=HELD_OUT):
    labelled = replace(config, name=name, labels=tuple(arms))
    return run(evaluate, labelled, models=[models[arm] for arm in arms], corpus=corpus)


# ---- both papers: distillation ----

TEACHER = replace(TINY, num_hidden_layers=6, hidden_size=128, intermediate_size=384)


def distillation(run, seeds, steps, shared):
    arms = {
        "base": "120 steps by labels",
        "teacher": "a network of three times the size, 200 steps by labels",
        "weak": "the same network after 60 steps",
        "labels": "the base, 40 steps more by labels",
        "kd": "the same steps by the teacher's distribution",
        "mixed": "half of each loss",
        "kd-weak": "the same steps by the weak teacher's distribution",
        "self": "control: the base is its own teacher",
        "longer": "control: labels for the operations that kd takes, 80 steps",
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
            at_most("a better teacher teaches more", "kd", "kd-weak"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="Bits per byte of held-out text of the training sources. One pair of teachers for all "
        "seeds. A forward pass of the teacher costs what a step of the student does.",
    )
    corpus = shared.text()
    teacher, weak = (
        run(
            pretrain,
            replace(PHASE, name=name, model=TEACHER, optim=steps(PHASE.optim, count), seed=1),
            corpus=corpus,
        )
        for name, count in (("teacher", 200), ("weak-teacher", 60))
    )
    evaluations = []
    for seed in seeds:
        base = shared.base(seed)
        models = {"base": base, "teacher": teacher, "weak": weak, "labels": shared.mid(seed)}
        for arm, count, teachers, share in (
            ("kd", MID_STEPS, {"teacher": teacher}, 0.0),
            ("mixed", MID_STEPS, {"teacher": teacher}, 0.5),
            ("kd-weak", MID_STEPS, {"teacher": weak}, 0.0),
            ("self", MID_STEPS, {"teacher": base}, 0.0),
            ("longer", 2 * MID_STEPS, {}, 0.0),
        ):
            on = replace(
                GO_ON,
                name=f"after-{arm}-{seed}",
                optim=steps(MID, count),
                seed=seed,
                distillation=Distillation(label_share=share),
            )
            models[arm] = run(pretrain, on, corpus=corpus, model=base, **teachers)
        evaluations.append(compared(run, f"distilled-{seed}", models, arms, corpus))
    return config, evaluations


# ---- MobileLLM (2024): deep and thin ----

# as many parameters as TINY, to 1 %: layers, width, inner width, heads
DEPTHS = {"thin": (6, 64, 220, 2), "wide": (1, 144, 463, 4)}
SHAPES = {
    name: replace(
        TINY,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
    )
    for name, (layers, width, inner, heads) in DEPTHS.items()
}
SHAPES["plain"] = replace(TINY, use_qk_norm=False, qk_norm_weight=False)
SHAPES["shared"] = replace(SHAPES["plain"], layer_repeats=2)


def deep_and_thin(run, seeds, steps, shared):
    arms = {
        "thin": "6 layers of 64",
        "middle": "3 layers of 96",
        "wide": "1 layer of 144",
        "plain": "3 layers of 96 without QK-norm, which no file of shared blocks holds",
        "shared": "the same, each layer applied twice in a row",
    }
    config = JudgeConfig(
        name="deep-and-thin",
        claim="Of networks of one size, deep and thin ones learn more than shallow and wide ones, "
        "and one whose blocks are applied twice more than one whose are not.",
        source="MobileLLM (2024), section 2",
        parts=(
            at_most("six layers beat one", "thin", "wide"),
            at_most("six layers beat three", "thin", "middle"),
            at_most("three layers beat one", "middle", "wide"),
            at_most("blocks applied twice beat the same applied once", "shared", "plain"),
        ),
        arms=arms,
        measures=(*DOMAINS, "tokens_per_second"),
        note="0.4 million parameters, of which the table takes a sixth, a quarter and a third; "
        "0.25 million tokens, one learning rate for all three. Tokens per second are of decoding "
        "by the checkpoint on this machine, one text at a time.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        models = {"middle": shared.base(seed)}
        for arm, shape in SHAPES.items():
            phase = replace(PHASE, model=shape, optim=steps(PHASE.optim, PRETRAINING), seed=seed)
            models[arm] = run(pretrain, replace(phase, name=f"{arm}-{seed}"), corpus=corpus)
        evaluations.append(compared(run, f"depths-{seed}", models, arms, corpus))
    return config, evaluations


# ---- R1, table 8: the order of fine-tuning ----


def fine_tuning_order(run, seeds, steps, shared):
    arms = {
        "order": "40 steps of recall, then 40 of worked problems",
        "joint": "80 steps of both together, half of each",
        "reversed": "control: 40 steps of problems, then 40 of recall",
        "problems": "control: 80 steps of problems alone",
    }

    def solved(text, compared_to):
        return at_most(text, "order", compared_to, measure="bits answers")

    config = JudgeConfig(
        name="fine-tuning-order",
        claim="General fine-tuning, then reasoning, solves more than both together.",
        source="MobileLLM-R1, table 8",
        parts=(
            solved("solutions are likelier than after both together", "joint"),
            solved("solutions are likelier than after the other order", "reversed"),
        ),
        arms=arms,
        measures=("bits answers",),
        note="General conversations are questions about notes here, reasoning ones are generated "
        "problems with worked solutions; as many steps in each arm. Measured is the likelihood of "
        "360 held-out solutions, as the assistant's turn.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        base = shared.base(seed)

        def tuned(name, count, sources, model, seed=seed):
            config = FinetuneConfig(
                name=f"{name}-{seed}",
                optim=steps(replace(TO_ZERO, lr=5e-3, warmup_steps=5), count),
                seq_len=WINDOW,
                rows_per_step=4,
                micro_batch_size=4,
                seed=seed,
                conversation_shares=dict.fromkeys(sources, 1 / len(sources)),
            )
            return run(finetune, config, corpus=corpus, model=model)

        general = tuned("general", 40, ("recall",), base)
        reasoning = tuned("reasoning", 40, ("problems",), base)
        models = {
            "order": tuned("order", 40, ("problems",), general),
            "joint": tuned("joint", 80, ("recall", "problems"), base),
            "reversed": tuned("reversed", 40, ("recall",), reasoning),
            "problems": tuned("problems", 80, ("problems",), base),
        }
        likely = replace(HELD_OUT, suites=("pocket.solutions",), bits_tokens=0)
        evaluations.append(compared(run, f"solutions-{seed}", models, arms, corpus, likely))
    return config, evaluations


# ---- R1, section 6: select what helps, and weigh sources by it ----

SELECT = SelectConfig(
    name="select",
    seq_len=WINDOW,
    candidate_tokens=40_000,
    probe_rows=24,
    batch_rows=8,
    budget_tokens=MID_STEPS * 1024,
    max_epochs=4.0,
    seed=0,
    score="datainf",
    hessian_rows=16,
)


def filtering(run, seeds, steps, shared):
    arms = {
        "base": "120 steps",
        "neither": "40 steps more, all text in pre-training's shares",
        "density": "all text in shares by influence density",
        "filter": "samples of positive influence in pre-training's shares",
        "both": "R1: samples of positive influence in shares by density",
        "random": "control: as many samples of each source, any, in pre-training's shares",
        "pool": "as both, chosen from four times as many samples",
    }
    config = JudgeConfig(
        name="filtering",
        claim="In mid-training it helps to keep the samples of positive influence, and to weigh "
        "sources by the density of what is kept.",
        source="MobileLLM-R1, section 6",
        parts=(
            at_most("both together help", "both", "neither"),
            at_most("the filter beats dropping at random", "filter", "random"),
            at_most("density beats pre-training's shares", "density", "neither"),
            at_most("a larger pool to choose from helps", "pool", "both"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="The mean over domains is what the influence is computed for (a probe set of each); "
        "maths is the generated problems. All arms by labels, at nine tenths of the rate at which "
        "pre-training ended. 40,000 tokens of each source are scored, for the larger pool 160,000.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        base = shared.base(seed)
        kept, dropped, pool = (
            run(
                select,
                replace(SELECT, name=f"{name}-{seed}", seed=seed, **how),
                corpus=corpus,
                model=base,
            )
            for name, how in (
                ("kept", {"filter": "joint"}),
                ("any", {"filter": "random"}),
                ("pool", {"filter": "joint", "candidate_tokens": 4 * SELECT.candidate_tokens}),
            )
        )
        models = {"base": base, "neither": shared.mid(seed)}
        for arm, shares, inputs in (
            ("density", None, {"mix": kept}),
            ("filter", SHARES, {"selection": kept}),
            ("both", None, {"selection": kept}),
            ("random", SHARES, {"selection": dropped}),
            ("pool", None, {"selection": pool}),
        ):
            phase = replace(GO_ON, name=f"mid-{arm}-{seed}", shares=shares, seed=seed)
            phase = replace(phase, optim=steps(MID, MID_STEPS))
            models[arm] = run(pretrain, phase, corpus=corpus, model=base, **inputs)
        evaluations.append(compared(run, f"filtered-{seed}", models, arms, corpus))
    return config, evaluations


# ---- Pro, section 6: merged specialists ----

MERGE = MergeConfig(name="merge", seq_len=WINDOW, validation_rows=12, split="probe")
SPECIALISTS = {
    "maths": {"problems": 1.0},
    "code": {"code": 1.0},
    "knowledge": dict.fromkeys(KNOWLEDGE, 1 / 3),
}


def merging(run, seeds, steps, shared):
    arms = {
        "trunk": "120 steps of all text",
        **{name: f"the trunk, annealed on {name} for 40 steps" for name in SPECIALISTS},
        "uniform": "the plain average of the three",
        "merged": "Pro: their average with weights that were searched",
        "joint": "control: one anneal on all three domains, for as many tokens as all three",
    }
    config = JudgeConfig(
        name="merging",
        claim="Specialists that grew from one trunk, averaged with searched weights, are better "
        "than each of them, than the plain average, and than one anneal on all their text.",
        source="MobileLLM-Pro, section 6; the last is a control that the paper lacks",
        parts=(
            at_most("better than the trunk", "merged", "trunk"),
            *(at_most(f"better than {name} alone", "merged", name) for name in SPECIALISTS),
            at_most("better than the plain average, by 0.001", "merged", "uniform", -0.001),
            at_most("better than one anneal on all text", "merged", "joint"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="Weights are multiples of a tenth, or alike, chosen on the corpus's probe text; bits "
        "per byte are of its validation text.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        trunk = shared.base(seed)
        models = {"trunk": trunk, "joint": shared.annealed(seed)}
        for name, shares in SPECIALISTS.items():
            optim = steps(ANNEAL, ANNEALED)
            branch = replace(GO_ON, name=f"{name}-{seed}", optim=optim, shares=shares, seed=seed)
            models[name] = run(pretrain, branch, corpus=corpus, model=trunk)
        branches = [models[name] for name in SPECIALISTS]
        for name, search in (("uniform", "uniform"), ("merged", "grid")):
            how = replace(MERGE, name=f"{name}-{seed}", search=search)
            models[name] = run(merge, how, corpus=corpus, models=branches, trunk=trunk)
        evaluations.append(compared(run, f"merges-{seed}", models, arms, corpus))
    return config, evaluations


# ---- Pro, tables 15 and 16: training for few bits ----

QUANTIZE = QuantizeConfig(
    name="quantize",
    scheme="int4_channel",
    optim=MUON,
    seq_len=WINDOW,
    rows_per_step=4,
    micro_batch_size=4,
    shares=SHARES,
)
FEW_BITS = replace(MID, lr=2e-3, warmup_steps=3)
QAT_STEPS = 30


def quantization(run, seeds, steps, shared):
    arms = {
        "full": "120 steps and an anneal of 120, full precision",
        "longer": "control: full precision, 30 steps more by labels",
    }
    for bits in (4, 3):
        arms |= {
            f"ptq-{bits}": f"rounded to {bits} bits, one scale for each output channel",
            f"labels-{bits}": "30 steps of QAT by labels, ranges learned",
            f"self-{bits}": "Pro: 30 steps of QAT, taught by the full model, ranges learned",
            f"minmax-{bits}": "the same, the range of the weights at each step",
        }
    both = [(bits, f"self-{bits}") for bits in (4, 3)]
    config = JudgeConfig(
        name="quantization",
        claim="Training for few bits beats rounding; the full model as teacher beats labels; "
        "learned ranges beat those of the weights.",
        source="MobileLLM-Pro, tables 3, 15 and 16",
        parts=(
            Goal(
                text="rounding to 3 bits loses something",
                model="ptq-3",
                compared_to="full",
                measure="bits mean",
                at_least=0.02,
            ),
            *(at_most(f"QAT beats rounding, {n} bits", arm, f"ptq-{n}") for n, arm in both),
            *(at_most(f"self beats labels, {n} bits", arm, f"labels-{n}") for n, arm in both),
            *(at_most(f"learned ranges help, {n} bits", arm, f"minmax-{n}") for n, arm in both),
        ),
        arms=arms,
        measures=DOMAINS,
        note="Pro trains for int4 alone. `longer` shows what 30 more steps by labels do to the "
        "model in full precision.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        full = shared.annealed(seed)
        optim = steps(FEW_BITS, QAT_STEPS)
        longer = replace(GO_ON, name=f"longer-{seed}", optim=optim, seed=seed)
        models = {"full": full, "longer": run(pretrain, longer, corpus=corpus, model=full)}
        for bits in (4, 3):
            for arm, scheme, optimizer, share in (
                ("ptq", f"int{bits}_channel_minmax", None, 0.0),
                ("labels", f"int{bits}_channel", optim, 1.0),
                ("self", f"int{bits}_channel", optim, 0.0),
                ("minmax", f"int{bits}_channel_minmax", optim, 0.0),
            ):
                how = replace(
                    QUANTIZE,
                    name=f"{arm}-{bits}-{seed}",
                    scheme=scheme,
                    optim=optimizer,
                    seed=seed,
                    distillation=Distillation(label_share=share),
                )
                models[f"{arm}-{bits}"] = run(quantize, how, corpus=corpus, model=full)
        evaluations.append(compared(run, f"quantized-{seed}", models, arms, corpus))
    return config, evaluations


# ---- Pro, table 3: keys and values in eight bits ----

NO_COST = 0.005  # bits a byte, a third of what seeds differ by


def int8_cache(run, seeds, steps, shared):
    arms = {
        "full": "120 steps and an anneal of 120, full precision",
        "ptq": "rounded to 4 bits in groups of 32, activations to int8",
        "ptq-cache": "the same, keys and values rounded to int8 too",
        "qat": "30 steps of QAT, taught by the full model",
        "qat-cache": "Pro: the same, with keys and values in int8",
    }
    config = JudgeConfig(
        name="int8-cache",
        claim="Keys and values in int8 cost nothing beside weights of four bits, rounded or "
        "trained so.",
        source="MobileLLM-Pro, table 3; where they are rounded is not published",
        parts=(
            at_most("rounding them costs nothing", "ptq-cache", "ptq", NO_COST),
            at_most("nor where training sees it", "qat-cache", "qat", NO_COST),
            at_most("QAT beats rounding with them", "qat-cache", "ptq-cache"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="One asymmetric range for each token over all heads, after RoPE. Nothing is at most "
        f"{NO_COST} bits a byte. What a model trained without the rounding loses to it, and so "
        "whether training must see it, is not asked here; rounded models lose nothing.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        models = {"full": shared.annealed(seed)}
        for arm in list(arms)[1:]:
            how = replace(
                QUANTIZE,
                name=f"{arm}-32-{seed}",
                scheme="int4_group32_int8_cache" if arm.endswith("cache") else "int4_group32",
                optim=steps(FEW_BITS, QAT_STEPS) if arm.startswith("qat") else None,
                seed=seed,
            )
            models[arm] = run(quantize, how, corpus=corpus, model=models["full"])
        evaluations.append(compared(run, f"caches-{seed}", models, arms, corpus))
    return config, evaluations


# ---- R1, appendix B: the learning rate and RankMe ----

RATES = {"high": PHASE.optim.lr, "middle": 6e-3, "low": 2e-3}


def learning_rate(run, seeds, steps, shared):
    arms = {name: f"120 steps at {rate:g}" for name, rate in RATES.items()}
    arms |= {f"{name}-mid": "the same, and 40 steps at 1.8e-3 to zero" for name in RATES}

    def richer(arm, compared_to):
        return Goal(
            text=f"{arm} is richer than {compared_to}",
            model=arm,
            compared_to=compared_to,
            measure="rank_me",
            at_least=0.0,
        )

    config = JudgeConfig(
        name="learning-rate",
        claim="A higher rate in pre-training gives richer representations, by RankMe, and a better "
        "model after mid-training.",
        source="MobileLLM-R1, appendix B, table 12",
        parts=(
            richer("high", "middle"),
            richer("middle", "low"),
            at_most("high ends better than middle", "high-mid", "middle-mid"),
            at_most("middle ends better than low", "middle-mid", "low-mid"),
        ),
        arms=arms,
        measures=("bits mean", "rank_me", "bits maths"),
        note="Mid-training is the same for all, as in the paper. There the models hardly differ "
        "before it by MMLU; bits per byte differ here before it too.",
    )
    corpus = shared.text()
    evaluations = []
    for seed in seeds:
        models = {"high": shared.base(seed), "high-mid": shared.mid(seed)}
        for name, rate in RATES.items():
            if name in models:
                continue
            optim = steps(replace(PHASE.optim, lr=rate), PRETRAINING)
            phase = replace(PHASE, name=f"rate-{name}-{seed}", model=TINY, optim=optim, seed=seed)
            models[name] = run(pretrain, phase, corpus=corpus)
            mid = replace(GO_ON, name=f"rate-{name}-mid-{seed}", seed=seed)
            mid = replace(mid, optim=steps(MID, MID_STEPS))
            models[f"{name}-mid"] = run(pretrain, mid, corpus=corpus, model=models[name])
        ranked = replace(HELD_OUT, rank_tokens=6_000)
        evaluations.append(compared(run, f"rates-{seed}", models, arms, corpus, ranked))
    return config, evaluations


# ---- R1, table 3: two phases ----

# half of the steps each; together the shares of SHARES
GENERAL = {"problems": 0.1, "recall": 0.1, "reference": 0.18, "docstrings": 0.18, "code": 0.44}
REASONING = {name: round(2 * share - GENERAL[name], 3) for name, share in SHARES.items()}


def phases(run, seeds, steps, shared):
    arms = {
        "mixed": "120 steps, all text in the same shares from first to last",
        "halves": "control: the same shares, the optimizer begun anew after 60 steps as in phases",
        "phases": "R1: 60 steps with a tenth of problems, then 60 with seven tenths",
        "reversed": "control: the second half first",
    }
    config = JudgeConfig(
        name="phases",
        claim="Reasoning text in a second phase teaches more than the same text from the beginning "
        "on.",
        source="MobileLLM-R1, table 3: phase 2 weighs maths and code up; not compared there",
        parts=(
            at_most("two phases beat one, all text", "phases", "halves"),
            at_most("two phases beat one, problems", "phases", "halves", measure="bits maths"),
            at_most("the order matters", "phases", "reversed"),
        ),
        arms=arms,
        measures=DOMAINS,
        note="As many tokens of each source in every arm, one learning-rate schedule over both "
        "halves: the rate of the second begins where that of the first ends. The optimizer's "
        "momentum begins anew there, in every arm but `mixed`. (`halves` was added, and made the "
        "control, after `phases` had been compared with `mixed`.)",
    )
    corpus = shared.text()
    half = PRETRAINING // 2
    middle = (1 + PHASE.optim.final_lr_share) / 2  # of the peak: where one linear decay stands
    evaluations = []
    for seed in seeds:
        models = {"mixed": shared.base(seed)}
        for arm, order in (
            ("halves", (SHARES, SHARES)),
            ("phases", (GENERAL, REASONING)),
            ("reversed", (REASONING, GENERAL)),
        ):
            first = steps(replace(PHASE.optim, final_lr_share=middle), half)
            second = replace(
                PHASE.optim,
                lr=PHASE.optim.lr * middle,
                warmup_steps=0,
                final_lr_share=PHASE.optim.final_lr_share / middle,
            )
            model = run(
                pretrain,
                replace(
                    PHASE,
                    name=f"{arm}-1-{seed}",
                    model=TINY,
                    optim=first,
                    shares=order[0],
                    seed=seed,
                ),
                corpus=corpus,
            )
            models[arm] = run(
                pretrain,
                replace(
                    PHASE,
                    name=f"{arm}-2-{seed}",
                    optim=steps(second, half),
                    shares=order[1],
                    seed=seed + 1000,  # other rows than those of the first half
                ),
                corpus=corpus,
                model=model,
            )
        evaluations.append(compared(run, f"phased-{seed}", models, arms, corpus))
    return config, evaluations


# ---- R1, table 3: text that comes again ----

PASSES = (1, 4, 16, 50)
REPEATED_STEPS = 120
PROBLEMS = 850  # of 70 tokens: half of a training, and what is held out
REPEATED = CurateConfig(
    name="repeated",
    sources=(
        # the fewest first: a problem that is drawn again belongs to the first source that has it
        *(
            ProblemSource(
                name=f"problems-{passes}",
                domain="maths",
                families=FAMILIES,
                count=PROBLEMS // passes,
                seed=10 + passes,
            )
            for passes in reversed(PASSES)
        ),
        *SOURCES[2:],
    ),
    vocab_size=1024,
    validation_share=0.08,
    probe_share=0.0,
)


def repetition(run, seeds, steps, shared):
    arms = {
        f"{passes}-times": f"about {PROBLEMS // passes} problems, read {passes} times"
        for passes in PASSES
    }
    config = JudgeConfig(
        name="repetition",
        claim="A small source of mathematics can come again some fifty times at no cost.",
        source="MobileLLM-R1, table 3: OpenWebMath is read about 50 times; not discussed there",
        parts=tuple(
            at_most(
                f"read {passes} times, it costs at most 0.02 bits",
                f"{passes}-times",
                "1-times",
                limit=0.02,
                measure="bits maths",
            )
            for passes in PASSES[1:]
        ),
        arms=arms,
        measures=("bits maths", "bits mean"),
        note="Half of all tokens are generated problems, the rest is the same for all arms. "
        "Problems of five families are easier to generalise from than text of the web.",
    )
    corpus = run(curate, REPEATED)
    evaluations = []
    for seed in seeds:
        models = {}
        for passes in PASSES:
            shares = {f"problems-{passes}": 0.5, "reference": 0.1, "docstrings": 0.1, "code": 0.3}
            optim = steps(PHASE.optim, REPEATED_STEPS)
            phase = replace(GO_ON, name=f"{passes}-times-{seed}", model=TINY, optim=optim)
            phase = replace(phase, shares=shares, seed=seed)
            models[f"{passes}-times"] = run(pretrain, phase, corpus=corpus)
        evaluations.append(compared(run, f"repeats-{seed}", models, arms, corpus))
    return config, evaluations


# ---- mixing: from a finished run of recipes/mixing_study.py ----

FOUND = ("utility", "cheap-influence", "DataInf", "swarm")


def mixing(study: Path):
    """What is judged of a finished study of mixes, whose seeds stand in one evaluation."""
    arms = {
        "proportional": "control: shares by size",
        "uniform": "control: equal shares",
        "utility": "Pro's mixer, repaired",
        "cheap-influence": "R1's densities by a product of gradients",
        "DataInf": "R1's densities as it has them",
        "swarm": "a law over 16 proxies",
    }
    config = JudgeConfig(
        name="found-mixes",
        claim="Shares that were found beat shares proportional to size.",
        source="MobileLLM-R1, section 5; MobileLLM-Pro, section 5; the study: "
        "recipes/mixing_study.py",
        parts=tuple(
            at_most(f"{name} beats proportional", name, "proportional", measure="bits answers")
            for name in FOUND
        ),
        arms=arms,
        measures=("bits answers",),
        note="On real text: see mixing.md, whose own rule pools the deviations of all mixes. Time "
        "is that of the whole study.",
        numbered=True,
    )
    if not (study / "evaluation" / "evaluation.json").is_file():
        raise FileNotFoundError(
            f"--study {study} holds no evaluation; finish it first: pocketlm run "
            f"recipes/mixing_study.py DATA ANSWERS --out {study}"
        )
    return config, [study / "evaluation"], sorted(study.glob("*/stage.json"))


CLAIMS = {
    "positional_distillation": positional_distillation,
    "distillation": distillation,
    "deep_and_thin": deep_and_thin,
    "fine_tuning_order": fine_tuning_order,
    "filtering": filtering,
    "merging": merging,
    "quantization": quantization,
    "int8_cache": int8_cache,
    "learning_rate": learning_rate,
    "phases": phases,
    "repetition": repetition,
}


def numbers_by_claim(text: str, claims: list[str]) -> dict[str, int]:
    """Of "NAME=NUMBER,NAME=NUMBER" the numbers by name."""
    numbers = {}
    for entry in filter(None, text.split(",")):
        name, equals, number = entry.partition("=")
        if name not in claims or not equals or not number.isdecimal():
            raise ValueError(
                f"--more {entry!r}: give NAME=NUMBER, of the claims that run: {', '.join(claims)}"
            )
        numbers[name] = int(number)
    return numbers


def recipe(
    run,
    *,
    claim: str = "all",
    seeds: int = 3,
    more: str = "",
    first_seed: int = 201,
    effort: float = 1.0,
    study: Path | None = None,
):
    """claim: one of them, or several with commas between, or all.

    --study: a finished run of recipes/mixing_study.py, from which mixing is judged too

    seeds: how many runs of each arm. more: other numbers for claims that the page says more seeds
    would decide, as "quantization=9,positional_distillation=7". first_seed: of the runs; seeds 101
    to 103 were used while the settings were chosen (docs/log.md). effort: how many steps each
    training takes.
    """
    chosen = list(CLAIMS) if claim == "all" else claim.split(",")
    if unknown := [name for name in chosen if name not in CLAIMS]:
        raise ValueError(
            f"claim {', '.join(map(repr, unknown))} is unknown; known: all, {', '.join(CLAIMS)}"
        )
    counts = dict.fromkeys(chosen, seeds) | numbers_by_claim(more, chosen)
    if min(counts.values()) < 1:
        raise ValueError(f"seeds {min(counts.values())} must be at least 1; a verdict needs two")

    def steps(optim: OptimConfig, count: int) -> OptimConfig:
        count = max(2, round(count * effort))
        return replace(optim, num_steps=count, warmup_steps=min(optim.warmup_steps, count // 2))

    shared = Shared(run, steps)
    verdicts = []
    for name in chosen:
        records: list[Path] = []

        def recorded(stage, config, records=records, **inputs):
            folder = run(stage, config, **inputs)
            records.append(folder / "stage.json")
            return folder

        numbers = range(first_seed, first_seed + counts[name])
        config, evaluations = CLAIMS[name](recorded, numbers, steps, shared)
        verdicts.append(run(judge, config, evaluations=evaluations, records=records))
    if study is not None:
        config, evaluations, records = mixing(study)
        verdicts.append(run(judge, config, evaluations=evaluations, records=records))
    return run(claims_page, ClaimsPageConfig(name="claims"), claims=verdicts)
