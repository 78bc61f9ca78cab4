"""What a finished recipe leaves for its user: a line on each stage, one answer, where to go on."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.text import Text

from pocketlm.report.number_format import duration
from pocketlm.report.results import SHIPPED
from pocketlm.report.timeline import Stage

GAP = 2  # columns between two cells
LEAST_WORDS = 20  # columns; what fits no more is left out whole
MOST_TOKENS = 512  # of the answer, where the evaluation does not say


def show_results(folders: Sequence[Path]) -> None:
    """Prints the evaluations, what each stage added, one question answered by the file that ships,
    the report's path, and how to talk to what was made.
    """
    from pocketlm.commands.evaluation_table import evaluation_table
    from pocketlm.report.added import added
    from pocketlm.report.evaluation import read_evaluation
    from pocketlm.stages.report import read_stage

    console = Console(highlight=False)
    measured = [folder for folder in folders if (folder / "evaluation.json").is_file()]
    for folder in measured:
        console.print(evaluation_table(read_evaluation(folder), console.width))
    stages = [read_stage(folder) for folder in folders]
    words: dict[str, list[str]] = {stage.name: [] for stage in stages}
    for evaluation in map(read_evaluation, measured) if measured else [None]:
        for name, parts in added(stages, evaluation).items():
            words[name] = max(words[name], parts, key=len)
    console.print(added_table(stages, words, console.width))
    question = first_question(measured[-1], folders) if measured else None
    if question:
        console.print(answered(question), soft_wrap=True)
    for page in (folder / "report.html" for folder in folders):
        if page.is_file():
            console.print(f"report: {page.absolute()}", soft_wrap=True, markup=False)
    model = question.model if question else last_model(folders)
    if model:
        line = f"talk to it: {Path(sys.argv[0])} chat {model}"
        console.print(line, soft_wrap=True, markup=False)


def added_table(stages: Sequence[Stage], words: Mapping[str, Sequence[str]], width: int) -> Text:
    """A line for each stage: its name, what it took, and as much of what it added as `width`
    columns hold.
    """
    whole = sum(stage.seconds for stage in stages)
    rows = [(stage.name, duration(stage.seconds), words[stage.name]) for stage in stages]
    rows.append(("together", duration(whole), []))
    names, times = (max(len(row[place]) for row in rows) for place in (0, 1))
    room = width - names - times - 2 * GAP
    table = Text("what each stage added\n", style="", overflow="ignore", no_wrap=True)
    for name, took, parts in rows:
        table.append(name.ljust(names + GAP), "bold").append(took.rjust(times))
        if fitting := fit(parts, room):
            table.append(" " * GAP + fitting)
        table.append("\n")
    table.rstrip()
    return table


def fit(parts: Sequence[str], room: int) -> str:
    """The first parts that fit into `room` columns together; the first alone is cut to fit."""
    if not parts or room < LEAST_WORDS:
        return ""
    text = parts[0] if len(parts[0]) <= room else parts[0][: room - 1] + "…"
    for part in parts[1:]:
        if len(text) + len(part) + 2 <= room:
            text += f"; {part}"
    return text


# ---- one question ----


@dataclass(frozen=True)
class Question:
    """A problem of an evaluation, and the model it is asked."""

    model: Path
    suite: str
    prompt: str
    max_new_tokens: int


def first_question(evaluation: Path, folders: Sequence[Path]) -> Question | None:
    """The first problem of an evaluation's first suite, and the first exported file (without any,
    the last model) that answered it; None where answers are no text, or the model is gone.
    """
    from pocketlm.report.evaluation import first_suite, read_evaluation
    from pocketlm.report.results import shipped_labels
    from pocketlm.stages.report import read_answers

    content = read_evaluation(evaluation)
    if not content["suites"]:
        return None
    label, name = shipped_labels(content["models"])[0], first_suite(content)
    suite = content["suites"][name]
    rows = read_answers(evaluation, label, name)
    if suite["kind"] != "generation" or "sandbox" in suite or not rows:
        return None
    path = content["models"][label]["path"]
    places = [place for folder in folders for place in (folder, folder / path)]
    model = next((place for place in places if place.name == path and place.exists()), None)
    if model is None:
        return None
    return Question(model, name, rows[0]["prompt"], suite.get("max_new_tokens") or MOST_TOKENS)


def answered(question: Question) -> Text:
    """The question and the model's answer, made now, as in a chat."""
    from pocketlm.eval.prompts import prompt_ids
    from pocketlm.inference.open import opened

    with opened(question.model) as model:
        start = perf_counter()
        (ids,) = model.generate(
            [prompt_ids(model.tokenizer, question.prompt)],
            max_new_tokens=question.max_new_tokens,
            stop_ids=model.tokenizer.stop_ids,
        )
        seconds = perf_counter() - start
        answer = model.tokenizer.decode(ids)
    text = Text(
        f"\nasked now: the first problem of suite {question.suite}, {question.model.name}, "
    )
    text.append(f"{len(ids):,} tokens in {seconds:.2f} s\n")
    for who, said in (("you", question.prompt), ("model", answer.strip() or "(no answer)")):
        lines = said.splitlines() or [""]
        text.append(who.ljust(7), "bold").append(lines[0] + "\n")
        for line in lines[1:]:
            text.append(" " * 7 + line + "\n")
    return text


def last_model(folders: Sequence[Path]) -> Path | None:
    """The first exported file; without any, the last chat model."""
    files = [
        file for folder in folders for end in SHIPPED for file in sorted(folder.glob(f"*{end}"))
    ]
    chats = [folder for folder in folders if (folder / "chat_template.jinja").is_file()]
    return (files[:1] or chats[-1:] or [None])[0]
