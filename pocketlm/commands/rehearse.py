"""`pocketlm rehearse`: a recipe in seconds, every stage of it, before days are spent on it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.runner.errors import BAD_INPUT, plain_errors
from pocketlm.runner.recipe_file import load_recipe, parse_flags

if TYPE_CHECKING:
    from pocketlm.runner.record import Call

RECIPE_OPTIONS = (
    "These go with every recipe: --processes N, --gpu NAME, --count N, --memory GB, --out DIR, "
    "--set stage.field=value (pocketlm rehearse --help explains them)."
)


def rehearse(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", help="Ranks that rehearse it together, on this machine.")
    ] = 1,
    gpu: Annotated[
        str,
        typer.Option(metavar="NAME", help="What it will run on: a100, h100, h200, b200, rtx4090."),
    ] = "h100",
    count: Annotated[int, typer.Option(metavar="N", help="How many of them.")] = 8,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory of each, where it is not what its maker says."),
    ] = None,
    all_formats: Annotated[
        bool, typer.Option("--all-formats", help="Export .pte too, which takes a minute.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what it writes there. Default: nowhere")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Change one field of one stage's config; may be repeated.",
        ),
    ] = None,
    help_: Annotated[
        bool,
        typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE."),
    ] = False,
) -> None:
    """Rehearse a recipe: every stage in order, in seconds, and what it needs at full size.

    The calls, tables, shares and fields are the recipe's; steps, rows, lengths
    and networks are cut. Hub data, and files and models that are not there, are
    replaced by generated ones in the same format. After it, the memory that each
    stage will need on the devices named, of what they have.

    [bold]Examples[/bold]

    pocketlm rehearse recipes/r1.py --size 950m --count 128
      [dim]before it is sent to a cluster; --size is the recipe's own flag[/dim]

    pocketlm rehearse recipes/pro.py --processes 4
      [dim]the same as four ranks, each with its rows and its part of the weights[/dim]
    """
    if recipe is None:
        typer.echo(context.get_help(), err=not help_)
        raise typer.Exit(0 if help_ else BAD_INPUT)
    with plain_errors():
        function = load_recipe(recipe)
        words = [*context.args, *(["--help"] if help_ else [])]
        flags = parse_flags(function, recipe, words, RECIPE_OPTIONS)
        from pocketlm.commands.processes import run_on
        from pocketlm.rehearsal.rehearsed import prepare

        if processes < 1:
            raise ValueError(f"--processes {processes}: at least 1")
        full = calls_at_full_size(function, flags, settings or [], processes)
        verdict = verdict_lines(full, gpu, count, memory)
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as place:
            folder = out or Path(place)
            script = prepare(full, folder, recipe, words, settings or [], processes, all_formats)
            print_lines(cuts(full, script))
            status = run_on(processes, ["run", str(script), "--out", str(folder / "run")])
            if status:
                lines = [f"the rehearsal stopped on {processes} process{'es' * (processes > 1)}"]
                print_lines(lines)
                raise typer.Exit(status)
        print_lines([f"rehearsed: all {len(full)} stages, to {full[-1].name}"])
        print_lines([f"at full size, on {count} x {gpu}:", *verdict])


def calls_at_full_size(
    recipe: Any, flags: dict[str, Any], settings: list[str], processes: int
) -> "list[Call]":
    """The recipe's calls as it will run; ValueError where a stage's rows do not divide among so
    many ranks.
    """
    from pocketlm.commands.run import check_rows
    from pocketlm.runner.dry_run import dry_run
    from pocketlm.runner.overrides import parse_settings

    nowhere = Path(tempfile.gettempdir()) / "no-run-of-a-rehearsal"
    calls = dry_run(recipe, nowhere, parse_settings(settings), missing_ok=True, **flags).calls
    check_rows(calls, processes)
    return calls


def verdict_lines(calls: "list[Call]", gpu: str, count: int, memory: float | None) -> list[str]:
    """Of each stage that trains, the memory it needs of what a device has, and what would make it
    fit.
    """
    from pocketlm.commands.plan import chosen_device
    from pocketlm.estimate.devices import HERE
    from pocketlm.estimate.estimate import estimate
    from pocketlm.estimate.stages import plan_stages
    from pocketlm.estimate.table import memory_verdict

    if gpu == HERE:
        raise ValueError(f"--gpu {gpu}: name what it will run on, as h100")
    device = chosen_device(gpu, count, memory)
    assert device is not None
    estimates = [estimate(stage, device, count) for stage in plan_stages(calls)]
    return memory_verdict(estimates, device, count)


def cuts(calls: "list[Call]", script: Path) -> list[str]:
    """Of each stage, what is cut in the rehearsal that was prepared in `script`."""
    from pocketlm.rehearsal.cut import cut_lines
    from pocketlm.rehearsal.rehearsed import opened

    rehearsal, _, _ = opened(script.with_suffix(".json"))
    lines = []
    for call in calls:
        cut = "; ".join(cut_lines(call.config, rehearsal.config(call.config)))
        lines.append(f"{call.name} ({call.record['stage']}): {cut or 'as it is'}")
    return lines


def print_lines(lines: list[str]) -> None:
    from rich.console import Console

    for line in lines:
        Console(highlight=False).print(line, markup=False)
