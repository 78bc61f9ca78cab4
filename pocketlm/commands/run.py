"""`pocketlm run`: a recipe, from its file to what it leaves for its user."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.runner.errors import BAD_INPUT, INTERRUPTED, plain_errors, say, sigterm_as_interrupt
from pocketlm.runner.recipe_file import load_recipe, parse_flags

if TYPE_CHECKING:
    from pocketlm.runner.record import Call
    from pocketlm.train.distributed.ranks import LaunchStore

RECIPE_OPTIONS = (
    "These go with every recipe: --out DIR, --set stage.field=value, --only STAGE, --dry-run "
    "(pocketlm run --help explains them)."
)

RECIPE_COMMAND = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def run(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where every stage puts its folder. Default: runs/<recipe's name>"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Change one field of one stage's config; may be repeated.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Run this stage alone; what it needs must be done."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the stages and their state on disk; run nothing."),
    ] = False,
    help_: Annotated[
        bool,
        typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE."),
    ] = False,
) -> None:
    """Run a recipe: every stage in order, each remembered on disk.

    A finished stage is not run again, an interrupted one goes on where it
    stopped, and a stage whose configuration changed stops the run and shows
    the difference. So the same command may be typed again at any time.

    [bold]Examples[/bold]

    pocketlm run recipes/pocket.py
      [dim]everything, on this computer[/dim]

    pocketlm run recipes/pocket.py --help
      [dim]what the recipe does, and its own flags[/dim]

    pocketlm run recipes/pocket.py --dry-run
      [dim]which stages are done, and which are to do[/dim]

    pocketlm run recipes/pocket.py --out runs/short --set base.optim.num_steps=20
      [dim]elsewhere, with one field of the stage "base" changed[/dim]

    pocketlm run recipes/pocket.py --only base
      [dim]one stage, from what is there[/dim]
    """
    if recipe is None:
        typer.echo(context.get_help(), err=not help_)
        raise typer.Exit(0 if help_ else BAD_INPUT)
    run_dir = out or Path("runs") / recipe.stem
    from pocketlm.train.distributed.ranks import joined, lost_rank_as_error, ranks

    with joined() as launch, plain_errors(run_dir, launch.may_explain), lost_rank_as_error():
        if not ranks().first:
            launch.receive()  # that the first rank found nothing wrong
        function = load_recipe(recipe)
        flags = parse_flags(
            function, recipe, [*context.args, *(["--help"] if help_ else [])], RECIPE_OPTIONS
        )
        if ranks().first:
            run_recipe(
                function, flags, run_dir, settings or [], launch, only=only, list_only=dry_run
            )
        else:
            follow_recipe(function, flags, run_dir, settings or [], launch)


def run_recipe(
    recipe: Any,
    flags: dict[str, Any],
    run_dir: Path,
    settings: list[str],
    launch: "LaunchStore",
    *,
    only: str | None,
    list_only: bool,
) -> None:
    """Runs the recipe after a dry run of it, or prints the dry run alone."""
    from rich.console import Console

    from pocketlm.runner.dry_run import dry_run
    from pocketlm.runner.overrides import parse_settings
    from pocketlm.runner.run import Run
    from pocketlm.runner.schedule import idle_ranks
    from pocketlm.runner.tables import stages_table
    from pocketlm.train.distributed.ranks import ranks

    dry = dry_run(recipe, run_dir, parse_settings(settings), missing_ok=list_only, **flags)
    check_rows([call for call in dry.calls if only in (None, call.name)], ranks().world_size)
    console = Console(stderr=not list_only, highlight=False)
    if list_only:
        console.print(stages_table(dry, console.width), soft_wrap=True)
    for line in idle_ranks(dry.calls, ranks().world_size):
        console.print(line, soft_wrap=True, markup=False)
    if list_only:
        return
    with Run(run_dir, plan=dry, only=only, coordinator=launch) as live, sigterm_as_interrupt():
        launch.broadcast("go")
        try:
            recipe(live, **flags)
        except KeyboardInterrupt:
            where = f"in stage {live.current}" if live.current else "between stages"
            say(f"interrupted {where}; run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
    if only is None:
        from pocketlm.commands.finished import show_results

        show_results([call.folder for call in dry.calls])


def follow_recipe(
    recipe: Any, flags: dict[str, Any], run_dir: Path, settings: list[str], launch: "LaunchStore"
) -> None:
    """Runs the recipe on any other rank than the first: it joins the stages that run on all ranks,
    and exits when the first does.
    """
    from pocketlm.runner.overrides import parse_settings
    from pocketlm.runner.schedule import WorkerRun

    with sigterm_as_interrupt():
        try:
            recipe(WorkerRun(run_dir, parse_settings(settings), launch), **flags)
            launch.receive()
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None  # the first rank says so


def check_rows(calls: "list[Call]", world_size: int) -> None:
    """Nothing, or a ValueError naming a training to come whose rows the ranks cannot divide."""
    from pocketlm.runner.schedule import num_ranks, runs_on_all_ranks

    for call in calls:
        config = call.config
        trains = runs_on_all_ranks(config) and getattr(config, "optim", None) is not None
        if not trains or call.state() == "done":
            continue
        ranks = num_ranks(config, call.num_beside, world_size)
        together = config.micro_batch_size * ranks
        if config.rows_per_step % together:
            raise ValueError(
                f"{call.name}.rows_per_step {config.rows_per_step} does not divide into "
                "micro-batches of "
                f"{call.name}.micro_batch_size {config.micro_batch_size} on {ranks} "
                f"rank{'s' * (ranks > 1)}; "
                f"make it a multiple of {together}, or choose other numbers of either"
            )


def run_with(words: list[str]) -> None:
    """`pocketlm run` with these words: for processes that are started to run a recipe."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=RECIPE_COMMAND)(run)
    app(words)
