"""The table of test_every_field.py: a config of each class, and for each of its fields another
value.

A new field needs a row in FIELDS, and, where the class's usual values would hide its effect, one in
BASE_CHANGES.
"""

from dataclasses import replace
from typing import Any

from shapes import small

from pocketlm.corpus.dedup import MinHash
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.join import Join
from pocketlm.corpus.sources import (
    FactSource,
    HubSource,
    LanguageReferenceSource,
    LocalSource,
    NoteSource,
    ProblemSource,
    RecallSource,
    StdlibCodeSource,
    StdlibDocstringsSource,
)
from pocketlm.data.mixing.given import GivenMix
from pocketlm.data.mixing.influence import InfluenceMix
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.swarm import SwarmMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.inference.sampling import Sampling
from pocketlm.model.lora import LoRA
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.rope import RopeScaling
from pocketlm.report.goals import Goal
from pocketlm.serve.terminal import ChatConfig
from pocketlm.stages.bench import BenchConfig
from pocketlm.stages.chats import ChatsConfig
from pocketlm.stages.claims_page import ClaimsPageConfig
from pocketlm.stages.curate import CurateConfig
from pocketlm.stages.evaluate import EvaluateConfig
from pocketlm.stages.export import ExportConfig
from pocketlm.stages.extend_context import ExtendConfig
from pocketlm.stages.find_mix import MixConfig
from pocketlm.stages.finetune import FinetuneConfig
from pocketlm.stages.formats import FormatsConfig
from pocketlm.stages.importing import ImportConfig
from pocketlm.stages.judge import JudgeConfig
from pocketlm.stages.leave_one_out import LeaveOneOutConfig
from pocketlm.stages.measure_shapes import MeasureShapesConfig
from pocketlm.stages.merge import MergeConfig
from pocketlm.stages.prefer import PreferConfig
from pocketlm.stages.pretrain import PretrainConfig
from pocketlm.stages.probes import ProbeConfig
from pocketlm.stages.quantize import QuantizeConfig
from pocketlm.stages.reinforce import ReinforceConfig
from pocketlm.stages.report import ReportConfig
from pocketlm.stages.select import SelectConfig
from pocketlm.stages.teach import TeachConfig
from pocketlm.stages.vocabulary import VocabularyConfig
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.losses import Distillation
from pocketlm.train.optim import OptimConfig
from pocketlm.train.preference_loss import Preference

Changes = dict[str, Any]
STEPS = OptimConfig(
    lr=1e-2, num_steps=3, warmup_steps=0, final_lr_share=0.1, compute_dtype="float32"
)
FASTER = replace(STEPS, lr=2e-2)
SHAPE = small(
    vocab_size=320,
    intermediate_size=32,
    max_position_embeddings=160,
    layer_types=("full_attention", "sliding_attention"),
    sliding_window=8,
    initializer_range=0.1,
)
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24
)
DRAWN = Sampling(temperature=1.0, top_p=0.9, seed=1)
EVERY_3 = SaveConfig(every_steps=3)
ROWS: Changes = {"rows_per_step": 4, "micro_batch_size": 2, "seed": 1}
TRAINING = {
    "rows_per_step": 2,
    "micro_batch_size": 4,
    "seed": 2,
    "optim": FASTER,
    "save": SaveConfig(every_steps=2),
}
WARM = Distillation(temperature=2.0)
JUDGED = JudgeConfig(
    name="judged",
    claim="It solves more.",
    source="a paper",
    parts=(Goal(text="it solves all", model="int4", at_least=0.5),),
    arms={"int4": "the first"},
    measures=("accuracy",),
)
UTILITY = UtilityMix(num_gradient_probes=1, step_sizes=(1.0,))
SHARES = {"problems": 0.5, "notes": 0.5}
CHAT_SHARES = {"problems": 0.25, "notes-asked": 0.75}
FOLDER = "{folder}"  # stands for the folder of inputs, which is only known when tests run

BASES: dict[type, Any] = {
    OptimConfig: STEPS,
    SaveConfig: SaveConfig(every_steps=2),
    ModelConfig: SHAPE,
    RopeScaling: SCALING,
    LocalSource: LocalSource(name="own", domain="knowledge", path=f"{FOLDER}/texts"),
    HubSource: HubSource(
        name="own", domain="knowledge", dataset="them/texts", split="train", filters=()
    ),
    Join: Join(name="them", dataset="them/asked", fields=("text",)),
    ProblemSource: ProblemSource(
        name="own", domain="maths", families=("chain_sum",), count=40, seed=1
    ),
    NoteSource: NoteSource(name="own", domain="knowledge", count=40, seed=1, pairs_range=(1, 2)),
    RecallSource: RecallSource(
        name="own", domain="knowledge", count=40, seed=1, pairs_range=(1, 2)
    ),
    FactSource: FactSource(
        name="own",
        domain="knowledge",
        count=40,
        seed=1,
        facts_range=(1, 2),
        gap_words=(1,),
        chars=60,
    ),
    **{
        kind: kind(name="own", domain="code", max_bytes=90_000)
        for kind in (StdlibCodeSource, StdlibDocstringsSource, LanguageReferenceSource)
    },
    Thresholds: Thresholds(),
    MinHash: MinHash(),
    Goal: Goal(text="it solves all", model="int4", at_least=0.5),
    Sampling: DRAWN,
    ChatConfig: ChatConfig(sampling=DRAWN, max_new_tokens=8),
    CurateConfig: CurateConfig(
        name="corpus",
        sources=(LocalSource(name="own", domain="knowledge", path=f"{FOLDER}/texts"),),
        vocab_size=320,
        suites=(f"{FOLDER}/exam.jsonl",),
        validation_share=0.1,
        probe_share=0.1,
    ),
    MixConfig: MixConfig(
        name="mix",
        methods={"found": UTILITY, "uniform": UniformMix()},
        selected="found",
        proxy=SHAPE,
        optim=STEPS,
        seq_len=32,
        **ROWS,
        budget_tokens=8000,
        max_epochs=4.0,
        validation_tokens=100,
        save=EVERY_3,
    ),
    ProbeConfig: ProbeConfig(
        name="probes",
        membership={"maths": ("problems",), "knowledge": ("notes", "texts")},
        left_out=("notes-asked",),
        scorer=f"{FOLDER}/labels.jsonl",
        min_quality=0.5,
        prompt="Reasons: {text}",
        capability_prompts={"maths": "Sums: {text}", "knowledge": "Facts: {text}"},
        top_share=0.8,
        ask_tokens=32,
        documents_per_cluster=4,
        batch_rows=2,
        seed=1,
    ),
    UtilityMix: UTILITY,
    SwarmMix: SwarmMix(num_runs=8, folds=4),
    InfluenceMix: InfluenceMix(num_gradient_probes=1, representative_rows=3),
    GivenMix: GivenMix(shares=SHARES),
    LeaveOneOutConfig: LeaveOneOutConfig(
        name="loo", proxy=SHAPE, optim=STEPS, seq_len=32, **ROWS, probe_tokens=100, save=EVERY_3
    ),
    PretrainConfig: PretrainConfig(
        name="base", model=SHAPE, optim=STEPS, seq_len=32, **ROWS, shares=SHARES, save=EVERY_3
    ),
    SelectConfig: SelectConfig(
        name="select",
        seq_len=32,
        candidate_tokens=600,
        probe_rows=3,
        batch_rows=4,
        budget_tokens=2000,
        max_epochs=4.0,
        seed=1,
        compute_dtype="float32",
    ),
    ExtendConfig: ExtendConfig(
        name="long",
        optim=STEPS,
        seq_len=192,
        **ROWS,
        rope_theta_factor=4.0,
        shares=SHARES,
        save=EVERY_3,
    ),
    MergeConfig: MergeConfig(name="merged", resolution=2, seq_len=32, validation_rows=2),
    FinetuneConfig: FinetuneConfig(name="chat", optim=STEPS, seq_len=160, **ROWS, save=EVERY_3),
    QuantizeConfig: QuantizeConfig(
        name="int4", scheme="int4_group32", optim=STEPS, seq_len=96, **ROWS, save=EVERY_3
    ),
    Distillation: Distillation(),
    LoRA: LoRA(rank=2, alpha=64.0),
    Preference: Preference(),
    TeachConfig: TeachConfig(
        name="cache", window=64, batch_tokens=256, shard_tokens=2000, compute_dtype="float32"
    ),
    ImportConfig: ImportConfig(name="imported", source="them/model"),
    ExportConfig: ExportConfig(name="files", formats=("gguf",)),
    FormatsConfig: FormatsConfig(name="formats", formats=("gguf",)),
    ChatsConfig: ChatsConfig(name="chats", seq_len=160),
    VocabularyConfig: VocabularyConfig(name="words", tokenizer=f"{FOLDER}/model", window=32),
    ReinforceConfig: ReinforceConfig(
        name="rl",
        optim=STEPS,
        loss="grpo",
        prompts_per_step=2,
        samples_per_prompt=4,
        max_new_tokens=8,
        micro_batch_size=4,
        seq_len=96,
        seed=1,
        families=("chain_sum",),
        reward="chance",
        save=EVERY_3,
    ),
    PreferConfig: PreferConfig(
        name="safe", optim=STEPS, seq_len=160, **ROWS, preference=Preference(), save=EVERY_3
    ),
    MeasureShapesConfig: MeasureShapesConfig(
        name="shapes",
        hidden_sizes=(32, 64),
        intermediate_factors=(1.0, 2.0),
        num_hidden_layers=(1, 2, 4),
        kv_heads=(1, 2),
        queries_per_kv=1,
        num_shapes=10,
        context=32,
        new_tokens=4,
        repeats=2,
        threads=1,
        max_spread=1.0,
        local_every=(4,),
        sliding_window=8,
    ),
    BenchConfig: BenchConfig(name="bench", contexts=(24, 40), new_tokens=3, repeats=1, threads=1),
    EvaluateConfig: EvaluateConfig(
        name="evaluation",
        suites=(f"{FOLDER}/exam.jsonl",),
        max_new_tokens=3,
        bits_tokens=60,
        bits_window=32,
        needle_tokens=(180,),
        needle_trials=1,
        haystack=("notes",),
        speed_tokens=4,
    ),
    ReportConfig: ReportConfig(name="report", title="A run"),
    JudgeConfig: JUDGED,
    ClaimsPageConfig: ClaimsPageConfig(name="claims"),
}

FIELDS: dict[type, dict[str, Any]] = {
    OptimConfig: {
        "lr": 2e-2,
        "num_steps": 2,
        "warmup_steps": 2,
        "optimizer": "muon",
        "compute_dtype": "bfloat16",
        "shard_over": "all",
        "attention": "sdpa",
        "head_loss": "torch",
        "compile": "yes",
        "checkpoint_every_n_blocks": 1,
        "schedule": "cosine",
        "final_lr_share": 0.5,
        "beta1": 0.5,
        "beta2": 0.5,
        "eps": 1e-2,
        "weight_decay": 5.0,
        "grad_clip": 1e-3,
        "on_nonfinite": "skip",
    },
    SaveConfig: {"every_steps": 4, "keep_last": 1, "keep_every_steps": 4},
    ModelConfig: {
        "vocab_size": 352,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "rope_theta": 100.0,
        "rms_norm_eps": 0.1,
        "tie_word_embeddings": False,
        "use_qk_norm": False,
        "qk_norm_weight": True,
        "layer_types": ("sliding_attention", "full_attention"),
        "sliding_window": 4,
        "initializer_range": 0.2,
        "rope_scaling": SCALING,
        "layer_repeats": 2,
        "qkv_bias": True,
        "no_rope_layers": (1, 0),
        "gemma_blocks": True,
        "rope_local_base_freq": 50.0,
    },
    RopeScaling: {
        "factor": 2.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 8.0,
        "original_max_position_embeddings": 32,
    },
    LocalSource: {
        "name": "mine",
        "domain": "code",
        "max_bytes": 4000,
        "split_code": True,
        "filters": (),
        "near_dedup": False,
        "text_field": "other",
        "prompt_field": "other",
        "response_field": "title",
        "path": f"{FOLDER}/rows.jsonl",
    },
    HubSource: {
        "dataset": "them/other",
        "config": "second",
        "split": "test",
        "revision": "v2",
        "joins": (Join(name="them", dataset="them/asked", fields=("text",)),),
    },
    Join: {
        "name": "others",
        "dataset": "them/others",
        "fields": ("text", "title"),
        "config": "second",
        "revision": "v2",
    },
    ProblemSource: {"families": ("leg_counting",), "count": 30, "seed": 2},
    NoteSource: {"count": 30, "seed": 2, "pairs_range": (3, 4)},
    RecallSource: {"count": 30, "seed": 2, "pairs_range": (3, 4)},
    FactSource: {
        "count": 30,
        "seed": 2,
        "facts_range": (3, 4),
        "gap_words": (0, 5),
        "chars": 100,
        "num_names": 2,
    },
    StdlibCodeSource: {},
    StdlibDocstringsSource: {},
    LanguageReferenceSource: {},
    Thresholds: {
        "min_chars": 150,
        "script": "Cyrillic",
        "min_script_share": 0.3,
        "min_letter_share": 0.6,
        "repetition_scale": 3.0,
        "max_repeated_line_share": 0.9,
        "min_prose_words": 40,
        "max_symbol_word_ratio": 0.5,
    },
    MinHash: {"num_buckets": 2, "hashes_per_bucket": 3, "shingle_words": 2, "seed": 2},
    Goal: {
        "text": "it solves some",
        "model": "chat",
        "at_least": -0.5,
        "at_most": 0.5,
        "measure": "needle 256",
        "compared_to": "chat",
        "beside": ("chat", "ptq"),
        "tried": "twice the steps",
    },
    Sampling: {
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "repetition_penalty": 5.0,
        "seed": 2,
    },
    ChatConfig: {
        "sampling": replace(DRAWN, seed=9),
        "max_new_tokens": 4,
        "system": "Be brief.",
        "stop": ("e",),
    },
    CurateConfig: {
        "name": "other",
        "sources": (NoteSource(name="own", domain="knowledge", count=30, pairs_range=(1, 2)),),
        "vocab_size": 300,
        "tokenizer": f"{FOLDER}/tokenizer",
        "tokenizer_sample_bytes": 2000,
        "max_chars": 150,
        "thresholds": Thresholds(min_chars=200),
        "minhash": MinHash(num_buckets=1, hashes_per_bucket=64),
        "suites": (),
        "suites_data": f"{FOLDER}/other-benchmarks",
        "ngram": 40,
        "validation_share": 0.3,
        "part_bytes": 2000,
        "executor": "local:2",
        "probe_share": 0.3,
        "seed": 1,
    },
    MixConfig: {
        "name": "other",
        **TRAINING,
        "methods": {"found": UTILITY, "uniform": UniformMix(), "sized": ProportionalMix()},
        "selected": "uniform",
        "proxy": replace(SHAPE, intermediate_size=64),
        "seq_len": 16,
        "budget_tokens": 50_000,
        "max_epochs": 0.6,
        "validation_tokens": 200,
        "num_seeds": 2,
        "sources": ("problems", "texts"),
    },
    ProbeConfig: {
        "name": "other",
        "membership": {"maths": ("problems", "texts"), "knowledge": ("notes",)},
        "left_out": (),  # which is refused
        "scorer": None,
        "min_quality": 2.0,
        "prompt": "{text}",
        "capability_prompts": {"maths": "{text}", "knowledge": "{text}"},
        "top_share": 0.5,
        "ask_tokens": 16,
        "embedder": "wordllama",
        "max_cosine": 0.3,
        "documents_per_cluster": 2,
        "examples_per_source": 1,
        "batch_rows": 3,
        "seed": 2,
    },
    UtilityMix: {
        "num_gradient_probes": 3,
        "prior": "uniform",
        "step_sizes": (3.0,),
        "probe_weights": {"maths": 1.0},
    },
    SwarmMix: {
        "num_runs": 9,
        "refine_runs": 2,
        "prior": "uniform",
        "temper": 1.0,
        "strengths": (1.0, 2.0),
        "refine_strength": 100.0,
        "min_share": 0.1,
        "law": "log_linear",
        "folds": 3,
        "kl": 0.5,
        "probe_weights": {"maths": 1.0},
        "seed": 1,
    },
    InfluenceMix: {
        "num_gradient_probes": 3,
        "representative_rows": 2,
        "score": "adam",
        "damping": 10.0,
        "negative_density": "refuse",
        "min_fall": 99.0,
    },
    GivenMix: {"shares": {"notes": 1.0}},
    LeaveOneOutConfig: {
        "name": "other",
        **TRAINING,
        "proxy": replace(SHAPE, intermediate_size=64),
        "seq_len": 16,
        "probe_tokens": 200,
        "num_seeds": 2,
        "min_fall": 50.0,
    },
    PretrainConfig: {
        "name": "other",
        **TRAINING,
        "seq_len": 16,
        "model": replace(SHAPE, intermediate_size=64),
        "shares": {"texts": 1.0},
        "separate_documents": True,
        "packing": "concatenate",
        "distillation": Distillation(label_share=0.5),
        "milestones": 2,
    },
    SelectConfig: {
        "name": "other",
        "seq_len": 16,
        "candidate_tokens": 300,
        "probe_rows": 2,
        "batch_rows": 2,
        "budget_tokens": 9000,
        "max_epochs": 0.9,
        "seed": 2,
        "compute_dtype": "bfloat16",
        "score": "datainf",
        "hessian_rows": 3,
        "damping": 10.0,
        "filter": "per_capability",
        "shares_by": "kept",
        "stop_below": 1.0,
        "stop_on": "samples",
        "sources": ("problems", "texts"),
    },
    ExtendConfig: {
        "name": "other",
        **TRAINING,
        "seq_len": 176,
        "rope_theta_factor": 1.0,
        "shares": {"texts": 1.0},
        "separate_documents": True,
        "packing": "concatenate",
        "distillation": WARM,
    },
    MergeConfig: {
        "name": "other",
        "resolution": 3,
        "seq_len": 16,
        "validation_rows": 1,
        "split": "probe",
        "domain_weights": {"maths": 1.0, "knowledge": 0.1},
        "search": "slopes",
        "num_steps": 3,
    },
    FinetuneConfig: {
        "name": "other",
        **TRAINING,
        "seq_len": 80,
        "sources": ("notes-asked",),
        "conversation_shares": CHAT_SHARES,
        "max_conversations": {"notes-asked": 3},
        "too_long": "truncate",
        "packed": False,
        "distillation": WARM,
        "lora": LoRA(rank=2),
    },
    LoRA: {"rank": 3, "alpha": 1.0, "projections": ("v_proj", "down_proj")},
    QuantizeConfig: {
        "name": "other",
        **TRAINING,
        "scheme": "int4_group32_weight_only",
        "seq_len": 80,
        "sources": ("notes-asked",),
        "conversation_shares": CHAT_SHARES,
        "max_conversations": {"notes-asked": 3},
        "too_long": "truncate",
        "shares": SHARES,
        "packing": "concatenate",
        "distillation": WARM,
    },
    Distillation: {"label_share": 0.5, "divergence": "reverse_kl", "temperature": 2.0},
    TeachConfig: {
        "name": "other",
        "window": 32,
        "sources": ("notes",),
        "conversations": True,
        "too_long": "truncate",
        "min_gain": 1e-3,
        "batch_tokens": 64,
        "shard_tokens": 1000,
        "compute_dtype": "bfloat16",
    },
    ImportConfig: {
        "name": "other",
        "source": "them/sibling",
        "revision": "v2",
        "base": "them/sibling",
    },
    ExportConfig: {
        "name": "other",
        "formats": ("hf",),
        "gguf_dtype": "f32",
        "context_length": 64,
        "int8_cache": True,
        "layout": "qwen3",
        "min_agreement": 1.0,
    },
    FormatsConfig: {
        "name": "other",
        "formats": ("hf",),
        "gguf_dtype": "f32",
        "context_length": 64,
        "layout": "qwen3",
        "scheme": "int4_group32",
    },
    VocabularyConfig: {"name": "other", "tokenizer": f"{FOLDER}/tokenizer", "window": 100_000},
    ChatsConfig: {
        "name": "other",
        "seq_len": 80,
        "sources": ("notes-asked",),
        "too_long": "truncate",
    },
    ReinforceConfig: {
        "name": "other",
        "optim": FASTER,
        "loss": "dr_grpo",
        "prompts_per_step": 3,
        "samples_per_prompt": 2,
        "max_new_tokens": 5,
        "micro_batch_size": 8,
        "seq_len": 10,
        "seed": 2,
        "families": ("leg_counting",),
        "reward": "answer",
        "learn_cut": False,
        "save": SaveConfig(every_steps=2),
    },
    PreferConfig: {
        "name": "other",
        **TRAINING,
        "seq_len": 120,
        "preference": Preference(beta=0.9),
        "held_out": 0.5,
    },
    Preference: {"loss": "ipo", "beta": 0.5, "label_smoothing": 0.2, "sft_weight": 0.0},
    MeasureShapesConfig: {
        "name": "other",
        "hidden_sizes": (32, 96),
        "intermediate_factors": (1.0, 3.0),
        "num_hidden_layers": (1, 2, 5),
        "kv_heads": (1, 3),
        "queries_per_kv": 2,
        "local_every": (2,),
        "sliding_window": 4,
        "num_shapes": 11,
        "runtime": "pte",
        "scheme": None,
        "context": 24,
        "new_tokens": 3,
        "repeats": 3,
        "max_spread": 0.0,
        "threads": 2,
        "seed": 1,
    },
    BenchConfig: {
        "name": "speed",
        "contexts": (24,),
        "new_tokens": 4,
        "repeats": 2,
        "threads": 2,
        "runtime": "transformers",
    },
    EvaluateConfig: {
        "name": "other",
        "suites": (f"{FOLDER}/other.jsonl",),
        "labels": ("mine",),
        "runtime": "transformers",
        "data": f"{FOLDER}/other-benchmarks",
        "limit": 1,
        "max_new_tokens": 5,
        "batch_size": 2,
        "bits_tokens": 90,
        "bits_window": 8,
        "rank_tokens": 90,
        "needle_tokens": (150,),
        "needle_trials": 2,
        "haystack": ("texts",),
        "needle": "fact",
        "distractors": 1,
        "needle_seed": 1,
        "needle_labels": ("nobody",),  # which is refused
        "speed_tokens": 6,
        "unsafe_exec": True,
        "without": ("exam",),
        "baseline": f"{FOLDER}/model",
    },
    ReportConfig: {
        "name": "other",
        "title": "Another",
        "goals": (Goal(text="x", model="int4", at_least=0.0),),
        "claims": (Goal(text="y", model="int4", at_least=0.0),),
        "examples": 0,
    },
    JudgeConfig: {
        "name": "other",
        "claim": "It is faster.",
        "source": "somewhere else",
        "parts": (Goal(text="it solves some", model="int4", at_least=0.1),),
        "arms": {"int4": "the second"},
        "measures": ("accuracy", "bits maths"),
        "note": "Smaller.",
        "numbered": True,
    },
    ClaimsPageConfig: {"name": "other"},
}

PAIR = {"path": f"{FOLDER}/rows.jsonl", "prompt_field": "title", "response_field": "other"}

# what both runs of a field have, where it would not show otherwise
BASE_CHANGES: dict[tuple[type, str], Changes] = {
    (OptimConfig, "on_nonfinite"): {"lr": 1e30},
    (SwarmMix, "refine_strength"): {"refine_runs": 2},
    (MergeConfig, "num_steps"): {"search": "slopes"},
    (SelectConfig, "hessian_rows"): {"score": "datainf"},
    (SelectConfig, "damping"): {"score": "datainf"},
    (SelectConfig, "stop_on"): {"stop_below": 1.0},
    (Goal, "at_most"): {"at_least": None, "at_most": 0.4},
    (EvaluateConfig, "distractors"): {"needle": "fact"},
    (ModelConfig, "qkv_bias"): {"use_qk_norm": False, "qk_norm_weight": False},
    (ModelConfig, "no_rope_layers"): {"use_qk_norm": False, "qk_norm_weight": False},
    (ModelConfig, "gemma_blocks"): {"use_qk_norm": True, "qk_norm_weight": True},
    (ModelConfig, "rope_local_base_freq"): {
        "use_qk_norm": True,
        "qk_norm_weight": True,
        "gemma_blocks": True,
        "layer_types": ("sliding_attention", "full_attention"),
        "sliding_window": 4,
    },
    (ModelConfig, "num_hidden_layers"): {"layer_types": (), "sliding_window": None},
    (HubSource, "joins"): {"prompt_field": "question", "response_field": "text"},
    (LocalSource, "text_field"): {"path": f"{FOLDER}/rows.jsonl"},
    (LocalSource, "prompt_field"): {**PAIR, "prompt_field": "text"},
    (LocalSource, "response_field"): {**PAIR, "response_field": "text"},
    (LocalSource, "split_code"): {"path": f"{FOLDER}/code", "domain": "code"},
    (CurateConfig, "tokenizer"): {"vocab_size": 320},
    (QuantizeConfig, "packing"): {"shares": SHARES},
    # some conversations are longer, some are not
    (FinetuneConfig, "too_long"): {"seq_len": 80},
    (QuantizeConfig, "too_long"): {"seq_len": 80},
    (ChatsConfig, "too_long"): {"seq_len": 80},
    (TeachConfig, "too_long"): {"window": 80, "conversations": True},
    (CurateConfig, "suites_data"): {"suites": ("arc_easy",), "suites_data": f"{FOLDER}/benchmarks"},
    (EvaluateConfig, "data"): {"suites": ("arc_easy",), "data": f"{FOLDER}/benchmarks"},
    (EvaluateConfig, "without"): {"suites": (f"{FOLDER}/exam.jsonl", f"{FOLDER}/other.jsonl")},
    (EvaluateConfig, "unsafe_exec"): {"suites": ("humaneval",), "data": f"{FOLDER}/benchmarks"},
    (ExportConfig, "context_length"): {"formats": ("pte",)},
    (ExportConfig, "int8_cache"): {"formats": ("pte",), "min_agreement": 0.0},
    (ExportConfig, "layout"): {"formats": ("hf",), "layout": "llama4_text"},
    (FormatsConfig, "context_length"): {"formats": ("pte",)},
    (FormatsConfig, "layout"): {"formats": ("hf",)},
    # random weights agree little
    (ExportConfig, "min_agreement"): {"gguf_dtype": "q4_0", "min_agreement": 0.0},
}
# what must change with a field for the config to be a valid one
TOGETHER: dict[tuple[type, str], Changes] = {(CurateConfig, "tokenizer"): {"vocab_size": None}}
FILTERED = {  # the filter that reads each threshold
    "min_chars": "length",
    "script": "script",
    "min_script_share": "script",
    "min_letter_share": "script",
    "repetition_scale": "repetition",
    "max_repeated_line_share": "repeated_lines",
    "min_prose_words": "prose",
    "max_symbol_word_ratio": "prose",
}
