"""evaluation.json as the report and the terminal read it, whichever version wrote it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketlm.model.json_shape import JsonObject, read_object

FILE = "evaluation.json"
MAX_FAMILIES = 12  # more are no columns to read: MMLU has 57


def read_evaluation(folder: Path) -> JsonObject:
    """evaluation.json of an evaluate stage. ValueError if it is not there, holds no model, or is
    damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE}; give the folder of an evaluate stage")
    content = read_object(path)
    if not content.object("models", None):
        raise ValueError(f"{path} holds no model's figures; run the evaluate stage anew")
    return content if "suites" in content else with_suites(content)


def with_suites(content: JsonObject) -> JsonObject:
    """What a version up to 0.1 wrote, whose models had one suite's figures among their own, in
    today's form.
    """
    name = str(content.get("suite", "suite"))
    models: dict[str, Any] = {}
    constant: dict[str, float] = {}
    for label in content.object("models"):
        figures = dict(content.object("models").object(label))
        problems = figures.pop("problems", {})
        solved = sum(counts["solved"] for counts in problems.values())
        total = max(1, sum(counts["total"] for counts in problems.values()))
        share = figures.pop("accuracy", solved / total)
        constant = constant or figures.pop("constant_answer", {})
        figures.pop("constant_answer", None)
        figures["suites"] = {
            name: {
                "metric": "accuracy",
                "value": share,
                "standard_error": math.sqrt(share * (1 - share) / max(1, total - 1)),
                "n": total,
                "answers_cut": figures.pop("answers_cut", 0),
                "problems": problems,
            }
        }
        models[label] = figures
    suite = {"kind": "generation", "metric": "accuracy", "constant_answer": constant}
    if "max_new_tokens" in content:
        suite["max_new_tokens"] = content["max_new_tokens"]
    return JsonObject({"suites": {name: suite}, "models": models, "differences": []}, content.file)


def first_suite(evaluation: dict[str, Any]) -> str:
    """The suite that headlines, goals and the families' columns are about."""
    return next(iter(evaluation["suites"]))


def families_of(evaluation: dict[str, Any], name: str) -> list[str]:
    """The suite's families where it has some, few enough for a column each, in order; else none."""
    names = dict.fromkeys(
        family
        for model in evaluation["models"].values()
        for family in model["suites"].get(name, {}).get("problems", {})
    )
    return list(names) if len(names) <= MAX_FAMILIES and set(names) != {""} else []


def solved_of(figures: dict[str, Any]) -> tuple[int, int]:
    """(solved, of) of one model on one suite."""
    counts = figures.get("problems", {}).values()
    return sum(count["solved"] for count in counts), sum(count["total"] for count in counts)


def constant_share(evaluation: dict[str, Any], name: str) -> float | None:
    """What needs no reading: the best constant answer to each family, or a guess among choices."""
    suite = evaluation["suites"][name]
    if "chance" in suite:
        return suite["chance"]
    rates = suite.get("constant_answer", {})
    problems = next(iter(evaluation["models"].values()))["suites"][name].get("problems", {})
    counts = {family: count["total"] for family, count in problems.items() if family in rates}
    total = sum(counts.values())
    return sum(counts[family] * rates[family] for family in counts) / total if total else None


def limits_reached(evaluation: dict[str, Any]) -> list[str]:
    """A line for each model and suite where answers were cut or empty, or contexts shortened; and
    what the programs of a suite were run in, and which suites were left out.
    """
    lines = []
    for label, model in evaluation["models"].items():
        for name, figures in model["suites"].items():
            what = f"{label}, {name}" if len(evaluation["suites"]) > 1 else label
            total = f"of {figures['n']:,}"
            if cut := figures.get("answers_cut", 0):
                limit = evaluation["suites"][name].get("max_new_tokens", "?")
                lines.append(
                    f"{what}: {cut:,} {total} answers reached max_new_tokens {limit} or the "
                    "model's length and were cut there"
                )
            if empty := figures.get("answers_empty", 0):
                lines.append(f"{what}: {empty:,} {total} answers are empty")
            if verdicts := figures.get("verdicts", {}):
                counts = (f"{count:,} {name}" for name, count in verdicts.items() if count)
                lines.append(f"{what}: verdicts on its programs: {', '.join(counts)}")
            if short := figures.get("contexts_truncated", 0):
                lines.append(
                    f"{what}: {short:,} {total} contexts are longer than the model reads and "
                    "lost their beginning"
                )
    for name, suite in evaluation["suites"].items():
        if sandbox := suite.get("sandbox"):
            lines.append(f"{name}: programs were run in a sandbox of this kind: {sandbox}")
    if names := evaluation.get("left_out"):
        lines.append(f"not measured, as was asked (--without): {', '.join(names)}")
    return lines


def value_text(figures: dict[str, Any]) -> str:
    """A suite's figure in its unit: "62.1", in percent, or bits per byte "1.203"."""
    value = figures["value"]
    return f"{value:.3f}" if figures["metric"] == "bits_per_byte" else f"{100 * value:.1f}"


def error_text(figures: dict[str, Any]) -> str:
    """Its standard error in the same unit."""
    error = figures["standard_error"]
    return f"{error:.3f}" if figures["metric"] == "bits_per_byte" else f"{100 * error:.1f}"


def figure_rows(evaluation: dict[str, Any]) -> Iterator[list[str]]:
    """A row of cells for each suite: its name, the metric, how many documents, each model's figure
    with its standard error, and what needs no reading.
    """
    for name in evaluation["suites"]:
        figures = [model["suites"][name] for model in evaluation["models"].values()]
        blind = constant_share(evaluation, name)
        yield [
            name,
            figures[0]["metric"].replace("_", " "),
            f"{figures[0]['n']:,}",
            *(f"{value_text(figure)} ± {error_text(figure)}" for figure in figures),
            "" if blind is None else f"{100 * blind:.1f}",
        ]


def difference_line(difference: dict[str, Any]) -> str:
    """A paired difference in one sentence."""
    bits = difference["metric"] == "bits_per_byte"
    scale, digits, unit = (1, 4, "bits/byte") if bits else (100, 2, "points")
    middle, low, high = (
        f"{scale * difference[key]:+.{digits}f}" for key in ("difference", "low", "high")
    )
    sentence = (
        f"{difference['model']} against {difference['compared_to']} on {difference['suite']}: "
        f"{middle} {unit} (95 %: {low} to {high}), of {difference['n']:,} documents "
        f"{difference['better']:,} better and {difference['worse']:,} worse"
    )
    if "p_value" in difference:
        sentence += f", McNemar p {difference['p_value']:.2g}"
    if others := difference.get("other_ids"):
        sentence += f"; {others:,} of them are other tokens to it"
    return sentence
