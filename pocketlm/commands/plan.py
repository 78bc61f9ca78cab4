"""`pocketlm plan`: what a recipe will cost, before it is run; after a run, what it did cost beside
it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlm.runner.errors import BAD_INPUT, plain_errors
from pocketlm.runner.recipe_file import load_recipe, parse_flags

if TYPE_CHECKING:
    from pocketlm.estimate.devices import Device

RECIPE_OPTIONS = (
    "These go with every recipe: --gpu NAME, --count N, --memory GB, --out DIR, --set "
    "stage.field=value, --json FILE "
    "(pocketlm plan --help explains them)."
)


def plan_recipe(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="a100, h100, h200, b200, rtx4090; or this: try steps on this processor.",
        ),
    ] = "this",
    count: Annotated[int, typer.Option(metavar="N", help="How many of them.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory of each, where it is not what its maker says."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run to compare with. Default: runs/<recipe's name>"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Change one field of one stage's config; may be repeated.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures there, in bytes and seconds."
        ),
    ] = None,
    help_: Annotated[
        bool,
        typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE."),
    ] = False,
) -> None:
    """Tell what a recipe will cost: tokens, FLOPs, memory, time and disk of each stage.

    Nothing runs but, on this machine, a few steps that are timed. Shapes are
    followed from stage to stage. A stage that does not fit is named, with the
    settings that make it fit, or with what is too large. Where a stage is
    finished, what it took stands beside the plan, with the ratio.

    [bold]Examples[/bold]

    pocketlm plan recipes/pocket.py
      [dim]on this computer, by a few steps of each stage[/dim]

    pocketlm plan recipes/r1.py --size 950m --gpu h100 --count 128
      [dim]as published, on a cluster; --size is the recipe's own flag[/dim]

    pocketlm plan recipes/r1.py --gpu rtx4090
      [dim]on one GPU of 24 GB; --gpu a100 --memory 24 takes another's speed[/dim]

    pocketlm plan recipes/pocket.py --set base.micro_batch_size=4 --json plan.json
      [dim]with one field changed; the figures in a file too[/dim]

    pocketlm plan recipes/pocket.py --out runs/pocket
      [dim]after a run: plan against actual[/dim]
    """
    if recipe is None:
        typer.echo(context.get_help(), err=not help_)
        raise typer.Exit(0 if help_ else BAD_INPUT)
    with plain_errors():
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"{json_file}: there is no folder {json_file.parent}; make it first"
            )
        function = load_recipe(recipe)
        flags = parse_flags(
            function, recipe, [*context.args, *(["--help"] if help_ else [])], RECIPE_OPTIONS
        )
        show_plan(
            function,
            flags,
            out or Path("runs") / recipe.stem,
            settings or [],
            chosen_device(gpu, count, memory),
            count,
            json_file,
        )


def chosen_device(gpu: str, count: int, memory: float | None) -> "Device | None":
    """The device that is named, with the memory given; None for this machine's processor."""
    from dataclasses import replace

    from pocketlm.estimate.devices import GB, HERE, device

    chosen = None if gpu == HERE else device(gpu)
    if count < 1 or (chosen is None and count > 1):
        raise ValueError(
            f"--count {count}: at least 1, and 1 on this machine; --gpu names what there are more "
            "of"
        )
    if memory is None:
        return chosen
    if chosen is None or memory <= 0:
        raise ValueError(f"--memory {memory:g}: GB of each device that --gpu names, above 0")
    return replace(chosen, memory_bytes=memory * GB)


def show_plan(
    recipe,
    flags: dict,
    run_dir: Path,
    settings: list[str],
    chosen: "Device | None",
    count: int,
    json_file: Path | None,
) -> None:
    """Plans the recipe on `count` such devices; prints the table, and writes the figures where
    asked to.
    """
    from rich.console import Console
    from rich.progress import track

    from pocketlm.estimate.estimate import estimate, plan_report
    from pocketlm.estimate.stages import plan_stages
    from pocketlm.estimate.table import plan_tables
    from pocketlm.model.files import write_json
    from pocketlm.runner.dry_run import dry_run
    from pocketlm.runner.overrides import parse_settings
    from pocketlm.runner.schedule import idle_ranks

    dry = dry_run(recipe, run_dir, parse_settings(settings), missing_ok=True, **flags)
    stages = plan_stages(dry.calls)
    watched = (
        track(stages, "  steps tried", console=Console(stderr=True), transient=True)
        if chosen is None
        else stages
    )
    estimates = [estimate(stage, chosen, count) for stage in watched]
    if json_file is not None:
        write_json(json_file, plan_report(estimates, run_dir, chosen, count))
    where = f"{count} x {chosen.name}" if chosen else "this machine's processor"
    title = f"{run_dir}: {len(stages)} stages on {where}"
    console = Console()
    console.print(plan_tables(estimates, title, console.width, published=chosen is not None))
    for line in idle_ranks(dry.calls, count):
        console.print(line, markup=False, highlight=False)
