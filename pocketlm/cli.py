"""The command line: `pocketlm run | plan | rehearse | verify-resume | chat | serve | eval | bench |
shapes | import | export | push | pull | inspect`.

Each command is a function of commands/. Thin: it reads arguments, calls one function, and turns a
user's mistake into one message. Everything slow is imported inside the command that needs it, so
that --help is at once.
"""

import os
from collections.abc import MutableMapping

import typer

from pocketlm.commands.bench import bench_models
from pocketlm.commands.chat import chat
from pocketlm.commands.evaluate import evaluate_models
from pocketlm.commands.export import export_model
from pocketlm.commands.import_ import import_a_model
from pocketlm.commands.inspect import app as inspect
from pocketlm.commands.plan import plan_recipe
from pocketlm.commands.push import pull_folder, push_folder
from pocketlm.commands.rehearse import rehearse
from pocketlm.commands.run import RECIPE_COMMAND, run
from pocketlm.commands.serve import serve
from pocketlm.commands.shapes import shapes
from pocketlm.commands.verify_resume import verify_resume

app = typer.Typer(
    name="pocketlm",
    help=(
        "From raw text to a language model that reasons on a phone: train it, measure it, export "
        "it, talk."
    ),
    epilog="Begin with: pocketlm run recipes/pocket.py",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(context_settings=RECIPE_COMMAND, options_metavar="[OPTIONS]")(run)
app.command(name="plan", context_settings=RECIPE_COMMAND, options_metavar="[OPTIONS]")(plan_recipe)
app.command(context_settings=RECIPE_COMMAND, options_metavar="[OPTIONS]")(rehearse)
app.command(context_settings=RECIPE_COMMAND, options_metavar="[OPTIONS]")(verify_resume)
app.command()(chat)
app.command()(serve)
app.command(name="eval")(evaluate_models)
app.command(name="bench")(bench_models)
app.command()(shapes)
app.command(name="import")(import_a_model)
app.command(name="export")(export_model)
app.command(name="push")(push_folder)
app.command(name="pull")(pull_folder)
app.add_typer(inspect, name="inspect")


# how often a thread looks again before it sleeps, where it waits for another
SPINS = "1000"


def main() -> None:
    """The command `pocketlm`. On a GPU, segments of memory that grow leave no gaps; torch reads
    this when it first allocates.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    spin_briefly(os.environ)
    app()


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Lets threads that wait for each other sleep soon, unless the user said how they wait.

    libgomp's own choice, some 300 times as long, takes the core from the very thread that is waited
    for where other processes are busy: a step then takes ten times as long
    (benchmarks/busy_machine.py). libgomp reads it when torch is loaded, after this. No bit changes.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS


if __name__ == "__main__":
    main()
