"""The command line: `pocketlm run | chat | eval | bench | import | export`.

Thin: it reads arguments, calls one function, and turns a user's mistake into one message. Everything slow is
imported inside the command that needs it, so that --help is at once.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.messages import BAD_INPUT, INTERRUPTED, plain_errors, say, sigterm_as_interrupt
from pocketlm.recipe import load_recipe, parse_flags

if TYPE_CHECKING:
    from rich.table import Table

RECIPE_OPTIONS = (
    "These go with every recipe: --out DIR, --set stage.field=value, --only STAGE, --dry-run "
    "(pocketlm run --help explains them)."
)

MODEL_HELP = "A checkpoint folder, .gguf or .pte."

app = typer.Typer(
    name="pocketlm",
    help="From raw text to a language model that reasons on a phone: train it, measure it, export it, talk.",
    epilog="Begin with: pocketlm run recipes/pocket.py",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """The command `pocketlm`."""
    app()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[OPTIONS]",
)
def run(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE [ARGUMENTS]", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where every stage puts its folder. Default: runs/<recipe's name>"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Change one field of one stage's config; may be repeated.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Run this stage alone; what it needs must be done.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the stages and their state on disk; run nothing.")
    ] = False,
    help_: Annotated[
        bool, typer.Option("--help", "-h", help="Show this, or the recipe's own flags after RECIPE.")
    ] = False,
) -> None:
    """Run a recipe: every stage in order, each remembered on disk.

    A finished stage is not run again, an interrupted one goes on where it
    stopped, and a stage whose configuration changed stops the run and shows
    the difference. So the same command may be typed again at any time.

    [bold]Examples[/bold]

    pocketlm run recipes/pocket.py
      [dim]everything, on this computer[/dim]

    pocketlm run recipes/pocket.py --help
      [dim]what the recipe does, and its own flags[/dim]

    pocketlm run recipes/pocket.py --dry-run
      [dim]which stages are done, and which are to do[/dim]

    pocketlm run recipes/pocket.py --out runs/short --set base.optim.num_steps=20
      [dim]elsewhere, with one field of the stage "base" changed[/dim]

    pocketlm run recipes/pocket.py --only base
      [dim]one stage, from what is there[/dim]
    """
    if recipe is None:
        typer.echo(context.get_help(), err=not help_)
        raise typer.Exit(0 if help_ else BAD_INPUT)
    run_dir = out or Path("runs") / recipe.stem
    with plain_errors(run_dir):
        function = load_recipe(recipe)
        flags = parse_flags(function, recipe, [*context.args, *(["--help"] if help_ else [])], RECIPE_OPTIONS)
        run_recipe(function, flags, run_dir, settings or [], only=only, dry_run=dry_run)


def run_recipe(
    recipe: Any, flags: dict[str, Any], run_dir: Path, settings: list[str], *, only: str | None, dry_run: bool
) -> None:
    """Plans the recipe, then runs it, or only shows the plan."""
    from rich.console import Console

    from pocketlm.run import Run, plan, plan_table
    from pocketlm.settings import parse_settings

    dry = plan(recipe, run_dir, parse_settings(settings), missing_ok=dry_run, **flags)
    if dry_run:
        console = Console()
        console.print(plan_table(dry))
        return
    with Run(run_dir, plan=dry, only=only) as live, sigterm_as_interrupt():
        try:
            recipe(live, **flags)
        except KeyboardInterrupt:
            where = f"in stage {live.current}" if live.current else "between stages"
            say(f"interrupted {where}; run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        live.show_summary()
    if only is None:
        show_results([call.folder for call in dry.calls])


def show_results(folders: list[Path]) -> None:
    """What a finished recipe leaves for its user: the evaluation, the report's path, and how to talk to what was made."""
    from rich.console import Console

    from pocketlm.model.files import read_json

    console = Console()
    for folder in folders:
        if (folder / "evaluation.json").is_file():
            console.print(evaluation_table(read_json(folder / "evaluation.json"), console.width))
    for page in (folder / "report.html" for folder in folders if (folder / "report.html").is_file()):
        console.print(f"report: {page.absolute()}", soft_wrap=True)
    chats = [folder for folder in folders if (folder / "chat_template.jinja").is_file()][-1:]
    files = [file for folder in folders for pattern in ("*.gguf", "*.pte") for file in sorted(folder.glob(pattern))]
    if chats or files:
        console.print("talk to what was made:")
    for model in (*chats, *files):
        console.print(f"  {Path(sys.argv[0])} chat {model}", soft_wrap=True)


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help=MODEL_HELP)],
    temperature: Annotated[float, typer.Option(help="0 is the likeliest answer; 0.7 varies.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from this many likeliest tokens alone; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Draw from tokens at least this share as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Make tokens that were there before less likely: 1.1 a little, 1 not at all.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 512,
    seed: Annotated[int, typer.Option(help="The same seed and lines give the same conversation.")] = 0,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions the model gets first.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End answers before this text; may be repeated.")
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

        from pocketlm.model.sampling import Sampling
        from pocketlm.serve.chat import ChatConfig
        from pocketlm.serve.chat import chat as converse

        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        config = ChatConfig(sampling=sampling, max_new_tokens=max_tokens, system=system, stop=tuple(stop or ()))
        check_model(model)
        from pocketlm.export.runtimes import open_model

        with contextlib.closing(open_model(model)) as speaker:
            converse(speaker, config, Console())


SUITE_HELP = "A suite by name, or a .jsonl file of your own: a prompt and an answer a line."


@app.command(name="eval")
def evaluate_models(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=MODEL_HELP)],
    suite: Annotated[str, typer.Option(metavar="NAME", help=SUITE_HELP)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep evaluation.json and the transcripts there.")
    ] = None,
) -> None:
    """Measure models on a suite of problems, beside what the best constant answer would score.

    [bold]Examples[/bold]

    pocketlm eval runs/pocket/chat --suite pocket
      [dim]a checkpoint[/dim]

    pocketlm eval runs/pocket/chat runs/pocket/files/model.gguf --suite pocket
      [dim]a checkpoint beside the file that ships[/dim]

    pocketlm eval runs/pocket/chat --suite questions.jsonl --out results
      [dim]your own problems; every answer is kept[/dim]
    """
    with plain_errors():
        for model in models:
            check_model(model)
        from rich.console import Console

        from pocketlm.export.runtimes import labels_of
        from pocketlm.model.files import read_json
        from pocketlm.stages.evaluate import EvaluateConfig, evaluate

        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(new_folder(out) if out else tempfile.TemporaryDirectory()))
            evaluate(EvaluateConfig(name="evaluation", suite=suite, labels=labels_of(models)), folder, models=models)
            console = Console()
            console.print(evaluation_table(read_json(folder / "evaluation.json"), console.width))


def evaluation_table(report: dict[str, Any], width: int) -> "Table":
    """What an evaluation found: a row for each model; the families of problems have columns where `width` allows."""
    from rich.table import Table

    models = report["models"]
    first = next(iter(models.values()))
    needles = list(first.get("needle", {}))
    families = list(first["problems"]) if width >= 70 + 11 * len(first["problems"]) else []
    table = Table(
        title=f"solved on suite {report['suite']}" + ", and needles found" * bool(needles), title_justify="left"
    )
    table.add_column("model", no_wrap=True)
    needle_columns = [f"needle {tokens}" for tokens in needles]
    for name in ["accuracy", *(family.replace("_", " ") for family in families), *needle_columns, "MB", "tokens/s"]:
        table.add_column(name, justify="right", no_wrap=name in ("accuracy", "MB", "tokens/s"))
    for label, figures in models.items():
        solved = [figures["problems"][family] for family in families]
        found = [figures["needle"][tokens] for tokens in needles]
        cells = [f"{figures['accuracy']:.1%}", *(f"{s['solved'] / s['total']:.0%}" for s in solved)]
        cells += [f"{f['found']}/{f['of']}" for f in found]
        table.add_row(label, *cells, f"{figures['bytes'] / 1e6:,.2f}", f"{figures['tokens_per_second']:,.0f}")
    table.add_section()
    constant = first["constant_answer"]
    total = sum(constant[f] * first["problems"][f]["total"] for f in constant)
    rate = total / sum(problems["total"] for problems in first["problems"].values())
    table.add_row("[dim]best constant answer[/dim]", f"{rate:.1%}", *(f"{constant[f]:.0%}" for f in families))
    return table


@app.command(name="bench")
def bench_models(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=MODEL_HELP)],
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Lengths to measure at.",
            show_default="128,1024,2048,4096,8192, as far as the model goes",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="The last tokens of a context, made by the model.")] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.")] = 3,
    threads: Annotated[
        int | None, typer.Option(help="Of every runtime alike.", show_default="the physical cores")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there, in bytes and seconds.")
    ] = None,
) -> None:
    """Measure speed and size: load time, prefill, decode, memory, and the share of what memory allows.

    A context of 1024 is a prompt of 992 tokens, then 32 new ones: prefill is the
    prompt against the wait for the first new token, decode the pace of the rest.
    Each model runs alone in a process; "of limit" compares its decode with reading
    its weights and cache once a token, at the bandwidth measured in the same run.

    [bold]Examples[/bold]

    pocketlm bench runs/pocket/chat runs/pocket/files/model.gguf
      [dim]a checkpoint beside the file that ships[/dim]

    pocketlm bench model.gguf --contexts 128,4096 --threads 1 --json speed.json
      [dim]two lengths on one core; the figures in a file too[/dim]
    """
    with plain_errors():
        for model in models:
            check_model(model)
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{json_file}: there is no folder {json_file.parent}; make it first")
        from rich.console import Console

        from pocketlm.model.files import read_json, write_json
        from pocketlm.stages.bench import BenchConfig, bench, bench_table

        lengths = [part.strip() for part in contexts.split(",")] if contexts is not None else []
        if not all(part.isdecimal() for part in lengths):
            raise ValueError(f"--contexts {contexts}: give numbers of tokens with commas between, such as 128,1024")
        config = BenchConfig(
            name="bench",
            contexts=tuple(map(int, lengths)),
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
        )
        with tempfile.TemporaryDirectory() as folder:
            report = read_json(bench(config, Path(folder), models=models) / "bench.json")
        if json_file is not None:
            write_json(json_file, report)
        Console().print(bench_table(report))


@app.command(name="import")
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


class Target(StrEnum):
    """What a checkpoint can be exported to."""

    gguf = "gguf"
    pte = "pte"
    hf = "hf"
    mlx = "mlx"
    compressed_tensors = "compressed-tensors"


@app.command(name="export")
def export_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="A checkpoint folder.")],
    to: Annotated[
        Target,
        typer.Option(
            help="gguf: llama.cpp. pte: ExecuTorch, on phones. hf: Hugging Face transformers. mlx: Apple's. "
            "compressed-tensors: vLLM."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: MODEL-gguf and so on, beside MODEL.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the hf folder: llama, qwen3, cwm, llama4_text (as MobileLLM-R1 is published) or mobilellm.",
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
            "--int8-cache", help="Of the .pte: keys and values as int8, a quarter of their memory; slow but on ARM."
        ),
    ] = False,
    min_agreement: Annotated[
        float,
        typer.Option(help="The least share of real tokens at which the file's likeliest next token is the model's."),
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
        for name, found in read_json(folder / "export.json")["agreement"].items():
            typer.echo(
                f"{name} against the model, {found['tokens']:,} tokens: {found['top_token']:.2%} of top tokens equal, "
                f"KL {found['kl']:.2g} nats, greedy answers of up to {GREEDY_TOKENS} tokens equal for {found['greedy']:.0%}"
            )
        typer.echo(folder / (f"model.{to}" if to in (Target.gguf, Target.pte) else to))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The folder, made now, and gone again if what is done with it fails and leaves nothing; ValueError if it is not empty."""
    refuse_full(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        if not any(path.iterdir()):
            path.rmdir()


def refuse_full(path: Path) -> None:
    """Nothing, or a ValueError where something is in the folder already, or it is a file."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already, and not empty; choose another --out, or delete it")


def check_model(path: Path) -> None:
    """Nothing, or an error where MODEL is no checkpoint folder, .gguf or .pte."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model; give a checkpoint folder, a .gguf or a .pte file")
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(str(found.parent) for found in path.glob("*/config.json"))
        raise ValueError(
            f"{path}: no checkpoint (no config.json){'; there are ' + ', '.join(inside) if inside else ''}"
        )
    if path.is_file() and path.suffix not in (".gguf", ".pte"):
        raise ValueError(f"{path}: not a model; give a checkpoint folder, a .gguf or a .pte file")


if __name__ == "__main__":
    main()
