"""Benchmarks whose answers are programs: LiveCodeBench, and HumanEval and MBPP in lm-eval 0.4.13's
form (tasks/humaneval, tasks/mbpp). Answers are run in the sandbox alone (pocketlm/sandbox).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketlm.eval.code_scorer import needs_sandbox
from pocketlm.eval.suites.code_livecodebench import LIVECODEBENCH, LIVECODEBENCH_V6
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, TEXTS, JsonObject
from pocketlm.sandbox.judge import Task


def _humaneval(row: JsonObject) -> Problem:
    """The tests use helpers of the prompt: they get those of the reference, never the model's."""
    prompt, reference = row.typed("prompt", TEXT), row.typed("canonical_solution", TEXT)
    name = row.typed("entry_point", TEXT)
    task = Task(
        program="",
        prelude=prompt + reference,
        tests=f"{row.typed('test', TEXT)}\ncheck({name})\n",
        names=(name,),
        begin=prompt,
    )
    _parsed(task.prelude, "canonical_solution", row)
    _parsed(task.tests, "test", row)
    return Problem(
        id=row.typed("task_id", TEXT), family="", prompt=prompt, answer=reference, task=task
    )


def _mbpp(row: JsonObject) -> Problem:
    """A row of the hub ("text", "test_list", "test_setup_code"), or one with "prompt" and
    "test".
    """
    key = "test_list" if "test_list" in row else "test"
    asserts = row.typed(key, TEXTS)
    code = row.typed("code", TEXT)
    text = row.typed("text" if "text" in row else "prompt", TEXT)
    setup = row.typed("test_setup_code", TEXT) if "test_setup_code" in row else ""
    tests = "\n".join([*setup.splitlines(), *asserts]) + "\n"
    defined = {
        node.name
        for node in _parsed(code, "code", row).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    loaded = {node.id for node in ast.walk(_parsed(tests, key, row)) if isinstance(node, ast.Name)}
    if not defined & loaded:
        raise row.wrong(key, "calls nothing that the code defines")
    return Problem(
        id=str(row.get("task_id", "")),
        family="",
        prompt=f"{text} Your code should pass these tests:\n\n" + "\n".join(asserts),
        answer=code,
        task=Task(program="", tests=tests, names=tuple(sorted(defined & loaded))),
    )


def _mbpp_shot(row: JsonObject) -> Problem:
    problem = _mbpp(row)
    return Problem(
        id=problem.id, family="", prompt=problem.prompt, answer=f"{problem.answer}\n[DONE]"
    )


def _parsed(source: str, key: str, row: JsonObject) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.wrong(key, f"is no Python ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The rows with these ids, in this order."""

    rows: Rows
    ids: tuple[str, ...]

    def load(self, data: Path | None) -> Iterator[Problem]:
        """As Rows.load; those that are not there are missing in the result."""
        problems = {problem.id: problem for problem in self.rows.load(data)}
        return (problems[name] for name in self.ids if name in problems)


HUMANEVAL = Rows(
    file="HumanEval",
    dataset="openai/openai_humaneval",
    config=None,
    split="test",
    problem=_humaneval,
)
MBPP_SET = "google-research-datasets/mbpp"
MBPP = Rows(file="mbpp_test", dataset=MBPP_SET, config="full", split="test", problem=_mbpp)
MBPP_PROMPT = Rows(file="mbpp", dataset=MBPP_SET, config="full", split="prompt", problem=_mbpp_shot)

CODE = {
    suite.name: suite
    for suite in (
        Suite(
            name="humaneval",
            problems=HUMANEVAL,
            kind="generation",
            runs_code=True,
            scorer=needs_sandbox,
            metric="pass@1",
            prompt_format="{prompt}",
            stop_strings=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
            max_new_tokens=1024,
        ),
        Suite(
            name="mbpp",
            problems=MBPP,
            shots_from=Chosen(rows=MBPP_PROMPT, ids=("2", "3", "4")),
            shots=3,
            answer_separator="",
            kind="generation",
            runs_code=True,
            scorer=needs_sandbox,
            metric="pass@1",
            prompt_format="You are an expert Python programmer, and here is your task: {prompt}\n"
            "[BEGIN]\n",
            stop_strings=("[DONE]",),
            max_new_tokens=256,  # the default of lm-eval's hf backend
        ),
        LIVECODEBENCH,
        LIVECODEBENCH_V6,
    )
}
