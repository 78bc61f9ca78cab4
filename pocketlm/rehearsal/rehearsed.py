"""A recipe rehearsed: called like the recipe itself, with every config cut and whatever is missing
replaced.

What to replace is found in a dry pass and prepared once (`prepare`); then any process, the first
rank or another, makes the same calls from the file that says so (`rehearsed`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.model.files import write_json
from pocketlm.rehearsal.cut import Cut, cut_config, length_map
from pocketlm.rehearsal.stand_ins import (
    VOCAB_SIZE,
    make_answers,
    make_labels,
    make_model,
    make_source,
)
from pocketlm.runner.overrides import apply_settings, parse_settings
from pocketlm.runner.recipe_file import load_recipe, parse_flags
from pocketlm.runner.record import Call

SCRIPT = """from pathlib import Path

from pocketlm.rehearsal.rehearsed import rehearsed


def recipe(run):
    return rehearsed(run, Path(__file__).with_suffix(".json"))
"""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """folder: where stand-ins lie. settings: of --set, made before the cut. sources: by stage and
    source, the fields that are replaced.
    """

    folder: Path
    cut: Cut
    settings: dict[str, dict[str, str]]
    sources: dict[str, dict[str, dict[str, str]]]

    def config(self, config: Any) -> Any:
        """The config as it is rehearsed."""
        config = cut_config(apply_settings(config, self.settings.get(config.name, {})), self.cut)
        if getattr(config, "tokenizer", None) is not None:
            config = replace(config, tokenizer=str(self.model))
        if getattr(config, "scorer", None) is not None:
            config = replace(config, scorer=str(self.labels))
        replaced = self.sources.get(config.name)
        if replaced:
            sources = tuple(
                replace(source, **replaced.get(source.name, {})) for source in config.sources
            )
            config = replace(config, sources=sources)
        return config

    @property
    def model(self) -> Path:
        """The checkpoint that stands in for models from elsewhere."""
        return self.folder / "model"

    @property
    def labels(self) -> Path:
        """The labels that stand in for a scorer of quality."""
        return self.folder / "labels.jsonl"

    @property
    def answers(self) -> Path:
        """Questions with answers that stand in for a user's, which would not fit in short rows."""
        return self.folder / "answers.jsonl"


def prepare(
    calls: Sequence[Call],
    folder: Path,
    recipe: Path,
    words: list[str],
    settings: list[str],
    processes: int,
    all_formats: bool,
) -> Path:
    """The recipe file of the rehearsal, now in `folder` with all that stands in for what is not
    there. calls: of a dry pass at full size; words: the recipe's own flags.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lengths = length_map(call.config for call in calls) or {1: 64}
    make_model(folder / "model", max(lengths.values()))
    make_labels(folder / "labels.jsonl")
    make_answers(folder / "answers.jsonl")
    sources: dict[str, dict[str, dict[str, str]]] = {}
    for call in calls:
        learnt = chat_sources(call, calls)
        for source in rows_of(call.config):
            place = folder / "sources" / call.name / source.name
            made = make_source(source, place, chats=source.name in learnt)
            changed = {
                name: getattr(made, name)
                for name in ("dataset", "path")
                if getattr(made, name, None) != getattr(source, name, None)
            }
            if changed:
                sources.setdefault(call.name, {})[source.name] = changed
    write_json(
        folder / "rehearsal.json",
        {
            "recipe": str(recipe.absolute()),
            "words": words,
            "settings": settings,
            "lengths": list(lengths.items()),
            "processes": processes,
            "all_formats": all_formats,
            "sources": sources,
        },
    )
    script = folder / "rehearsal.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return script


def rows_of(config: Any) -> list[Any]:
    """The sources that a curate stage reads: the rows of its config, where it has any."""
    return [row for row in getattr(config, "sources", ()) if is_dataclass(row)]


def chat_sources(corpus: Call, calls: Iterable[Call]) -> set[str]:
    """The names of a corpus's sources that only stages of conversations read."""
    names = {source.name for source in rows_of(corpus.config)}
    answered: set[str] = set()
    read: set[str] = set()
    for call in calls:
        if call.inputs.get("corpus") != corpus.folder:
            continue
        shares = getattr(call.config, "shares", None)
        if shares is not None:
            read |= set(shares)
        elif hasattr(call.config, "too_long"):  # a stage of conversations
            chosen = getattr(call.config, "conversation_shares", None) or call.config.sources
            answered |= set(chosen) or names
    return (answered & names) - read


def opened(file: Path) -> tuple[Rehearsal, Callable[..., Any], dict[str, Any]]:
    """(the rehearsal of a file that `prepare` wrote, the recipe, its flags)."""
    written = json.loads(file.read_text(encoding="utf-8"))
    cut = Cut(
        lengths=dict(written["lengths"]),
        processes=written["processes"],
        vocab_size=VOCAB_SIZE,
        all_formats=written["all_formats"],
    )
    rehearsal = Rehearsal(
        folder=file.parent,
        cut=cut,
        settings=parse_settings(written["settings"]),
        sources=written["sources"],
    )
    recipe = load_recipe(Path(written["recipe"]))
    return rehearsal, recipe, parse_flags(recipe, Path(written["recipe"]), written["words"])


def rehearsed(run: Any, file: Path) -> Any:
    """The recipe's own calls in their order, on `run`, with what `file` says in place."""
    rehearsal, recipe, flags = opened(file)
    return recipe(RehearsedRun(run, rehearsal), **flags)


class RehearsedRun:
    """Called like a Run, it calls one with cut configs and stand-ins for inputs from elsewhere."""

    def __init__(self, run: Any, rehearsal: Rehearsal) -> None:
        self.run, self.rehearsal = run, rehearsal
        self.outputs: list[Path] = []  # folders of the stages so far

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        folder = self.run(stage_fn, self.rehearsal.config(config), **self._inputs(inputs))
        self.outputs.append(folder)
        return folder

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        configs = [self.rehearsal.config(config) for config in configs]
        folders = self.run.side_by_side(stage_fn, configs, **self._inputs(inputs))
        self.outputs += folders
        return folders

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [self._input(item) for item in value]
            if isinstance(value, (list, tuple))
            else self.rehearsal.answers
            if name in ("pairs", "prompts") and value is not None
            else self._input(value)
            for name, value in inputs.items()
        }

    def _input(self, value: Any) -> Any:
        """A stage's output and a file stay; a model from elsewhere, or what is not there, is the
        stand-in.
        """
        if value is None or any(Path(value).is_relative_to(folder) for folder in self.outputs):
            return value
        path = Path(value)
        is_model = (path / "config.json").is_file()
        return self.rehearsal.model if is_model or not path.exists() else path
