"""`pocketlm push` and `pocketlm pull`: a model to the Hugging Face hub, and from it."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlm.commands.arguments import refuse_full
from pocketlm.runner.errors import plain_errors

LISTED = 12  # names of what was not fetched


def push_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", show_default=False, help="What an export wrote, or a checkpoint."
        ),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", show_default=False, help="On the hub.")
    ],
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            metavar="ID",
            help="The hub's name of the model's licence: apache-2.0, mit, ...",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private by default.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be sent, and the card; send nothing."),
    ] = False,
) -> None:
    """Send a model to the Hugging Face hub, with a model card.

    The card tells the files and how far each agrees with the model, the figures of
    the run's evaluations, the stages, data and mix it was made from, and its
    licence, all from what the run wrote. A README.md of yours is sent as it is.

    [bold]Examples[/bold]

    pocketlm push runs/pocket/files me/pocket --licence apache-2.0 --dry-run
      [dim]look at the card first[/dim]
    """
    with plain_errors():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        from pocketlm.model.hub_folder import CARD, files_to_push, hub_id, push
        from pocketlm.report.model_card import may_be_replaced, model_card
        from pocketlm.report.number_format import size

        hub_id(repository)
        files = files_to_push(folder)
        if may_be_replaced(folder / CARD):
            card = model_card(folder, repository, licence=licence)
        elif licence is None:
            card = (folder / CARD).read_text(encoding="utf-8")
        else:
            raise ValueError(f"{folder / CARD} is yours: write the licence there, not --licence")
        for name, file in files.items():
            typer.echo(f"{size(file.stat().st_size):>10}  {name}")
        if dry_run:
            typer.echo(f"\n{CARD}:\n\n{card}")
        else:
            typer.echo(push(files, card, repository, private=not public))


def pull_folder(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", show_default=False, help="On the hub.")
    ],
    only: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]", show_default=False, help='Some files of it: "*.gguf" "*.md".'
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: models/NAME.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Branch, tag or commit.")
    ] = None,
) -> None:
    """Fetch a model from the Hugging Face hub as its files are.

    Code and pickles are not fetched. To train on with a model of another make,
    `pocketlm import` brings it into this project's form.

    [bold]Examples[/bold]

    pocketlm pull me/pocket "*.gguf"
      [dim]into models/pocket; talk to it with `pocketlm chat models/pocket/model.gguf`[/dim]
    """
    with plain_errors():
        from pocketlm.model.hub_folder import hub_id, pull

        hub_id(repository)
        target = out or Path("models") / repository.rsplit("/", 1)[-1]
        refuse_full(target)
        behind = pull(repository, target, revision=revision, only=only or [])
        for name in behind[:LISTED]:
            typer.echo(f"not fetched: {name}")
        if len(behind) > LISTED:
            typer.echo(f"not fetched: {len(behind) - LISTED} more")
        typer.echo(target)
