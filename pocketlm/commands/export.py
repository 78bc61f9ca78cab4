"""`pocketlm export`: a checkpoint as a file that another runtime opens."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import check_model, new_folder
from pocketlm.runner.errors import plain_errors


class Target(StrEnum):
    """What a checkpoint can be exported to."""

    gguf = "gguf"
    pte = "pte"
    hf = "hf"
    mlx = "mlx"
    compressed_tensors = "compressed-tensors"


def export_model(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", show_default=False, help="A checkpoint folder.")
    ],
    to: Annotated[
        Target,
        typer.Option(
            help="gguf: llama.cpp. pte: ExecuTorch, on phones. hf: Hugging Face transformers. "
            "mlx: Apple's. compressed-tensors: vLLM."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: MODEL-gguf and so on, beside MODEL."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=(
                "Of the hf folder: llama, qwen2, qwen3, smollm3, gemma3_text, cwm, "
                "llama4_text (as MobileLLM-R1 is published), mobilellm-pro or mobilellm."
            ),
            show_default="what stock transformers opens",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the .gguf: f32, f16, q8_0 or q4_0.",
            show_default="q4_0 for a four-bit model, else f16",
        ),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Of the .pte: how long a text it has room for.",
            show_default="all the model's positions",
        ),
    ] = None,
    int8_cache: Annotated[
        bool,
        typer.Option(
            "--int8-cache",
            help=(
                "Of the .pte: keys and values as int8, a quarter of their memory; slow but on ARM."
            ),
        ),
    ] = False,
    min_agreement: Annotated[
        float,
        typer.Option(
            help=(
                "The least share of real tokens at which the file's likeliest next token is the "
                "model's."
            )
        ),
    ] = 0.985,
) -> None:
    """Write a checkpoint as a file that another runtime opens.

    A .gguf or .pte runs on real text before it counts as written, and is removed
    if it does not say what the model says.

    [bold]Examples[/bold]

    pocketlm export runs/pocket/int4 --to gguf
      [dim]one file for llama.cpp and everything built on it[/dim]

    pocketlm export runs/pocket/int4 --to pte --out phone
      [dim]one file for ExecuTorch, in the folder "phone"[/dim]
    """
    with plain_errors():
        check_model(model)
        from pocketlm.eval.agreement import GREEDY_TOKENS
        from pocketlm.model.files import read_json
        from pocketlm.stages.export import ExportConfig, export

        config = ExportConfig(
            name="export",
            formats=(to.value,),
            layout=layout,
            gguf_dtype=dtype,
            context_length=context_length,
            int8_cache=int8_cache,
            min_agreement=min_agreement,
        )
        with new_folder(out or model.with_name(f"{model.name}-{to}")) as folder:
            export(config, folder, model=model)
        for name, row in read_json(folder / "export.json")["agreement"].items():
            typer.echo(
                f"{name} against the model, {row['tokens']:,} tokens: {row['top_token']:.2%} "
                "of top tokens equal, "
                f"KL {row['kl']:.2g} nats, greedy answers of up to {GREEDY_TOKENS} tokens equal "
                f"for {row['greedy']:.0%}"
            )
        typer.echo(folder / (f"model.{to}" if to in (Target.gguf, Target.pte) else to))
