"""Too little memory is told before the first step, with the estimate and what to change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketlm.model.costs import num_parameters
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.train import memory
from pocketlm.train.memory import TrainingMemory, check_memory, training_memory
from pocketlm.train.optim import OptimConfig

R1 = PRESETS["r1-140m"]
STEPS = OptimConfig(
    lr=1e-3, num_steps=2, warmup_steps=0, final_lr_share=0.1, compute_dtype="bfloat16"
)
PHASE = PretrainConfig(
    name="phase",
    optim=STEPS,
    model=R1,
    seq_len=512,
    rows_per_step=8,
    micro_batch_size=8,
    seed=0,
    shares={"a": 1.0},
)
GIB = 2**30


def of(model: ModelConfig = R1, optim: OptimConfig = STEPS, **changes) -> TrainingMemory:
    layout = {"rows": 8, "seq_len": 512, "accumulates": False, "masked": False, "saves": False}
    return training_memory(model, optim, **{**layout, **changes})


def test_weights_gradients_and_states_of_adamw_are_sixteen_bytes_a_parameter_and_muons_fewer() -> (
    None
):
    adamw, muon = of(), of(optim=replace(STEPS, optimizer="muon"))
    assert adamw.weights + adamw.gradients + adamw.states == 16 * num_parameters(R1)
    inner = 15 * (2 * 576 * (9 + 3) * 64 + 3 * 576 * 2048)
    assert adamw.states - muon.states == 4 * inner


def test_ranks_share_weights_gradients_states_and_teacher_but_not_activations() -> None:
    alone, four, many = of(teacher=R1), of(teacher=R1, shards=4), of(teacher=R1, shards=1000)
    # two blocks' matrices and the token table are whole where they are used
    gathered = 4 * (2 * 4_423_680 + 128_256 * 576)
    assert four.weights == alone.weights // 4 + gathered and four.teacher == four.weights
    assert (four.gradients, four.states) == (alone.gradients // 4, alone.states // 4)
    assert four.kept == alone.kept and many.peak < four.peak < alone.peak
    # they add up whole before they are shared out
    assert of(shards=4, accumulates=True).gradients == alone.gradients


def test_what_costs_memory_is_in_the_peak() -> None:
    plain = of().peak
    assert of(rows=16).peak > plain
    assert of(optim=replace(STEPS, compute_dtype="float32")).peak > plain
    assert of(teacher=R1).peak > plain
    assert of(teacher=R1, on_grid=True).peak > of(teacher=R1).peak
    assert of(accumulates=True).peak > plain
    # so little is kept that the copy which is saved weighs most
    small = of(rows=1, seq_len=8, saves=True)
    assert small.peak == 2 * (small.weights + small.states) > of(rows=1, seq_len=8).peak
    assert (
        of(optim=replace(STEPS, checkpoint_every_n_blocks=1)).peak
        < of(optim=replace(STEPS, checkpoint_every_n_blocks=2)).peak
        < plain
    )


def test_documents_kept_apart_on_a_gpu_take_a_mask_of_all_pairs_with_sdpa_alone() -> None:
    whole = of(device="cuda").kept
    assert of(device="cuda", masked=True).kept == whole
    sdpa = replace(STEPS, attention="sdpa")
    assert of(device="cuda", optim=sdpa).kept == whole
    assert of(device="cuda", optim=sdpa, masked=True).kept > whole


def test_a_large_teacher_is_counted_while_it_is_loaded() -> None:
    need = of(rows=1, seq_len=8, teacher=PRESETS["pro"])
    assert need.peak == need.weights + 2 * need.teacher
    on_gpu = of(rows=1, seq_len=8, teacher=PRESETS["pro"], device="cuda")
    assert on_gpu.loading == 0  # it is read into the processor's memory
    assert on_gpu.peak < on_gpu.weights + 2 * on_gpu.teacher


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({}, "What 8 rows leave for the backward pass weighs most: lower phase.micro_batch_size"),
        ({"micro_batch_size": 1, "seq_len": 128}, "The model itself weighs most"),
        (
            {"micro_batch_size": 1, "seq_len": 32_768},
            "One row weighs most: lower phase.seq_len 32768",
        ),
    ],
)
def test_too_little_memory_is_one_message_before_anything_is_read(
    change: dict, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda where: GIB)
    with pytest.raises(ValueError, match="phase needs about") as error:
        pretrain(replace(PHASE, **change), tmp_path, corpus=tmp_path / "nowhere")
    told = str(error.value)
    assert "1.0 GiB are free" in told and "states 1.0 GiB" in told and remedy in told
    assert not list(tmp_path.iterdir())


def test_a_heavy_teacher_is_named_as_what_weighs_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda where: GIB)
    config = replace(PHASE, micro_batch_size=1)
    with pytest.raises(ValueError, match="The teacher weighs most"):
        check_memory(config, R1, teacher=PRESETS["mobilellm-1.5b"], masked=False)


def test_a_stage_is_refused_only_where_the_estimate_less_a_margin_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak = of().peak
    monkeypatch.setattr(memory, "free_bytes", lambda where: int(peak * (1 - memory.MARGIN)) + 1)
    check_memory(PHASE, R1, masked=False)
    monkeypatch.setattr(memory, "free_bytes", lambda where: int(peak * (1 - memory.MARGIN)) - 1)
    with pytest.raises(ValueError, match="needs about"):
        check_memory(PHASE, R1, masked=False)


def test_a_control_groups_limit_counts_with_its_parents_and_without_its_file_cache(
    tmp_path: Path,
) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job\n")
    job = tmp_path / "fs" / "slurm" / "job"
    job.mkdir(parents=True)
    assert memory._control_group_bytes(tmp_path / "fs", own) == []
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("1000\n")
    (job.parent / "memory.current").write_text("900\n")
    (job.parent / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert memory._control_group_bytes(tmp_path / "fs", own) == [400]


def test_an_older_control_groups_limit_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:memory:/docker/1\n3:cpu:/\n")
    group = tmp_path / "fs" / "memory" / "docker" / "1"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("250\n")
    assert memory._control_group_bytes(tmp_path / "fs", own) == [750]


def test_this_machine_has_some_memory_free() -> None:
    assert 0 < memory.free_bytes(torch.device("cpu")) < 2**50


def test_a_network_that_no_folder_holds_is_refused_before_it_is_trained() -> None:
    for shape, why in (
        (replace(R1, layer_repeats=2), "the layout llama cannot hold this network: it has QK-norm"),
        (replace(R1, use_qk_norm=False, layer_repeats=3), "it applies blocks 3 times, not 2"),
    ):
        with pytest.raises(
            ValueError, match=f"phase.model could be trained and not saved: .*{why}"
        ):
            replace(PHASE, model=shape)
