"""Our log-likelihoods and scores against lm-eval's own tasks, document by document.

    pip install "lm-eval[hf]" && python benchmarks/lm_eval_parity.py MODEL DATA --limit 20

MODEL: a checkpoint folder. DATA: a folder with the benchmarks' JSONL files (docs/evaluation.md).
For each task the rows are given to lm-eval in the hub's form, its task builds the requests, its hf
backend scores them, and its task judges them; then the suite `lm-eval.<task>` does the same here.
Prints one JSON line a task: requests whose texts differ, the largest gap of a log-likelihood, and
in how many documents acc or acc_norm differ.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from pocketlm.eval.harness import run_suite
from pocketlm.eval.suites.named import load_problems
from pocketlm.eval.suites.protocols import BY_NAME
from pocketlm.eval.suites.rows import Rows, where_of
from pocketlm.eval.suites.suite import ANSWER_SEPARATOR, Problem
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.json_lines import json_lines

TASKS = {  # suite: lm-eval's file
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "siqa": "siqa/siqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--limit", type=int, default=20)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    theirs = HFLM(pretrained=str(arguments.model), device="cpu", dtype="float32", batch_size=4)
    ours = LanguageModel.open(arguments.model)
    for name in arguments.tasks:
        print(json.dumps(compared(name, arguments, theirs, ours)), flush=True)


def compared(
    name: str, arguments: argparse.Namespace, theirs: HFLM, ours: LanguageModel
) -> dict[str, Any]:
    """The figures of one task."""
    suite = BY_NAME[f"lm-eval.{name}"]
    problems = load_problems(suite, arguments.data, arguments.limit)
    task = their_task(name, arguments.data, problems)
    task.build_all_requests(limit=arguments.limit)
    began = time.process_time()
    sums = theirs.loglikelihood(task.instances, disable_tqdm=True)
    their_seconds = time.process_time() - began
    began = time.process_time()
    rows = run_suite(ours, suite, problems)
    our_seconds = time.process_time() - began
    documents = list(task.eval_docs)[: len(problems)]
    first, gaps, texts, scores = 0, [], 0, {"acc": 0, "acc_norm": 0}
    for document, problem, row in zip(documents, problems, rows, strict=True):
        requests = task.instances[first : first + len(problem.choices)]
        wanted = sums[first : first + len(problem.choices)]
        first += len(requests)
        contexts = problem.contexts or (problem.prompt,) * len(problem.choices)
        for request, context, choice in zip(requests, contexts, problem.choices, strict=True):
            mine = suite.prompt_format.replace("{prompt}", context), ANSWER_SEPARATOR + choice
            texts += mine != tuple(request.args)
        gaps += [abs(a - b[0]) for a, b in zip(row["log_probs"], wanted, strict=True)]
        judged = task.process_results(document, wanted)
        for metric in scores:
            scores[metric] += metric in judged and judged[metric] != row["scores"][metric]
    return {
        "task": name,
        "documents": len(rows),
        "requests": len(gaps),
        "other_texts": texts,
        "largest_gap_nats": max(gaps),
        "other_scores": scores,
        "processor_seconds": {"lm-eval": round(their_seconds, 1), "here": round(our_seconds, 1)},
    }


def their_task(name: str, data: Path, problems: tuple[Problem, ...]) -> ConfigurableTask:
    """lm-eval's own task, whose data set is these rows."""
    file = Path(lm_eval.__file__).parent / "tasks" / TASKS[name]
    config = dict(load_yaml(file, resolve_func=True))
    split = config.get("test_split") or config["validation_split"]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as rows:
        for row in hub_rows(name, data, problems):
            rows.write(json.dumps(row) + "\n")
    config |= {"dataset_path": "json", "dataset_name": None, "num_fewshot": 0}
    config |= {"dataset_kwargs": {"data_files": {split: rows.name}}}
    config |= {"training_split": None, "fewshot_split": None}
    if split == config.get("test_split"):
        config["validation_split"] = None
    return ConfigurableTask(config=config)


def hub_rows(name: str, data: Path, problems: tuple[Problem, ...]) -> Iterator[dict[str, Any]]:
    """The first rows in the hub's form: as they are, or written anew from query, choices, gold."""
    source = BY_NAME[name].problems
    assert isinstance(source, Rows)
    rows = json_lines(where_of(source, data))
    for problem, (_, row) in zip(problems, rows, strict=False):
        if "query" in row:
            labels = [*"ABCDEFGH"[: len(problem.choices)]]
            stem = "question_stem" if name == "openbookqa" else "question"
            choices = {"text": list(problem.choices), "label": labels}
            yield {stem: problem.prompt, "choices": choices, "answerKey": labels[problem.gold]}
        elif name == "boolq" and "label" not in row:
            yield {**row, "label": problem.gold}
        else:
            yield row


if __name__ == "__main__":
    main()
