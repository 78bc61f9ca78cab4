"""`pocketlm serve`: a model on a page in the browser, and behind HTTP as OpenAI's API has it."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.commands.arguments import OR_HUB_ID, RUNTIME_HELP, check_model
from pocketlm.runner.errors import plain_errors

if TYPE_CHECKING:
    from pocketlm.eval.math_judge import MathJudge
    from pocketlm.serve.buttons import Buttons

KEY_VARIABLE = "POCKETLM_API_KEY"


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help=OR_HUB_ID)],
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
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="A smaller .gguf of the same tokenizer, which proposes tokens for a .gguf "
            "(speculative decoding): answers stay those of MODEL, sooner where it guesses well.",
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
) -> None:
    """Serve a model: a page to talk on, and OpenAI's API for programs.

    The page needs no network and sends nothing anywhere else. In its Python role it
    runs an answer's program in a sandbox, where this server is for this machine alone.

    [bold]Examples[/bold]

    pocketlm serve runs/pocket/files/model.gguf
      [dim]the page is http://127.0.0.1:8080, on this machine alone[/dim]

    pocketlm serve runs/pocket/chat --port 9000 --slots 8
      [dim]a checkpoint folder, eight answers side by side[/dim]

    pocketlm serve model.gguf --draft smaller.gguf
      [dim]speculative decoding; GET /metrics counts what was proposed and taken[/dim]

    pocketlm serve HuggingFaceTB/SmolLM2-135M-Instruct
      [dim]from the Hugging Face hub, fetched once[/dim]
    """
    with plain_errors():
        from pocketlm.model.hub_folder import model_at

        path = model_at(model)
        check_model(path)
        from pocketlm.inference.sampling import Sampling
        from pocketlm.serve.http_server import ServeConfig, is_loopback
        from pocketlm.serve.http_server import serve as answer
        from pocketlm.serve.open_backend import Opening
        from pocketlm.serve.request_fields import Defaults

        Sampling(temperature=temperature, top_p=top_p)  # which checks them
        config = ServeConfig(
            host=host,
            port=port,
            name=name or (model.name if path != model else None),
            api_key=api_key or os.environ.get(KEY_VARIABLE) or None,
            queue=queue,
            hosts=tuple(allow_host or ()),
            origins=tuple(allow_origin or ()),
            defaults=Defaults(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
            opening=Opening(
                context=context, slots=slots, threads=threads, runtime=runtime, draft=draft
            ),
        )
        answer(path, config, buttons(alone=is_loopback(host)))


def buttons(*, alone: bool) -> "Buttons":
    """What the page may call: programs only where no other machine can ask for them, values only
    where math-verify is installed.
    """
    from importlib.util import find_spec

    from pocketlm.serve.buttons import Buttons

    return Buttons(
        run=run_program if alone else None, check=same_value if find_spec("math_verify") else None
    )


def run_program(code: str) -> dict[str, Any]:
    """What the sandbox says of a Python program, for the page."""
    from pocketlm.sandbox import sandbox

    outcome = sandbox.run_program(code)
    ended = outcome.verdict if outcome.verdict != "finished" else ""
    if outcome.status and not ended:
        ended = f"status {outcome.status}"
    return {
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "ended": f"{ended}: {outcome.detail}" if ended and outcome.detail else ended,
        "seconds": outcome.seconds,
    }


def same_value(answer: str, expected: str) -> bool:
    """Whether math-verify reads the two as one value."""
    return _judge().same_value(answer, f"\\boxed{{{expected}}}")


@functools.cache
def _judge() -> "MathJudge":
    import atexit

    from pocketlm.eval.math_judge import MathJudge

    judge = MathJudge()
    atexit.register(judge.close)
    return judge
