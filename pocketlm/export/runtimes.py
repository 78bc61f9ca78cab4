"""Any model, opened for its answers: a checkpoint in our network, a .gguf in llama.cpp, a .pte in ExecuTorch."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pocketlm.model.generate import LanguageModel


def open_model(path: Path, *, exact: bool = False) -> Any:
    """The model at `path`, ready for `logits` and `generate`: a checkpoint folder, a .gguf or a .pte, by its name.

    exact: float32 wherever the runtime has a choice; llama.cpp's own KV cache holds float16.
    """
    path = Path(path)
    if path.is_dir():
        return LanguageModel.open(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}; give a checkpoint folder, a .gguf or a .pte")
    if path.suffix == ".gguf":
        from pocketlm.export.llamacpp import GgufModel

        return GgufModel(path, cache_type="f32" if exact else "f16")
    if path.suffix == ".pte":
        from pocketlm.export.executorch import PteModel

        return PteModel(path)
    raise ValueError(f"{path} is neither a checkpoint folder nor a .gguf or .pte file")


@contextmanager
def opened(path: Path, *, exact: bool = False) -> Iterator[Any]:
    """The model at `path`, closed at the end."""
    with closing(open_model(path, exact=exact)) as model:
        yield model
