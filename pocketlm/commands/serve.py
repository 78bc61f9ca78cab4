"""`pocketlm serve`: a model behind HTTP, as OpenAI's API has it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import MODEL_HELP, RUNTIME_HELP, check_model
from pocketlm.runner.errors import plain_errors

KEY_VARIABLE = "POCKETLM_API_KEY"


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help=MODEL_HELP)],
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 lets your whole network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            show_default=False,
            help=f"Clients must show it. {KEY_VARIABLE} says it without a trace in the shell.",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a conversation; the model's own by default.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Answers side by side; 4 by default, where memory allows.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; others are refused.")] = 64,
    threads: Annotated[
        int | None,
        typer.Option(help="A .gguf: one or all cores but one, measured; else the runtime's own."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="The longest answer where a request names none.")
    ] = 1024,
    temperature: Annotated[float, typer.Option(help="Where a request names none.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Where a request names none.")] = 0.95,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What clients call the model.", show_default="its file"),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this server; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A page elsewhere that may ask, as http://localhost:3000; may be repeated.",
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
) -> None:
    """Serve a model to programs that speak OpenAI's API.

    [bold]Examples[/bold]

    pocketlm serve runs/pocket/files/model.gguf
      [dim]http://127.0.0.1:8080/v1 answers, on this machine alone[/dim]

    pocketlm serve runs/pocket/chat --port 9000 --slots 8
      [dim]a checkpoint folder, eight answers side by side[/dim]
    """
    with plain_errors():
        check_model(model)
        from pocketlm.inference.sampling import Sampling
        from pocketlm.serve.http_server import ServeConfig
        from pocketlm.serve.http_server import serve as answer
        from pocketlm.serve.open_backend import Opening
        from pocketlm.serve.request_fields import Defaults

        Sampling(temperature=temperature, top_p=top_p)  # which checks them
        config = ServeConfig(
            host=host,
            port=port,
            name=name,
            api_key=api_key or os.environ.get(KEY_VARIABLE) or None,
            queue=queue,
            hosts=tuple(allow_host or ()),
            origins=tuple(allow_origin or ()),
            defaults=Defaults(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
            opening=Opening(context=context, slots=slots, threads=threads, runtime=runtime),
        )
        answer(model, config)
