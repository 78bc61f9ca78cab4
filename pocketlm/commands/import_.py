"""`pocketlm import`: a model from elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pocketlm.commands.arguments import refuse_full
from pocketlm.runner.errors import plain_errors

SHOWN = 12  # lines of what was not used


def import_a_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="A checkpoint folder, a .gguf file, or a hub id: owner/name.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Default: models/<last part of SOURCE>.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Branch, tag or commit of the hub repository."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model under a LoRA adapter: a folder or hub id."),
    ] = None,
) -> None:
    """Bring in a model from elsewhere, as a folder that every command here takes.

    Read are Llama (SmolLM2, Llama 3.2), SmolLM3, Qwen 2, 2.5 and 3, Gemma 3's
    text models, MobileLLM-R1 and MobileLLM-Pro in Meta's layouts, MobileLLM
    2024 with and without shared layers, and .gguf files of the architectures
    llama, gemma3, qwen2, qwen3, smollm3 and step35. What this network would
    compute otherwise than the original is refused, with the field or tensor
    named. A LoRA adapter is merged into the model it was made for.

    [bold]Examples[/bold]

    pocketlm import facebook/MobileLLM-R1-140M
      [dim]from the Hugging Face hub, into models/MobileLLM-R1-140M[/dim]

    pocketlm import smollm2.gguf --out models/smollm2
      [dim]a file for llama.cpp; its blocks become the values they stand for[/dim]
    """
    with plain_errors():
        from pocketlm.model.files import read_json, write_folder
        from pocketlm.stages.importing import ImportConfig, import_model

        config = ImportConfig(name="import", source=source, revision=revision, base=base)
        target = out or Path("models") / Path(source.rstrip("/")).name.removesuffix(".gguf")
        refuse_full(target)
        with write_folder(target) as folder:
            import_model(config, folder)
        for line in report_lines(read_json(target / "import.json")):
            typer.echo(line)
        typer.echo(target)


def report_lines(facts: dict[str, Any]) -> list[str]:
    """What was read, and what was not, from import.json."""
    lines = [f"{facts['was']} -> {facts['layout']}, {facts['parameters']:,} parameters"]
    if "adapter" in facts:
        adapter = facts["adapter"]
        lines.append(
            f"adapter: merged into {adapter['base']} (made for "
            f"{adapter['made_for'] or 'a model it does not name'}), "
            f"{adapter['matrices']} matrices at scale {adapter['scale']:g}"
        )
    starts = ", ".join(facts["document_start"].values()) or "nothing"
    bos = "added" if facts["adds_bos"] else "not added"
    template = "yes" if facts["chat_template"] else "no"
    lines.append(
        f"tokenizer: {facts['tokenizer']}, {facts['tokens']:,} tokens; a document begins with "
        f"{starts}, "
        f"bos is {bos} to other texts; chat template: {template}"
    )
    ends = [
        f"{end['token']} ({i}: {', '.join(end['by'])})" for i, end in facts["answer_ends"].items()
    ]
    lines += ["an answer ends in " + ", ".join(ends), *facts["tokenizer_notes"]]
    unused = {f"config.json, {name}": why for name, why in facts.get("unused_fields", {}).items()}
    unused |= facts.get("unused_files", {})
    lines += [f"not used: {name}: {why}" for name, why in list(unused.items())[:SHOWN]]
    if len(unused) > SHOWN:
        lines.append(f"not used: {len(unused) - SHOWN} more, listed in import.json")
    return [*lines, facts["licence"]] if "licence" in facts else lines
