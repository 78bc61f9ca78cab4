"""The files of weights of a checkpoint folder: which are read, what is in them, and what lies
beside them unread.

Only safetensors: a pickle may run code when it is opened. Where model.safetensors and an index of
shards both lie in a folder, model.safetensors is read, as transformers does.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pocketlm.model.json_shape import TEXT, read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER_CONFIG = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a checkpoint is read from.

    FileNotFoundError names the one that is missing; ValueError where the index is none, or leads
    out of the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    names = index_names(folder / INDEX) if (folder / INDEX).is_file() else [WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{folder} lacks the weights file {missing[0]}{more}{_instead(folder)}"
        )
    return [folder / name for name in names]


def index_names(index: Path) -> list[str]:
    """The files that an index of shards names, sorted; each in the index's own folder or below
    it.
    """
    raw = read_object(index)
    raw.object("metadata")  # transformers does not open an index without it
    places = raw.object("weight_map")
    if not places:
        raise ValueError(f"{index}: field weight_map names no tensor; fetch or save the file again")
    names = sorted({places.typed(tensor, TEXT) for tensor in places})
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
            raise ValueError(
                f"{index}: weight_map leads out of the folder, to {name[:80]!a}; that is not read"
            )
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{index}: weight_map names {name[:80]!a}, which is no safetensors file"
            )
    return names


def _instead(folder: Path) -> str:
    """What to do about weights that are not there, from what is."""
    pickles = pickle_names(folder)
    if pickles:
        return (
            f"; {pickles[0]} is a pickle, which may run code: save it as safetensors first (open "
            "it with transformers on "
            "a machine you can spare, and call save_pretrained)"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"; it is an adapter ({ADAPTER_CONFIG}): `pocketlm import` merges it into the model it "
            "was made for"
        )
    others = sorted(path.name for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind))
    return (
        f"; {others[0]} is there, which is not the name that config.json's weights have"
        if others
        else ""
    )


def pickle_names(folder: Path) -> list[str]:
    """The pickles of a folder, by name: not one of them is ever opened."""
    return sorted(
        path.name
        for kind in PICKLES
        for path in folder.glob(kind)
        if path.name != "training_args.bin"
    )


def unread_weights(folder: Path) -> dict[str, str]:
    """The files of weights that are not read, each with the reason; ValueError as weight_files."""
    read = {path.relative_to(folder).as_posix() for path in weight_files(folder)}
    unread = {}
    if WEIGHTS in read and (folder / INDEX).is_file():
        unread[INDEX] = f"{WEIGHTS} is taken where both are there, as transformers does"
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        if name not in read and not name.startswith("adapter_model"):
            unread[name] = f"{WEIGHTS} is read" if WEIGHTS in read else f"{INDEX} does not name it"
    return unread | {
        name: "a pickle, which may run code; the safetensors are read"
        for name in pickle_names(folder)
    }


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file or shards, by name, in float32.

    ValueError where two shards hold different tensors of one name, or where a tensor holds no
    floating numbers.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_safetensors(file).items():
            if not tensor.is_floating_point():
                raise ValueError(
                    f"{file}: {name} is of {tensor.dtype}, not of floating numbers; save it "
                    "unquantized"
                )
            if name in tensors and not torch.equal(tensors[name], tensor.float()):
                raise ValueError(
                    f"{file}: {name} is in another shard of {folder} too, with other numbers"
                )
            tensors[name] = tensor.float()
    return tensors


def count_numbers(folder: Path) -> int:
    """How many numbers the tensors of a folder hold, from the headers of its files alone."""
    total = 0
    for file in weight_files(folder):
        with open_safetensors(file) as content:
            for name in content.keys():  # noqa: SIM118 safe_open is no mapping
                total += torch.Size(content.get_slice(name).get_shape()).numel()
    return total


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file; a truncated or foreign file is a ValueError that names
    it.
    """
    with open_safetensors(file) as content:
        names = list(content.keys())  # safe_open is no mapping
        return {name: content.get_tensor(name) for name in names}


@contextlib.contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """A safetensors file, opened; a truncated or foreign one is a ValueError that names it."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        with open(file, "rb") as content:
            pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
        if pointer:
            raise ValueError(
                f"{file} is Git LFS's note of where the file lies, not the file; run: git lfs pull"
            ) from None
        raise ValueError(
            f"{file}: damaged or not a safetensors file ({error}); fetch or save it again"
        ) from None
