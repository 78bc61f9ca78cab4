"""Several ranks train one model: each on rows of its own, with a part of the weights, gradients and
optimizer states.

FSDP2 (`fully_shard`) gathers the weights of a block when it is its turn, and sums gradients over
the ranks. Alone, none of this happens: no process group, no DTensor.

Weights are gathered, and gradients summed, in float32 (our choice). Gathering in bfloat16 would
halve that traffic, but norms, embeddings and the four-bit grid are worked out from float32 weights,
and all ranks together are to compute what one alone computes.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.ranks import Ranks, device, ranks
from pocketlm.train.optim import ShardOver


def on_all_ranks(stage: Callable[..., Any]) -> Callable[..., Any]:
    """The same stage, marked: every rank calls it. A stage without the mark is the first rank's,
    while the others wait.
    """
    stage.on_all_ranks = True  # type: ignore[attr-defined]
    return stage


def add_up(own: Ranks, *values: float) -> list[float]:
    """Each value summed over all ranks, in float64: integers up to 2^53 exactly."""
    if own.world_size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def placed(batch: Batch, where: torch.device) -> Batch:
    """The batch on the model's device."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(
        batch, **{name: x.to(where) for name, x in tensors.items() if isinstance(x, Tensor)}
    )


# ---- weights ----


def mesh_shape(shard_over: ShardOver, world_size: int, local_world_size: int) -> tuple[int, ...]:
    """(ranks that share the weights,), or (nodes, ranks of a node), where each node holds all
    weights.

    In the second, gathering stays inside a node, and between nodes gradients alone travel.
    ValueError: unequal nodes.
    """
    if shard_over == "all" or not 1 < local_world_size < world_size:
        return (world_size,)
    if world_size % local_world_size:
        raise ValueError(
            f"{world_size} ranks do not make nodes of {local_world_size}; start as many on each "
            "node, or set "
            "optim.shard_over=all"
        )
    return (world_size // local_world_size, local_world_size)


@cache  # a mesh owns process groups, so that each shape has one as long as the ranks stay together
def make_mesh(shape: tuple[int, ...], together: dist.ProcessGroup) -> DeviceMesh:
    return init_device_mesh(device().type, shape, mesh_dim_names=("nodes", "shards")[-len(shape) :])


def spread(model: Transformer, shard_over: ShardOver) -> Transformer:
    """The same model, where this rank computes, its weights shared out over the ranks. Alone it
    stays whole.

    A block's weights are gathered when it runs and dropped after. Those outside of the blocks
    (table, norm, head) stay from `hidden` to the end of the backward pass, so that a loss uses the
    head's weight as if there were one rank; those of a frozen teacher stay for good.
    """
    world_size = ranks().world_size
    if world_size == 1:
        return model.to(device())
    shape = mesh_shape(shard_over, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    mesh = make_mesh(shape, dist.group.WORLD)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        # sums, not means: the loop divides by the labels of all ranks
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return model


def hollow(model: Transformer) -> Transformer:
    """A copy without weights, for `gathered` to fill."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def gathered(model: Transformer, whole: Transformer) -> Transformer:
    """The whole model in the first rank's memory: `whole`, filled. On the others it stays hollow;
    alone it is `model`.
    """
    own = ranks()
    if own.world_size == 1:
        return model.cpu()
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if own.first:
        whole.load_state_dict(state, assign=True)
    return whole


# ---- gradients ----


def sum_over_ranks(model: Transformer, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over the ranks; until one does, each adds up
    its own, whole.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def clip_gradients(model: Transformer, limit: float) -> float:
    """The norm of all gradients of all ranks, which are scaled down where it exceeds the limit."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def gather_for_muon(optimizers: list[torch.optim.Optimizer]) -> None:
    """Muon gets whole gradients: it orthogonalises matrices, in bfloat16, and parts would be summed
    in another order.

    Each rank then works out the same whole update and keeps its rows of it. Muon's momentum is
    whole on each too: 4 bytes for each weight in the blocks.
    """
    for optimizer in (each for each in optimizers if isinstance(each, torch.optim.Muon)):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = _everywhere(parameter.grad)
            # comes back in parts from a saved state
            for key, value in optimizer.state.get(parameter, {}).items():
                optimizer.state[parameter][key] = _everywhere(value)


def _everywhere(tensor: Tensor | None) -> Tensor | None:
    """The tensor, whole on every rank."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)
