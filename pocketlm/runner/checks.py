"""What stops a run before a stage is called: a changed configuration, damaged files, a missing
input, another process in the folder.
"""

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from pocketlm.runner.record import Call, damage, read_record

LOCK = ".lock"


def check_unchanged(calls: Sequence[Call]) -> None:
    """Nothing, or a ValueError that shows on which fields a folder's record and the call differ,
    and which other stages changed too.
    """
    records = [(call, read_record(call.folder)) for call in calls]
    changed = [
        (call, record, lines)
        for call, record in records
        if record and (lines := call.differences(record))
    ]
    if not changed:
        return
    call, record, lines = changed[0]
    state = "is finished" if record["status"] == "finished" else "was begun"
    folders = " ".join(str(other.folder) for other, _, _ in changed)
    raise ValueError(
        f"stage {call.name} {state} with another configuration (old -> new):\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nNothing was touched. Choose another --out, or delete what must be made anew: "
        f"rm -r {folders}"
    )


def check_undamaged(call: Call, record: dict[str, Any]) -> None:
    """Nothing, or a ValueError when files that a finished stage wrote are gone or cut."""
    if lines := damage(call.folder, record):
        raise ValueError(
            f"stage {call.name} finished, but its files are not whole:\n"
            + "\n".join(f"  {line}" for line in lines[:10])
            + f"\nRestore them, or delete {call.folder} to run the stage anew."
        )


def check_inputs(call: Call, stages: Iterable[Call]) -> None:
    """Nothing, or a ValueError naming one of the `stages` that the call needs and that is not
    done.
    """
    inputs = [
        path
        for value in call.inputs.values()
        if value
        for path in (value if isinstance(value, list) else [value])
    ]
    for stage in stages:
        if (
            any(path.is_relative_to(stage.folder) for path in inputs)
            and (state := stage.state()) != "done"
        ):
            raise ValueError(
                f"stage {call.name} needs {stage.name}, which is {state}; run that first, or all"
            )


def lock_folder(run_dir: Path) -> TextIO:
    """The run's lock file, held until it is closed or this process ends. ValueError while another
    process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(
            f"{run_dir} is in use by process {holder}; wait for it, stop it, or choose another "
            "--out"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
