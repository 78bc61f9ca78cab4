"""`pocketlm run`: a recipe, from its file to what it leaves for its user."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketlm.messages import BAD_INPUT, INTERRUPTED, plain_errors, say, sigterm_as_interrupt
from pocketlm.recipe import load_recipe, parse_flags

RECIPE_OPTIONS = (
    "These go with every recipe: --out DIR, --set stage.field=value, --only STAGE, --dry-run "
    "(pocketlm run --help explains them)."
)


def run(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where every stage puts its folder. Default: runs/<recipe's name>"),
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
        str | None, typer.Option(metavar="STAGE", help="Run this stage alone; what it needs must be done.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the stages and their state on disk; run nothing.")
    ] = False,
    help_: Annotated[
        bool, typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE.")
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
    with plain_errors(run_dir):
        function = load_recipe(recipe)
        flags = parse_flags(function, recipe, [*context.args, *(["--help"] if help_ else [])], RECIPE_OPTIONS)
        run_recipe(function, flags, run_dir, settings or [], only=only, dry_run=dry_run)


def run_recipe(
    recipe: Any, flags: dict[str, Any], run_dir: Path, settings: list[str], *, only: str | None, dry_run: bool
) -> None:
    """Plans the recipe, then runs it, or only shows the plan."""
    from rich.console import Console

    from pocketlm.run import Run, plan, plan_table
    from pocketlm.settings import parse_settings

    dry = plan(recipe, run_dir, parse_settings(settings), missing_ok=dry_run, **flags)
    if dry_run:
        console = Console()
        console.print(plan_table(dry))
        return
    with Run(run_dir, plan=dry, only=only) as live, sigterm_as_interrupt():
        try:
            recipe(live, **flags)
        except KeyboardInterrupt:
            where = f"in stage {live.current}" if live.current else "between stages"
            say(f"interrupted {where}; run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        live.show_summary()
    if only is None:
        show_results([call.folder for call in dry.calls])


def show_results(folders: list[Path]) -> None:
    """What a finished recipe leaves for its user: the evaluation, the report's path, and how to talk to what was made."""
    from rich.console import Console

    from pocketlm.commands.tables import evaluation_table
    from pocketlm.model.files import read_json

    console = Console()
    for folder in folders:
        if (folder / "evaluation.json").is_file():
            console.print(evaluation_table(read_json(folder / "evaluation.json"), console.width))
    for page in (folder / "report.html" for folder in folders if (folder / "report.html").is_file()):
        console.print(f"report: {page.absolute()}", soft_wrap=True)
    chats = [folder for folder in folders if (folder / "chat_template.jinja").is_file()][-1:]
    files = [file for folder in folders for pattern in ("*.gguf", "*.pte") for file in sorted(folder.glob(pattern))]
    if chats or files:
        console.print("talk to what was made:")
    for model in (*chats, *files):
        console.print(f"  {Path(sys.argv[0])} chat {model}", soft_wrap=True)
