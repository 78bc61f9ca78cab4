"""Where a model came from: the finished stages before it, as their records tell."""

from collections.abc import Iterator
from pathlib import Path

from pocketlm.model.json_shape import JsonObject, read_object

RECORD = "stage.json"


def lineage(folder: Path) -> dict[Path, JsonObject]:
    """{stage folder: its stage.json} of the stage in `folder` and of all before it, the first
    first; nothing where `folder` is no stage.

    A record says where its inputs lie, seen from the folder of the run, the one above the stage's.
    What is no longer there is left out, and so is all before it. ValueError: a damaged record.
    """
    stages: dict[Path, JsonObject] = {}

    def visit(stage: Path) -> None:
        if stage in stages or not (stage / RECORD).is_file():
            return
        record = read_object(stage / RECORD)
        for path in input_paths(record):
            before = stage.parent / path
            visit(before if before.is_dir() else before.parent)
        stages[stage] = record

    visit(folder.resolve())
    return stages


def input_paths(record: JsonObject) -> Iterator[str]:
    """Where a stage's inputs lay when it ran."""
    for value in record.object("inputs").values():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and isinstance(entry.get("path"), str):
                yield entry["path"]


def evaluations_of(folder: Path) -> Iterator[tuple[JsonObject, dict[str, JsonObject]]]:
    """(evaluation.json, {file: its figures}) of each finished evaluation in the same run that
    measured the folder, called ".", or files in it.
    """
    folder = folder.resolve()
    for record_file in sorted(folder.parent.glob(f"*/{RECORD}")):
        record = read_object(record_file)
        written = record_file.with_name("evaluation.json")
        if record.get("status") != "finished" or not written.is_file():
            continue
        evaluation = read_object(written)
        models = evaluation.object("models")
        paths = [folder.parent / entry["path"] for entry in record["inputs"]["models"]]
        measured = {
            str(path.relative_to(folder)): models.object(label)
            for label, path in zip(models, paths, strict=True)  # in the order of the inputs
            if path.is_relative_to(folder)
        }
        if measured:
            yield evaluation, measured
