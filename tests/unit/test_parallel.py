"""Several ranks train what one trains: gloo processes on this computer, each case on 1, 2 and 4
(two nodes of two).
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import on_ranks, start_ranks
from safetensors.torch import load_file, save_file
from shapes import small
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.runner.schedule import take_turn
from pocketlm.train import checkpoint as state
from pocketlm.train.checkpoint import SaveConfig, saved_states
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.distributed.fsdp import mesh_shape, shard_model
from pocketlm.train.distributed.ranks import joined, ranks
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, ShardOver

# an odd vocabulary, so that ranks hold unequal parts of the table
SHAPE = small(vocab_size=301, qk_norm_weight=True, initializer_range=0.1)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=4, warmup_steps=1, final_lr_share=0.1, compute_dtype="float32"
)
NEVER = SaveConfig(every_steps=1000)
ROWS = 8


@dataclass(frozen=True)
class Case:
    """A training to compare. taught: by a live teacher, of another width; micro_batch_size: rows of
    one.
    """

    shape: ModelConfig = SHAPE
    optim: OptimConfig = OPTIM
    scheme: str | None = None
    taught: bool = False
    micro_batch_size: int = 1


UNTIED = replace(SHAPE, tie_word_embeddings=False)
CASES = {
    "cross-entropy": Case(),
    "one micro-batch a step": Case(micro_batch_size=2),
    "head of its own": Case(UNTIED),
    "shared over all nodes": Case(optim=replace(OPTIM, shard_over="all")),
    "live teacher": Case(taught=True),
    "live teacher, head of its own": Case(UNTIED, taught=True),
    "blocks applied twice": Case(replace(SHAPE, layer_repeats=2)),
    "four bits": Case(scheme="int4_group32_weight_only", taught=True),
    "four bits, learned ranges": Case(scheme="int4_channel", taught=True),
    "muon": Case(optim=replace(OPTIM, optimizer="muon")),
}
# relative, of losses and norms; absolute, of weights after 4 steps: reasons in docs/numerics.md
OF_FIGURES, OF_WEIGHTS = 1e-6, 1e-5


def batches_of(case: Case) -> Callable[[int], list[Batch]]:
    """This rank's rows of 16 tokens of each step. The first has no label at all, the second few."""
    place = ranks()

    def draw(step: int) -> list[Batch]:
        ids = torch.randint(301, (ROWS, 17), generator=torch.Generator().manual_seed(step))
        labels = ids[:, 1:].clone()
        labels[0], labels[1, 3:] = IGNORE_INDEX, IGNORE_INDEX
        share, size = ROWS // place.world_size, case.micro_batch_size
        first = place.rank * share
        return [
            Batch(input_ids=ids[i : i + size, :-1], labels=labels[i : i + size])
            for i in range(first, first + share, size)
        ]

    return draw


def loss_of(case: Case) -> LossFn:
    if not case.taught:
        return next_token_loss
    teacher = Transformer(replace(case.shape, hidden_size=48, num_attention_heads=3), seed=7)
    return distillation_loss(live_teacher(teacher, case.optim), Distillation(label_share=0.3))


def student_of(case: Case) -> Transformer:
    model = Transformer(case.shape)
    return prepare(model, SCHEMES[case.scheme]) if case.scheme else model


def figures(out: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"], line["tokens"]) for line in lines]


Outcome = tuple[list[tuple[float, ...]], dict[str, Tensor]]


def train_cases(folder: Path) -> dict[str, Outcome] | None:
    """Figures and weights of every case; None on other ranks than the first."""
    results = {}
    for number, (name, case) in enumerate(CASES.items()):
        out = folder / f"case-{number}"
        out.mkdir(exist_ok=True)
        model = train(
            student_of(case),
            batches_of(case),
            loss_of(case),
            case.optim,
            out,
            label=name,
            save=NEVER,
        )
        if ranks().first:
            results[name] = (
                figures(out),
                {key: tensor.detach() for key, tensor in model.state_dict().items()},
            )
    return results or None


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Outcome]]:
    """Of every case, by the number of ranks."""
    results = {}
    for world_size, nodes in ((1, 1), (2, 1), (4, 2)):
        folder = tmp_path_factory.mktemp(f"ranks-{world_size}")
        first, *others = on_ranks(world_size, folder, train_cases, folder, nodes=nodes)
        assert others == [None] * (world_size - 1), others
        results[world_size] = first
    return results


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_several_ranks_train_what_one_trains(outcomes, name: str, world_size: int) -> None:
    (expected, expected_weights), (results, weights) = outcomes[1][name], outcomes[world_size][name]
    assert len(results) == len(expected) == 4
    assert [row[2] for row in results] == [row[2] for row in expected] == [128] * 4
    assert [row[:2] for row in results] == [
        pytest.approx(row[:2], rel=OF_FIGURES) for row in expected
    ]
    assert weights.keys() == expected_weights.keys()
    for key, tensor in expected_weights.items():
        assert (weights[key] - tensor).abs().max() <= OF_WEIGHTS, key


APART = "cross-entropy"  # the case for ranks that part and meet again


def train_apart(folder: Path) -> None:
    """Two trainings at the same time, each on two of four ranks, then one on all four, then the two
    again.
    """
    with joined() as launch:

        def alone(name: str) -> None:
            case, out = CASES[APART], folder / name
            out.mkdir(exist_ok=True)
            model = train(
                student_of(case),
                batches_of(case),
                loss_of(case),
                case.optim,
                out,
                label=name,
                save=NEVER,
            )
            if ranks().first:
                save_file(model.state_dict(), out / "weights.safetensors")

        take_turn(
            [(partial(alone, "left"), range(2)), (partial(alone, "right"), range(2, 4))], launch
        )
        alone("all")
        take_turn(
            [
                (partial(alone, "left again"), range(2)),
                (partial(alone, "right again"), range(2, 4)),
            ],
            launch,
        )


def test_ranks_that_part_train_what_as_many_train_by_themselves(outcomes, tmp_path: Path) -> None:
    for process in start_ranks(4, train_apart, tmp_path, nodes=2):
        process.join(120)
        assert process.exitcode == 0
    for name, world_size in {
        "left": 2,
        "right": 2,
        "all": 4,
        "left again": 2,
        "right again": 2,
    }.items():
        expected, weights = outcomes[world_size][APART]
        assert figures(tmp_path / name) == expected, name
        results = load_file(tmp_path / name / "weights.safetensors")
        assert results.keys() == weights.keys()
        assert all(torch.equal(results[key], tensor) for key, tensor in weights.items()), name


def left_alone_at_the_door() -> None:
    """Rank 1 is gone when both connect to each other."""
    with joined() as launch:
        if launch.ranks.rank == 1:
            dist.init_process_group = lambda *how, **details: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        with launch.subgroups([range(2)]):
            raise AssertionError("one rank alone is no group of two")


def test_a_rank_that_dies_while_a_group_is_formed_is_not_waited_for_long() -> None:
    started = time.monotonic()
    waiting, dead = start_ranks(2, left_alone_at_the_door)
    for process in (waiting, dead):
        process.join(60)
    assert (waiting.exitcode, dead.exitcode) == (1, -signal.SIGKILL)
    assert time.monotonic() - started < 50


def own_part(module: nn.Module) -> int:
    """Values of the module's weights that lie on this rank."""
    return sum(
        p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters()
    )


def held_by_a_rank(shard_over: ShardOver) -> tuple[int, int, bool]:
    """(values of the student on this rank, of a teacher's blocks, whether the teacher has
    gradients) after a step.
    """
    optim = replace(OPTIM, num_steps=2, shard_over=shard_over)
    student, teacher = Transformer(SHAPE), Transformer(UNTIED, seed=7)
    loss_fn = distillation_loss(live_teacher(teacher, optim))
    shard_model(student, shard_over)
    for batch in batches_of(Case())(0):
        loss_fn(student, batch).backward()
    held = [own_part(module) for module in (student, teacher.model.layers)]
    return (
        held[0],
        held[1],
        any(p.grad is not None or p.requires_grad for p in teacher.parameters()),
    )


@pytest.mark.parametrize(("shard_over", "copies"), [("node", 2), ("all", 1)])
def test_ranks_share_out_the_weights_of_student_and_teacher(
    shard_over: ShardOver, copies: int, tmp_path: Path
) -> None:
    held = on_ranks(4, tmp_path, held_by_a_rank, shard_over, nodes=2)
    for which, module in enumerate((Transformer(SHAPE), Transformer(UNTIED).model.layers)):
        values = sum(p.numel() for p in module.parameters())
        assert sum(rank[which] for rank in held) == copies * values
        assert max(rank[which] for rank in held) <= 1.1 * values * copies / 4
    assert not any(rank[2] for rank in held)


def signalled(number: int) -> LossFn:
    """A loss in whose sixth call, of step 1 where a step has four micro-batches, rank 1 gets a
    signal.
    """
    calls = 0

    def loss(model: Transformer, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6 and ranks().rank == 1:
            os.kill(os.getpid(), number)
        return next_token_loss(model, batch)

    return loss


def interrupted(out: Path, optim: OptimConfig) -> Any:
    """A training whose rank 1 is asked to stop in step 1, then the same again; the weights'
    bits.
    """
    with pytest.raises(KeyboardInterrupt):
        stopping_loss = signalled(signal.SIGTERM)
        train(
            Transformer(SHAPE),
            batches_of(Case()),
            stopping_loss,
            optim,
            out,
            label="stopped",
            save=NEVER,
        )
    saved = [state.name for state in saved_states(out)], len(figures(out))
    bits = []
    for folder in (out, out / "unbroken"):
        if ranks().first:
            folder.mkdir(exist_ok=True)
        model = train(
            Transformer(SHAPE),
            batches_of(Case()),
            next_token_loss,
            optim,
            folder,
            label="again",
            save=NEVER,
        )
        bits.append(
            {key: tensor.detach() for key, tensor in model.state_dict().items()}
            if ranks().first
            else {}
        )
    return saved, bits, figures(out) == figures(out / "unbroken")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ranks_stop_after_the_same_step_when_one_is_asked_to_and_resume_to_the_same_bits(
    optimizer: Any, tmp_path: Path
) -> None:
    results = on_ranks(2, tmp_path, interrupted, tmp_path, replace(OPTIM, optimizer=optimizer))
    for rank in results:
        assert not isinstance(rank, BaseException), rank
    (saved, (resumed, unbroken), same), _ = results
    assert saved == (["step-00000002"], 2)
    assert same and all(torch.equal(resumed[key], tensor) for key, tensor in unbroken.items())


def poisoned(out: Path) -> None:
    """The second rank's second micro-batch of step 1 has a loss that is no number."""

    def loss(model: Transformer, batch: Batch) -> Tensor:
        results = next_token_loss(model, batch)
        bad = batches_of(Case())(1)[1] if ranks().rank == 1 else None
        return (
            results * float("nan")
            if bad and torch.equal(bad.input_ids, batch.input_ids)
            else results
        )

    train(
        Transformer(SHAPE),
        batches_of(Case()),
        loss,
        OPTIM,
        out,
        label="poisoned",
        save=SaveConfig(every_steps=1),
    )


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(tmp_path: Path) -> None:
    results = on_ranks(2, tmp_path, poisoned, tmp_path)
    assert [type(error) for error in results] == [FloatingPointError] * 2
    assert "step 1: loss nan" in str(results[0]) and str(results[0]) == str(results[1])
    assert [state.name for state in saved_states(tmp_path)] == ["step-00000001"]


def killed(out: Path) -> None:
    """Rank 1 is gone in the middle of step 1."""
    train(
        Transformer(SHAPE),
        batches_of(Case()),
        signalled(signal.SIGKILL),
        OPTIM,
        out,
        label="killed",
        save=NEVER,
    )


def test_a_rank_that_is_killed_ends_the_others_with_a_reason(tmp_path: Path) -> None:
    started = time.monotonic()
    error, dead = on_ranks(2, tmp_path, killed, tmp_path)
    assert dead is None and isinstance(error, ConnectionError)
    assert "rank 0 of 2 lost the others: one of them ended" in str(
        error
    ) and "goes on from the last saved state" in str(error)
    assert time.monotonic() - started < 60


def killed_in_the_last_save(out: Path) -> None:
    """Rank 1 is gone while it writes the state of the last step, after which nothing is exchanged
    any more.
    """
    if ranks().rank == 1:
        state.write_rank_file = lambda partial, pieces: os.kill(os.getpid(), signal.SIGKILL)
    train(
        Transformer(SHAPE),
        batches_of(Case()),
        next_token_loss,
        OPTIM,
        out,
        label="killed",
        save=NEVER,
    )


def test_a_rank_that_is_killed_in_the_last_save_ends_the_others_with_a_reason(
    tmp_path: Path,
) -> None:
    started = time.monotonic()
    error, dead = on_ranks(2, tmp_path, killed_in_the_last_save, tmp_path)
    assert (
        dead is None
        and isinstance(error, ConnectionError)
        and "rank 0 of 2 lost the others" in str(error)
    ), error
    assert time.monotonic() - started < 60 and saved_states(tmp_path) == []


@pytest.mark.parametrize(
    ("shard_over", "world_size", "of_a_node", "shape"),
    [
        ("node", 128, 8, (16, 8)),
        ("all", 128, 8, (128,)),
        ("node", 8, 8, (8,)),
        ("node", 4, 1, (4,)),  # a copy on each rank alone would share nothing out
    ],
)
def test_each_node_holds_all_weights_or_all_nodes_together(
    shard_over, world_size, of_a_node, shape
):
    assert mesh_shape(shard_over, world_size, of_a_node) == shape


def test_nodes_of_unequal_size_are_refused():
    with pytest.raises(
        ValueError, match=r"12 ranks do not make nodes of 8; .* optim\.shard_over=all"
    ):
        mesh_shape("node", 12, 8)
