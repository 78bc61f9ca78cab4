"""Fetching from the Hugging Face hub: the small files first, which say whether the weights are
worth fetching.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pocketlm.model.adapters import ADAPTER_WEIGHTS, read_adapter
from pocketlm.model.checkpoint import check_ids, shape_of
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.weights import ADAPTER_CONFIG, INDEX, PICKLES, WEIGHTS, index_names

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
Answer = TypeVar("Answer")


def download(name: str, revision: str | None, wanted: list[str]) -> Path:
    """The folder in the hub's cache with what `wanted` matches, fetched first, and the weights;
    nothing else is fetched.

    ValueError where the hub does not answer, or, before any weights are fetched, where they could
    not be read here.
    """
    import huggingface_hub as hub

    folder = Path(
        hub_answer(
            name, lambda: hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
        )
    )
    if COMMIT.fullmatch(folder.name):
        revision = folder.name  # of this very commit are the weights, whatever is pushed meanwhile
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        read_adapter(folder)
        weights = [ADAPTER_WEIGHTS]
    else:
        check_ids(Tokenizer.load(folder), shape_of(folder), folder)
        weights = [WEIGHTS, *(index_names(folder / INDEX) if (folder / INDEX).is_file() else [])]
        if (folder / ADAPTER_CONFIG).is_file():
            weights.append(ADAPTER_WEIGHTS)
    patterns = [*wanted, *weights]
    folder = Path(
        hub_answer(
            name, lambda: hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    )
    if not any((folder / file).is_file() for file in weights):
        raise ValueError(
            f"{name} holds no {weights[0]} and no {INDEX}, so no weights were "
            f"fetched{_pickles(name, revision)}"
        )
    return folder


def download_files(name: str, wanted: list[str]) -> Path:
    """The folder in the hub's cache with the files that `wanted` matches, of a repository of any
    kind of model. ValueError where the hub does not answer.
    """
    import huggingface_hub as hub

    return Path(hub_answer(name, lambda: hub.snapshot_download(name, allow_patterns=wanted)))


def _pickles(name: str, revision: str | None) -> str:
    """What to do where a repository holds pickles alone; nothing is said where it does not tell its
    files.
    """
    import huggingface_hub as hub

    try:
        listed = hub.list_repo_files(name, revision=revision)
    except Exception:  # off line: what the cache lacks cannot be known
        return ""
    pickles = [file for file in listed if any(Path(file).match(kind) for kind in PICKLES)]
    return (
        f"; {pickles[0]} is a pickle, which may run code when it is opened: save it as safetensors "
        "on a machine you can "
        "spare (transformers: from_pretrained, then save_pretrained), and import that folder"
        if pickles
        else ""
    )


def hub_answer(name: str, call: Callable[[], Answer]) -> Answer:
    """What the hub answers; a ValueError of one line where it does not."""
    try:
        return call()
    except Exception as error:  # network, login and hub errors each have their own kinds
        raise ValueError(
            f"{name}: there is no such file or folder here, and the Hugging Face hub did not give "
            f"it: {first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    """What an error says first; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
