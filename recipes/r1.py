"""MobileLLM-R1 140M, 360M and 950M as published: arXiv 2509.24945 and the README of its repository.

Every figure below carries its table. Where the paper is silent, "not found" says so and what was
chosen. The recipe is a reference that can be read, printed (`--dry-run`) and cut down with `--set`;
as it stands it asks for 4.4 trillion tokens and a cluster (table 2: 16 x 8 GPUs for about two
weeks). Some hub datasets are gated or hold no text. Dataset ids are the README's; their configs,
splits and fields were written down without opening each on the hub.
"""

from dataclasses import replace
from pathlib import Path

from pocketlm.corpus.join import Join
from pocketlm.corpus.sources import HubSource
from pocketlm.data.mixing.given import GivenMix
from pocketlm.data.mixing.influence import InfluenceMix
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.model.presets import PRESETS
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.leave_one_out import LeaveOneOutConfig, leave_one_out
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.probes import ProbeConfig, build_probes
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.stages.reinforce import ReinforceConfig, reinforce
from pocketlm.stages.select import SelectConfig, select
from pocketlm.stages.vocabulary import VocabularyConfig, check_vocabulary
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.losses import Distillation
from pocketlm.train.optim import OptimConfig

SHAPES = {size: PRESETS[f"r1-{size}"] for size in ("140m", "360m", "950m")}

# ---- data ----

# Public sets as they are: filters or deduplication of the raw data are not found.
CODE = HubSource(name="starcoder", domain="code", dataset="bigcode/starcoderdata", split="train")
AS_IT_IS = replace(CODE, filters=(), near_dedup=False)


def hub(name: str, domain: str, dataset: str, **how) -> HubSource:
    """A row of a Hugging Face dataset, unfiltered."""
    return replace(AS_IT_IS, name=name, domain=domain, dataset=dataset, **how)


STARCODER = replace(AS_IT_IS, text_field="content")
DOLMINO = "allenai/dolmino-mix-1124"
POST_TRAINING = "nvidia/Llama-Nemotron-Post-Training-Dataset"
# how they were rendered: not found
CHAT_ROWS = {"prompt_field": "input.0.content", "response_field": "output"}
NATURAL_ROWS = {"prompt_field": "question", "response_field": "responses.0.response"}  # likewise
COSMOPEDIA_ROWS = {  # its eight parts; together the 31,064,744 rows of R1, table 3
    "auto_math_text": 1_949_895,
    "khanacademy": 24_123,
    "openstax": 126_332,
    "stanford": 1_020_024,
    "stories": 4_992_964,
    "web_samples_v1": 12_426_348,
    "web_samples_v2": 10_345_867,
    "wikihow": 179_191,
}
RED_PAJAMA = "togethercomputer/RedPajama-Data-1T"
# Three sets come with loading scripts, which `datasets` no longer runs: this revision is the hub's
# own parquet copy of them. It may be partial; a LocalSource reads the full files once fetched.
COPY = "refs/convert/parquet"
PARQUET = {"revision": COPY, "text_field": "text"}
PRETRAINING = (  # R1, table 3
    STARCODER,
    hub("openwebmath", "maths", "open-web-math/open-web-math", text_field="text"),
    hub("fineweb-edu", "knowledge", "HuggingFaceFW/fineweb-edu", text_field="text"),
    hub("wiki", "knowledge", DOLMINO, config="wiki", text_field="text"),
    hub("arxiv", "knowledge", RED_PAJAMA, config="arxiv", **PARQUET),
    hub("stackexchange", "code", RED_PAJAMA, config="stackexchange", **PARQUET),
    hub("algebraic-stack", "maths", "EleutherAI/proof-pile-2", config="algebraic-stack", **PARQUET),
    # R1 names the files science.jsonl, code_v1.1.jsonl and math_v1.1.jsonl of these splits
    hub("nemotron-science", "knowledge", POST_TRAINING, config="SFT", split="science", **CHAT_ROWS),
    hub("nemotron-code", "code", POST_TRAINING, config="SFT", split="code", **CHAT_ROWS),
    hub("nemotron-math", "maths", POST_TRAINING, config="SFT", split="math", **CHAT_ROWS),
    *(
        hub(
            f"cosmopedia-{part}",
            "knowledge",
            "HuggingFaceTB/cosmopedia",
            config=part,
            text_field="text",
        )
        for part in COSMOPEDIA_ROWS
    ),
    hub("natural-reasoning", "knowledge", "facebook/natural_reasoning", **NATURAL_ROWS),
    hub("finemath", "maths", "HuggingFaceTB/finemath", config="finemath-3plus", text_field="text"),
    # the same 38.8M rows as allenai/peS2o
    hub("pes2o", "knowledge", DOLMINO, config="pes2o", text_field="text"),
)
PHASE1 = {  # R1, table 3: percent
    "starcoder": 10.66,
    "openwebmath": 6.93,
    "fineweb-edu": 63.75,
    "wiki": 5.03,
    "arxiv": 6.36,
    "stackexchange": 5.03,
    "algebraic-stack": 2.25,
}
COSMOPEDIA = 2.70  # R1, table 3: percent; divided by the rows of its parts
PHASE2 = {  # R1, table 3: percent
    "starcoder": 0.52,
    "openwebmath": 23.33,
    "fineweb-edu": 54.83,
    "wiki": 0.14,
    "arxiv": 1.32,
    "stackexchange": 0.86,
    "algebraic-stack": 1.26,
    "nemotron-science": 0.03,
    "nemotron-code": 0.72,
    "nemotron-math": 3.01,
    "natural-reasoning": 3.18,
    "finemath": 8.01,
    "pes2o": 0.08,
    **{
        f"cosmopedia-{part}": COSMOPEDIA * rows / sum(COSMOPEDIA_ROWS.values())
        for part, rows in COSMOPEDIA_ROWS.items()
    },
}

# R1, section 5.1.1: which sets show which capability; these three show all
ALL_THREE = (*(f"cosmopedia-{part}" for part in COSMOPEDIA_ROWS), "natural-reasoning", "pes2o")
PROBES = ProbeConfig(
    name="probes",
    membership={
        "code": ("starcoder", "stackexchange", "nemotron-code", *ALL_THREE),
        "maths": ("openwebmath", "finemath", "algebraic-stack", "nemotron-math", *ALL_THREE),
        "knowledge": ("fineweb-edu", "wiki", "arxiv", "nemotron-science", *ALL_THREE),
    },
    # R1: above 4. How code and maths, which it does not know, reach that is not found
    scorer="HuggingFaceFW/fineweb-edu-classifier",
    min_quality=4.0,
    # which model is asked, and how, is not found: the teacher, and prompts of ours
    top_share=0.10,  # R1
    # what embeds and how near is near: not found
    examples_per_source=10_000,  # R1: about 10,000 of each set
    seed=6,
)

# Train splits of benchmarks, 0.97 % of the second mid-training mix: scores on these benchmarks are
# in-domain scores. Of the eight (TriviaQA, OBQA, NQ, PIQA, GSM8K, BoolQ, ARC-e, ARC-c) only these
# three are questions with a written answer; how the multiple-choice ones were put into words is not
# found, so they are left out.
ASKED = {"prompt_field": "question"}
BENCHMARKS = (
    hub(
        "triviaqa",
        "knowledge",
        "mandarjoshi/trivia_qa",
        config="rc",
        response_field="answer.value",
        **ASKED,
    ),
    hub(
        "nq-open",
        "knowledge",
        "google-research-datasets/nq_open",
        response_field="answer.0",
        **ASKED,
    ),
    hub("gsm8k", "maths", "openai/gsm8k", config="main", response_field="answer", **ASKED),
)
MIDTRAINING = (  # R1, table 4
    hub("dclm", "knowledge", DOLMINO, config="dclm", text_field="text"),
    hub("flan", "knowledge", DOLMINO, config="flan", text_field="text"),
    hub("pes2o", "knowledge", DOLMINO, config="pes2o", text_field="text"),
    hub("wiki", "knowledge", DOLMINO, config="wiki", text_field="text"),
    hub("stackexchange", "code", DOLMINO, config="stackexchange", text_field="text"),
    hub("math", "maths", DOLMINO, config="math", text_field="text"),
    # Most rows of this set are addresses of GitHub files without their text; the part with text is
    # the synthetic one.
    hub(
        "nemotron-code",
        "code",
        "nvidia/Nemotron-Pretraining-Code-v1",
        config="Synthetic-Code",
        text_field="text",
    ),
    # The paper's 144M rows are more than this part, the best-scored; which parts were taken is not
    # found.
    hub(
        "nemotron-cc-math", "maths", "nvidia/Nemotron-CC-Math-v1", config="4plus", text_field="text"
    ),
    STARCODER,
    *BENCHMARKS,
)
MID1 = {  # R1, table 4: percent, after sub-sampling
    "dclm": 37.03,
    "flan": 4.10,
    "pes2o": 11.41,
    "wiki": 2.66,
    "stackexchange": 2.12,
    "math": 11.63,
    "nemotron-code": 20.69,
    "nemotron-cc-math": 3.45,
    "starcoder": 6.90,
}
MID2 = {  # R1, table 4
    "dclm": 6.51,
    "flan": 0.72,
    "pes2o": 2.01,
    "wiki": 0.47,
    "stackexchange": 2.00,
    "math": 29.10,
    "nemotron-code": 29.10,
    "nemotron-cc-math": 19.40,
    "starcoder": 9.70,
    # shares inside the 0.97 %: not found
    **{source.name: 0.97 / len(BENCHMARKS) for source in BENCHMARKS},
}

GENERAL = (hub("tulu3", "knowledge", "allenai/tulu-3-sft-olmo-2-mixture-0225"),)  # R1, table 5
SOLUTIONS = {"split": "cot", "prompt_field": "problem", "response_field": "generated_solution"}
# Its questions stand in these sets; its own rows hold "-" in their place (its card)
QUESTIONS = (
    Join(name="taco", dataset="BAAI/TACO", fields=("question",), config="ALL", revision=COPY),
    Join(name="apps", dataset="codeparrot/apps", fields=("question",), config="all", revision=COPY),
    Join(name="code_contests", dataset="deepmind/code_contests", fields=("description",)),
    Join(
        name="open-r1/codeforces",
        dataset="open-r1/codeforces",
        fields=("description", "input_format", "output_format", "note"),
    ),
)
PROGRAMS = {"prompt_field": "question", "response_field": "r1_generation", "joins": QUESTIONS}
REASONING = (  # R1, table 5; the script asks its user to make chats of the rows
    hub("openmath", "maths", "nvidia/OpenMathReasoning", **SOLUTIONS),
    hub(
        "openscience",
        "knowledge",
        "nvidia/OpenScienceReasoning-2",
        prompt_field="input",
        response_field="output",
    ),
    hub("opencode-python", "code", "nvidia/OpenCodeReasoning-2", split="python", **PROGRAMS),
    hub("opencode-cpp", "code", "nvidia/OpenCodeReasoning-2", split="cpp", **PROGRAMS),
)

CORPUS = CurateConfig(  # a row to vary
    name="corpus",
    sources=PRETRAINING,
    tokenizer="Llama-3.2-1B",
    # 32,768 tokens: section 7.1 uses chains of thought in full. Longer texts are cut
    max_chars=150_000,
    validation_share=0.0,
    probe_share=0.0,
)
# For validation, and for probes, of each set of pre-training; not found. To find a mix, maths (the
# fewest tokens, 40B and more) must have 1M to choose by and as many to report on; and two top
# tenths of what scores well are little, so that one document in a hundred is a candidate for probes
HELD_OUT = {"published": (1e-5, 1e-5), "found": (1e-4, 1e-2)}

# ---- training ----

GPUS = 128  # R1, table 2: 16 x 8; batch sizes there are for each GPU

PRETRAIN = PretrainConfig(
    name="pretrain",
    optim=OptimConfig(  # R1, section 3.2: Adam 0.9, 0.95, 1e-8, weight decay 0.1
        lr=4.0e-3,  # R1, table 2, for every size
        num_steps=500_000,  # R1, table 2
        # R1, section 3.2; that phase 2 warms up again is our reading: not found
        warmup_steps=2_000,
        final_lr_share=0.1,  # R1, section 3.2: linear to 10 % of the peak
    ),
    seq_len=2048,  # R1, table 2
    rows_per_step=16 * GPUS,  # R1, table 2: 16 for each GPU
    micro_batch_size=8,  # 16 at once take more than the 80 GB of an H100 in the 950M
    seed=1,  # not found
    # the repository's loader concatenates documents, cuts every seq_len tokens and masks nothing
    separate_documents=False,
    packing="concatenate",
    save=SaveConfig(every_steps=5_000),
)
MID = replace(
    PRETRAIN,
    name="mid",
    optim=OptimConfig(
        lr=3.6e-4,  # R1, table 2
        num_steps=50_000,  # R1, table 2
        warmup_steps=500,  # not found; short, because the optimizer's state starts anew
        weight_decay=0.1,  # not found; pre-training's
        final_lr_share=0.0,  # R1, section 3.2
    ),
    seq_len=4096,  # R1, table 2
    rows_per_step=4 * GPUS,  # R1, table 2
    micro_batch_size=4,
    # R1, section 3.2: KL to the teacher alone; direction and temperature not found (forward, 1)
    distillation=Distillation(),
)
SELECT = SelectConfig(  # R1, section 6: keep the samples of positive influence on the current model
    name="select",
    seq_len=4096,
    candidate_tokens=20_000_000_000,  # how much was scored: not found
    probe_rows=10_000,  # of each capability, our choice; R1, section 5.1: of each corpus
    batch_rows=4,
    budget_tokens=104_857_600_000,  # 50,000 steps x 512 rows x 4,096
    max_epochs=50.0,  # not discussed; the published mixes repeat OpenWebMath about 50 times
    seed=2,
    score="datainf",  # R1, section 5.2: "as in AutoMixer", which has DataInf and its damping of 0.1
    hessian_rows=10_000,  # R1, section 5.1: the representative samples of each corpus
)
# Figure 8: in the second round most of the influence is at or below zero, and the paper stops after
# it ("two stages suffice"). Half of the mass as the threshold, and one round more, are our reading
ROUNDS, STOP_BELOW = 3, 0.5
# Sections 5.1.2 and 5.2. Proxies of AutoMixer, whose score this is, have 350M parameters and 6.4B
# tokens; 75M did not do. R1's own sizes are not found
PROXY_OPTIM = replace(
    PRETRAIN.optim,
    lr=1.0e-3,  # 5e-4 for 256 rows, the rule of the repository
    num_steps=6_250,
    warmup_steps=125,
)
PROXY = {"proxy": SHAPES["360m"], "seq_len": 2048, "rows_per_step": 512, "micro_batch_size": 4}
MIX = MixConfig(
    name="mix",
    methods={
        "found": InfluenceMix(
            num_gradient_probes=10,  # R1, section 5.2: T
            representative_rows=10_000,  # R1, section 5.1: of each corpus
        ),
        "published": GivenMix(shares={name: part / 100 for name, part in PHASE1.items()}),
        "proportional": ProportionalMix(),
    },
    selected="found",
    optim=PROXY_OPTIM,
    **PROXY,
    budget_tokens=2_097_152_000_000,  # of a phase: 500,000 steps x 2,048 rows x 2,048
    max_epochs=50.0,  # not discussed; the published mixes repeat OpenWebMath about 50 times
    seed=7,
    validation_tokens=1_000_000,
    save=SaveConfig(every_steps=500),
)
LEFT_OUT = LeaveOneOutConfig(
    name="left-out",
    optim=PROXY_OPTIM,
    **PROXY,
    seed=8,
    probe_tokens=1_000_000,
    save=SaveConfig(every_steps=500),
)
GENERAL_SFT = FinetuneConfig(
    name="general",
    optim=OptimConfig(
        lr=5.0e-6,  # R1, table 2
        num_steps=2 * 866_000 // (4 * GPUS),  # R1, table 2: 2 epochs of 866K samples
        warmup_steps=round(0.03 * (2 * 866_000 // (4 * GPUS))),  # R1, section 3.2
        final_lr_share=0.0,  # R1, section 3.2
        weight_decay=0.0,  # R1, section 3.2
    ),
    seq_len=4096,  # R1, table 2
    rows_per_step=4 * GPUS,  # R1, table 2
    micro_batch_size=4,
    seed=3,
    # the script leaves packing off; it also counts prompt tokens in the loss, which we do not
    packed=False,
    too_long="truncate",  # TRL's SFTTrainer, which the script runs, cuts rows at max_length
    save=SaveConfig(every_steps=500),
)
# the repository's sft/README: 32k positions and rope_theta x 8, nothing trained
LONG = ExtendConfig(
    name="base-32k",
    optim=None,
    seq_len=32_768,
    rows_per_step=1,
    micro_batch_size=1,
    seed=4,
    rope_theta_factor=8.0,
)
# R1, table 5. Section 7.1 has 1.4M Python and 1.1M C++ solutions, of which table 5 has 2.16M: which
# is not found, here as many of each in proportion. The other two sets are taken whole
CODE_SAMPLES = {
    "opencode-python": round(2_160_000 * 1.4 / 2.5),
    "opencode-cpp": round(2_160_000 * 1.1 / 2.5),
}
REASONING_SAMPLES = 3_200_000 + 803_000 + sum(CODE_SAMPLES.values())  # R1, table 5: "6.2M"
REASONING_SFT = replace(
    GENERAL_SFT,
    name="reasoning",
    optim=OptimConfig(
        lr=8.0e-5,  # R1, table 2
        num_steps=4 * REASONING_SAMPLES // (8 * GPUS),  # R1, table 2: 4 epochs
        checkpoint_every_n_blocks=1,  # the repository's script has gradient checkpointing on
        warmup_steps=round(0.1 * (4 * REASONING_SAMPLES // (8 * GPUS))),  # R1, section 3.2
        final_lr_share=0.0,
        weight_decay=0.0,
    ),
    seq_len=32_768,  # R1, table 2
    rows_per_step=8 * GPUS,  # R1, table 2
    micro_batch_size=1,  # 8 at once need 87 GB in the 950M even so
    max_conversations=CODE_SAMPLES,
    seed=5,
)
# R1, section 7.4: 100 steps of Tulu-3, 1 % of it, teach the format
COLD_START = replace(
    GENERAL_SFT,
    name="cold-start",
    optim=replace(GENERAL_SFT.optim, num_steps=100, warmup_steps=3),
    seed=6,
)
RL = ReinforceConfig(
    name="rl",
    optim=OptimConfig(
        lr=3.0e-6,  # R1, section 7.4
        num_steps=100,  # R1, section 7.4
        warmup_steps=10,  # not found
        final_lr_share=1.0,  # not found
        weight_decay=0.0,  # not found
    ),
    loss="grpo",  # R1, section 7.4, without a KL term
    prompts_per_step=32,  # R1, section 7.4
    samples_per_prompt=8,  # R1, section 7.4
    max_new_tokens=3072,  # not found; figure: answers of the last model have 2,000 to 2,800
    micro_batch_size=4,
    seq_len=4096,
    seed=7,
    reward="math",  # not found; answers are checked by value
)
RL_EVALUATION = EvaluateConfig(name="evaluation-rl", suites=("r1-final.gsm8k",))
# R1, table 10 rounds to int4 in groups of 128 (32 for the 140M), int8 activations; groups are of 32
# here for all
INT4 = QuantizeConfig(name="int4", scheme="int4_group32", optim=None)
# R1, tables 6 and 13: the base; table 7: what it became, and the file of it
BASE_EVALUATION = EvaluateConfig(name="evaluation-base", suites=("r1-base",), labels=("base",))
EVALUATION = EvaluateConfig(
    name="evaluation", suites=("r1-final",), labels=("reasoning", "int4", "model.gguf")
)


def recipe(
    run,
    *,
    size: str = "140m",
    tokenizer: Path = Path("Llama-3.2-1B"),
    teacher: Path = Path("Llama-3.1-8B-Instruct"),
    mix: str = "published",
    left_out: bool = False,
    rl: Path | None = None,
    benchmarks: Path | None = None,
):
    """MobileLLM-R1 as published: two phases of pre-training, two of mid-training, two of
    fine-tuning.

    --size: 140m, 360m or 950m

    --tokenizer: a folder with the Llama 3.2 tokenizer (tokenizer.json, 128,256 tokens), under
    Meta's licence

    --teacher: a folder with Llama-3.1-8B-Instruct, the teacher of both mid-training phases

    --mix: published, on the shares of tables 3 and 4; or found: probe sets are built, pre-training
    takes shares by influence density, and mid-training those of what each round keeps, until too
    little positive influence is left

    --left-out: also train a proxy without each source of pre-training (figure 6), to compare

    --rl: problems with answers (JSON lines with "prompt" and "answer"; the paper takes those of
    NuminaMath-TIR), for the study of section 7.4: GRPO after a short fine-tuning, and on the last
    model

    --benchmarks: a folder with the benchmarks' files (docs/evaluation.md): at the end the base is
    measured as in tables 6 and 13, the last model, its four bits and the .gguf as in table 7
    """
    if size not in SHAPES:
        raise ValueError(f"--size {size}: the published sizes are {', '.join(SHAPES)}")
    if mix not in HELD_OUT:
        raise ValueError(f"--mix {mix}: published or found")
    # the teacher is needed after days: whether its words are these is asked now
    words = VocabularyConfig(name="teacher-check", tokenizer=str(tokenizer), window=MID.seq_len)
    run(check_vocabulary, words, teacher=teacher)
    corpus = replace(CORPUS, tokenizer=str(tokenizer))
    trunk, probes = pretrained(run, corpus, size, teacher, mix, left_out)
    trunk = midtrained(run, corpus, trunk, teacher, mix, probes)
    chats, reasoning = finetuned(run, corpus, trunk)
    studied = {} if rl is None else rewarded(run, rl, chats, trunk, reasoning)
    int4 = run(quantize, INT4, model=reasoning)
    files = run(export, ExportConfig(name="files"), model=int4)
    if benchmarks is not None:
        data = str(benchmarks)
        run(evaluate, replace(BASE_EVALUATION, data=data), models=[trunk])
        models = [reasoning, int4, files / "model.gguf"]
        run(evaluate, replace(EVALUATION, data=data), models=models)
        if studied:
            gsm8k = replace(RL_EVALUATION, data=data, labels=tuple(studied))
            run(evaluate, gsm8k, models=list(studied.values()))
    return files


def pretrained(
    run, corpus: CurateConfig, size: str, teacher: Path, mix: str, left_out: bool
) -> tuple[Path, dict[str, Path]]:
    """(the trunk after both phases, the probe sets by the name of a stage's input: none for the
    published mix).
    """
    validation, probes = HELD_OUT["found" if left_out else mix]
    texts = run(
        curate,
        replace(
            corpus,
            name="corpus-pretrain",
            sources=PRETRAINING,
            validation_share=validation,
            probe_share=probes,
        ),
    )
    looked_at: dict[str, Path] = {}
    if mix == "found":
        looked_at["probes"] = run(build_probes, PROBES, corpus=texts, asker=teacher)
    mixed = run(find_mix, MIX, corpus=texts, **looked_at) if looked_at else None
    if left_out:
        run(leave_one_out, LEFT_OUT, corpus=texts, mix=mixed, **looked_at)
    # which of the two mixes of table 3 equation 6 gave is not found: where one is found, both
    # phases have it
    shares1, shares2 = (None, None) if mixed else (shares(PHASE1), shares(PHASE2))
    phase1 = replace(PRETRAIN, name="phase1", model=SHAPES[size], shares=shares1)
    phase2 = replace(PRETRAIN, name="phase2", shares=shares2)
    trunk = run(pretrain, phase1, corpus=texts, mix=mixed)
    return run(pretrain, phase2, corpus=texts, model=trunk, mix=mixed), looked_at


def midtrained(
    run, corpus: CurateConfig, trunk: Path, teacher: Path, mix: str, looked_at: dict[str, Path]
) -> Path:
    """Co-evolution (section 6): score with the current model, keep what helps, distil on it. Once a
    selection has stopped, its round and those after pass the model through.
    """
    held = {"validation_share": 1e-4, "probe_share": 1e-4}
    texts = run(curate, replace(corpus, name="corpus-midtrain", sources=MIDTRAINING, **held))
    mixes, stop_below = (shares(MID1), shares(MID2)), 0.0
    if mix == "found":
        mixes, stop_below = (None,) * ROUNDS, STOP_BELOW
    chosen = None
    for turn, published in enumerate(mixes, start=1):
        chosen = run(
            select,
            replace(SELECT, name=f"select{turn}", stop_below=stop_below),
            corpus=texts,
            model=trunk,
            previous=chosen,
            **looked_at,
        )
        trunk = run(
            pretrain,
            replace(MID, name=f"mid{turn}", shares=published),
            corpus=texts,
            model=trunk,
            selection=chosen,
            teacher=teacher,
        )
    return trunk


def finetuned(run, corpus: CurateConfig, trunk: Path) -> tuple[Path, Path]:
    """(the corpus of general chats, the last model): general, then long, then reasoning."""
    chats = run(curate, replace(corpus, name="corpus-general", sources=GENERAL))
    general = run(finetune, GENERAL_SFT, corpus=chats, model=trunk)
    thoughts = run(curate, replace(corpus, name="corpus-reasoning", sources=REASONING))
    longer = run(extend_context, LONG, corpus=thoughts, model=general)
    return chats, run(finetune, REASONING_SFT, corpus=thoughts, model=longer)


def rewarded(run, problems: Path, chats: Path, trunk: Path, reasoning: Path) -> dict[str, Path]:
    """Section 7.4: rewards help the base, once it knows the format, and not the last model."""
    cold = run(finetune, COLD_START, corpus=chats, model=trunk)
    models = {"cold-start": cold, "reasoning": reasoning}
    for name, start in tuple(models.items()):
        learnt = run(reinforce, replace(RL, name=f"rl-{name}"), model=start, prompts=problems)
        models[f"rl-{name}"] = learnt
    return models


def shares(percent: dict[str, float]) -> dict[str, float]:
    """Published percentages as shares; rounded in print, they sum to 1 within 2e-4, and stages make
    that 1.
    """
    return {name: value / 100 for name, value in percent.items()}
