"""A state that any number of ranks wrote is read by any other, to the bit: weights and the states
of both optimizers.
"""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from shapes import small
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pocketlm.model.transformer import Transformer
from pocketlm.train.checkpoint import SaveConfig, StateWriter, named_tensors
from pocketlm.train.distributed.fsdp import gather_for_muon, shard_model
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.resume import load_state, newest_whole

# an odd vocabulary, so that ranks hold parts of different sizes
CONFIG = small(vocab_size=301, intermediate_size=48, qk_norm_weight=True)
OPTIM = OptimConfig(lr=1e-2, num_steps=6, warmup_steps=2, final_lr_share=0.1, optimizer="muon")
# ranks, and how many are a node
WRITERS = {"1": (1, 1), "2": (2, 2), "4": (4, 4), "2 nodes of 2": (4, 2)}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model: Transformer, optimizers: list[torch.optim.Optimizer], number: int) -> None:
    """One update by gradients that only the step decides."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        grad = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            grad = distribute_tensor(
                grad, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.grad = grad
    gather_for_muon(optimizers)
    for optimizer in optimizers:
        optimizer.step()


def as_rank(rank: int, ranks: int, node: int, action: str, folder: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(node)
    torch.set_num_threads(1)
    if ranks > 1:
        meeting = f"file://{folder / f'meeting-{action}-{ranks}-{node}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    for name in WRITERS:
        if action == "read" or WRITERS[name] == (ranks, node):
            model = shard_model(Transformer(CONFIG), "node")
            optimizers = make_optimizers(model, OPTIM)
            if action == "write":
                write(model, optimizers, folder / name, rank)
            else:
                read(model, optimizers, folder / name, f"{ranks}", rank)
    if ranks > 1:
        dist.destroy_process_group()


def leave(
    model: Transformer, optimizers: list[torch.optim.Optimizer], file: Path, rank: int
) -> None:
    """All tensors, gathered, in a file of the first rank's."""
    tensors = {name: whole(tensor) for name, tensor in named_tensors(model, optimizers)}
    if rank == 0:
        save_file(tensors, file)


def write(
    model: Transformer, optimizers: list[torch.optim.Optimizer], out: Path, rank: int
) -> None:
    with StateWriter(out, SaveConfig(every_steps=1)) as states:
        for number in range(2):
            step(model, optimizers, number)
        states.write(model, optimizers, 2)
    leave(model, optimizers, out / "written", rank)


def read(
    model: Transformer, optimizers: list[torch.optim.Optimizer], out: Path, ranks: str, rank: int
) -> None:
    """Leaves what was read, and what one more step made of it."""
    assert load_state(model, optimizers, out) == 2
    for moment in ("read", "stepped"):
        leave(model, optimizers, out / f"{moment} by {ranks}", rank)
        step(model, optimizers, 2)


def together(ranks: int, node: int, action: str, folder: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch.distributed.fsdp"])
    processes = [
        context.Process(target=as_rank, args=(rank, ranks, node, action, folder))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for ranks, node in WRITERS.values():
            together(ranks, node, "write", folder)
        for ranks in (1, 2, 3):
            together(ranks, ranks, "read", folder)
    return folder


@pytest.fixture(scope="module")
def stepped() -> dict[str, Tensor]:
    """The same three steps in this process alone, without a file between."""
    model = Transformer(CONFIG)
    optimizers = make_optimizers(model, OPTIM)
    for number in range(3):
        step(model, optimizers, number)
    return {name: whole(tensor) for name, tensor in named_tensors(model, optimizers)}


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("writers", WRITERS)
def test_what_some_ranks_wrote_others_read_to_the_bit(
    writers: str, readers: int, folder: Path
) -> None:
    written, resharded = (
        load_file(folder / writers / name) for name in ("written", f"read by {readers}")
    )
    assert resharded.keys() == written.keys()
    assert [name for name in resharded if not torch.equal(resharded[name], written[name])] == []


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("writers", WRITERS)
def test_training_goes_on_from_there_as_on_one_rank(
    writers: str, readers: int, folder: Path, stepped
) -> None:
    """To rounding: AdamW's vector instructions end elsewhere in parts of another size."""
    resharded = load_file(folder / writers / f"stepped by {readers}")
    before = load_file(folder / writers / f"read by {readers}")
    for name, tensor in resharded.items():
        torch.testing.assert_close(tensor, stepped[name], rtol=1e-6, atol=1e-8, msg=name)
        assert not torch.equal(tensor, before[name])


@pytest.mark.parametrize("writers", WRITERS)
def test_each_value_is_written_once(writers: str, folder: Path, stepped) -> None:
    state, manifest = newest_whole(folder / writers)
    assert state and manifest["world_size"] == WRITERS[writers][0]
    held = sum(
        tensor.numel() for file in manifest["files"] for tensor in load_file(state / file).values()
    )
    assert held == sum(tensor.numel() for tensor in stepped.values())
    sizes = [entry["bytes"] for entry in manifest["files"].values()]
    shards = WRITERS[writers][1]
    # and by every shard of the first copy, not by one rank
    assert sorted(sizes)[-shards] > 0.5 * max(sizes) / shards
