"""What came out: an answer, the files that ship, the goals, and answers to read."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.evaluation import constant_share, first_suite, solved_of, value_text
from pocketlm.report.goals import Goal, Verdict
from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, duration, percent, points, signed, size
from pocketlm.report.page import number, paragraph, section, table

SHIPPED = (".gguf", ".pte")
SPEED = "tokens_per_second"
LONGEST_ANSWER = 1200  # characters of a transcript that are shown

Models = dict[str, Any]  # evaluation.json's "models": figures by label
Words = dict[bool | None, tuple[str, str | None]]  # how a verdict reads, and its class

GOAL_WORDS: Words = {
    True: ("✓ met", "met"),
    False: ("✗ missed", "missed"),
    None: ("not measured", None),
}
CLAIM_WORDS: Words = {
    True: ("✓ shown", "met"),
    False: ("✗ not shown", "missed"),
    None: ("not measured", None),
}


def shipped_labels(models: Models) -> list[str]:
    """The evaluated models that are exported files; without any, the last model."""
    files = [label for label, model in models.items() if model["path"].endswith(SHIPPED)]
    return files or list(models)[-1:]


def headline(
    evaluation: dict[str, Any],
    exports: Sequence[dict[str, Any]],
    verdicts: Sequence[Verdict],
    seconds: float,
    answer: dict[str, Any] | None,
    picture: Element | None,
) -> Element:
    """One answer of a file that ships, the picture of the road, one paragraph, and the files with
    their sizes and accuracy.
    """
    models = evaluation["models"]
    shipped = shipped_labels(models)
    suite = first_suite(evaluation)
    tiles = [_tile(label, models[label], suite) for label in shipped]
    measured_files = {(models[label]["path"], models[label]["bytes"]) for label in shipped}
    for report in exports:
        for name, num_bytes in report["bytes"].items():
            if (name, num_bytes) not in measured_files:
                tiles.append(_plain_tile(name, num_bytes, report))
    parts = [_first_answer(_file(shipped[0], models[shipped[0]]), answer)] if answer else []
    parts.append(node("p", _sentence(evaluation, shipped, verdicts, seconds), class_="lead"))
    parts += [*([picture] if picture is not None else []), node("ul", *tiles, class_="tiles")]
    return section("short", "In short", *parts)


def goals_section(verdicts: Sequence[Verdict], claims: Sequence[Verdict]) -> Element | None:
    """Each goal and claim with what was reached, and what was missed, with what was tried."""
    parts: list[Element] = []
    if verdicts:
        parts.append(_judged("Goals, and what was reached", "goal", verdicts, GOAL_WORDS))
    if claims:
        parts.append(node("h3", "What the papers claim, and what this run shows of it"))
        parts.append(
            _judged("Claims of the papers, and what this run shows", "claim", claims, CLAIM_WORDS)
        )
        parts.append(
            paragraph(
                "One run, one seed: a claim not shown here is not refuted, nor one shown proved.",
                quiet=True,
            )
        )
    missed = [verdict for verdict in verdicts if verdict.met is False]
    if missed:
        parts.append(node("h3", "What was missed"))
        parts += [paragraph(_missed(verdict)) for verdict in missed]
    return section("goals", "Goals, and what was missed", *parts) if parts else None


def _first_answer(file: str, row: dict[str, Any]) -> Element:
    """The first problem of the suite and the file's answer to it, as a reader of a chat sees it."""
    mark = node("span", f"{file} answers", class_="file")
    return node("div", mark, node("pre", row["prompt"]), node("pre", _shown(row)), class_="card")


def _missed(verdict: Verdict) -> str:
    reached = f"{figure_text(verdict.goal)(verdict.figure)} reached, {wanted_text(verdict.goal)}"
    tried = f" Tried: {verdict.goal.tried}" if verdict.goal.tried else ""
    return f"Missed: {verdict.goal.text} ({reached} wanted).{tried}"


def _sentence(
    evaluation: dict[str, Any], shipped: Sequence[str], verdicts: Sequence[Verdict], seconds: float
) -> str:
    models, suite = evaluation["models"], first_suite(evaluation)
    files = [
        f"{_file(label, models[label])} ({size(models[label]['bytes'])}) "
        f"{_reached(models[label]['suites'][suite])}"
        for label in shipped
    ]
    sentence = f"{'; '.join(files)} of the suite {suite}"
    blind = constant_share(evaluation, suite)
    if blind is not None:
        guess = "chance" in evaluation["suites"][suite]
        way = "a guess among choices" if guess else "the best constant answer to each family"
        sentence += f", where {way} would solve {percent(blind)}"
    sentence += ". "
    sentence += f"All stages together took {duration(seconds)}."
    if verdicts:
        met = sum(verdict.met is True for verdict in verdicts)
        unknown = sum(verdict.met is None for verdict in verdicts)
        sentence += f" {met} of {len(verdicts)} goals {'is' if met == 1 else 'are'} met"
        sentence += f", {unknown} not measured." if unknown else "."
    return sentence


def _reached(figures: dict[str, Any]) -> str:
    solved, total = solved_of(figures)
    if not total:
        return f"needs {value_text(figures)} {_spaced(figures['metric'])} for the answers"
    return f"solves {solved} of {total} problems"


def _tile(label: str, model: dict[str, Any], suite: str) -> Element:
    figures = model["suites"][suite]
    what = "of the problems solved" if solved_of(figures)[1] else _spaced(figures["metric"])
    facts = [size(model["bytes"])]
    if model.get(SPEED):
        facts.append(f"{model[SPEED]:,.0f} tokens/s")
    return node(
        "li",
        node("span", _file(label, model), class_="file"),
        node("b", percent(figures["value"]) if solved_of(figures)[1] else value_text(figures)),
        node("span", what),
        node("span", " · ".join(facts)),
    )


def _plain_tile(name: str, num_bytes: int, report: dict[str, Any]) -> Element:
    folders = {"hf": "Hugging Face transformers", "mlx": "MLX", "compressed-tensors": "vLLM"}
    kind = f"folder for {folders[name]}" if name in folders else "not evaluated"
    return node(
        "li",
        node("span", f"{name}/" if name in folders else name, class_="file"),
        node("b", size(num_bytes)),
        node("span", kind),
        node("span", f"from {report['model']}, {report['quantization'] or 'full precision'}"),
    )


def _file(label: str, model: dict[str, Any]) -> str:
    """A shipped file by its own name; another model by its label."""
    return model["path"] if model["path"].endswith(SHIPPED) else label


def figure_text(goal: Goal) -> Callable[[float | None], str]:
    """How a goal's figure is written: bits, a share, or a difference of shares."""
    if goal.measure.startswith("bits"):
        return lambda bits: MISSING if bits is None else signed(bits, 3)
    return points if goal.compared_to else percent


def wanted_text(goal: Goal) -> str:
    limit, bound = (
        (goal.at_least, "at least") if goal.at_least is not None else (goal.at_most, "at most")
    )
    return f"{bound} {figure_text(goal)(limit)}"


def _judged(label: str, kind_of: str, verdicts: Sequence[Verdict], words_for: Words) -> Element:
    rows = []
    for verdict in verdicts:
        goal, as_text = verdict.goal, figure_text(verdict.goal)
        wanted = wanted_text(goal)
        against = f"against {goal.compared_to}" if goal.compared_to else ""
        beside = [f"{label}: {as_text(figure)}" for label, figure in verdict.beside.items()]
        words, kind = words_for[verdict.met]
        reached = number(as_text(verdict.figure), strong=True)
        what = node("td", f"{goal.measure} of {goal.model} {against}")
        limit, others = node("td", wanted), node("td", "; ".join(beside) or MISSING)
        for cell, heading in (
            (what, "figure"),
            (limit, "wanted"),
            (reached, "reached"),
            (others, "beside"),
        ):
            cell.set("data-heading", heading)
        rows.append([goal.text, what, limit, reached, node("td", words, class_=kind), others])
    headings = [kind_of, "figure", "wanted", "reached", "", "beside it"]
    if not any(verdict.goal.beside for verdict in verdicts):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return table(label, headings, rows, class_="full goals")


def transcripts_section(
    label: str, rows: Sequence[dict[str, Any]], examples: int
) -> Element | None:
    """Answers of one model, right and wrong: the first of each family in turn, none picked by
    hand. None where the first suite has it write none.
    """
    rows = [row for row in rows if "correct" in row and "completion" in row]
    if not rows or not examples:
        return None
    parts = []
    for correct, heading in ((True, "Right"), (False, "Wrong")):
        chosen = _in_turn([row for row in rows if row["correct"] is correct])[:examples]
        if chosen:
            parts += [node("h3", heading), node("div", *map(_card, chosen), class_="cards")]
    intro = (
        f"{label}: the first answers of each family in turn, not picked by hand; after #### the "
        "result."
    )
    return section("answers", "Answers to read", paragraph(intro), *parts)


def _card(row: dict[str, Any]) -> Element:
    mark = (
        node("span", "✓ right", class_="met")
        if row["correct"]
        else node("span", "✗ wrong", class_="missed")
    )
    expected = None if row["correct"] else f"; expected {row['answer']}"
    cut = "; cut before its end" if row.get("cut") else None
    heading = paragraph(mark, f" · {_spaced(row['family'])}", expected, cut)
    return node("div", heading, node("pre", row["prompt"]), node("pre", _shown(row)), class_="card")


def _shown(row: dict[str, Any]) -> str:
    given = row["completion"] or "(no answer)"
    if len(given) > LONGEST_ANSWER:
        given = f"{given[:LONGEST_ANSWER]} … ({len(given) - LONGEST_ANSWER:,} more characters)"
    return given


def _in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    return [row for turn in zip_longest(*by_family.values()) for row in turn if row is not None]


def _spaced(name: str) -> str:
    return name.replace("_", " ")
