"""Our log-likelihoods, answers and scores against lm-eval's own tasks, document by document.

    pip install "pocketlm[lm-eval,eval]" accelerate
    python benchmarks/lm_eval_parity.py MODEL DATA --limit 20

MODEL: a checkpoint folder. DATA: a folder with the benchmarks' JSONL files (docs/evaluation.md).
For each task the rows are given to lm-eval in the hub's form, its task builds the requests, its hf
backend answers them, and its task judges them. Then the suite `lm-eval.<task>` does the same here,
and so does lm-eval itself over our runtime (`pocketlm eval --lm-eval`).

Prints one JSON line a task: requests whose texts differ; the largest gap of a log-likelihood
(choices), or answers that differ (gsm8k), of the suite and of our runtime under lm-eval; how far
both are from float64 where the gap is largest; and in how many documents a score differs. Where one
does, the line names the document and what both gave.
lm-eval draws GSM8K's shots for each document; it is given the first ones here, as the suite takes.
"""

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from pocketlm.eval.answers_file import Row
from pocketlm.eval.harness import run_suite
from pocketlm.eval.lm_eval_model import RuntimeLM
from pocketlm.eval.prompts import requests_of
from pocketlm.eval.suites.named import load_problems, shots_of
from pocketlm.eval.suites.protocols import BY_NAME
from pocketlm.eval.suites.rows import Rows, where_of
from pocketlm.eval.suites.suite import Problem, Suite
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
    "mmlu": "mmlu/default/mmlu_{family}.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}
SCORES = {  # what a task of lm-eval calls a score: (its filter, its name), and the suite's name
    "gsm8k": (
        ("strict-match", "exact_match", "strict_match"),
        ("flexible-extract", "exact_match", "flexible_extract"),
    )
}
CHOICE_SCORES = (("none", "acc", "acc"), ("none", "acc_norm", "acc_norm"))


@dataclass
class Compared:
    """One task: the suite with its problems, and lm-eval's task over the same rows of each family,
    its requests built.
    """

    suite: Suite
    problems: tuple[Problem, ...]
    shots: dict[str, list[Problem]]
    tasks: list[ConfigurableTask]

    @property
    def instances(self) -> list[Instance]:
        return [instance for task in self.tasks for instance in task.instances]

    def ask(self, lm: Any) -> list[Any]:
        """What a model under lm-eval answers to all requests."""
        kind = "generate_until" if self.suite.kind == "generation" else "loglikelihood"
        return getattr(lm, kind)(self.instances, disable_tqdm=True)

    def run(self, model: LanguageModel) -> list[Row]:
        return run_suite(model, self.suite, self.problems, self.shots)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="of lm-eval's hf backend")
    arguments = parser.parse_args()
    theirs = hf_backend(arguments.model, arguments.batch_size)
    ours = LanguageModel.open(arguments.model)
    for name in arguments.tasks:
        differences = compared(prepared(name, arguments.data, arguments.limit), theirs, ours)
        print(json.dumps({"task": name, **differences}), flush=True)


def hf_backend(model: Path, batch_size: int) -> HFLM:
    """lm-eval's own backend, in float32 on the processor."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch_size)


def prepared(name: str, data: Path, limit: int, *, spread: bool = True) -> Compared:
    """The first `limit` problems of a suite, of MMLU evenly spaced ones where `spread`; in the
    order of lm-eval's tasks.
    """
    suite = BY_NAME[f"lm-eval.{name}"]
    problems = load_problems(suite, data, None if name == "mmlu" and spread else limit)
    problems = problems[:: max(1, len(problems) // limit)][:limit]
    families = {family: None for family in (problem.family for problem in problems)}
    groups = {f: [n for n, p in enumerate(problems) if p.family == f] for f in families}
    rows = list(hub_rows(name, data, suite))
    by_id = {problem.id: row for problem, row in rows}
    tasks = []
    for family, numbers in groups.items():
        chosen = [by_id[problems[number].id] for number in numbers]
        task = their_task(name, family, chosen, shot_rows(suite, data, family))
        task.build_all_requests(limit=None)
        tasks.append(task)
    ordered = tuple(problems[number] for numbers in groups.values() for number in numbers)
    return Compared(suite, ordered, shots_of(suite, data, set(families)), tasks)


def compared(pair: Compared, theirs: HFLM, ours: LanguageModel) -> dict[str, Any]:
    """The figures of one task."""
    wanted, rows = pair.ask(theirs), pair.run(ours)
    under_lm_eval = pair.ask(RuntimeLM(ours))
    texts = [text for problem in pair.problems for text in our_texts(pair, problem, ours)]
    asked = [tuple(instance.args) for instance in pair.instances]
    written = pair.suite.kind == "generation"
    given = [text for text, *_ in asked] if written else asked
    figures: dict[str, Any] = {
        "documents": len(rows),
        "requests": len(asked),
        "other_texts": sum(a != b for a, b in zip(texts, given, strict=True)),
    }
    if written:
        answers = [row["completion"] for row in rows]
        figures["other_answers"] = sum(a != b.strip() for a, b in zip(answers, wanted, strict=True))
        figures["other_answers_under_lm_eval"] = sum(
            a != b for a, b in zip(under_lm_eval, wanted, strict=True)
        )
    else:
        sums = [log_prob for row in rows for log_prob in row["log_probs"]]
        for place, nats_here in (
            ("", sums),
            ("_under_lm_eval", [nats for nats, _ in under_lm_eval]),
        ):
            gaps = [abs(a - b) for a, (b, _) in zip(nats_here, wanted, strict=True)]
            figures[f"largest_gap_nats{place}"] = max(gaps)
            if not place:
                worst = gaps.index(max(gaps))
        # which of the two rounded: the same request in float64
        context, ids = theirs._encode_pair(*asked[worst])
        exact = float64_sum((context, ids), ours)
        errors = {"lm-eval": wanted[worst][0] - exact, "here": sums[worst] - exact}
        figures["of_largest_gap"] = {"sum": exact, "ids": len(ids), "error": errors}
        greedy = [(a[1], b[1]) for a, b in zip(under_lm_eval, wanted, strict=True)]
        figures["other_greedy_under_lm_eval"] = sum(a != b for a, b in greedy)
    scores = judged(pair, wanted)
    names = [name for *_, name in SCORES.get(pair.suite.name.partition(".")[2], CHOICE_SCORES)]
    other: dict[str, int] = dict.fromkeys(names, 0)
    exceptions = []
    for row, score in zip(rows, scores, strict=True):
        for name in names:
            if name in score and score[name] != row["scores"][name]:
                other[name] += 1
                exceptions.append({"id": row["id"], name: score[name], "here": row["scores"][name]})
    return {**figures, "other_scores": other, "exceptions": exceptions}


def float64_sum(pair: tuple[list[int], list[int]], model: LanguageModel) -> float:
    """The log-probability of a continuation by our network in float64 (RoPE's angles but for)."""
    context, ids = pair
    network = copy.deepcopy(model.model).double()
    with torch.no_grad():
        hidden = network.hidden(torch.tensor([(context + ids)[:-1]]), None)[0, -len(ids) :]
        logits = hidden @ (network.lm_head or network.model.embed_tokens).weight.T
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()


def our_texts(pair: Compared, problem: Problem, model: LanguageModel) -> list[Any]:
    """(context, continuation) of each choice as the suite writes it, or its one prompt."""
    (request,) = requests_of(model.tokenizer, pair.suite, [problem], pair.shots)
    if pair.suite.kind == "generation":
        return [request.text]
    before = pair.suite.before(problem, pair.shots[problem.family])
    contexts = problem.contexts or (problem.prompt,) * len(problem.choices)
    written = [before + pair.suite.prompt_format.replace("{prompt}", text) for text in contexts]
    separator = pair.suite.answer_separator
    return [
        (context, separator + choice)
        for context, choice in zip(written, problem.choices, strict=True)
    ]


def judged(pair: Compared, answers: Sequence[Any]) -> list[dict[str, float]]:
    """lm-eval's scores of each document, under the suite's names, from the answers to all."""
    per_document: list[dict[str, float]] = []
    waiting = iter(answers)
    names = SCORES.get(pair.suite.name.partition(".")[2], CHOICE_SCORES)
    for task in pair.tasks:
        for instance in task.instances:
            instance.resps = [next(waiting)]
        task.apply_filters()
        for doc_id, document in enumerate(task.eval_docs):
            mine = [instance for instance in task.instances if instance.doc_id == doc_id]
            scores = {}
            for filtered, metric, name in names:
                given = task.process_results(document, [i.filtered_resps[filtered] for i in mine])
                if metric in given:
                    scores[name] = float(given[metric])
            per_document.append(scores)
            for instance in mine:
                instance.filtered_resps = dict(instance.filtered_resps)
    return per_document


def their_task(
    name: str, family: str, rows: Sequence[dict[str, Any]], shots: Sequence[dict[str, Any]]
) -> ConfigurableTask:
    """lm-eval's own task, whose data set is these rows and these shots."""
    file = Path(lm_eval.__file__).parent / "tasks" / TASKS[name].format(family=family)
    config = dict(load_yaml(file, resolve_func=True))
    split = config.get("test_split") or config["validation_split"]
    files = {split: written(rows)}
    config |= {"training_split": None, "fewshot_split": None}
    if shots:
        files["shots"] = written(shots)
        config |= {"fewshot_split": "shots", "num_fewshot": len(shots)}
        config["fewshot_config"] = {"sampler": "first_n"}
    else:
        config["num_fewshot"] = 0
    config |= {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files}
    if split == config.get("test_split"):
        config["validation_split"] = None
    return ConfigurableTask(config=config)


def written(rows: Sequence[dict[str, Any]]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return file.name


def shot_rows(suite: Suite, data: Path, family: str) -> list[dict[str, Any]]:
    """The rows that the suite shows before a problem of this family."""
    if not suite.shots:
        return []
    assert isinstance(suite.shots_from, Rows)
    chosen = []
    for _, row in json_lines(where_of(suite.shots_from, data)):
        if len(chosen) < suite.shots and row.get("subject", "") == family:
            chosen.append(row)
    return chosen


def hub_rows(name: str, data: Path, suite: Suite) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Each problem, and its row in the hub's form: as it is, or written anew from query, choices,
    gold.
    """
    assert isinstance(suite.problems, Rows)
    rows = json_lines(where_of(suite.problems, data))
    for problem, (_, row) in zip(suite.problems.load(data), rows, strict=True):
        if "query" in row:
            labels = [*"ABCDEFGH"[: len(problem.choices)]]
            stem = "question_stem" if name == "openbookqa" else "question"
            choices = {"text": list(problem.choices), "label": labels}
            row = {stem: problem.prompt, "choices": choices, "answerKey": labels[problem.gold]}
        elif name == "boolq" and "label" not in row:
            row = {**row, "label": problem.gold}
        yield problem, row


if __name__ == "__main__":
    main()
