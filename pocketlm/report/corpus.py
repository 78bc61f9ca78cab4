"""The text: what curation kept and dropped, and which samples were selected."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import count, percent
from pocketlm.report.page import (
    Cell,
    figure,
    fold,
    legend,
    multiples,
    number,
    paragraph,
    section,
    swatch,
    table,
)
from pocketlm.report.plots import bar, histogram
from pocketlm.report.style import COLOURS
from pocketlm.report.timeline import Stage

BINS = 24  # of a histogram, even: 0 is the edge in the middle


def curation_section(stages: Sequence[Stage], examples: int) -> Element | None:
    """Documents kept and dropped of each source, and what the filters dropped looks like."""
    curations = [stage for stage in stages if "curation.json" in stage.files]
    several = len(curations) > 1
    parts = [part for stage in curations for part in _curation(stage, examples, named=several)]
    return section("curation", "Curation: what was left out", *parts) if parts else None


def _curation(stage: Stage, examples: int, *, named: bool) -> list[Element]:
    curation = stage.files["curation.json"]
    sources = curation["sources"]
    reasons = list(dict.fromkeys(name for source in sources.values() for name in source["dropped"]))
    colours = {name: COLOURS[1:][place % len(COLOURS[1:])] for place, name in enumerate(reasons)}
    read = sum(source["read"]["documents"] for source in sources.values())
    kept = sum(part["documents"] for source in sources.values() for part in source["kept"].values())
    tokens = sum(source["kept"].get("train", {}).get("tokens", 0) for source in sources.values())
    intro = (
        f"Of {count(read)} documents {count(kept)} were kept ({percent(kept / max(1, read))}): "
        f"{count(tokens)} tokens to train on, with a vocabulary of "
        f"{count(curation['tokenizer']['vocab_size'])}."
    )
    headings: list[Cell] = ["source", "domain", "kept and dropped", "read", "kept"]
    headings += [node("span", swatch(colours[name]), _spaced(name)) for name in reasons]
    headings += ["training tokens", "bytes a token"]
    rows = [
        _source_row(name, source, reasons, colours, curation["tokenizer"])
        for name, source in sources.items()
    ]
    parts = [node("h3", stage.name)] if named else []
    labels = [("c1", "kept"), *((colours[name], _spaced(name)) for name in reasons)]
    parts += [
        paragraph(intro),
        legend(labels),
        table("Documents by source", headings, rows, class_="full wide"),
        *_files(sources),
        *_throughput(stage.files.get("throughput.json")),
    ]
    if examples and curation["examples"]:
        items = []
        for name, texts in curation["examples"].items():
            items.append(node("dt", _spaced(name)))
            items += [node("dd", text) for text in texts[:examples]]
        parts.append(
            fold("Examples of what each filter dropped", node("dl", *items, class_="dropped"))
        )
    return parts


def _files(sources: dict[str, Any]) -> list[Element]:
    """How many files were read; a table of those that were not, where there are any."""
    files_of = {
        name: source["files"]
        for name, source in sources.items()
        if source.get("files", {}).get("found")
    }
    rows: list[list[Cell]] = []
    for name, files in files_of.items():
        for reason, unread in files["unread"].items():
            more = ", ..." if unread["count"] > len(unread["names"]) else ""
            cells = [
                number(f"{unread['count']:,}", note=f"of {files['found']:,}"),
                ", ".join(unread["names"]) + more,
            ]
            rows.append([name, _spaced(reason), *cells])
    present, read = (sum(files[key] for files in files_of.values()) for key in ("found", "read"))
    parts = (
        [paragraph(f"Of {count(present)} files in the sources' folders {count(read)} were read.")]
        if files_of
        else []
    )
    if rows:
        parts.append(
            table(
                "Files that were not read",
                ["source", "reason", "files", "names"],
                rows,
                class_="full",
            )
        )
    return parts


def _throughput(figures: dict[str, Any] | None) -> list[Element]:
    """How fast curation was; nothing for a corpus of a version that did not measure it."""
    if figures is None:
        return []
    read = figures["read"]
    line = (
        f"Read and filtered on {figures['executor']}: {read['documents_per_second']:,} documents "
        f"and {read['megabytes_per_second']:,} MB a second."
    )
    if slowest := read.get("slowest_task"):
        line += (
            f" The slowest task, part {slowest['part']} of {slowest['source']}, took "
            f"{slowest['seconds']:,} s."
        )
    return [paragraph(line)]


def _source_row(
    name: str,
    source: dict[str, Any],
    reasons: list[str],
    colours: dict[str, str],
    tokenizer: dict[str, Any],
) -> list[Cell]:
    read = source["read"]["documents"]
    kept = sum(part["documents"] for part in source["kept"].values())
    train = source["kept"].get("train", {})
    dropped = source["dropped"]
    whole = max(1, kept + sum(dropped.values()))  # a long document may be kept as several
    parts = [(kept / whole, "c1", f"kept: {kept:,}")]
    parts += [
        (dropped[reason] / whole, colours[reason], f"{_spaced(reason)}: {dropped[reason]:,}")
        for reason in dropped
    ]
    drawn = bar(f"{name}: {kept:,} kept, {sum(dropped.values()):,} dropped", parts)
    compression = tokenizer["bytes_per_token"].get(name)
    return [
        name,
        source["domain"],
        node("td", drawn, class_="bar"),
        number(f"{read:,}"),
        number(f"{kept:,}"),
        *(number(f"{dropped.get(reason, 0):,}") for reason in reasons),
        number(count(train.get("tokens", 0))),
        None if compression is None else number(f"{compression:.2f}"),
    ]


def selection_section(stages: Sequence[Stage]) -> Element | None:
    """Influence of the samples of each source in each round, and the share that was kept."""
    rounds = [stage for stage in stages if "selection.json" in stage.files]
    if not rounds:
        return None
    selections = {stage.name: stage.files["selection.json"] for stage in rounds}
    kept_sources = (source for selection in selections.values() for source in selection["kept"])
    sources = list(dict.fromkeys(kept_sources))
    rows: list[list[Cell]] = []
    for source in sources:
        row: list[Cell] = [source]
        for selection in selections.values():
            kept = selection["kept"].get(source)
            share = kept["documents"] / kept["of"] if kept and kept["of"] else None
            note = f"{kept['documents']:,} of {kept['of']:,}" if kept else None
            in_mix = percent(selection["shares"].get(source))
            row += [number(percent(share), note=note), number(in_mix)]
        rows.append(row)
    headings: list[Cell] = ["source"]
    headings += [f"{name}: {what}" for name in selections for what in ("kept", "share of the mix")]
    intro = (
        "Influence: how much a sample's gradient points the way that the probe sets ask for. What "
        "is above 0 "
        "still helps the current model and is kept; the rest is left out of the next round."
    )
    parts: list[Element] = [paragraph(intro), table("Samples kept in each round", headings, rows)]
    parts += _dropped_by_capability(selections)
    parts.append(legend([("c1", "above 0: kept"), ("rest", "below: left out")]))
    for name, selection in selections.items():
        parts += [node("h3", name), _histograms(name, selection)]
    return section("selection", "Selection: which samples still help", *parts)


def _dropped_by_capability(selections: dict[str, dict[str, Any]]) -> list[Element]:
    """What each round dropped of each capability, and where the rounds stopped; nothing for
    selections of versions that did not count it.
    """
    rows: list[list[Cell]] = []
    for name, selection in selections.items():
        for capability, figures in selection.get("capabilities", {}).items():
            documents, tokens = figures["documents"], figures["tokens"]
            mass = figures["positive_mass"]
            note = f"{documents['kept']:,} of {documents['of']:,}"
            shares = (
                (documents["kept"], documents["of"], note),
                (tokens["kept"], tokens["of"], None),
                (mass["after"], mass["before"], None),
            )
            cells = [number(percent(a / b if b else None), note=words) for a, b, words in shares]
            rows.append([name, capability, *cells])
    headings: list[Cell] = ["round", "capability", "samples kept", "tokens kept"]
    headings.append("positive influence on its probe set kept")
    parts = [table("What was kept of each capability", headings, rows)] if rows else []
    stops = dict.fromkeys(s["stopped"] for s in selections.values() if s.get("stopped"))
    parts += [paragraph(f"The rounds stopped: {reason}.") for reason in stops]
    return parts


def _histograms(round_name: str, selection: dict[str, Any]) -> Element:
    """A histogram for each source, all of a round on one scale; a fiftieth at either end is folded
    in.
    """
    influence = {source: values for source, values in selection["influence"].items() if values}
    sizes = sorted(abs(value) for values in influence.values() for value in values)
    reach = (sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0) or 1.0
    figures = []
    for source, values in influence.items():
        kept = selection["kept"][source]
        share = percent(kept["documents"] / max(1, kept["of"]))
        label = f"Influence of {source} in {round_name}: {share} kept"
        chart = histogram(label, values, -reach, reach, BINS)
        facts = f" {share} kept, {kept['documents']:,} of {kept['of']:,} pieces"
        sample = f"; {len(values)} drawn" if len(values) < kept["of"] else ""
        figures.append(figure(chart, node("strong", source), facts + sample))
    return multiples(figures)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
