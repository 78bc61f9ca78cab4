"""What each stage of a run added, in a line: from its record, what it wrote, and the evaluation."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from pocketlm.report.goals import measured
from pocketlm.report.number_format import count, percent, significant, size
from pocketlm.report.timeline import Stage

Models = dict[str, Any]  # evaluation.json's "models": figures by label

SOLVED, BITS = "accuracy", "bits mean"
FIRST = {"pretrain": BITS, "merge": BITS}  # what a stage is for, where not to solve problems
# stages after which held-out text says something: fine-tuned models answer, they continue no text
OF_TEXT = ("pretrain", "extend_context", "merge")
CAME_FROM = ("model", "trunk", "models")  # inputs that a model comes from, the first that is there
LARGEST_SHARES = 3


def added(stages: Sequence[Stage], evaluation: dict[str, Any] | None) -> dict[str, list[str]]:
    """By a stage's name what it added, the most telling words first; none where nothing is known.

    An evaluated model is compared with the evaluated one it comes from.
    """
    models = by_folder(evaluation["models"]) if evaluation else {}
    return {stage.name: list(_words(stage, stages, models)) for stage in stages}


def by_folder(models: Models) -> Models:
    """The figures of evaluated models by the name of the folder or file they were read from."""
    return {model["path"]: model for model in models.values()}


def road_to(stages: Sequence[Stage], last: str) -> list[Stage]:
    """The stages that a stage's model comes from, in order, that one the last."""
    known = {stage.name: stage for stage in stages}
    road: list[Stage] = []
    name: str | None = last
    while name in known and known[name] not in road:
        road.insert(0, known[name])
        name = _origin(known[name])
    return road


def measured_names(stage: Stage) -> list[str]:
    """The names that an evaluation may know a stage's model by: its folder's, or its files'."""
    return [stage.name, *stage.files.get("export.json", {}).get("bytes", {})]


def needle_measure(models: Models) -> str | None:
    """The measure of the longest context searched, as "needle 1024"; None without any."""
    lengths = [int(length) for model in models.values() for length in model.get("needle", {})]
    return f"needle {max(lengths)}" if lengths else None


def _words(stage: Stage, stages: Sequence[Stage], models: Models) -> Iterator[str]:
    for file, describe in DESCRIBED.items():
        if file in stage.files:
            yield describe(stage.files[file])
    evaluated = next((models[name] for name in measured_names(stage) if name in models), None)
    if evaluated is not None:
        road = road_to(stages, stage.name)[:-1]
        before = next((models[part.name] for part in reversed(road) if part.name in models), {})
        yield from _changes(stage.record["stage"], evaluated, before, needle_measure(models))
    elif stage.steps:
        yield _training(stage.steps)


def _changes(
    function: str, model: dict[str, Any], before: dict[str, Any], needle: str | None
) -> Iterator[str]:
    """What was measured of a model, and of the one before it; first what its stage is for."""
    first = needle if function == "extend_context" and needle else FIRST.get(function, SOLVED)
    words = {SOLVED: "solves {}"} if solves(model) else {}
    if function in OF_TEXT:
        words[BITS] = "{} bits a byte"
    if needle:
        words[needle] = f"needle at {int(needle.split()[1]):,} tokens {{}}"
    for measure in sorted(words, key=first.__ne__):
        figure = measured(model, measure)
        earlier = measured(before, measure) if before else None
        if figure is None:
            continue
        text = f"{figure:.3f}" if measure == BITS else percent(figure)
        if earlier is not None:
            start = f"{earlier:.3f}" if measure == BITS else f"{100 * earlier:.1f}"
            text = f"{start} → {text}"
        yield words[measure].format(text)


def solves(model: dict[str, Any]) -> bool:
    """Whether its first suite is of problems that are solved or not."""
    figures = next(iter(model["suites"].values()), None)
    return figures is not None and figures["metric"] != "bits_per_byte"


def _origin(stage: Stage) -> str | None:
    """The name of the stage whose model this one goes on from."""
    for key in CAME_FROM:
        entries = stage.record["inputs"].get(key)
        first = entries[0] if isinstance(entries, list) and entries else entries
        if isinstance(first, dict):
            return str(first["path"])
    return None


def _training(steps: Sequence[dict[str, Any]]) -> str:
    tokens = sum(row["tokens"] for row in steps)
    losses = [row["loss"] for row in steps if row["loss"] is not None and isfinite(row["loss"])]
    if not losses:
        return f"{count(tokens)} tokens, no finite loss"
    part = max(1, len(losses) // 20)
    first, last = (sum(end) / part for end in (losses[:part], losses[-part:]))
    return f"loss {significant(first)} → {significant(last)} in {count(tokens)} tokens"


def _curation(content: dict[str, Any]) -> str:
    kept = [source["kept"]["train"]["tokens"] for source in content["sources"].values()]
    return f"{count(sum(kept))} tokens of {len(kept)} sources to train on"


def _mix(content: dict[str, Any]) -> str:
    largest = sorted(content["shares"].items(), key=lambda item: -item[1])[:LARGEST_SHARES]
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in largest)


def _selection(content: dict[str, Any]) -> str:
    kept = content["kept"].values()
    if content.get("stopped"):
        return str(content["stopped"])
    pieces, of = (sum(source[key] for source in kept) for key in ("documents", "of"))
    return f"{pieces:,} of {of:,} pieces of text help and are kept"


def _merge(content: dict[str, Any]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in content["weights"].items())


def _export(content: dict[str, Any]) -> str:
    return ", ".join(f"{name} {size(number)}" for name, number in content["bytes"].items())


def _evaluation(content: dict[str, Any]) -> str:
    models = list(content["models"].values())
    suites = models[0].get("suites", {})  # versions up to 0.1 had none
    first = next(iter(suites.values()), None)
    suite = f" on {first['n']:,} problems" if first else ""
    return f"{len(models)} models measured{suite}"


def _bench(content: dict[str, Any]) -> str:
    return f"{len(content['models'])} models timed"


DESCRIBED = {
    "curation.json": _curation,
    "mix.json": _mix,
    "selection.json": _selection,
    "merge.json": _merge,
    "export.json": _export,
    "evaluation.json": _evaluation,
    "bench.json": _bench,
}
