"""A dry run: the stage calls of a recipe, in order, with their settings and records; nothing
runs.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketlm.runner.overrides import Settings, apply_settings, check_stages
from pocketlm.runner.record import Call, as_paths, make_record, read_record

# a folder's name; no dot, because --set splits at dots
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class DryRun:
    """Called like a Run, it only keeps the calls, in order, in `calls`.

    A recipe never reads what its stages write, so that it can be followed without running.
    """

    def __init__(
        self, run_dir: Path, settings: Settings | None = None, *, missing_ok: bool = False
    ) -> None:
        """missing_ok: an input that does not exist is recorded (the stage "needs" it) instead of
        raising FileNotFoundError.
        """
        self.run_dir = Path(run_dir)
        self.settings = settings or {}
        self.missing_ok = missing_ok
        self.calls: list[Call] = []

    def __call__(self, stage_fn: Callable[..., Path], config: Any, **inputs: Any) -> Path:
        return self.add(stage_fn, config, inputs).folder

    def side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], **inputs: Any
    ) -> list[Path]:
        return [call.folder for call in self.add_side_by_side(stage_fn, configs, inputs)]

    def add_side_by_side(
        self, stage_fn: Callable[..., Path], configs: Sequence[Any], inputs: dict[str, Any]
    ) -> list[Call]:
        """The calls of stages that may run at the same time, as `add` makes them."""
        calls = [self.add(stage_fn, config, inputs) for config in configs]
        if len(calls) > 1:
            names = tuple(call.name for call in calls)
            calls = [replace(call, side_by_side=names) for call in calls]
            self.calls[-len(calls) :] = calls
        return calls

    def add(self, stage_fn: Callable[..., Path], config: Any, inputs: dict[str, Any]) -> Call:
        """The call, with its settings and record. ValueError if its name is taken or no folder's
        name.
        """
        name = getattr(config, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"a stage's config needs a name of letters, digits, - and _, not {name!r}"
            )
        if name in self.names:
            raise ValueError(
                f"two stages of the recipe are named {name!r}; give each its own name: it names "
                "the folder"
            )
        config = apply_settings(config, self.settings.get(name, {}))
        inputs = {key: as_paths(value, f"{name}: input {key}") for key, value in inputs.items()}
        digests = {call.folder.absolute(): call.digest for call in self.calls}
        # files that the config names
        read = {"reads": config.reads()} if hasattr(config, "reads") else {}
        record = make_record(
            stage_fn, config, {**inputs, **read}, self.run_dir, digests, missing_ok=self.missing_ok
        )
        call = Call(stage_fn, config, inputs, self.run_dir / name, record)
        # an earlier version, whose config had fewer fields, made another digest: it stays
        recorded = read_record(call.folder)
        if recorded and not call.differences(recorded):
            call = replace(call, record={**record, "digest": recorded["digest"]})
        self.calls.append(call)
        return call

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]


def dry_run(
    recipe: Callable[..., Any],
    run_dir: Path,
    settings: Settings | None = None,
    *,
    missing_ok: bool = False,
    **flags: Any,
) -> DryRun:
    """The stages a recipe would run, in order; nothing runs. ValueError for an unknown setting."""
    dry = DryRun(run_dir, settings, missing_ok=missing_ok)
    recipe(dry, **flags)
    check_stages(dry.settings, dry.names)
    return dry
