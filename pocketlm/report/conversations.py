"""The conversations: which each training stage learnt, and which it left out, by reason."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import count, percent
from pocketlm.report.page import Cell, number, paragraph, section, table
from pocketlm.report.timeline import Stage

WARNED_SHARE = 0.01
HEADINGS = (
    "stage",
    "rows",
    "learnt",
    "examples",
    "left out",
    "truncated",
    "beyond the cap",
    "fields the template does not show",
    "special words read as text",
)


def conversations_section(stages: Sequence[Stage]) -> Element | None:
    """A row for each training stage that learnt conversations, and for each of its sources."""
    reports = {
        stage.name: stage.files["conversations.json"]
        for stage in stages
        if "conversations.json" in stage.files
    }
    if not reports:
        return None
    rows: list[list[Cell]] = []
    for name, counts in reports.items():
        rows.append(_row(name, counts))
        sources = counts.get("sources", {})
        if len(sources) > 1:
            rows += [_row(f"{name}: {source}", by_source) for source, by_source in sources.items()]
    parts: list[Element] = [
        paragraph(
            "A row is one conversation of a source; it may give several examples, or none. What "
            "was left out, what is beyond max_conversations or behind the place where a "
            "conversation was truncated, and fields that rows have and the chat template does not "
            "write, a model never sees."
        ),
        table("Conversations of each training stage", list(HEADINGS), rows, class_="full wide"),
    ]
    warnings = [line for name, counts in reports.items() if (line := _warning(name, counts))]
    parts += [node("p", line, class_="missed") for line in warnings]
    return section("conversations", "Conversations: what was learnt of them", *parts)


def _row(name: str, counts: Mapping[str, Any]) -> list[Cell]:
    return [
        name,
        *(
            number(f"{counts[key]:,}") if key in counts else None
            for key in ("rows", "learnt", "examples")
        ),
        _counts(counts.get("left_out", {})) or "none",
        _counts(counts.get("truncated", {})) or "none",
        number(f"{counts['beyond_cap']:,}") if counts.get("beyond_cap") else "none",
        _counts(counts.get("fields_not_rendered", {})) or "none",
        number(f"{counts['special_words_as_text']:,}")
        if "special_words_as_text" in counts
        else None,
    ]


def _warning(name: str, counts: Mapping[str, Any]) -> str:
    """What is to be said of a stage that left out more than WARNED_SHARE of its rows; "" of
    another.
    """
    rows, not_learnt = counts["rows"], counts["rows"] - counts["learnt"]
    if not_learnt <= WARNED_SHARE * rows:
        return ""
    reasons = _counts(counts.get("left_out", {})) or "no reason was written"
    return (
        f"{name}: {count(not_learnt)} of {count(rows)} conversations "
        f"({percent(not_learnt / rows)}) were not learnt: {reasons}."
    )


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(
        f"{reason.replace('_', ' ')} {number_of:,}" for reason, number_of in reasons.items()
    )
