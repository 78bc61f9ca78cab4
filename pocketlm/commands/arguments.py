"""What commands ask of the paths they are given."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

MODEL_HELP = "A checkpoint folder, .gguf or .pte."
OR_HUB_ID = "A checkpoint folder, .gguf or .pte, or a hub id: owner/name."
RUNTIME_HELP = (
    "What computes a folder: pocketlm or transformers; pocketlm's own where it knows the model."
)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The folder, made now, and gone again if what is done with it fails and leaves nothing;
    ValueError if it is not empty.
    """
    refuse_full(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        if not any(path.iterdir()):
            path.rmdir()


def refuse_full(path: Path) -> None:
    """Nothing, or a ValueError where something is in the folder already, or it is a file."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} is there already, and not empty; choose another --out, or delete it"
        )


def check_model(path: Path) -> None:
    """Nothing, or an error where MODEL is no checkpoint folder, .gguf or .pte."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such model; give a checkpoint folder, a .gguf or a .pte file"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(str(config.parent) for config in path.glob("*/config.json"))
        raise ValueError(
            f"{path}: no checkpoint (no "
            f"config.json){'; there are ' + ', '.join(inside) if inside else ''}"
        )
    if path.is_file() and path.suffix not in (".gguf", ".pte"):
        raise ValueError(f"{path}: not a model; give a checkpoint folder, a .gguf or a .pte file")
