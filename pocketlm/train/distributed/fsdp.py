"""Data-parallel training with sharded weights (FSDP2): each rank has rows of its own, and a shard
of the weights, gradients and optimizer states. A single process is not wrapped.

`fully_shard` gathers the weights of a block when it runs, and sums gradients over the ranks.

Weights are gathered, and gradients summed, in float32 (our choice). Gathering in bfloat16 would
halve that traffic, but norms, embeddings and the four-bit grid are computed from float32 weights,
and all ranks together are to compute what one alone computes.
"""

import copy
import os
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from pocketlm.model.batch import Batch, laid_out, moved
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.ranks import device, ranks
from pocketlm.train.optim import ShardOver

Network = TypeVar("Network", bound=nn.Module)


def to_device(batch: Batch, where: torch.device) -> Batch:
    """The batch, laid out, on the model's device. A GPU copies pinned memory while it computes."""
    return moved(laid_out(batch), lambda x: x.to(where, non_blocking=where.type == "cuda"))


# ---- weights ----


def mesh_shape(shard_over: ShardOver, world_size: int, local_world_size: int) -> tuple[int, ...]:
    """The device mesh: (ranks that share the weights,), or (nodes, ranks of a node), where each
    node holds all weights.

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


def shard_model(
    model: Network,
    shard_over: ShardOver,
    blocks: Iterable[nn.Module] | None = None,
    *,
    from_first: bool = False,
) -> Network:
    """The same model on this rank's device, its weights sharded over the ranks; a single process
    holds it whole. blocks: those of another network than ours.

    from_first: the first rank's weights count, and on the others the model may be on the meta
    device. Each block is broadcast before it is sharded, so that another rank never holds more
    than its shards and one block, or what lies outside of the blocks.

    A block's weights are gathered when it runs and dropped after. Those outside of the blocks
    (table, norm, head) stay from `hidden` to the end of the backward pass, so that a loss uses the
    head's weight as if there were one rank; those of a frozen teacher stay for good.
    """
    world_size = ranks().world_size
    if world_size == 1:
        return model.to(device())
    shape = mesh_shape(shard_over, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    mesh = make_mesh(shape, dist.group.WORLD)
    if blocks is None:
        assert isinstance(model, Transformer)
        blocks = model.model.layers
    for block in blocks:
        if from_first:
            broadcast_weights(block)
        fully_shard(block, mesh=mesh)
    if from_first:
        broadcast_weights(model)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        # sums, not means: the loop divides by the labels of all ranks
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return model


def broadcast_weights(module: nn.Module) -> None:
    """Gives every rank, on its device, the first rank's values of a frozen module: parameters,
    buffers, and other tensors that its parts keep, but for what is sharded already.

    ValueError where the ranks' modules are not of one shape.
    """
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # of each tensor, shared ones too
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, Tensor) and not isinstance(value, DTensor):
                    places.setdefault(id(value), []).append((held, name))
    tensors = [(name, held[name]) for (held, name), *_ in places.values()]
    described = [(name, tuple(value.shape), value.dtype) for name, value in tensors]
    whole: list[list[Any]] = [described]
    dist.broadcast_object_list(whole, src=0, device=torch.device("cpu"))
    if [part[:2] for part in whole[0]] != [part[:2] for part in described]:
        raise ValueError("the first rank's network has other weights than this rank's")
    for (_, value), (_, shape, dtype), where in zip(
        tensors, whole[0], places.values(), strict=True
    ):
        if ranks().first:
            filled = value.detach().to(device()).contiguous()
        else:
            filled = torch.empty(shape, dtype=dtype, device=device())
        dist.broadcast(filled, src=0)
        if isinstance(value, nn.Parameter):
            filled = nn.Parameter(filled, requires_grad=False)
        for held, name in where:
            held[name] = filled


def empty_copy(model: Transformer) -> Transformer:
    """A copy without weights (on the meta device), for `gather_model` to fill."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def gather_model(model: Transformer, whole: Transformer) -> Transformer:
    """The whole model in the first rank's memory: `whole`, filled. On the others it stays empty;
    a single process gets `model` itself.
    """
    return model.cpu() if ranks().world_size == 1 else _filled(model, whole)


def gather_copy(model: Transformer, empty: Transformer) -> Transformer:
    """The whole model in the first rank's memory, as it is now: a copy of `empty`, filled. On the
    others it stays empty; a single process gets `model` itself.
    """
    return model if ranks().world_size == 1 else _filled(model, copy.deepcopy(empty))


def _filled(model: Transformer, whole: Transformer) -> Transformer:
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if ranks().first:
        whole.load_state_dict(state, assign=True)
    return whole


# ---- gradients ----


def sum_over_ranks(model: Transformer, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over the ranks; until one does, each rank
    accumulates its own, whole.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def clip_gradients(model: Transformer, limit: float) -> Tensor:
    """The norm of all gradients of all ranks, which are scaled down where it exceeds the limit; on
    the device, so that it is not waited for.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_for_muon(optimizers: list[torch.optim.Optimizer]) -> None:
    """Muon gets whole gradients: it orthogonalises matrices, in bfloat16, and parts would be summed
    in another order.

    Each rank then computes the same whole update and keeps its rows of it. Muon's momentum is
    whole on each too: 4 bytes for each weight in the blocks.
    """
    for optimizer in (one for one in optimizers if isinstance(one, torch.optim.Muon)):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = _replicated(parameter.grad)
            # comes back in parts from a saved state
            for key, value in optimizer.state.get(parameter, {}).items():
                optimizer.state[parameter][key] = _replicated(value)


def _replicated(tensor: Tensor | None) -> Tensor | None:
    """The tensor, whole on every rank."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)
