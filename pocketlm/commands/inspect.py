"""`pocketlm inspect`: what a training would learn, looked at before anything trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pocketlm.runner.errors import plain_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pocketlm.data.conversations import Tally, TooLong
    from pocketlm.model.tokenizer import Tokenizer

app = typer.Typer(
    help="Look at what a training would learn, before it trains.", no_args_is_help=True
)


@app.callback()
def inspect() -> None:
    """Look at what a training would learn, before it trains."""


@app.command()
def chats(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE", show_default=False, help="A checkpoint folder, or a .gguf file."
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", show_default=False, help="Chats: .jsonl, .parquet or a folder of them."
        ),
    ],
    rows: Annotated[int, typer.Option(help="How many examples to print.")] = 3,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens a row, as in training. Default: all that the base reads.",
            show_default=False,
        ),
    ] = None,
    too_long: Annotated[
        str,
        typer.Option(
            metavar="drop|truncate",
            help="What becomes of a chat that is longer than a row, as in training.",
        ),
    ] = "drop",
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Without colours: ⟦what is learnt⟧, and · between tokens."),
    ] = False,
) -> None:
    """Show chats as a model will learn them, token by token, and count what is left out.

    What is learnt is green, special tokens are bold; each second token is shaded.
    A base model's tokenizer is shown with the chat template that fine-tuning
    gives it. Nothing is written and nothing is trained.

    [bold]Examples[/bold]

    pocketlm inspect chats models/SmolLM2-135M chats.jsonl
      [dim]the first three examples, and the counts of the whole file[/dim]

    pocketlm inspect chats models/qwen3 chats.jsonl --context 512 --rows 20 | less -R

    pocketlm inspect chats models/qwen3 chats.jsonl --context 512 --too-long truncate
      [dim]how many chats would be whole, how many truncated, how many dropped[/dim]
    """
    with plain_errors():
        from rich.console import Console

        from pocketlm.corpus.local import read_local
        from pocketlm.data.conversations import NO_CONVERSATION, Limits, examples_of
        from pocketlm.model.tokenizer import teach_chat_template

        if rows < 0 or (context is not None and context < 1):
            raise ValueError(
                f"--rows {rows} must not be negative, and --context {context} must be at least 1"
            )
        tokenizer, longest = _opened(base)
        limits = Limits(seq_len=context or longest, too_long=cast("TooLong", too_long))
        taught = tokenizer.chat_template is None
        teach_chat_template(tokenizer)
        documents = read_local(file, None)
        conversations = (document.chat for document in documents if document.chat is not None)
        pairs, tally = examples_of(conversations, tokenizer, limits)
        if not tally.rows:
            raise ValueError(f"{file}: {NO_CONVERSATION}")
        console = Console(highlight=False)
        coloured = console.is_terminal and not plain
        for number, (ids, learnt) in enumerate(pairs[:rows], 1):
            count = f"{sum(learnt):,} of {len(ids):,} tokens are learnt"
            console.rule(f"example {number}: {count}", align="left", style="dim")
            console.print(example_text(tokenizer, ids, learnt, coloured=coloured), soft_wrap=True)
        console.rule("the whole file", align="left", style="dim")
        if taught:
            console.print(
                "the base has no chat template: shown is the one that fine-tuning gives it"
            )
        truncated, dropped = sum(tally.truncated.values()), sum(tally.left_out.values())
        console.print(
            f"too_long {too_long}: {tally.learnt - truncated:,} whole, {truncated:,} truncated, "
            f"{dropped:,} dropped of {tally.rows:,} conversations"
        )
        _tell(console, tokenizer, tally)


def _opened(base: Path) -> "tuple[Tokenizer, int]":
    """(tokenizer, the most tokens the model reads) of a folder or .gguf, its weights unread."""
    if base.suffix == ".gguf":
        from pocketlm.inference.gguf_header import read_header
        from pocketlm.inference.gguf_tokenizer import tokenizer_of

        header = read_header(base)
        return tokenizer_of(header), header["{arch}.context_length"]
    from pocketlm.model.checkpoint import shape_of
    from pocketlm.model.tokenizer import Tokenizer

    return Tokenizer.load(base), shape_of(base).max_position_embeddings


def _tell(console: "Console", tokenizer: "Tokenizer", tally: "Tally") -> None:
    for line in tally.lines():
        console.print(line, soft_wrap=True, markup=False)
    if tally.tokens:
        share = tally.learnt_tokens / tally.tokens
        console.print(
            f"{tally.tokens:,} tokens, of which {tally.learnt_tokens:,} are learnt ({share:.0%})"
        )
    console.print(f"an answer ends at: {tokenizer.endings.summary()}", soft_wrap=True, markup=False)
    for note in tokenizer.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    if warning := tally.warning(tokenizer):
        console.print(warning, style="bold yellow", soft_wrap=True, markup=False)


def example_text(
    tokenizer: "Tokenizer", ids: list[int], learnt: list[bool], *, coloured: bool
) -> "Text":
    """The example for people: each token where the text of those before it ends."""
    from rich.text import Text

    text, before, decoded = Text(), False, ""
    for number, (token, learn) in enumerate(zip(ids, learnt, strict=True)):
        whole = tokenizer.decode(ids[: number + 1], keep_special=True).rstrip("\ufffd")
        piece, decoded = whole[len(decoded) :], whole
        piece = piece.replace("\n", "↵\n")
        if coloured:
            special = token in tokenizer.special_ids
            colour = "green" if learn else "default" if special else "bright_black"
            shade = " on grey15" if number % 2 else ""
            text.append(piece, style=f"{'bold ' if special else ''}{colour}{shade}")
            continue
        mark = ("⟦" if learn else "⟧") if learn != before else "·" if number else ""
        text.append(mark + piece)
        before = learn
    return text + Text("⟧") if before and not coloured else text
