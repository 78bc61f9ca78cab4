"""What came out: the files that ship, the goals, the table of all models, and answers to read."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.goals import Verdict, measured
from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, duration, percent, points, size
from pocketlm.report.page import Cell, number, paragraph, section, table

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
    claims: Sequence[Verdict],
    seconds: float,
) -> Element:
    """The files with their sizes and accuracy, one paragraph on them, and each goal and claim with
    what was reached.
    """
    models = evaluation["models"]
    shipped = shipped_labels(models)
    tiles = [_tile(label, models[label]) for label in shipped]
    measured_files = {(models[label]["path"], models[label]["bytes"]) for label in shipped}
    for report in exports:
        for name, num_bytes in report["bytes"].items():
            if (name, num_bytes) not in measured_files:
                tiles.append(_plain_tile(name, num_bytes, report))
    lead = node("p", _sentence(evaluation, shipped, verdicts, seconds), class_="lead")
    parts = [lead, node("ul", *tiles, class_="tiles")]
    if verdicts:
        parts.append(_judged("Goals, and what was reached", "goal", verdicts, GOAL_WORDS))
        parts += [
            paragraph(_tried(verdict))
            for verdict in verdicts
            if verdict.met is False and verdict.goal.tried
        ]
    if claims:
        parts.append(node("h3", "What the papers claim, and what this run shows of it"))
        parts.append(
            _judged("Claims of the papers, and what this run shows", "claim", claims, CLAIM_WORDS)
        )
        parts.append(
            paragraph(
                "One run, one seed, no controls: a claim not shown here is not refuted, nor one "
                "shown proved.",
                quiet=True,
            )
        )
    return section("short", "In short", *parts)


def _tried(verdict: Verdict) -> str:
    return f"Missed: {verdict.goal.text}. Tried: {verdict.goal.tried}"


def _sentence(
    evaluation: dict[str, Any], shipped: Sequence[str], verdicts: Sequence[Verdict], seconds: float
) -> str:
    models = evaluation["models"]
    told = []
    for label in shipped:
        solved, total = _solved(models[label])
        file = f"{_file(label, models[label])} ({size(models[label]['bytes'])})"
        told.append(f"{file} solves {solved} of {total} problems")
    constant = percent(constant_total(models[shipped[0]]))
    sentence = f"{'; '.join(told)} of the suite {evaluation.get('suite', MISSING)}"
    sentence += f", where the best constant answer to each family would solve {constant}. "
    sentence += f"All stages together took {duration(seconds)}."
    if verdicts:
        met = sum(verdict.met is True for verdict in verdicts)
        unknown = sum(verdict.met is None for verdict in verdicts)
        sentence += f" {met} of {len(verdicts)} goals {'is' if met == 1 else 'are'} met"
        sentence += f", {unknown} not measured." if unknown else "."
        missed = [verdict.goal.text for verdict in verdicts if verdict.met is False]
        sentence += f" Missed: {'; '.join(missed)}." if missed else ""
    return sentence


def _tile(label: str, model: dict[str, Any]) -> Element:
    facts = [size(model["bytes"])]
    if model.get(SPEED):
        facts.append(f"{model[SPEED]:,.0f} tokens/s")
    return node(
        "li",
        node("span", _file(label, model), class_="file"),
        node("b", percent(model["accuracy"])),
        node("span", "of the problems solved"),
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


def _judged(label: str, kind_of: str, verdicts: Sequence[Verdict], words_for: Words) -> Element:
    rows = []
    for verdict in verdicts:
        goal, shown = verdict.goal, points if verdict.goal.compared_to else percent
        wanted = f"at least {shown(goal.at_least)}"
        against = f"against {goal.compared_to}" if goal.compared_to else ""
        beside = [f"{label}: {shown(figure)}" for label, figure in verdict.beside.items()]
        words, kind = words_for[verdict.met]
        reached = number(shown(verdict.figure), strong=True)
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


def evaluation_section(evaluation: dict[str, Any]) -> Element:
    """Every model in order: solved problems by family, bits per byte, needles, size and speed."""
    models = evaluation["models"]
    families = _names(models, "problems")
    domains, lengths = _names(models, "bits_per_byte"), _names(models, "needle")
    headings = ["model", "all problems", "size", "tokens/s", *map(_spaced, families)]
    headings += [f"bits/byte, {domain}" for domain in domains]
    headings += [f"needle, {length}" for length in lengths]
    rows = [_model_row(label, model, families, domains, lengths) for label, model in models.items()]
    whole = table("Evaluation of every model", headings, rows, class_="sticky wide")
    next(whole.iter("tbody")).append(
        _constant_row(next(iter(models.values())), families, domains + lengths)
    )
    _, problems = _solved(next(iter(models.values())))
    error = 50 / math.sqrt(max(1, problems))  # of a share of one half, where it is largest
    note = (
        f"Greedy answers, no examples given; in percent. With {problems} problems a total has a "
        "standard "
        f"error of up to {error:.1f} points, a family's is larger: small differences mean little. "
        "The last row is what one answer, given to every problem of a family, would score."
    )
    more = (
        ["Tokens/s: one answer at a time, on the machine of this run."]
        if _any(models, SPEED)
        else []
    )
    more += ["Bits/byte: of held-out text, lower is better."] if domains else []
    more += ["Needle: how often a fact hidden in that many tokens is found."] if lengths else []
    words = [paragraph(note), whole, paragraph(" ".join(more), quiet=True)]
    cut = [line for label, model in models.items() if (line := _cut(label, model))]
    if cut:
        limit = f"max_new_tokens {evaluation.get('max_new_tokens', MISSING)} or the model's length"
        words.append(
            paragraph(f"Answers that reached {limit} and were cut there: {'; '.join(cut)}.")
        )
    return section("evaluation", "Every model, measured", *words)


def _cut(label: str, model: dict[str, Any]) -> str:
    """'chat 3 of 60', or "" where every answer ended by itself."""
    cut, (_, total) = model.get("answers_cut", 0), _solved(model)
    return f"{label} {cut:,} of {total:,}" if cut else ""


def _constant_row(model: dict[str, Any], families: list[str], others: list[str]) -> Element:
    """The last row: what one answer to every problem of a family would solve."""
    rates = [number(_bare(model["constant_answer"].get(family))) for family in families]
    heading = node("th", "best constant answer", scope="row")
    blank = [node("td") for _ in others]
    cells = [number(percent(constant_total(model))), node("td"), node("td"), *rates, *blank]
    return node("tr", heading, *cells, class_="apart")


def _model_row(
    label: str, model: dict[str, Any], families: list[str], domains: list[str], lengths: list[str]
) -> list[Cell]:
    solved, total = _solved(model)
    row: list[Cell] = [
        label,
        number(percent(model["accuracy"]), strong=True, note=f"{solved} of {total}"),
    ]
    speed = model.get(SPEED)
    row += [number(size(model["bytes"])), None if speed is None else number(f"{speed:,.0f}")]
    for family in families:
        told = model["problems"].get(family)
        share = told["solved"] / told["total"] if told and told["total"] else None
        note = f"{told['solved']} of {told['total']}" if told else None
        row.append(number(_bare(share), heat=share, note=note))
    for domain in domains:
        bits = model.get("bits_per_byte", {}).get(domain)
        row.append(None if bits is None else number(f"{bits:.3f}"))
    for length in lengths:
        found = measured(model, f"needle {length}")
        told = model.get("needle", {}).get(length)
        cut = f", {told['cut']} cut" if told and told.get("cut") else ""
        row.append(
            number(_bare(found), heat=found, note=told and f"{told['found']} of {told['of']}{cut}")
        )
    return row


def transcripts_section(
    label: str, rows: Sequence[dict[str, Any]], examples: int
) -> Element | None:
    """Answers of one model, right and wrong: the first of each family in turn, none picked by
    hand.
    """
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
    given = row["completion"] or "(no answer)"
    if len(given) > LONGEST_ANSWER:
        given = f"{given[:LONGEST_ANSWER]} … ({len(given) - LONGEST_ANSWER:,} more characters)"
    mark = (
        node("span", "✓ right", class_="met")
        if row["correct"]
        else node("span", "✗ wrong", class_="missed")
    )
    expected = None if row["correct"] else f"; expected {row['answer']}"
    cut = "; cut before its end" if row.get("cut") else None
    heading = paragraph(mark, f" · {_spaced(row['family'])}", expected, cut)
    return node("div", heading, node("pre", row["prompt"]), node("pre", given), class_="card")


def _in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    return [row for turn in zip_longest(*by_family.values()) for row in turn if row is not None]


def constant_total(model: dict[str, Any]) -> float | None:
    """What the best constant answer of each family would solve of all problems."""
    problems, rates = model["problems"], model.get("constant_answer", {})
    total = sum(counts["total"] for family, counts in problems.items() if family in rates)
    solved = sum(
        counts["total"] * rates[family] for family, counts in problems.items() if family in rates
    )
    return solved / total if total else None


def _solved(model: dict[str, Any]) -> tuple[int, int]:
    counts = model["problems"].values()
    return sum(each["solved"] for each in counts), sum(each["total"] for each in counts)


def _names(models: Models, key: str) -> list[str]:
    """The families, domains or lengths that any model was measured on, in order."""
    return list(dict.fromkeys(name for model in models.values() for name in model.get(key, {})))


def _bare(share: float | None) -> str:
    """A percentage in a column of them."""
    return MISSING if share is None else f"{100 * share:.1f}"


def _any(models: Models, key: str) -> bool:
    return any(key in model for model in models.values())


def _spaced(name: str) -> str:
    return name.replace("_", " ")
