"""The plan of recipes that are not run: shapes followed, work shared out, times from the fitted
model, and what is unknown.
"""

import importlib.util
import json
import math
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.estimate import local as here
from pocketlm.estimate.devices import DEVICES, device
from pocketlm.estimate.estimate import Estimate, estimate, totals
from pocketlm.estimate.published import FITTED, HELD_OUT
from pocketlm.estimate.speed import FIT, LEFT_OUT_ERROR, step_seconds
from pocketlm.estimate.stages import CACHED_BYTES, Stage, cached_bytes, plan_stages
from pocketlm.estimate.table import amount, size, span
from pocketlm.estimate.work import Work
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.costs import flops_of, num_parameters
from pocketlm.model.files import write_json
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.teach import TeachConfig, teach
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig

ROOT = Path(__file__).parents[2]
STEPS = OptimConfig(lr=1e-3, num_steps=100, warmup_steps=0, final_lr_share=0.1)
SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=10_000.0,
)
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
    found = stages_of("r1", tmp_path, size="950m")
    assert found["phase1"].tokens == found["phase2"].tokens == 500_000 * 2048 * 2048
    work = found["reasoning"].work
    assert (
        work is not None
        and work.model.max_position_embeddings == 32_768
        and work.model.rope_theta == 8_000_000
    )
    assert found["phase2"].work is not None and found["phase2"].work.model == PRESETS["r1-950m"]
    assert found["base-32k"].flops == 0 and found["base-32k"].disk == 4 * 949_685_760


def test_what_hangs_on_a_missing_folder_is_unknown_and_says_why(tmp_path: Path) -> None:
    found = stages_of("r1", tmp_path, teacher=tmp_path / "nowhere")
    mid = found["mid1"]
    assert mid.flops is None and mid.disk is None and mid.tokens == 50_000 * 512 * 4096
    assert "the shape of the teacher" in mid.notes[0] and "nowhere" in mid.notes[0]
    assert found["corpus-pretrain"].tokens is None and found["corpus-pretrain"].disk is None
    assert found["files"].flops is None and found["files"].notes == ("not estimated",)
    assert found["general"].flops  # the shape goes through a stage whose teacher is not known


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
    found = stages_of("pocket", tmp_path)
    unknown = {name for name, stage in found.items() if stage.flops is None}
    assert unknown == {"corpus", "files", "evaluation", "speed", "report"}
    assert all(found[name].notes for name in unknown)
    int4, chat = found["int4"].work, found["chat"].work
    assert (
        int4 and chat and int4.teacher == int4.model == chat.model and int4.scheme == "int4_group32"
    )
    assert found["mix"].work is not None and found["mix"].work.copies == 4
    assert found["select1"].at_most and "at most" in found["select1"].notes[0]
    assert found["long"].work is not None and found["merged"].like is not None
    assert found["long"].work.model == found["merged"].like.model


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


# ---- what is told ----


def estimated(stage: Stage, count: int = 8) -> Estimate:
    return estimate(stage, device("h100"), count)


def test_too_few_rows_and_too_little_memory_are_noted(tmp_path: Path) -> None:
    stages = stages_of("pro", tmp_path, teacher=tmp_path)
    assert "shape of the teacher" in estimated(stages["phase2"]).notes[0]
    work = replace(WORK, model=PRESETS["pro"], rows_per_step=2, micro_batch_size=1, seq_len=131_072)
    told = estimated(replace(stages["phase2"], work=work, notes=()))
    assert (
        told.devices == 2
        and "keep 2 of 8 busy" in told.notes[0]
        and "needs more memory than a h100" in told.notes[1]
    )


def test_device_hours_are_those_of_the_devices_at_work(tmp_path: Path) -> None:
    told = estimated(stages_of("r1", tmp_path)["phase1"], 128)
    assert told.seconds and told.device_hours == pytest.approx(128 * told.seconds / 3600)
    assert told.actual_seconds is None and told.ratio is None


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
    found = [estimated(stage, count) for stage in plan_stages(dry.calls)]
    assert [each.devices for each in found] == [devices] * 3 and [
        each.overlaps for each in found
    ] == overlaps
    a, b, c = (each.seconds or 0.0 for each in found)
    assert totals(found)["seconds"] == pytest.approx(b + {1: a + c, 2: c, 13: 0.0}[count])


def test_amounts_are_told_in_units_that_fit() -> None:
    assert (amount(2.097e12), amount(410_000), amount(12)) == ("2.1T", "410k", "12")
    assert (size(15.2e9), size(310_000), size(None)) == ("15.2 GB", "310 kB", "?")
    assert (span(4.2), span(204), span(18_000), span(4.04 * 86_400)) == (
        "4.2 s",
        "3.4 min",
        "5.0 h",
        "4.0 days",
    )


def pocketlm(*words: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_shows_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    where = ["--gpu", "H100", "--count", "128", "--out", str(tmp_path / "run"), "--json", str(file)]
    status, shown = pocketlm(str(ROOT / "recipes" / "r1.py"), "--size", "950m", *where)
    assert (
        status == 0
        and "15 stages on 128 x h100" in " ".join(shown.split())
        and "together" in shown
        and "Not in the times" in shown
    )
    written = json.loads(file.read_text())
    phase1 = written["stages"][1]
    assert (phase1["stage"], phase1["devices"]) == ("phase1", 128) and phase1[
        "tokens"
    ] == 2_097_152_000_000
    assert (
        written["stages"][0]["tokens"] is None
        and "corpus-pretrain" in written["together"]["unknown"]
    )
    assert math.isclose(phase1["device_hours"], phase1["seconds"] * 128 / 3600)
    assert not (tmp_path / "run").exists()


def test_a_recipes_flags_are_told_with_the_plans() -> None:
    status, shown = pocketlm(str(ROOT / "recipes" / "r1.py"), "--help")
    assert status == 0 and "--size" in shown and "--gpu NAME" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "--gpu h1000: unknown; known are a100, h100, h200, b200, and this"),
        (["--gpu", "h100", "--count", "0"], "--count 0: at least 1"),
        (["--count", "8"], "--count 8: at least 1, and 1 on this machine"),
        (["--json", "nowhere/plan.json"], "there is no folder nowhere"),
        (["--gpu", "h100", "--size", "2b"], "--size 2b"),
    ],
)
def test_a_mistake_is_one_message(words: list[str], message: str) -> None:
    status, shown = pocketlm(str(ROOT / "recipes" / "r1.py"), *words)
    assert status == 2 and message in " ".join(shown.split()) and "Traceback" not in shown
