"""Benchmarks of given answers: a row a benchmark, as lm-eval 0.4.13 defines it (tasks/<name>) where
nothing else is said.

Shots are the first of their split (our choice: lm-eval draws others for each document, MMLU's
excepted). A row is read in the hub's form, and in that of a folder which holds "query", "choices"
and "gold".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pocketlm.eval.scorers import multiple_choice
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import FLAG, LIST, TEXT, TEXTS, WHOLE, JsonObject

LETTERS = "ABCDEFGH"


def _arc(row: JsonObject) -> Problem:
    if "query" in row:
        return _from_query(row)
    choices, labels = _choices_of(row)
    gold = _place(labels, row.typed("answerKey", TEXT), row)
    return _problem(row.typed("question", TEXT), choices, gold, id=row.get("id", ""))


def _csqa(row: JsonObject) -> Problem:
    choices, labels = _choices_of(row)
    gold = _place(labels, row.typed("answerKey", TEXT), row)
    return _problem(row.typed("question", TEXT), choices, gold, id=row.get("id", ""))


def _openbookqa(row: JsonObject) -> Problem:
    if "query" in row:
        return _from_query(row)
    choices, labels = _choices_of(row)
    gold = _place(labels, row.typed("answerKey", TEXT).strip(), row)
    return _problem(row.typed("question_stem", TEXT), choices, gold, id=row.get("id", ""))


def _hellaswag(row: JsonObject) -> Problem:
    begin = f"{row.typed('ctx_a', TEXT)} {row.typed('ctx_b', TEXT).capitalize()}"
    prompt = without_brackets(f"{row.typed('activity_label', TEXT)}: {begin}")
    endings = tuple(map(without_brackets, row.typed("endings", TEXTS)))
    return _problem(prompt, endings, _number(row, "label"))


def _piqa(row: JsonObject) -> Problem:
    choices = (row.typed("sol1", TEXT), row.typed("sol2", TEXT))
    return _problem(row.typed("goal", TEXT), choices, _number(row, "label"))


def _siqa(row: JsonObject) -> Problem:
    prompt = f"{row.typed('context', TEXT)} {row.typed('question', TEXT)}"
    choices = tuple(row.typed(f"answer{letter}", TEXT) for letter in "ABC")
    return _problem(prompt, choices, _number(row, "label") - 1)


def _boolq(row: JsonObject) -> Problem:
    passage, question = row.typed("passage", TEXT), row.typed("question", TEXT)
    gold = _number(row, "label") if "label" in row else int(row.typed("answer", FLAG))
    return _problem(f"{passage}\nQuestion: {question}?", ("no", "yes"), gold)


def _winogrande(row: JsonObject) -> Problem:
    """The option goes into the context, and the rest of the sentence, the same for both, is scored
    (partial evaluation).
    """
    before, gap, after = row.typed("sentence", TEXT).partition("_")
    if not gap:
        raise row.wrong("sentence", "has no gap _")
    contexts = tuple(before + row.typed(f"option{number}", TEXT) for number in (1, 2))
    gold = _number(row, "answer") - 1
    if gold not in (0, 1):
        raise row.wrong("answer", f"is {row['answer']!r}, 1 or 2 is needed")
    after = after.strip()
    return Problem(
        id="",
        family="",
        prompt=contexts[gold],
        answer=after,
        choices=(after, after),
        gold=gold,
        contexts=contexts,
    )


def _mmlu(row: JsonObject) -> Problem:
    choices = row.typed("choices", TEXTS)
    if len(choices) != 4:
        raise row.wrong("choices", f"are {len(choices)}, four are needed")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    prompt = "\n".join([row.typed("question", TEXT).strip(), *lines])
    gold = row.typed("answer", WHOLE)
    return _problem(prompt, tuple("ABCD"), gold, family=row.typed("subject", TEXT))


def _from_query(row: JsonObject) -> Problem:
    """{"query": "Question: ...\\nAnswer:", "choices", "gold"}: the words around the question are
    the suite's.
    """
    query = row.typed("query", TEXT).removeprefix("Question: ").removesuffix("\nAnswer:")
    choices = tuple(row.typed("choices", TEXTS))
    return _problem(query, choices, row.typed("gold", WHOLE), id=row.get("id", ""))


def _problem(
    prompt: str, choices: tuple[str, ...], gold: int, *, id: object = "", family: str = ""
) -> Problem:
    answer = choices[gold] if 0 <= gold < len(choices) else " "
    return Problem(
        id=str(id), family=family, prompt=prompt, answer=answer, choices=choices, gold=gold
    )


def _choices_of(row: JsonObject) -> tuple[tuple[str, ...], list[str]]:
    choices = row.object("choices")
    return tuple(choices.typed("text", TEXTS)), choices.typed("label", LIST)


def _place(labels: list[str], label: str, row: JsonObject) -> int:
    if label not in labels:
        raise row.wrong("answerKey", f"is {label!r}, which is none of the labels {labels}")
    return labels.index(label)


def _number(row: JsonObject, key: str) -> int:
    """A whole number, or its digits as text, as some data sets write it."""
    value = row[key]
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value.strip()):
        return int(value)
    return row.typed(key, WHOLE)


def without_brackets(text: str) -> str:
    """HellaSwag's texts without the marks that WikiHow left (lm-eval, tasks/hellaswag/utils.py)."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _rows(
    file: str,
    dataset: str,
    config: str | None,
    split: str,
    problem: Callable[[JsonObject], Problem],
) -> Rows:
    return Rows(file=file, dataset=dataset, config=config, split=split, problem=problem)


ARC, CSQA, WINO = "allenai/ai2_arc", "tau/commonsense_qa", "allenai/winogrande"
_ROWS = {
    "arc_easy_test": _rows("arc_easy_test", ARC, "ARC-Easy", "test", _arc),
    "arc_easy_train": _rows("arc_easy_train", ARC, "ARC-Easy", "train", _arc),
    "arc_challenge_test": _rows("arc_challenge_test", ARC, "ARC-Challenge", "test", _arc),
    "arc_challenge_train": _rows("arc_challenge_train", ARC, "ARC-Challenge", "train", _arc),
    "boolq_val": _rows("boolq_val", "aps/super_glue", "boolq", "validation", _boolq),
    "boolq_train": _rows("boolq_train", "aps/super_glue", "boolq", "train", _boolq),
    "csqa_val": _rows("csqa_val", CSQA, None, "validation", _csqa),
    "csqa_train": _rows("csqa_train", CSQA, None, "train", _csqa),
    "hellaswag_val": _rows("hellaswag_val", "Rowan/hellaswag", None, "validation", _hellaswag),
    "hellaswag_train": _rows("hellaswag_train", "Rowan/hellaswag", None, "train", _hellaswag),
    "mmlu_test": _rows("mmlu_test", "cais/mmlu", "all", "test", _mmlu),
    "mmlu_dev": _rows("mmlu_dev", "cais/mmlu", "all", "dev", _mmlu),
    "openbookqa_test": _rows("openbookqa_test", "allenai/openbookqa", "main", "test", _openbookqa),
    "openbookqa_train": _rows(
        "openbookqa_train", "allenai/openbookqa", "main", "train", _openbookqa
    ),
    "piqa_val": _rows("piqa_val", "baber/piqa", None, "validation", _piqa),
    "piqa_train": _rows("piqa_train", "baber/piqa", None, "train", _piqa),
    "siqa_val": _rows("siqa_val", "lighteval/siqa", None, "validation", _siqa),
    "siqa_train": _rows("siqa_train", "lighteval/siqa", None, "train", _siqa),
    "winogrande_val": _rows("winogrande_val", WINO, "winogrande_xl", "validation", _winogrande),
    "winogrande_train": _rows("winogrande_train", WINO, "winogrande_xl", "train", _winogrande),
}


def _suite(name: str, rows: str, shots_from: str, metric: str, **fields: object) -> Suite:
    return Suite(
        name=name,
        problems=_ROWS[rows],
        shots_from=_ROWS[shots_from],
        kind="choices",
        scorer=multiple_choice,
        metric=metric,
        **fields,  # type: ignore[arg-type]
    )


CHOICES = {
    suite.name: suite
    for suite in (
        _suite("arc_easy", "arc_easy_test", "arc_easy_train", "acc"),
        _suite("arc_challenge", "arc_challenge_test", "arc_challenge_train", "acc_norm"),
        _suite("boolq", "boolq_val", "boolq_train", "acc", prompt_format="{prompt}\nAnswer:"),
        _suite("csqa", "csqa_val", "csqa_train", "acc"),
        _suite("piqa", "piqa_val", "piqa_train", "acc"),
        _suite("siqa", "siqa_val", "siqa_train", "acc", prompt_format="Q: {prompt}\nA:"),
        _suite(
            "hellaswag", "hellaswag_val", "hellaswag_train", "acc_norm", prompt_format="{prompt}"
        ),
        _suite(
            "openbookqa",
            "openbookqa_test",
            "openbookqa_train",
            "acc_norm",
            prompt_format="{prompt}",
        ),
        _suite("winogrande", "winogrande_val", "winogrande_train", "acc", prompt_format="{prompt}"),
        _suite(
            "mmlu",
            "mmlu_test",
            "mmlu_dev",
            "acc",
            prompt_format="{prompt}\nAnswer:",
            preamble="The following are multiple choice questions (with answers) about {family}."
            "\n\n",
            shots=5,
            shots_by_family=True,
        ),
    )
}
