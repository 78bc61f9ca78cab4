"""`pocketlm eval`: models on a suite of problems."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import MODEL_HELP, RUNTIME_HELP, check_model, new_folder
from pocketlm.runner.errors import plain_errors

SUITE_HELP = "A suite by name, or a .jsonl file of your own: a prompt and an answer a line."


def evaluate_models(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=MODEL_HELP)
    ],
    suite: Annotated[str, typer.Option(metavar="NAME", help=SUITE_HELP)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep evaluation.json and the transcripts there."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
) -> None:
    """Measure models on a suite of problems, beside what the best constant answer would score.

    [bold]Examples[/bold]

    pocketlm eval runs/pocket/chat --suite pocket
      [dim]a checkpoint[/dim]

    pocketlm eval runs/pocket/chat runs/pocket/files/model.gguf --suite pocket
      [dim]a checkpoint beside the file that ships[/dim]

    pocketlm eval runs/pocket/chat --suite questions.jsonl --out results
      [dim]your own problems; every answer is kept[/dim]
    """
    with plain_errors():
        for model in models:
            check_model(model)
        from rich.console import Console

        from pocketlm.commands.tables import evaluation_table
        from pocketlm.inference.open import labels_of
        from pocketlm.model.files import read_json
        from pocketlm.stages.evaluate import EvaluateConfig, evaluate

        with contextlib.ExitStack() as stack:
            folder = Path(
                stack.enter_context(new_folder(out) if out else tempfile.TemporaryDirectory())
            )
            evaluate(
                EvaluateConfig(
                    name="evaluation", suite=suite, labels=labels_of(models), runtime=runtime
                ),
                folder,
                models=models,
            )
            console = Console()
            console.print(evaluation_table(read_json(folder / "evaluation.json"), console.width))
