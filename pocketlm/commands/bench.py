"""`pocketlm bench`: speed and size of models."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import MODEL_HELP, RUNTIME_HELP, check_model
from pocketlm.runner.errors import plain_errors


def bench_models(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=MODEL_HELP)
    ],
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Lengths to measure at.",
            show_default="128,1024,2048,4096,8192, as far as the model goes",
        ),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(help="The last tokens of a context, made by the model.")
    ] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.")] = 3,
    threads: Annotated[
        int | None, typer.Option(help="Of every runtime alike.", show_default="the physical cores")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="A smaller .gguf of the same tokenizer: what it gains by proposing tokens "
            "(speculative decoding), on six questions of ours.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures there, in bytes and seconds."
        ),
    ] = None,
) -> None:
    """Measure speed and size: load time, prefill, decode, memory, and the share of what memory
    allows.

    A context of 1024 is a prompt of 992 tokens, then 32 new ones: prefill is the
    prompt against the wait for the first new token, decode the pace of the rest.
    Each model runs alone in a process; "of limit" compares its decode with reading
    its weights and cache once a token, at the bandwidth measured in the same run.

    [bold]Examples[/bold]

    pocketlm bench runs/pocket/chat runs/pocket/files/model.gguf
      [dim]a checkpoint beside the file that ships[/dim]

    pocketlm bench runs/pocket/chat --runtime transformers
      [dim]a folder as stock transformers computes it[/dim]

    pocketlm bench model.gguf --contexts 128,4096 --threads 1 --json speed.json
      [dim]two lengths on one core; the figures in a file too[/dim]

    pocketlm bench model.gguf --draft smaller.gguf --new-tokens 128
      [dim]how much sooner answers come with a draft, and how much of it is taken[/dim]
    """
    with plain_errors():
        for model in (*models, *([draft] if draft else [])):
            check_model(model)
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"{json_file}: there is no folder {json_file.parent}; make it first"
            )
        from rich.console import Console

        from pocketlm.commands.bench_table import bench_table
        from pocketlm.model.files import read_json, write_json
        from pocketlm.stages.bench import BenchConfig, bench

        lengths = [part.strip() for part in contexts.split(",")] if contexts is not None else []
        if not all(part.isdecimal() for part in lengths):
            raise ValueError(
                f"--contexts {contexts}: give numbers of tokens with commas between, such as "
                "128,1024"
            )
        config = BenchConfig(
            name="bench",
            contexts=tuple(map(int, lengths)),
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            runtime=runtime,
        )
        with tempfile.TemporaryDirectory() as folder:
            report = read_json(
                bench(config, Path(folder), models=models, draft=draft) / "bench.json"
            )
        if json_file is not None:
            write_json(json_file, report)
        Console().print(bench_table(report))
