"""`pocketlm verify-resume`: proof on this machine that stopping a run never changes its result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlm.runner.errors import BAD_INPUT, plain_errors
from pocketlm.runner.recipe_file import load_recipe, parse_flags

if TYPE_CHECKING:
    from pocketlm.resume_proof.proof import KillReport

OPTIONS = (
    "These go with every recipe: --kills N, --seed S, --processes P, --stage STAGE, --out DIR, "
    "--set stage.field=value."
)


def verify_resume(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)
    ] = None,
    kills: Annotated[int, typer.Option(help="How often the run is killed.")] = 10,
    seed: Annotated[int, typer.Option(help="Decides what each kill waits for, and how long.")] = 0,
    processes: Annotated[int, typer.Option(help="How many processes train together.")] = 1,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Break this stage alone; those before it run once."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where both runs go. Default: runs/verify-<recipe's name>"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="As in pocketlm run."),
    ] = None,
    help_: Annotated[
        bool,
        typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE."),
    ] = False,
) -> None:
    """Prove that stopping a run never changes its result.

    The recipe runs once unbroken. Then it runs again and is killed (SIGKILL) at
    random moments, in steps, in saves and between stages, and started again
    until it is done. Token ids, losses and weights of every stage are compared,
    bit for bit. Exit status 1 where anything differs; both runs then stay.

    Called again with the same --out it goes on, and adds up to --kills in all.

    [bold]Examples[/bold]

    pocketlm verify-resume recipes/pocket.py --stage base --set base.optim.num_steps=60
      [dim]one stage, shortened; those before it run once[/dim]

    pocketlm verify-resume recipes/pocket.py --kills 30 --processes 2
      [dim]the whole recipe, two processes training together[/dim]
    """
    if recipe is None:
        typer.echo(context.get_help(), err=not help_)
        raise typer.Exit(0 if help_ else BAD_INPUT)
    with plain_errors():
        function = load_recipe(recipe)
        flags = parse_flags(
            function, recipe, [*context.args, *(["--help"] if help_ else [])], OPTIONS
        )
        if kills < 1 or processes < 1:
            raise ValueError(f"--kills {kills} and --processes {processes} must be at least 1")
        from pocketlm.commands.run import run_with
        from pocketlm.resume_proof.proof import kill_and_compare

        words = [
            *context.args,
            *(word for setting in settings or [] for word in ("--set", setting)),
        ]
        report = kill_and_compare(
            run_with,
            recipe,
            function,
            flags,
            words,
            out or Path("runs") / f"verify-{recipe.stem}",
            settings or [],
            kills=kills,
            seed=seed,
            processes=processes,
            stage=stage,
        )
        show(report)
        if report.mismatches:
            raise typer.Exit(1)


def show(report: "KillReport") -> None:
    """Prints the stages with what is equal, and where the kills hit."""
    from rich.console import Console
    from rich.table import Table

    words = {True: "equal", False: "[red]DIFFER[/]", None: "-"}
    table = Table(
        title=f"{len(report.kills)} kills, {report.runs} runs against an unbroken one",
        title_justify="left",
    )
    for heading in ("stage", "steps", "token ids", "losses", "weights"):
        table.add_column(heading, justify="right" if heading == "steps" else "left")
    for stage in report.comparisons:
        steps = f"{stage.steps:,}" if stage.steps else "-"
        table.add_row(
            stage.stage, steps, words[stage.tokens], words[stage.losses], words[stage.weights]
        )
    console = Console()
    console.print(table)
    console.print(f"killed in: {report.places()}", soft_wrap=True)
    for stage in report.mismatches:
        console.print(f"{stage.stage}: {stage.first}", style="red", soft_wrap=True)
    if report.mismatches:
        first = report.mismatches[0].stage
        text = f"{first} and what follows differ; both runs are in {report.out}"
    else:
        text = "Stopping changed nothing: every bit is that of the unbroken run."
    console.print(text, soft_wrap=True)
