"""Whole folders to the Hugging Face hub and from it: what an export wrote, or a checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pocketlm.model.file_tree import files_below
from pocketlm.model.files import write_folder
from pocketlm.model.hub import HUB_ID, first_line, hub_answer
from pocketlm.model.weights import PICKLES

CARD = "README.md"
# of a stage's folder, what is of use on the machine alone that made it
LOCAL = ("resume/*", "tensorboard/*", "stage.json", "error.log", "*.partial", ".*")
MODELS = ("*.gguf", "*.pte", "*.safetensors")
FETCHED = (
    *MODELS,
    *("*.json", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)  # what cannot run by being opened; code and pickles are not fetched


def files_to_push(folder: Path) -> dict[str, Path]:
    """{path in the repository: file} of what belongs to the model, without its card.

    ValueError where there is no model in the folder, or a pickle beside it.
    """
    files, _ = files_below(folder)
    by_name = {file.relative_to(folder).as_posix(): file for file in files}
    kept = {
        name: file for name, file in by_name.items() if not matches(name, LOCAL) and name != CARD
    }
    if not any(matches(name, MODELS) for name in kept):
        raise ValueError(
            f"{folder} holds no {', '.join(MODELS)}; give a checkpoint, or the folder that an "
            "export wrote"
        )
    if pickles := [name for name in kept if matches(name, PICKLES)]:
        raise ValueError(
            f"{folder / pickles[0]} is a pickle, which may run code when others open it; move it "
            "elsewhere"
        )
    return kept


def push(files: dict[str, Path], card: str | None, repository: str, *, private: bool) -> str:
    """Send the files and the card to a repository of the hub, made if it is not there, in one
    commit; the address of that commit.

    card: README.md; None leaves the repository's alone. ValueError where the hub does not take it.
    """
    import huggingface_hub as hub

    hub_id(repository)
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
        for name, file in files.items()
    ]
    if card is not None:
        operations.append(hub.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    api = hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Pushed by pocketlm")
    except Exception as error:  # network, login and hub errors each have their own kinds
        raise ValueError(
            f"the Hugging Face hub did not take {repository}: {first_line(error)}. `hf auth login` "
            "signs in; the same command goes on with what is not there yet"
        ) from None
    return commit.commit_url


def pull(repository: str, out: Path, *, revision: str | None, only: list[str]) -> list[str]:
    """Fetch a repository into the new folder `out`, or of it what `only` matches, and the names of
    what was left there: code, pickles, and what was not asked for.

    Interrupted, the same call goes on. ValueError where the hub does not answer, or nothing of it
    may be fetched.
    """
    import huggingface_hub as hub

    hub_id(repository)
    try:
        info = hub.HfApi().model_info(repository, revision=revision)
        listed = sorted(file.rfilename for file in info.siblings or [])
        wanted = [
            name
            for name in listed
            if matches(name, FETCHED) and (not only or matches(name, tuple(only)))
        ]
        if not any(matches(name, MODELS) for name in wanted):
            models = [name for name in listed if matches(name, MODELS)]
            raise ValueError(
                f"{repository} holds no model that may be fetched"
                + (f" among {', '.join(only)}; it holds {', '.join(models)}" if models else "")
            )
        # into the hub's cache first, where an interrupted file goes on; of this very commit
        cached = Path(hub.snapshot_download(repository, revision=info.sha, allow_patterns=wanted))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"the Hugging Face hub did not give {repository}: {first_line(error)}"
        ) from None
    with write_folder(out) as folder:
        for name in wanted:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(cached / name, target)
    return [name for name in listed if name not in wanted]


def model_at(name: str | Path) -> Path:
    """The path of a model: `name` itself, or where nothing is there and it is OWNER/NAME, the
    hub's repository, fetched into the hub's cache. Without a network the copy there is taken.

    ValueError where the hub does not give it, or holds several models.
    """
    path = Path(name)
    if path.exists() or path.suffix in (".gguf", ".pte") or not HUB_ID.fullmatch(str(name)):
        return path
    folder = hub_answer(str(name), lambda: _cached(str(name)))
    listed = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return folder / _model_of(listed, str(name))[0]


def _cached(repository: str) -> Path:
    """The folder of the hub's cache with what opens the model of a repository."""
    import huggingface_hub as hub

    try:
        info = hub.HfApi().model_info(repository)
        listed = [file.rfilename for file in info.siblings or []]
    except Exception as error:
        try:
            listed = [file.path for file in hub.get_cached_repo_tree(repository)]
        except Exception:  # not there either, so why the hub gave nothing is what counts
            raise error from None
        print(f"{first_line(error)}; the copy fetched earlier is used", file=sys.stderr)
    _, wanted = _model_of(listed, repository)
    # by the branch's name, or the cache would not know later which copy is its newest
    return Path(hub.snapshot_download(repository, allow_patterns=wanted))


def _model_of(listed: Sequence[str], repository: str) -> tuple[str, list[str]]:
    """(path of the model among a repository's files, the files that open it): its checkpoint, else
    its one .gguf, else its one .pte.
    """
    small = [name for name in listed if matches(name, FETCHED) and not matches(name, MODELS)]
    weights = [name for name in listed if matches(name, ("*.safetensors",)) and "/" not in name]
    if weights and "config.json" in listed:
        return "", [*(name for name in small if "/" not in name), *weights]
    for kind in ("*.gguf", "*.pte"):
        files = [name for name in listed if matches(name, (kind,))]
        if len(files) == 1:
            return files[0], [*small, *files]
        if files:
            raise ValueError(
                f"{repository} holds {', '.join(files)}; fetch one: `pocketlm pull {repository} "
                f"{files[0]}`"
            )
    raise ValueError(f"{repository} holds no {', '.join(MODELS)}")


def hub_id(repository: str) -> None:
    """Nothing, or a ValueError where this is no OWNER/NAME."""
    if not HUB_ID.fullmatch(repository):
        raise ValueError(f"{repository!r} is no hub id; write OWNER/NAME")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path, or its last part, matches one of the patterns."""
    path = PurePosixPath(name)
    return any(
        path.match(pattern) or (pattern == ".*" and any(part[0] == "." for part in path.parts))
        for pattern in patterns
    )


def _copy(source: Path, target: Path) -> None:
    """A second name for the cache's file where the disk can, else a copy."""
    import os
    import shutil

    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
