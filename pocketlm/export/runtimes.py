"""Any model, opened for its answers: a checkpoint in our network, a .gguf in llama.cpp, a .pte in
ExecuTorch.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from pocketlm.model.generate import LanguageModel


def open_model(
    path: Path,
    *,
    exact: bool = False,
    threads: int | None = None,
    context_length: int | None = None,
) -> Any:
    """The model at `path`, ready for `logits` and `generate`: a checkpoint folder, a .gguf or a
    .pte, by its name.

    exact: float32 wherever the runtime has a choice; llama.cpp's own KV cache holds float16.
    threads: the runtime's own choice by default. Torch's and ExecuTorch's are the whole process's.
    context_length: a checkpoint or .gguf reads at least so many tokens, more than it was trained
    for; a .pte keeps what it was exported with.
    """
    path = Path(path)
    if threads:
        torch.set_num_threads(threads)  # for the choice of a token too, whatever runs the network
    if path.is_dir():
        model = LanguageModel.open(path)
        model.max_length = max(model.max_length, context_length or 0)
        return model
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}; give a checkpoint folder, a .gguf or a .pte")
    if path.suffix == ".gguf":
        from pocketlm.export.llamacpp import GgufModel

        model = GgufModel(path, cache_type="f32" if exact else "f16", threads=threads)
        model.max_length = max(model.max_length, context_length or 0)
        return model
    if path.suffix == ".pte":
        from pocketlm.export.executorch import PteModel

        return PteModel(path, threads=threads)
    raise ValueError(f"{path} is neither a checkpoint folder nor a .gguf or .pte file")


def prepare_runtime(path: Path) -> None:
    """Nothing, but what opens a model of this kind is imported now."""
    if path.suffix == ".gguf":
        from pocketlm.export.libllama import library

        library()
    if path.suffix == ".pte":
        from pocketlm.export.executorch import load_kernels

        load_kernels()


def size_of(path: Path) -> int:
    """Bytes of an exported file, or of a folder's weights."""
    if not path.is_file():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    from pocketlm.export.gguf_header import part_files

    return sum(file.stat().st_size for file in part_files(path))


def label_of(path: Path) -> str:
    """A checkpoint folder's name, or an exported file's folder and name."""
    return f"{path.parent.name}-{path.name}" if path.is_file() else path.name


def labels_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each model: short, or its whole path where the short ones are not all
    different.
    """
    labels = tuple(label_of(path) for path in paths)
    if len(set(labels)) == len(labels):
        return labels
    return tuple(str(path).strip("/").replace("/", "-") for path in paths)


@contextmanager
def opened(
    path: Path,
    *,
    exact: bool = False,
    threads: int | None = None,
    context_length: int | None = None,
) -> Iterator[Any]:
    """The model at `path`, closed at the end; the options are `open_model`'s."""
    options: dict[str, Any] = {"exact": exact, "threads": threads, "context_length": context_length}
    with closing(open_model(path, **options)) as model:
        yield model
