"""BFCL, the Berkeley Function-Calling Leaderboard: Python calls of its four categories without
execution, whose unweighted mean is its "non-live AST summary".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.eval.function_calls import TYPES, Expected, bfcl
from pocketlm.eval.suites.own_problems import check_text
from pocketlm.eval.suites.rows import ADVICE
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_lines import json_lines
from pocketlm.model.json_shape import LIST, TEXT, TEXTS, JsonObject

CATEGORIES = ("simple", "multiple", "parallel", "parallel_multiple")
# the same problems in every version; since v4 the Python ones of "simple" have a file of their own
NAMES = {
    category: [
        *(["BFCL_v4_simple_python"] if category == "simple" else [f"BFCL_v4_{category}"]),
        f"BFCL_v3_{category}",
        f"BFCL_v2_{category}",
    ]
    for category in CATEGORIES
}
ANSWERS = "possible_answer"
ASKED = """These functions can be called:
{functions}

Answer with calls alone, as one list in this form: [name(parameter=value, ...), ...]

{question}"""


@dataclass(frozen=True, kw_only=True)
class ToolProblems:
    """The problems of all categories, from the files that the bfcl-eval package holds."""

    def load(self, data: Path | None) -> Iterator[Problem]:
        """FileNotFoundError or ValueError: no folder, a file that is not there, or the file and
        line of a damaged row.
        """
        if data is None:
            raise ValueError(
                f"BFCL is not read from the Hugging Face hub; {ADVICE}, where the .json files of "
                "bfcl_eval/data of the package bfcl-eval lie (pip download --no-deps bfcl-eval)"
            )
        for category in CATEGORIES:
            questions = _file(data, category)
            answers = questions.parent / ANSWERS / questions.name
            if not answers.is_file():
                raise FileNotFoundError(f"{answers} is missing: the accepted calls of that file")
            accepted = dict(_accepted(answers))
            for number, row in json_lines(questions):
                yield _problem(row, f"{questions}:{number}", category, accepted)


def _file(data: Path, category: str) -> Path:
    folders = (data, data / "bfcl")
    for folder in folders:
        for name in NAMES[category]:
            if (folder / f"{name}.json").is_file():
                return folder / f"{name}.json"
    raise FileNotFoundError(
        f"{data} (nor its folder bfcl) holds no {' or '.join(NAMES[category])}.json; take them and "
        f"{ANSWERS}/ from the package bfcl-eval"
    )


def _accepted(path: Path) -> Iterator[tuple[str, list[Any]]]:
    for number, row in json_lines(path):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object; mend the line, or leave it out")
        given = JsonObject(row, where)
        yield given.typed("id", TEXT), given.typed("ground_truth", LIST)


def _problem(row: Any, where: str, category: str, accepted: dict[str, list[Any]]) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object; mend the line, or leave it out")
    given = JsonObject(row, where)
    name = given.typed("id", TEXT)
    if name not in accepted:
        raise given.wrong("id", f"is {name!r}, which has no accepted calls in {ANSWERS}")
    functions = _functions(given)
    question = "\n".join(_messages(given))
    needed = tuple(_needed(given, call, functions) for call in accepted[name])
    expected = Expected(functions, needed)
    described = json.dumps(given["function"], ensure_ascii=False)
    prompt = ASKED.replace("{functions}", described).replace("{question}", question)
    answer = json.dumps(accepted[name], ensure_ascii=False)
    for text in (name, prompt, answer):
        check_text(text, where)
    return Problem(id=name, family=category, prompt=prompt, answer=answer, expected=expected)


def _functions(row: JsonObject) -> dict[str, JsonObject]:
    """The schema of each function's parameters, by its name."""
    functions = {}
    for function in row.typed("function", LIST):
        if not isinstance(function, JsonObject):
            raise row.wrong("function", "holds what is no object")
        schema = function.object("parameters")
        schema.typed("required", TEXTS, [])
        for name in schema.object("properties"):
            _check_type(schema.object("properties").object(name))
        functions[function.typed("name", TEXT)] = schema
    if not functions:
        raise row.wrong("function", "names none")
    return functions


def _check_type(stated: JsonObject) -> None:
    kind = stated.typed("type", TEXT)
    if kind not in TYPES:
        raise stated.wrong("type", f"is {kind!r}; known: {', '.join(TYPES)}")
    if kind in ("array", "tuple"):
        inner = stated.object("items").typed("type", TEXT)
        if inner not in TYPES:
            raise stated.wrong("items", f"are of type {inner!r}; known: {', '.join(TYPES)}")


def _messages(row: JsonObject) -> Iterator[str]:
    """What stands in the messages of all turns."""
    for turn in row.typed("question", LIST):
        for message in turn if isinstance(turn, list) else [turn]:
            if not isinstance(message, JsonObject):
                raise row.wrong("question", "holds what is no message")
            yield message.typed("content", TEXT)


def _needed(
    row: JsonObject, call: Any, functions: dict[str, JsonObject]
) -> tuple[str, dict[str, list[Any]]]:
    """(name, accepted values of each parameter) of one call that is needed."""
    if not isinstance(call, dict) or len(call) != 1:
        raise row.wrong("id", "has an accepted call that is no object with one name")
    ((name, parameters),) = call.items()
    if name not in functions or not isinstance(parameters, dict):
        raise row.wrong("id", f"has an accepted call of {name!r}, which is none of its functions")
    if not all(isinstance(values, list) for values in parameters.values()):
        raise row.wrong("id", f"has accepted values of {name!r} that are no lists")
    return name, json.loads(json.dumps(parameters))  # dicts again: types are compared


TOOLS = {
    "bfcl": Suite(
        name="bfcl",
        problems=ToolProblems(),
        kind="generation",
        scorer=bfcl,
        metric="ast",
        macro=True,
        constant_answer=False,
        prompt_format="{prompt}",
        chat=True,
        stop_strings=("\n\n",),
        max_new_tokens=512,
    )
}
