"""`pocketlm eval`: models on suites of problems."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketlm.commands.arguments import MODEL_HELP, RUNTIME_HELP, check_model, new_folder
from pocketlm.runner.errors import plain_errors

SUITE_HELP = (
    "Suites, with commas: pocket, a benchmark (arc_easy, hellaswag, gsm8k ...), a protocol (r1, "
    "pro, olmes, bpb, lm-eval), RULER at a length (ruler@4096), or a .jsonl file of your own: a "
    "prompt and an answer a line."
)
WITHOUT_HELP = "Of these suites not to measure: benchmarks or rows (livecodebench)."
BASELINE_HELP = (
    "A model to measure beside them in transformers: a folder, or a hub id (owner/name)."
)
DATA_HELP = "A folder with the benchmarks' JSONL files. Without it they come from the hub."
LM_EVAL_HELP = (
    "Instead of suites: tasks of lm-eval by name, from the hub, or .yaml files of tasks. Needs the "
    "extra lm-eval."
)
UNSAFE_HELP = (
    "Run programs that a model wrote with limits alone where no sandbox of the system holds; they "
    "can read your files."
)
REQUEST = "request.json"  # in --out: what the evaluation there was of


def evaluate_models(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=MODEL_HELP)
    ],
    suite: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help=SUITE_HELP, show_default=False)
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option(metavar="TASK,TASK", help=LM_EVAL_HELP, show_default=False)
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help=WITHOUT_HELP, show_default=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="MODEL", help=BASELINE_HELP, show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help=DATA_HELP)] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="N documents of each suite, of all its families."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help=RUNTIME_HELP, show_default=False)
    ] = None,
    unsafe_exec: Annotated[bool, typer.Option("--unsafe-exec", help=UNSAFE_HELP)] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep evaluation.json and every answer there. The same command again goes on.",
        ),
    ] = None,
) -> None:
    """Measure models on suites of problems, beside what needs no reading.

    [bold]Examples[/bold]

    pocketlm eval runs/pocket/chat --suite pocket
      [dim]a checkpoint[/dim]

    pocketlm eval runs/pocket/int4 runs/pocket/files/model.gguf --suite pocket
      [dim]a checkpoint beside the file that ships, and their paired difference[/dim]

    pocketlm eval runs/pocket/chat --suite arc_easy,hellaswag,bpb --data benchmarks --limit 200
      [dim]benchmarks from a folder of JSONL files[/dim]

    pocketlm eval runs/pocket/chat --suite questions.jsonl --out results
      [dim]your own problems; every answer is kept[/dim]

    pocketlm eval models/A files/A.gguf --suite r1 --without livecodebench --baseline owner/A
      [dim]a protocol but for one benchmark, beside a model of the hub in transformers[/dim]

    pocketlm eval runs/pocket/chat runs/pocket/files/model.gguf --lm-eval piqa,tasks/mine.yaml
      [dim]lm-eval's tasks, on a checkpoint and on the file[/dim]
    """
    with plain_errors():
        for model in models:
            check_model(model)
        if (suite is None) is (lm_eval is None):
            raise ValueError("nothing to measure, or too much: give --suite NAME or --lm-eval TASK")
        if lm_eval is not None:
            if without or baseline:
                raise ValueError("--without and --baseline go with --suite, not with --lm-eval")
            from pocketlm.commands.lm_eval_tasks import run_lm_eval

            run_lm_eval(models, lm_eval, limit=limit, runtime=runtime, out=out)
            return
        assert suite is not None
        names, not_measured = _names(suite), _names(without or "")
        if Path(suite).is_file():  # whose name may hold a comma
            names = (suite,)
        from pocketlm.eval.suites import named

        # a wrong name is said before a model is opened
        named.without(named.named_suites(names), not_measured)
        from rich.console import Console

        from pocketlm.commands.evaluation_table import evaluation_table
        from pocketlm.inference.open import labels_of
        from pocketlm.report.evaluation import read_evaluation
        from pocketlm.stages.evaluate import EvaluateConfig, evaluate

        config = EvaluateConfig(
            name="evaluation",
            suites=names,
            labels=labels_of(models),
            runtime=runtime,
            data=None if data is None else str(data),
            limit=limit,
            unsafe_exec=unsafe_exec,
            without=not_measured,
            baseline=baseline,
        )
        with contextlib.ExitStack() as stack:
            if out is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            else:
                folder = stack.enter_context(_evaluation_folder(out, config, models))
            evaluate(config, folder, models=models)
            console = Console()
            console.print(evaluation_table(read_evaluation(folder), console.width))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextlib.contextmanager
def _evaluation_folder(out: Path, config: Any, models: list[Path]) -> Iterator[Path]:
    """The folder, new or of the same evaluation begun before. ValueError: it holds anything
    else.
    """
    from pocketlm.inference.digest import sha256_of
    from pocketlm.model.files import write_json
    from pocketlm.model.json_shape import read_object
    from pocketlm.stages.evaluate import is_suite_file

    request = {
        "suites": {
            name: sha256_of(Path(name)) if is_suite_file(name) else "" for name in config.suites
        },
        "models": {
            label: sha256_of(model) for label, model in zip(config.labels, models, strict=True)
        },
        "data": config.data and str(Path(config.data).absolute()),
        "limit": config.limit,
        "runtime": config.runtime,
        "unsafe_exec": config.unsafe_exec,
        "without": list(config.without),
        "baseline": config.baseline,
    }
    if not (out / REQUEST).is_file():
        with new_folder(out) as folder:
            write_json(folder / REQUEST, request)
            yield folder
        return
    absent = {"unsafe_exec": False, "without": [], "baseline": None}  # in versions before
    before = {**absent, **read_object(out / REQUEST)}
    other = [name for name in request if before.get(name) != request[name]]
    if other and not (out / "transcripts").is_dir():  # which stopped before it asked anything
        write_json(out / REQUEST, request)
    elif other:
        raise ValueError(
            f"{out} holds an evaluation with other {' and '.join(other)}; choose another --out, "
            "or delete it"
        )
    yield out
