"""Any model, opened for its answers: a folder in our own network or in transformers, a .gguf in
llama.cpp, a .pte in ExecuTorch.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from pocketlm.inference.runtime import Runtime
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import raw_config
from pocketlm.model.layouts import layout_of

OWN, TRANSFORMERS = "pocketlm", "transformers"
RUNTIMES = (OWN, TRANSFORMERS)  # what computes a folder; an exported file has one of its own


def open_model(
    path: Path,
    *,
    runtime: str | None = None,
    device: torch.device | None = None,
    exact: bool = False,
    threads: int | None = None,
    context_length: int | None = None,
) -> Runtime:
    """The model at `path`: a Hugging Face folder, a .gguf or a .pte, by its name.

    runtime: what computes a folder, of RUNTIMES. None takes our own network where it knows the
    model_type and else transformers, which one line on stderr then says. device: where a folder's
    model computes; None takes a CUDA GPU where there is one. exact: float32 wherever
    the runtime has a choice; llama.cpp's own KV cache holds float16. threads: the runtime's own
    choice by default. Torch's and ExecuTorch's are the whole process's. context_length: at least so
    many tokens are read, also more than the model was trained for; a .pte keeps what it was
    exported with.
    """
    path = Path(path)
    refuse_runtime(path, runtime)
    if threads:
        torch.set_num_threads(threads)  # for the choice of a token too, whatever runs the network
    if path.is_dir():
        model = _open_folder(path, runtime, device or fastest_device())
    elif not path.is_file():
        raise FileNotFoundError(f"no model at {path}; give a checkpoint folder, a .gguf or a .pte")
    elif path.suffix == ".gguf":
        from pocketlm.inference.llamacpp import GgufModel

        model = GgufModel(path, cache_type="f32" if exact else "f16", threads=threads)
    elif path.suffix == ".pte":
        from pocketlm.inference.executorch import PteModel

        return PteModel(path, threads=threads)
    else:
        raise ValueError(f"{path} is neither a checkpoint folder nor a .gguf or .pte file")
    model.max_length = max(model.max_length, context_length or 0)
    return model


def fastest_device() -> torch.device:
    """The current CUDA GPU, or the processor where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open_folder(folder: Path, runtime: str | None, device: torch.device) -> Runtime:
    reason = None if runtime else refusal(folder)
    if reason:
        print(f"{reason}; it is opened in transformers", file=sys.stderr)
    if runtime == TRANSFORMERS or reason:
        from pocketlm.inference.transformers_runtime import TransformersModel

        try:
            return TransformersModel(folder, device=device)
        except ValueError as error:
            raise ValueError(f"{reason}; {error}" if reason else str(error)) from None
    return LanguageModel.open(folder, device)


def refuse_runtime(path: Path, runtime: str | None) -> None:
    """Nothing, or a ValueError where there is no such runtime, or none to choose for this model."""
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"runtime {runtime!r} is unknown; known: {', '.join(RUNTIMES)}")
    if runtime is not None and path.is_file():
        raise ValueError(
            f"{path}: a file runs in its own runtime, so there is no {runtime} to choose; leave "
            "the runtime out, or give a checkpoint folder"
        )


def refusal(folder: Path) -> str | None:
    """Why our own network does not hold the family of a folder, or None where it does."""
    try:
        layout_of(raw_config(folder))
    except ValueError as error:
        return str(error)
    return None


def prepare_runtime(path: Path, runtime: str | None = None) -> None:
    """Nothing, but what opens a model of this kind is imported now."""
    if path.is_dir() and (runtime == TRANSFORMERS or (runtime is None and refusal(path))):
        from transformers import AutoModelForCausalLM  # noqa: F401
    if path.suffix == ".gguf":
        from pocketlm.inference.libllama import library

        library()
    if path.suffix == ".pte":
        from pocketlm.inference.executorch import load_kernels

        load_kernels()


def size_of(path: Path) -> int:
    """Bytes of an exported file, or of a folder's weights."""
    if not path.is_file():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    from pocketlm.inference.gguf_file import part_files

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
    runtime: str | None = None,
    exact: bool = False,
    threads: int | None = None,
    context_length: int | None = None,
) -> Iterator[Runtime]:
    """The model at `path`, closed at the end; arguments as open_model's."""
    model = open_model(
        path, runtime=runtime, exact=exact, threads=threads, context_length=context_length
    )
    with closing(model):
        yield model
