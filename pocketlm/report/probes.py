"""The probe sets: how many documents of each source each step left, and what they look like."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import count, percent
from pocketlm.report.page import Cell, fold, number, paragraph, section, table
from pocketlm.report.timeline import Stage

WORDS = {
    "quality": "quality",
    "ask": "asked",
    "ask_by_capability": "asked for it",
    "deduplication": "none alike",
    "size": "size",
}


def probes_section(stages: Sequence[Stage], examples: int) -> Element | None:
    """For each capability a table of what each step kept, and examples of kept and dropped."""
    built = [stage for stage in stages if "probes.json" in stage.files]
    parts = [part for stage in built for part in _probes(stage, examples, named=len(built) > 1)]
    return section("probes", "Probe sets: what influence looks at", *parts) if parts else None


def _probes(stage: Stage, examples: int, *, named: bool) -> list[Element]:
    content = stage.files["probes.json"]
    steps: list[dict[str, Any]] = content["steps"]
    sets = content["capabilities"]
    totals = "; ".join(
        f"{name}: {count(sum(figures['documents'] for figures in by.values()))} documents, "
        f"{count(sum(figures['tokens'] for figures in by.values()))} tokens"
        for name, by in sets.items()
    )
    parts = [node("h3", stage.name)] if named else []
    parts.append(paragraph(f"Held-out text, of which nothing is trained on. {totals}."))
    if skipped := [f"{WORDS[s['step']]} ({s['skipped']})" for s in steps if "skipped" in s]:
        parts.append(paragraph(f"Steps passed over: {', '.join(skipped)}.", quiet=True))
    for capability in sets:
        parts += [node("h3", capability), _survivors(capability, steps)]
    if examples:
        parts += [_examples(step, examples) for step in steps if "sources" in step]
    return parts


def _survivors(capability: str, steps: list[dict[str, Any]]) -> Element:
    """A row for each source that serves the capability: documents after each step."""
    taken = [
        step
        for step in steps
        if "sources" in step and step.get("capability", capability) == capability
    ]
    serving = list(taken[-1]["sources"])  # the size comes last, of each capability
    headings: list[Cell] = ["source", "held out", *(WORDS[step["step"]] for step in taken)]
    rows = []
    for source in serving:
        figures = [step["sources"].get(source) for step in taken]
        row: list[Cell] = [source, number(f"{figures[0]['of']:,}" if figures[0] else "0")]
        for one in figures:
            share = percent(one["kept"] / max(1, one["of"])) if one else ""
            row.append(number(f"{one['kept']:,}", note=f"{share} of what came") if one else None)
        rows.append(row)
    return table(f"Documents for {capability} after each step", headings, rows)


def _examples(step: dict[str, Any], most: int) -> Element:
    """What a step kept and dropped of each source, not picked by hand."""
    items = []
    for source, figures in step["sources"].items():
        for kind in ("kept", "dropped"):
            for example in figures["examples"][kind][:most]:
                like = f" Like: {example['like']}" if "like" in example else ""
                score = example.get("score", example.get("cosine"))
                prefix = "" if score is None else f"{score:.3f}: "
                items += [
                    node("dt", f"{source}, {kind}"),
                    node("dd", prefix + example["text"] + like),
                ]
    of = f" for {step['capability']}" if "capability" in step else ""
    return fold(f"Examples: {WORDS[step['step']]}{of}", node("dl", *items, class_="dropped"))
