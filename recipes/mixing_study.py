"""Which way of mixing is worth its cost, on real text, with controls and the spread of seeds.

    pocketlm run recipes/mixing_study.py DATA ANSWERS --seeds 3 --effort 0.1 --out runs/mixing
    python benchmarks/mixing_study.py runs/mixing          # writes docs/results/mixing.md

DATA holds the eight corpora of SOURCES as NAME.jsonl.zst, a "text" on each line (in those of
QUESTIONS a text that is JSON, with "prompt" and "response"); ANSWERS the benchmarks' files as
`pocketlm eval --data` takes them: gsm8k_test, mbpp_test, arc_easy_test, arc_challenge_test and
mmlu_validation.

Fixed before any result was seen, and not to be changed after:

* the methods, their settings and their capabilities' weights (alike), in METHODS and below;
* what is found with proxies of 1.3M parameters is trained at 5.8M, from `--seeds` first weights and
  row orders, with twice the proxies' steps, on the very shares;
* the objective: the mean over the five answer sets of the bits per byte of the right answer, which
  is text of none of the sources (overlaps of 13 words are dropped from training text);
* two mixes differ where their means over seeds are more than two standard errors apart, with the
  deviations of all mixes pooled (pocketlm/report/spread.py); with one seed nothing is decided;
* the cost of a method is what it trained and differentiated to find its shares, in FLOPs. That of
  the comparison itself, the same for all, is not in it.

A table of all mixes is printed whatever comes out. Another method is one more row of METHODS. The
best run of a swarm is compared at the proxies' size alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketlm.corpus.sources import LocalSource
from pocketlm.data.mixing.influence import InfluenceMix
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.swarm import SwarmMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.model_config import ModelConfig
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.leave_one_out import LeaveOneOutConfig, leave_one_out
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.report import ReportConfig, report
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig

# name: (capability, MB that are read): a tenth of each corpus, so that sizes differ as they do
SOURCES = {
    "edu_science": ("knowledge", 3.9),
    "maths": ("maths", 5.1),
    "code": ("code", 13.0),
    "code_docs": ("code", 4.6),
    "reference": ("knowledge", 1.9),
    "general_books": ("knowledge", 9.0),
    "procedural": ("maths", 5.7),
    "instruct": ("knowledge", 8.1),
}
QUESTIONS = ("procedural", "instruct")
SUITES = ("bpb.gsm8k", "bpb.mbpp", "bpb.arc_easy", "bpb.arc_challenge", "bpb.mmlu")

METHODS = {
    "uniform": UniformMix(),
    "proportional": ProportionalMix(),
    "utility": UtilityMix(num_gradient_probes=10),
    "cheap influence": InfluenceMix(num_gradient_probes=5, representative_rows=32, score="adam"),
    "DataInf": InfluenceMix(num_gradient_probes=5, representative_rows=32),
    "swarm": SwarmMix(num_runs=16),
}
SELECTED = "utility"  # the mix that the report explains; nothing here trains on it alone

VOCAB_SIZE = 4096
WINDOW = 256
BATCH: dict[str, Any] = {"seq_len": WINDOW, "rows_per_step": 8, "micro_batch_size": 8}
PROXY_STEPS, VERIFIED_STEPS = 300, 600  # at effort 1: 0.6M and 1.2M tokens
SEEDS_APART = 1000

PROXY = ModelConfig(  # 1.3M parameters, of which 0.5M are the table
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=WINDOW,
    rope_theta=10_000.0,
    qk_norm_weight=True,
    initializer_range=0.08,  # about 1 / sqrt(hidden_size), as in pocket.py
)
VERIFIED = replace(  # 5.8M, 4.4 times as many
    PROXY,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    initializer_range=0.06,
)
# annealed to zero: runs that are not rank mixes otherwise
OPTIM = OptimConfig(lr=2e-2, num_steps=1, warmup_steps=0, final_lr_share=0.0, optimizer="muon")


def recipe(run, data: Path, answers: Path, *, seeds: int = 3, effort: float = 1.0):
    """Mixes found by every method at one size, and trained at four times that size.

    DATA: a folder with the eight corpora, as NAME.jsonl.zst. ANSWERS: one with the benchmarks'
    files.

    --seeds: trainings of each compared mix and of each left-out source

    --effort: of all steps; 1.0 is about six hours of two cores, 0.1 about forty minutes
    """
    if effort <= 0 or seeds < 1:
        raise ValueError(f"--effort {effort} and --seeds {seeds}: both must be above 0")

    def steps(count: int) -> OptimConfig:
        count = max(20, round(count * effort))
        return replace(OPTIM, num_steps=count, warmup_steps=count // 20)

    corpus = run(
        curate,
        CurateConfig(
            name="corpus",
            sources=tuple(
                LocalSource(
                    name=name,
                    domain=domain,
                    path=str(data / f"{name}.jsonl.zst"),
                    max_bytes=round(megabytes * 1e6),
                    # of web text: repetition alone drops two of three of these texts on maths
                    filters=(),
                    prompt_field="text.prompt" if name in QUESTIONS else None,
                    response_field="text.response" if name in QUESTIONS else None,
                )
                for name, (domain, megabytes) in SOURCES.items()
            ),
            vocab_size=VOCAB_SIZE,
            suites=SUITES,
            suites_data=str(answers),
            validation_share=0.02,
            probe_share=0.02,
        ),
    )
    small, large = steps(PROXY_STEPS), steps(VERIFIED_STEPS)
    mix = run(
        find_mix,
        MixConfig(
            name="mix",
            methods=METHODS,
            selected=SELECTED,
            proxy=PROXY,
            optim=small,
            **BATCH,
            # no source may be repeated more often than this in what is verified
            budget_tokens=large.num_steps * BATCH["rows_per_step"] * WINDOW,
            max_epochs=4.0,
            seed=21,
            validation_tokens=20_000,
            num_seeds=seeds,
        ),
        corpus=corpus,
    )
    left_out = run(
        leave_one_out,
        LeaveOneOutConfig(
            name="left-out",
            proxy=PROXY,
            optim=small,
            **BATCH,
            seed=22,
            probe_tokens=20_000,
            num_seeds=seeds,
        ),
        corpus=corpus,
        mix=mix,
    )
    verified = [
        run(
            pretrain,
            PretrainConfig(
                name=f"{name.replace(' ', '-')}-{number + 1}",
                model=VERIFIED,
                optim=large,
                **BATCH,
                seed=23 + SEEDS_APART * number,
                save=SaveConfig(every_steps=100),
            ),
            corpus=corpus,
            mix=mix / "mixes" / name,
        )
        for name in METHODS
        for number in range(seeds)
    ]
    evaluation = run(
        evaluate,
        EvaluateConfig(
            name="evaluation",
            suites=SUITES,
            data=str(answers),
            # answers of each set; the first ones, the same for all mixes
            limit=None if effort >= 1 else max(50, round(1500 * effort)),
            bits_tokens=20_000,
        ),
        models=verified,
        corpus=corpus,
    )
    return run(
        report,
        ReportConfig(name="report", title="Which mix is worth its cost"),
        stages=[corpus, mix, left_out, *verified],
        evaluation=evaluation,
    )
