"""`pocketlm chat`: a conversation with a model in the terminal."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import OR_HUB_ID, RUNTIME_HELP, check_model
from pocketlm.runner.errors import plain_errors


def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help=OR_HUB_ID)],
    temperature: Annotated[
        float, typer.Option(help="0 is the likeliest answer; 0.7 varies.")
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(help="Draw from this many likeliest tokens alone; 0 from all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens of this total probability.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Draw from tokens at least this share as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            help="Make tokens that were there before less likely: 1.1 a little, 1 not at all."
        ),
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 512,
    seed: Annotated[
        int, typer.Option(help="The same seed and lines give the same conversation.")
    ] = 0,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions the model gets first.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End answers before this text; may be repeated."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
) -> None:
    """Talk to a model in the terminal.

    [bold]Examples[/bold]

    pocketlm chat runs/pocket/chat
      [dim]a checkpoint folder[/dim]

    pocketlm chat runs/pocket/files/model.gguf --temperature 0.7
      [dim]the exported file itself, with answers that vary[/dim]

    echo "What is 12 + 30?" | pocketlm chat runs/pocket/chat
      [dim]one question; every line of input is a turn[/dim]
    """
    with plain_errors():
        from rich.console import Console

        from pocketlm.inference.sampling import Sampling
        from pocketlm.serve.terminal import ChatConfig
        from pocketlm.serve.terminal import chat as converse

        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        config = ChatConfig(
            sampling=sampling, max_new_tokens=max_tokens, system=system, stop=tuple(stop or ())
        )
        from pocketlm.model.hub_folder import model_at

        path = model_at(model)
        check_model(path)
        from pocketlm.inference.open import open_model

        with contextlib.closing(open_model(path, runtime=runtime)) as speaker:
            converse(speaker, config, Console())
