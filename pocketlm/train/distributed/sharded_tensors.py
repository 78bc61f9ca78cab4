"""Sharded tensors on disk: each rank writes its piece of one, and any other number of ranks reads
it (resharding).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pocketlm.train.distributed.ranks import ranks

# of each tensor: {"shape", "dtype", "pieces": [{"file", "offsets", "sizes"}]}
Saved = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A rank's part of a tensor: a copy of it on the CPU, the whole's shape, and where in the whole
    it begins.
    """

    local: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


def local_piece(tensor: Tensor) -> Piece | None:
    """What this rank writes of a tensor: its shard, if it is the first that holds it; the whole of
    a plain one, on rank 0.
    """
    local, offsets, first = local_part(tensor)
    if not first or (local.numel() == 0 and tensor.numel() > 0):
        return None
    copy = local.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return Piece(copy, tuple(tensor.shape), offsets)


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
    """(this rank's part, where in the whole it begins, whether this rank is the first of those that
    hold it).
    """
    if not isinstance(tensor, DTensor):
        return tensor, (0,) * tensor.dim(), ranks().first
    mesh, places = tensor.device_mesh, tensor.placements
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, places)
    at = mesh.get_coordinate() or [0] * mesh.ndim
    first = all(
        where == 0 for where, place in zip(at, places, strict=True) if isinstance(place, Replicate)
    )
    return tensor.to_local(), tuple(offsets), first


def write_pieces(file: Path, pieces: dict[str, Piece]) -> Saved:
    """Writes the pieces to a safetensors file; what the manifest says of them."""
    save_file({name: piece.local for name, piece in pieces.items()}, file)
    return {
        name: {
            "shape": list(piece.shape),
            "dtype": str(piece.local.dtype).removeprefix("torch."),
            "pieces": [
                {
                    "file": file.name,
                    "offsets": list(piece.offsets),
                    "sizes": list(piece.local.shape),
                }
            ],
        }
        for name, piece in pieces.items()
    }


def fill(tensor: Tensor, name: str, saved: Saved, opened: dict[str, Any]) -> None:
    """Copies into this rank's part of a tensor what the pieces hold of it. ValueError if they leave
    a gap.

    opened: the safetensors files, by name; only the overlap of a piece with the part is read.
    """
    local, offsets, _ = local_part(tensor)
    filled = 0
    for piece in saved[name]["pieces"]:
        target = [(a, a + n) for a, n in zip(offsets, local.shape, strict=True)]
        source = [(a, a + n) for a, n in zip(piece["offsets"], piece["sizes"], strict=True)]
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(target, source, strict=True)]
        if any(start >= end for start, end in both):
            continue
        read = tuple(slice(s - a, e - a) for (s, e), (a, _) in zip(both, source, strict=True))
        written = tuple(slice(s - a, e - a) for (s, e), (a, _) in zip(both, target, strict=True))
        content = opened[piece["file"]]
        part = content.get_slice(name)[read] if read else content.get_tensor(name)
        local[written].copy_(part)
        filled += part.numel()
    if filled != local.numel():
        raise ValueError(
            f"{name}: the pieces that were saved hold {filled} of its {local.numel()} values"
        )


def filled_like(
    parameter: Tensor, name: str, saved: Saved, opened: dict[str, Any], *, replicated: bool
) -> Tensor:
    """An optimizer's tensor: where it has the parameter's shape sharded as that, or replicated on
    every rank; else plain.
    """
    shape, dtype = saved[name]["shape"], getattr(torch, saved[name]["dtype"])
    if shape == list(parameter.shape):
        value = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        if replicated and isinstance(value, DTensor):
            value = value.redistribute(placements=[Replicate()] * value.device_mesh.ndim)
    else:
        value = torch.empty(shape, dtype=dtype, device=parameter.device)
    fill(value, name, saved, opened)
    return value
