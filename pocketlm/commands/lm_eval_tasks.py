"""`pocketlm eval --lm-eval`: lm-eval's tasks on models, its table, and its samples in --out."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from pocketlm.commands.arguments import new_folder


def run_lm_eval(
    models: Sequence[Path], tasks: str, *, limit: int | None, runtime: str | None, out: Path | None
) -> None:
    """Print lm-eval's table for each model. With `out`, lm-eval.json there holds its results, and
    transcripts/<label>.<task>.jsonl every request and answer.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if missing := [name for name in files if not Path(name).is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such file of a task")
    if not names:
        raise ValueError("no task is named; give --lm-eval TASK")
    from pocketlm.eval.answers_file import transcript
    from pocketlm.eval.lm_eval_model import as_json, run_tasks, table_of
    from pocketlm.inference.open import labels_of, opened
    from pocketlm.model.files import write_text
    from pocketlm.stages.evaluate import check_text

    with contextlib.ExitStack() as stack:
        folder = None if out is None else stack.enter_context(new_folder(out))
        all_results = {}
        for label, path in zip(labels_of(models), models, strict=True):
            with opened(path, runtime=runtime if path.is_dir() else None) as model:
                check_text(path, model)
                results = run_tasks(model, names, limit)
            samples = results.pop("samples", {})
            print(f"{label}\n{table_of(results)}")
            if results["truncated"]:
                print(f"{results['truncated']} contexts lost their beginning: they are too long")
            all_results[label] = results
            if folder is not None:
                (folder / "transcripts").mkdir(exist_ok=True)
                for task, rows in samples.items():
                    lines = "".join(f"{as_json(row)}\n" for row in rows)
                    write_text(transcript(folder, label, task), lines)
        if folder is not None:
            write_text(folder / "lm-eval.json", as_json(all_results, indent=2))
