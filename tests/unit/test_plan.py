"""The plan of recipes that are not run: shapes followed, work shared out, times from the fitted
model, and what is unknown.
"""

import importlib.util
import json
import math
import re
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.corpus.sources import LocalSource
from pocketlm.estimate import local as here
from pocketlm.estimate.corpora import source_size
from pocketlm.estimate.data_costs import CACHED_BYTES, MANY_BATCHES, cached_bytes
from pocketlm.estimate.devices import DEVICES, device
from pocketlm.estimate.estimate import Estimate, estimate, totals
from pocketlm.estimate.published import FITTED, HELD_OUT, LLAMA_8B
from pocketlm.estimate.speed import FIT, LEFT_OUT_ERROR, step_seconds
from pocketlm.estimate.stage import Stage
from pocketlm.estimate.stages import plan_stages
from pocketlm.estimate.table import amount, memory_verdict, size, span
from pocketlm.estimate.teachers import teacher_shape
from pocketlm.estimate.work import Work
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.costs import StockShape, flops_of, num_parameters
from pocketlm.model.files import write_json
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.overrides import parse_settings
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.teach import TeachConfig, teach
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.memory import TrainingMemory, training_memory
from pocketlm.train.optim import OptimConfig

ROOT = Path(__file__).parents[2]
STEPS = OptimConfig(lr=1e-3, num_steps=100, warmup_steps=0, final_lr_share=0.1)
SHAPE = small()
WORK = Work(model=SHAPE, optim=STEPS, seq_len=64, rows_per_step=8, micro_batch_size=2)


def stages_of(name: str, tmp_path: Path, **flags) -> dict[str, Stage]:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    return {
        stage.call.name: stage
        for stage in plan_stages(dry_run(recipe, tmp_path / "run", missing_ok=True, **flags).calls)
    }


# ---- work ----


def test_flops_of_a_step_are_those_of_its_micro_batches_with_the_teachers_forward_pass() -> None:
    row = flops_of(SHAPE, 2, 64)
    assert WORK.flops == 100 * 4 * row.training()
    assert replace(WORK, teacher=SHAPE).flops - WORK.flops == 100 * 4 * row.forward
    assert WORK.tokens == 100 * 8 * 64


@pytest.mark.parametrize(("count", "busy"), [(1, 1), (3, 2), (4, 4), (128, 4)])
def test_as_many_devices_work_as_a_steps_micro_batches_divide_among(count: int, busy: int) -> None:
    assert WORK.ranks(count) == busy


@pytest.mark.parametrize(("steps", "every", "kept"), [(100, 100, 1), (100, 50, 2), (100, 10, 3)])
def test_the_states_on_disk_are_those_kept_and_the_one_being_written(
    steps: int, every: int, kept: int
) -> None:
    work = replace(WORK, optim=replace(STEPS, num_steps=steps), save=SaveConfig(every_steps=every))
    assert work.resume_bytes == kept * 12 * num_parameters(SHAPE)


# ---- the recipes ----


def test_r1_is_followed_from_stage_to_stage(tmp_path: Path) -> None:
    planned = stages_of("r1", tmp_path, size="950m")
    assert planned["phase1"].tokens == planned["phase2"].tokens == 500_000 * 2048 * 2048
    work = planned["reasoning"].work
    assert (
        work is not None
        and work.model.max_position_embeddings == 32_768
        and work.model.rope_theta == 8_000_000
    )
    assert planned["phase2"].work is not None and planned["phase2"].work.model == PRESETS["r1-950m"]
    assert planned["base-32k"].flops == 0 and planned["base-32k"].disk == 4 * 949_685_760


def test_a_missing_teacher_is_planned_by_its_name_or_as_one_of_8b_and_the_plan_says_so(
    tmp_path: Path,
) -> None:
    named = stages_of("r1", tmp_path)["mid1"]
    assert named.work is not None and named.work.teacher == LLAMA_8B
    assert "Llama-3.1-8B-Instruct is not here: planned with its published shape" in named.notes[0]
    by_id = stages_of("r1", tmp_path, teacher=Path("meta-llama/Llama-3.2-1B-Instruct"))["mid1"]
    assert by_id.work is not None and by_id.work.teacher is not None
    assert num_parameters(by_id.work.teacher) == pytest.approx(1.2358e9, rel=1e-3)
    unknown = stages_of("pro", tmp_path, teacher=tmp_path / "nowhere")["phase1"]
    assert unknown.work is not None and unknown.work.teacher is not None
    assert unknown.work.teacher == replace(LLAMA_8B, vocab_size=202_048)
    assert "planned as Llama 3.1 8B with the student's words" in unknown.notes[0]


def test_a_teacher_that_pocketlm_does_not_open_is_planned_from_its_config_alone(
    tmp_path: Path,
) -> None:
    """Qwen2.5's biases are not held here; its sizes are what memory hangs on."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    }
    (tmp_path / "teacher").mkdir()
    write_json(tmp_path / "teacher" / "config.json", config)
    shape, note = teacher_shape(tmp_path / "teacher", SHAPE)
    assert note is None and num_parameters(shape) == pytest.approx(494_032_768, rel=1e-3)
    write_json(tmp_path / "teacher" / "config.json", {"model_type": "qwen2"})
    with pytest.raises(ValueError, match="teacher"):
        teacher_shape(tmp_path / "teacher", SHAPE)


def test_llama_4_scout_is_planned_with_all_its_experts(tmp_path: Path) -> None:
    text = {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "num_local_experts": 16,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 202_048,
    }
    (tmp_path / "scout").mkdir()
    config = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": text}
    write_json(tmp_path / "scout" / "config.json", {"model_type": "llama4", **config})
    shape, note = teacher_shape(tmp_path / "scout", SHAPE)
    assert num_parameters(shape) == pytest.approx(107.77e9, rel=1e-3)  # 109B with its vision part
    forward = flops_of(shape, 1, 2048)
    table = 202_048 * 5120  # looked up, not multiplied
    active = (forward.products + forward.head) / 2 / 2048 + table
    assert active == pytest.approx(17.17e9, rel=1e-3)  # "17B active" on its card
    assert note and "a mixture of 16 experts: all are held" in note
    assert isinstance(shape, StockShape) and shape.local_masks == 1  # chunked layers
    stages = stages_of("pro", tmp_path, teacher=tmp_path / "scout")
    few, many = (estimated(stages["phase2"], count) for count in (8, 128))
    assert few.memory and many.memory and few.memory.peak > many.memory.peak
    assert "even one row at a time" in few.notes[-1] and "teacher" in few.notes[-1]
    phase1 = estimated(stages["phase1"], 128).memory  # of one H100
    assert phase1 and phase1.peak < 80e9


def test_a_teacher_s_hub_id_is_planned_from_the_hub_s_cache_without_network(
    tmp_path: Path, monkeypatch
) -> None:
    config = {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "vocab_size": 50_304,
    }
    cached = tmp_path / "models--EleutherAI--pythia-70m"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    write_json(cached / "snapshots" / "abc" / "config.json", config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape, note = teacher_shape(Path("EleutherAI/pythia-70m"), SHAPE)
    assert note is None and num_parameters(shape) == 70_426_624  # as its card has it


def test_a_teacher_of_transformers_takes_two_bytes_a_weight_where_products_do(
    tmp_path: Path,
) -> None:
    """And is sharded with the student."""
    write_json(
        tmp_path / "config.json",
        {
            "model_type": "gpt_neox",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "vocab_size": 1000,
        },
    )
    shape, _ = teacher_shape(tmp_path, SHAPE)
    assert isinstance(shape, StockShape) and shape.local_masks == 0

    def held(
        compute_dtype: Literal["float32", "bfloat16"], shards: int, local_masks: int = 0
    ) -> TrainingMemory:
        return training_memory(
            SHAPE,
            replace(STEPS, compute_dtype=compute_dtype),
            rows=3,
            seq_len=64,
            accumulates=False,
            masked=False,
            saves=False,
            teacher=replace(shape, local_masks=local_masks),
            shards=shards,
        )

    weights = num_parameters(shape)
    assert held("float32", 1).teacher == 4 * weights
    assert held("bfloat16", 1).teacher == 2 * weights
    block, outside = 789_760, 2 * 1000 * 256 + 512  # a layer; both tables and the last norm
    assert weights == 8 * block + outside
    assert held("bfloat16", 4).teacher == 2 * weights // 4 + 2 * (2 * block + outside)
    passes = [held("bfloat16", 1, kinds).teacher_pass for kinds in (0, 1, 2)]
    assert passes[1] - passes[0] == 3 * 64 * 64 * (1 + 2)  # a mask, and as it is added to scores
    assert passes[2] - passes[1] == 3 * 64 * 64


def test_corpora_are_sized_by_the_papers_tables_before_they_are_counted(tmp_path: Path) -> None:
    planned = stages_of("r1", tmp_path)
    text = planned["corpus-pretrain"]
    assert text.tokens == pytest.approx(1784e9, rel=1e-3)  # the total of R1's table 3
    assert "R1, table 3" in text.notes[0] and not text.at_least
    assert estimated(text).seconds and estimated(text).device_hours == 0  # no device reads text
    chosen = planned["corpus-midtrain"]
    assert chosen.at_least and "not counted: nemotron-code, triviaqa" in chosen.notes[1]
    assert all(
        stage.tokens and stage.disk for stage in planned.values() if "corpus" in stage.call.name
    )


def test_a_local_file_is_sized_by_its_bytes_and_a_cap_counts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"a" * 4200)
    own = LocalSource(name="own", domain="code", path=str(tmp_path / "notes.txt"))
    size, capped = source_size(own), source_size(replace(own, max_bytes=420))
    assert size and size.tokens == 1000 and capped and capped.tokens == 100
    assert source_size(replace(own, path=str(tmp_path / "nowhere"))) is None


def test_a_teacher_on_disk_is_read_from_its_config(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a few words"], 262)
    (tmp_path / "teacher").mkdir()
    shape = replace(SHAPE, vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "teacher", Transformer(shape), tokenizer)
    (tmp_path / "teacher" / "model.safetensors").unlink()  # its weights are not needed
    work = stages_of("r1", tmp_path, teacher=tmp_path / "teacher")["mid1"].work
    assert (
        work is not None
        and work.teacher is not None
        and num_parameters(work.teacher) == num_parameters(shape)
    )


def test_a_teacher_kept_on_disk_is_planned_and_costs_its_students_nothing(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a few words"], 262)
    for name in ("teacher", "corpus"):
        (tmp_path / name).mkdir()
    shape = replace(SHAPE, vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "teacher", Transformer(shape), tokenizer)
    tokens = {"a": 6_400, "b": 1_280}
    sources = {
        name: {"domain": "code", "kept": {"train": {"tokens": n}}} for name, n in tokens.items()
    }
    write_json(tmp_path / "corpus" / "curation.json", {"sources": sources})

    def recipe(run: Any) -> None:
        corpus, teacher = tmp_path / "corpus", tmp_path / "teacher"
        taught = run(
            teach,
            TeachConfig(name="taught", window=64, sources=("a",), min_gain=0.01),
            corpus=corpus,
            teacher=teacher,
        )
        train = PretrainConfig(
            name="student",
            model=shape,
            optim=STEPS,
            seq_len=64,
            rows_per_step=8,
            micro_batch_size=2,
            seed=1,
        )
        run(pretrain, train, corpus=corpus, teacher=taught)
        run(pretrain, replace(train, name="live"), corpus=corpus, teacher=teacher)

    taught, student, live = plan_stages(dry_run(recipe, tmp_path / "run", missing_ok=True).calls)
    assert taught.tokens == 6_400 and taught.disk == pytest.approx(
        6_400 * CACHED_BYTES[0.01], rel=1e-3
    )
    assert taught.other_flops == 100 * flops_of(shape, 1, 64).forward
    assert student.work is not None and student.work.teacher is None and student.notes == ()
    assert live.work is not None and live.work.teacher == shape
    assert CACHED_BYTES[0.01] < cached_bytes(0.007) < CACHED_BYTES[0.005]


def test_every_kind_of_stage_of_the_demo_is_planned_or_said_not_to_be(tmp_path: Path) -> None:
    planned = stages_of("pocket", tmp_path)
    unknown = {name for name, stage in planned.items() if stage.flops is None}
    assert unknown == {"evaluation", "speed", "report"} and planned["corpus"].at_least
    assert all(planned[name].notes for name in unknown)
    int4, chat = planned["int4"].work, planned["chat"].work
    assert (
        int4 and chat and int4.teacher == int4.model == chat.model and int4.scheme == "int4_group32"
    )
    # the prior's run, which is the mix by size, a step from it, and uniform
    assert planned["mix"].work is not None and planned["mix"].work.copies == 3
    assert planned["select1"].at_most and "at most" in planned["select1"].notes[0]
    assert planned["long"].work is not None and planned["merged"].like is not None
    assert planned["long"].work.model == planned["merged"].like.model


# ---- speed ----


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constants_are_those_that_the_script_fits_and_its_error_is_the_one_told() -> None:
    fit = script("plan_fit")
    assert astuple(fit.fitted(FITTED)) == pytest.approx(astuple(FIT), rel=0.005)
    errors = [
        fit.log_error(row, fit.fitted(FITTED[:i] + FITTED[i + 1 :])) for i, row in enumerate(FITTED)
    ]
    assert fit.spread(errors) == pytest.approx(LEFT_OUT_ERROR, abs=0.01)


def test_r1_950m_phase_1_which_was_not_fitted_comes_out_at_its_published_4_to_5_days() -> None:
    row = HELD_OUT[0]
    seconds = step_seconds(row.work, row.device, row.count, fused=row.fused)
    assert 4 <= 500_000 * seconds / 86_400 <= 5


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_more_devices_take_less_time_and_never_less_device_time(name: str) -> None:
    work = replace(
        WORK, model=PRESETS["r1-140m"], rows_per_step=128, micro_batch_size=2, seq_len=2048
    )
    seconds = [step_seconds(work, device(name), count, fused=True) for count in (1, 8, 64)]
    assert seconds[0] > seconds[1] > seconds[2]
    assert seconds[0] <= 8 * seconds[1] * 1.0001 and seconds[1] <= 8 * seconds[2]


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "ENOUGH_SECONDS", 0.1)


@pytest.mark.usefixtures("briefly")
def test_a_step_that_is_tried_takes_longer_with_more_to_do() -> None:
    small = replace(WORK, seq_len=256, micro_batch_size=8)
    tried = here.step_seconds(small)
    wide = replace(SHAPE, hidden_size=256, intermediate_size=1024, head_dim=128)
    assert tried is not None and 0 < tried < (here.step_seconds(replace(small, model=wide)) or 0)


@pytest.mark.usefixtures("briefly")
def test_a_step_too_large_to_be_tried_is_put_together_from_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = replace(
        SHAPE,
        hidden_size=256,
        intermediate_size=1024,
        head_dim=64,
        num_attention_heads=4,
        num_hidden_layers=6,
    )
    work = replace(
        WORK,
        model=replace(shape, vocab_size=4000),
        rows_per_step=4,
        micro_batch_size=4,
        seq_len=256,
    )
    whole = here.step_seconds(work)
    monkeypatch.setattr(here, "TRIED_FLOPS", 0)
    parts = here.step_seconds(work)
    assert whole and parts and 0.1 < parts / whole < 10  # a busy machine's clock is rough
    monkeypatch.setattr(here, "free_bytes", lambda where: 1)
    assert here.step_seconds(work) is None


# ---- what is printed ----


def estimated(stage: Stage, count: int = 8) -> Estimate:
    return estimate(stage, device("h100"), count)


def test_too_few_rows_and_too_little_memory_are_noted_with_what_would_fit(tmp_path: Path) -> None:
    stage = stages_of("pro", tmp_path)["phase2"]
    assert stage.work is not None
    work = replace(stage.work, model=PRESETS["pro"], rows_per_step=2, teacher=None)
    work = replace(work, optim=replace(work.optim, checkpoint_every_n_blocks=0))
    planned = estimated(replace(stage, work=work, notes=()))
    assert planned.devices == 2
    assert "keep 2 of 8 busy, so that a run on all is refused" in planned.notes[0]
    assert re.search(r"needs [\d.]+ GB and each h100 has 80 \(activations \d+ GB", planned.notes[1])
    assert "fits with --set phase2.optim.checkpoint_every_n_blocks=1" in planned.notes[1]


@pytest.mark.parametrize("count", [8, 128])
@pytest.mark.parametrize("recipe", ["r1-140m", "r1-360m", "r1-950m", "pro"])
def test_every_stage_of_the_published_recipes_fits_h100s_and_keeps_all_of_them_busy(
    recipe: str, count: int, tmp_path: Path
) -> None:
    """At the published global batches; no weights are made."""
    name, _, model_size = recipe.partition("-")
    stages = stages_of(name, tmp_path, **({"size": model_size} if model_size else {}))
    planned = [estimated(stage, count) for stage in stages.values()]
    trained = [one for one in planned if one.memory]
    assert len(trained) == (6 if name == "r1" else 9)
    for one in trained:
        assert one.memory and one.memory.peak <= device("h100").memory_bytes, one.stage.call.name
        assert one.devices == count, one.stage.call.name
    for one in planned:
        assert one.seconds is not None and one.stage.tokens is not None, one.stage.call.name
        assert one.stage.disk is not None and one.stage.flops is not None, one.stage.call.name
    lines = memory_verdict(planned, device("h100"), count)
    assert all(line.endswith(" of 80 GB: fits") for line in lines[: len(trained)])
    assert all("is not here: planned" in line for line in lines[len(trained) :])


def test_the_published_batches_are_kept(tmp_path: Path) -> None:
    r1, pro = stages_of("r1", tmp_path, size="950m"), stages_of("pro", tmp_path)
    rows = {name: stage.work.rows_per_step for name, stage in r1.items() if stage.work}
    assert rows == {
        "phase1": 2048,
        "phase2": 2048,
        "mid1": 512,
        "mid2": 512,
        "general": 512,
        "reasoning": 1024,
    }
    assert pro["phase1"].tokens == 640_000 * 1024 * 2048
    # the 2M-token reading of Pro, whatever the windows of a step
    for windows in (16, 64, 128):
        planned = stages_of("pro", tmp_path, windows=windows)
        assert planned["phase2"].tokens == pytest.approx(100_000 * 16 * 131_072, rel=1e-3)
        assert planned["branch-code"].tokens == pytest.approx(500 * 16 * 131_072, rel=0.01)


def test_on_one_gpu_of_24_gb_what_fits_is_planned_and_what_does_not_says_why(
    tmp_path: Path,
) -> None:
    small = {
        name: estimate(stage, device("rtx4090"), 1)
        for name, stage in stages_of("r1", tmp_path, size="140m").items()
    }
    too_large = {name for name, one in small.items() if any("needs" in n for n in one.notes)}
    assert too_large == {"mid1", "mid2"}
    assert "teacher" in small["mid1"].notes[-1] and "a smaller teacher" in small["mid1"].notes[-1]
    large = stages_of("r1", tmp_path, size="950m")["phase1"]
    note = estimate(large, device("rtx4090"), 1).notes[-1]
    assert "fits with --set phase1.micro_batch_size=1" in note
    settings = parse_settings([note.split("--set ")[-1]])
    changed = replace(large, work=replace(large.work, micro_batch_size=1))  # type: ignore[type-var]
    assert settings == {"phase1": {"micro_batch_size": "1"}}
    assert not estimate(changed, device("rtx4090"), 1).notes


def test_device_hours_are_those_of_the_devices_at_work(tmp_path: Path) -> None:
    planned = estimated(stages_of("r1", tmp_path)["phase1"], 128)
    assert planned.seconds and planned.device_hours == pytest.approx(128 * planned.seconds / 3600)
    assert planned.actual_seconds is None and planned.ratio is None


def test_a_stage_that_all_ranks_compute_takes_as_much_less_and_one_of_the_first_does_not(
    tmp_path: Path,
) -> None:
    spread = stages_of("r1", tmp_path)["select1"]
    assert spread.like and spread.like.rows_per_step == (
        spread.like.micro_batch_size * MANY_BATCHES
    )
    like = replace(spread.like, rows_per_step=spread.like.micro_batch_size)
    alone = replace(spread, like=like)
    first, one, eight = (estimated(*pair) for pair in ((alone, 8), (spread, 1), (spread, 8)))
    assert (first.devices, one.devices, eight.devices) == (1, 1, 8)
    assert first.seconds and one.seconds and eight.seconds
    assert eight.seconds < one.seconds / 7 and first.seconds >= one.seconds


@pytest.mark.parametrize(
    ("count", "devices", "overlaps"),
    [(1, 1, [False] * 3), (2, 1, [False, True, False]), (13, 4, [False, True, True])],
)
def test_stages_side_by_side_share_the_devices_and_count_as_long_as_the_longest(
    count: int, devices: int, overlaps: list[bool], tmp_path: Path
) -> None:
    train = PretrainConfig(
        name="a", model=SHAPE, optim=STEPS, seq_len=64, rows_per_step=8, micro_batch_size=1, seed=1
    )
    longer = replace(train, name="b", optim=replace(STEPS, num_steps=300))

    def recipe(run: Any) -> None:
        run.side_by_side(pretrain, [train, longer, replace(train, name="c")], corpus=tmp_path)

    dry = dry_run(recipe, tmp_path / "run", missing_ok=True)
    planned = [estimated(stage, count) for stage in plan_stages(dry.calls)]
    assert [one.devices for one in planned] == [devices] * 3 and [
        one.overlaps for one in planned
    ] == overlaps
    a, b, c = (one.seconds or 0.0 for one in planned)
    assert totals(planned)["seconds"] == pytest.approx(b + {1: a + c, 2: c, 13: 0.0}[count])


def test_amounts_are_told_in_units_that_fit() -> None:
    assert (amount(2.097e12), amount(410_000), amount(12)) == ("2.1T", "410k", "12")
    assert (size(15.2e9), size(310_000), size(None)) == ("15.2 GB", "310 kB", "?")
    assert (span(4.2), span(204), span(18_000), span(4.04 * 86_400)) == (
        "4.2 s",
        "3.4 min",
        "5.0 h",
        "4.0 days",
    )


@pytest.mark.parametrize("count", ["1", "128"])
@pytest.mark.parametrize("recipe", ["r1", "pro", "pocket"])
def test_at_80_columns_no_name_and_no_word_of_the_table_is_split(
    recipe: str, count: str, tmp_path: Path
) -> None:
    words = [str(ROOT / "recipes" / f"{recipe}.py"), "--out", "nowhere", "--gpu", "h100"]
    status, output = pocketlm(*words, "--count", count, columns="80")
    assert status == 0
    lines = output.splitlines()
    rows = lines[: next(i for i, line in enumerate(lines) if line.startswith("1  "))]
    names = stages_of(recipe, tmp_path)
    for name in names:  # a whole row each
        assert sum(line.startswith(f" {name} ") for line in rows) == 1, name
    assert len([line for line in rows if line.strip()]) == len(names) + 4  # title, head, rule, sum
    assert max(map(len, lines)) <= 80 and "…" not in output
    assert any(re.match(r" together .* [GMT]B ", line) for line in rows)


def pocketlm(*words: str, columns: str = "200") -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": columns}).invoke(app, ["plan", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_shows_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    where = ["--gpu", "H100", "--count", "128", "--out", str(tmp_path / "run"), "--json", str(file)]
    status, output = pocketlm(str(ROOT / "recipes" / "r1.py"), "--size", "950m", *where)
    assert (
        status == 0
        and "16 stages on 128 x h100" in " ".join(output.split())
        and "together" in output
        and "Not in the times" not in output
    )
    written = json.loads(file.read_text())
    phase1 = written["stages"][2]
    assert (phase1["stage"], phase1["devices"]) == ("phase1", 128) and phase1[
        "tokens"
    ] == 2_097_152_000_000
    assert written["together"]["unknown"] == [] and written["stages"][1]["tokens"] > 1.7e12
    assert math.isclose(phase1["device_hours"], phase1["seconds"] * 128 / 3600)
    assert not (tmp_path / "run").exists()


def test_memory_of_another_size_takes_the_devices_speed(tmp_path: Path) -> None:
    words = [str(ROOT / "recipes" / "r1.py"), "--out", str(tmp_path), "--gpu", "a100"]
    full, cut = (pocketlm(*words, *more)[1] for more in ((), ("--memory", "24")))
    assert "needs" not in full.replace("needs what", "") and "each a100 has 24" in cut


def test_a_recipes_flags_are_told_with_the_plans() -> None:
    status, output = pocketlm(str(ROOT / "recipes" / "r1.py"), "--help")
    assert status == 0 and "--size" in output and "--gpu NAME" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "--gpu h1000: unknown; known are a100, h100, h200, b200, rtx4090"),
        (["--memory", "24"], "--memory 24: GB of each device that --gpu names, above 0"),
        (["--gpu", "h100", "--count", "0"], "--count 0: at least 1"),
        (["--count", "8"], "--count 8: at least 1, and 1 on this machine"),
        (["--json", "nowhere/plan.json"], "there is no folder nowhere"),
        (["--gpu", "h100", "--size", "2b"], "--size 2b"),
    ],
)
def test_a_mistake_is_one_message(words: list[str], message: str) -> None:
    status, output = pocketlm(str(ROOT / "recipes" / "r1.py"), *words)
    assert status == 2 and message in " ".join(output.split()) and "Traceback" not in output
