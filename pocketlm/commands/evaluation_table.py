"""What an evaluation measured, as tables for the terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketlm.eval.suites.suite import DIFFERS, NOT_FOUND
from pocketlm.report.evaluation import (
    constant_share,
    difference_line,
    families_of,
    figure_rows,
    first_suite,
    limits_reached,
    value_text,
)
from pocketlm.report.published import Beside, beside, legend, peers


def evaluation_table(evaluation: dict[str, Any], width: int) -> RenderableType:
    """A row for each model where there is one suite, a row for each suite where there are several;
    below, what was cut, and how files differ from their checkpoints.
    """
    if not evaluation["suites"]:
        return _text_table(evaluation)
    several = len(evaluation["suites"]) > 1
    table = _suites_table(evaluation) if several else _models_table(evaluation, width)
    notes = [*limits_reached(evaluation), *map(difference_line, evaluation["differences"])]
    rows = beside(evaluation)
    parts = [table, _published_table(evaluation, rows)] if rows else [table]
    lines = (*legend(rows), *notes, *_protocol_notes(evaluation))
    return Group(*parts, *(Text(line) for line in lines))


def _published_table(evaluation: dict[str, Any], rows: list[Beside]) -> Table:
    """What papers print of these suites for models of our size; where a field differs, the field
    in its place.
    """
    names = peers(evaluation) if any(row.papers for row in rows) else []
    table = Table(title="published figures, percent", title_justify="left")
    table.add_column("suite", no_wrap=True)
    for name in (*evaluation["models"], *names):
        table.add_column(name, justify="right")
    table.add_column("source, or what differs from it")
    for row in rows:
        ours = (row.ours.get(label, "") for label in evaluation["models"])
        papers = (row.papers.get(name, "") for name in names)
        note = "; ".join(row.differs)
        table.add_row(row.suite, *ours, *papers, f"{row.source}: {note}" if note else row.source)
    return table


def _text_table(evaluation: dict[str, Any]) -> Table:
    """Needles found and bits per byte of held-out text: an evaluation without suites."""
    table = Table(title="needles found, and bits per byte", title_justify="left")
    models = evaluation["models"].values()
    lengths, domains = (
        list(dict.fromkeys(name for model in models for name in model.get(key, {})))
        for key in ("needle", "bits_per_byte")
    )
    for name in ["model", *(f"needle {tokens}" for tokens in lengths), *domains]:
        table.add_column(name, justify="left" if name == "model" else "right")
    for label, model in evaluation["models"].items():
        needles = [_found(model.get("needle", {}).get(n)) for n in lengths]
        bits = [f"{model['bits_per_byte'][domain]:.3f}" for domain in domains]
        table.add_row(label, *needles, *bits)
    return table


def _models_table(evaluation: dict[str, Any], width: int) -> Table:
    """The families of problems have columns where `width` allows."""
    models, suite = evaluation["models"], first_suite(evaluation)
    first = next(iter(models.values()))
    needles = list(dict.fromkeys(n for model in models.values() for n in model.get("needle", {})))
    families = families_of(evaluation, suite)
    if width < 70 + 11 * len(families):
        families = []
    title = f"solved on suite {suite}" + ", and needles found" * bool(needles)
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    metric = first["suites"][suite]["metric"].replace("_", " ")
    narrow = (metric, "MB", "tokens/s")
    needle_columns = [f"needle {tokens}" for tokens in needles]
    spaced = [family.replace("_", " ") for family in families]
    for name in [metric, *spaced, *needle_columns, "MB", "tokens/s"]:
        table.add_column(name, justify="right", no_wrap=name in narrow)
    for label, model in models.items():
        figures = model["suites"][suite]
        counts = [figures["problems"][family] for family in families]
        cells = [_value(figures), *(f"{c['solved'] / c['total']:.0%}" for c in counts)]
        cells += [_found(model.get("needle", {}).get(n)) for n in needles]
        table.add_row(label, *cells, *_size_and_speed(model))
    blind = constant_share(evaluation, suite)
    if blind is not None:
        table.add_section()
        constant = evaluation["suites"][suite].get("constant_answer", {})
        rates = (f"{constant[family]:.0%}" for family in families if family in constant)
        table.add_row(f"[dim]{_blind_name(evaluation, suite)}[/dim]", f"{blind:.1%}", *rates)
    return table


def _suites_table(evaluation: dict[str, Any]) -> Table:
    """Figures with their standard errors: percent, or bits per byte."""
    models = evaluation["models"]
    table = Table(title="figures with standard errors", title_justify="left")
    table.add_column("suite", no_wrap=True)
    for name in ("metric", "n", *models, "blind"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in figure_rows(evaluation):
        table.add_row(*row)
    table.add_section()
    sizes = [_size_and_speed(model) for model in models.values()]
    table.add_row("MB", "", "", *(size for size, _ in sizes), "")
    table.add_row("tokens/s", "", "", *(speed for _, speed in sizes), "")
    return table


def _value(figures: dict[str, Any]) -> str:
    return value_text(figures) + "%" * (figures["metric"] != "bits_per_byte")


def _found(needle: dict[str, Any] | None) -> str:
    """Blank for a model that none were searched with."""
    return f"{needle['found']}/{needle['of']}" if needle else ""


def _size_and_speed(model: dict[str, Any]) -> tuple[str, str]:
    return f"{model['bytes'] / 1e6:,.2f}", f"{model['tokens_per_second']:,.0f}"


def _blind_name(evaluation: dict[str, Any], suite: str) -> str:
    guess = "chance" in evaluation["suites"][suite]
    return "a guess among the choices" if guess else "best constant answer"


def _protocol_notes(evaluation: dict[str, Any]) -> list[str]:
    """The fields that keep a figure from being the paper's, one line for suites with the same."""
    names: dict[str, list[str]] = {}
    for name, suite in evaluation["suites"].items():
        sources = suite.get("sources", {}).items()
        unlike = [f"{field} ({text})" for field, text in sources if _is_unlike(text)]
        if unlike:
            names.setdefault("; ".join(unlike), []).append(name)
    return [f"{', '.join(suites)}: {fields}" for fields, suites in names.items()]


def _is_unlike(text: str) -> bool:
    return any(word in text for word in (NOT_FOUND, DIFFERS))
