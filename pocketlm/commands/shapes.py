"""`pocketlm shapes`: which networks are fast enough on this device."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pocketlm.commands.arguments import check_model
from pocketlm.runner.errors import plain_errors


def shapes(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A checkpoint folder: its tokenizer and all that is not drawn are kept.",
        ),
    ],
    target_ttft: Annotated[
        str,
        typer.Option("--target-ttft", metavar="SECONDS", help="The longest wait for an answer."),
    ] = "4s",
    context: Annotated[int, typer.Option(help="Tokens of the prompt that is waited for.")] = 2048,
    runtime: Annotated[str, typer.Option(metavar="gguf|pte", help="What will run it.")] = "gguf",
    scheme: Annotated[
        str, typer.Option(metavar="NAME", help="Of the weights (model/quant.py), or none.")
    ] = "int4_group32",
    hidden: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Widths.", show_default="half to 1.5 x the model's"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Depths.", show_default="half to 1.5 x the model's"),
    ] = None,
    feed_forward: Annotated[
        str, typer.Option(metavar="F,...", help="Widths of the feed-forward, times the width.")
    ] = "2,3,4",
    kv_heads: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Key-value heads.", show_default="1 to the model's"),
    ] = None,
    num_shapes: Annotated[int, typer.Option(help="How many are measured; 60 to 150.")] = 60,
    repeats: Annotated[int, typer.Option(help="Rounds, of which medians count.")] = 3,
    threads: Annotated[
        int | None, typer.Option(help="Of the runtime.", show_default="the physical cores")
    ] = None,
    max_spread: Annotated[
        float, typer.Option(help="How far one file's own times may lie apart.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Which shapes are drawn.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Keeps every measurement; called again it goes on.")
    ] = Path("runs/shapes"),
) -> None:
    """Measure how long shapes take on this device; list those that answer in time.

    Files of random weights go through the real exporters and runtimes, in
    rounds, so that what else the machine does falls on all shapes; a machine
    too busy to compare them is refused. A model of latency is fitted (an
    additive cost of each part, and a Gaussian process on the rest); how well it
    predicts shapes that were held out is printed, beside what parameters and
    FLOPs alone tell.

    [bold]Examples[/bold]

    pocketlm shapes runs/pocket/chat --target-ttft 0.2s --context 512
      [dim]the demo's network, narrower and wider, as .gguf in four bits[/dim]

    pocketlm shapes SmolLM2-135M --runtime pte --layers 10,15,20 --num-shapes 40
      [dim]through ExecuTorch, three depths[/dim]
    """
    with plain_errors():
        check_model(model)
        from rich.console import Console

        from pocketlm.commands.shapes_table import shapes_table
        from pocketlm.model.checkpoint import shape_of
        from pocketlm.model.files import read_json
        from pocketlm.runner.run import Run
        from pocketlm.stages.measure_shapes import MeasureShapesConfig, measure_shapes

        wait = seconds_of(target_ttft)
        if not model.is_dir():
            raise ValueError(f"{model}: give a checkpoint folder, from which shapes are made")
        like = shape_of(model)
        factors = (0.5, 0.75, 1.0, 1.25, 1.5)
        widths = tuple(sorted({max(64, 64 * round(f * like.hidden_size / 64)) for f in factors}))
        depths = tuple(sorted({max(1, round(f * like.num_hidden_layers)) for f in factors}))
        groups = tuple(n for n in (1, 2, 3, 4, 6, 8) if n <= like.num_key_value_heads)
        config = MeasureShapesConfig(
            name="shapes",
            hidden_sizes=numbers("--hidden", hidden, int) or widths,
            intermediate_factors=numbers("--feed-forward", feed_forward, float),
            num_hidden_layers=numbers("--layers", layers, int) or depths,
            kv_heads=numbers("--kv-heads", kv_heads, int) or groups,
            queries_per_kv=like.num_attention_heads // like.num_key_value_heads,
            sliding_window=like.sliding_window or 512,
            num_shapes=num_shapes,
            runtime=runtime,  # type: ignore[arg-type]  # which the config checks
            scheme=None if scheme == "none" else scheme,
            context=context,
            repeats=repeats,
            threads=threads,
            max_spread=max_spread,
            seed=seed,
        )
        folder = Run(out)(measure_shapes, config, model=model)
        console = Console()
        console.print(shapes_table(read_json(folder / "shapes.json"), wait))
        console.print(f"every figure: {folder / 'shapes.json'}", soft_wrap=True)


def seconds_of(text: str) -> float:
    """ "4s", "250ms" or "4" in seconds."""
    unit = 1e-3 if text.endswith("ms") else 1.0
    try:
        value = unit * float(text.removesuffix("ms").removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--target-ttft {text}: give a time such as 4s or 250ms")
    return value


def numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...]:
    """Numbers with commas between, or none where there is no text."""
    if text is None:
        return ()
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) <= 0:
        raise ValueError(f"{option} {text}: give numbers above 0 with commas between")
    return values
