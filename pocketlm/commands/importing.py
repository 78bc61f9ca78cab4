"""`pocketlm import`: a model from elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import refuse_full
from pocketlm.messages import plain_errors


def import_a_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", show_default=False, help="A checkpoint folder, a .gguf file, or a hub id: owner/name."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: models/<last part of SOURCE>.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Branch, tag or commit of the hub repository.")
    ] = None,
) -> None:
    """Bring in a model from elsewhere, as a folder that every command here takes.

    Read are Llama (SmolLM2, Llama 3.2), Qwen3, MobileLLM-R1 and MobileLLM-Pro in
    Meta's layouts, MobileLLM 2024 with and without shared layers, and .gguf files
    of the architectures llama, qwen3 and step35. What this network would compute
    otherwise than the original is refused, with the field or tensor named.

    [bold]Examples[/bold]

    pocketlm import facebook/MobileLLM-R1-140M
      [dim]from the Hugging Face hub, into models/MobileLLM-R1-140M[/dim]

    pocketlm import smollm2.gguf --out models/smollm2
      [dim]a file for llama.cpp; its blocks become the values they stand for[/dim]
    """
    with plain_errors():
        from pocketlm.model.files import read_json, write_folder
        from pocketlm.stages.importing import ImportConfig, import_model

        config = ImportConfig(name="import", source=source, revision=revision)
        target = out or Path("models") / Path(source.rstrip("/")).name.removesuffix(".gguf")
        refuse_full(target)
        with write_folder(target) as folder:
            import_model(config, folder)
        told = read_json(target / "import.json")
        typer.echo(f"{told['was']} -> {told['layout']}, {told['parameters']:,} parameters")
        if "licence" in told:
            typer.echo(told["licence"])
        typer.echo(target)
