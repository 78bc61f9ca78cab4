"""The mix: the shares of every mix that was compared, and what each was worth on held-out text."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.markup import node
from pocketlm.report.number_format import percent, signed, significant
from pocketlm.report.page import Cell, number, paragraph, section, swatch, table
from pocketlm.report.plots import bar
from pocketlm.report.style import COLOURS
from pocketlm.report.timeline import Stage

# what mix.json of the first versions holds beside "shares", and how those mixes were found
OLD_MIXES = {"uniform": "the same share for each source", "proportional": "each source by its size"}


def mix_section(stages: Sequence[Stage]) -> Element | None:
    """Shares of each source in every mix, and the proxies' bits per byte."""
    with_mix = [stage for stage in stages if "mix.json" in stage.files]
    parts = [part for stage in with_mix for part in _mix(stage, named=len(with_mix) > 1)]
    return section("mix", "The mix: how much of each source", *parts) if parts else None


def compared_mixes(file: dict[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """(the name of the selected mix, every mix by its name) of a mix.json of any version."""
    if "mixes" in file:
        return file["selected"], file["mixes"]
    bits = file["bits_per_byte"]
    selected = {
        "method": "from each source's utility in one simulated run",
        "shares": file["shares"],
        "bits_per_byte": bits["found"],
        "utility": file["utility"],
    }
    plain = {
        name: {"method": method, "shares": file[name], "bits_per_byte": bits[name]}
        for name, method in OLD_MIXES.items()
    }
    return "found", {"found": selected, **plain}


def _mix(stage: Stage, *, named: bool) -> list[Element]:
    selected, mixes = compared_mixes(stage.files["mix.json"])
    ordered = {selected: mixes[selected], **mixes}
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(ordered)}
    utilities = {name: mix["utility"] for name, mix in ordered.items() if "utility" in mix}
    largest = max((s for mix in ordered.values() for s in mix["shares"].values()), default=0) or 1
    rows: list[list[Cell]] = []
    for source in ordered[selected]["shares"]:
        row: list[Cell] = []
        bars = []
        for name, mix in ordered.items():
            share = mix["shares"].get(source, 0.0)
            words = f"{source}, {name}: {percent(share)}"
            bars.append(bar(words, [(share / largest, colours[name], words)], height=7))
            row.append(number(percent(share), strong=name == selected))
        values = [utility.get(source) for utility in utilities.values()]
        row += [None if value is None else number(significant(value)) for value in values]
        rows.append([source, node("td", *bars, class_="bar"), *row])
    headings: list[Cell] = ["source", "share"]
    headings += [node("span", swatch(colour), name) for name, colour in colours.items()]
    headings += ["utility" if len(utilities) == 1 else f"utility ({name})" for name in utilities]
    methods = "; ".join(f"{name}: {mix['method']}" for name, mix in ordered.items())
    caption = f"Shares of each source in {len(ordered)} mixes"
    bits = {name: mix["bits_per_byte"] for name, mix in ordered.items()}
    return [
        *([node("h3", stage.name)] if named else []),
        paragraph(f"Trained on: {selected}. {methods[0].upper()}{methods[1:]}."),
        table(caption, headings, rows, class_="full"),
        *([paragraph(_verdict(selected, bits))] if len(bits) > 1 else []),
        _bits(bits),
        *(
            part
            for name, mix in ordered.items()
            if "influence" in mix
            for part in _influence(name, mix["influence"])
        ),
    ]


def _influence(name: str, influence: dict[str, Any]) -> list[Element]:
    """The densities that a mix comes from, by capability, and how far another score agrees."""
    by_capability = influence["density_by_capability"]
    rows: list[list[Cell]] = []
    for source, joint in influence["density"].items():
        row: list[Cell] = [source]
        for capability, densities in by_capability.items():
            serves = source in influence["capabilities"][capability]
            row.append(number(significant(densities[source]), strong=serves))
        mass = percent(influence["positive_mass"][source])
        rows.append([*row, number(significant(joint)), number(mass)])
    headings: list[Cell] = ["source", *by_capability, "all together", "positive mass"]
    words = (
        f"{name}: shares follow the influence density of each source on the probe set of each "
        f"capability, by {influence['score']}; in bold that of the sources which serve it."
    )
    if influence["clipped"]:
        words += f" Negative, and so without a share: {', '.join(influence['clipped'])}."
    ranks = influence["rank_correlation"]
    if ranks["sources"] is not None:
        scores = " and ".join(influence["density_by_score"])
        words += f" The order of the sources by {scores} agrees to {signed(ranks['sources'], 2)}"
        if ranks["rows"] is not None:
            words += f", that of their rows to {signed(ranks['rows'], 2)}"
        words += " (Spearman's rank correlation)."
    return [paragraph(words), table(f"Influence density ({name})", headings, rows)]


def _verdict(selected: str, bits: dict[str, dict[str, float]]) -> str:
    """Whether the selected mix is the best of those compared, in words."""
    best = min(bits, key=lambda name: bits[name]["mean"])
    others = [
        f"{signed(bits[selected]['mean'] - bits[name]['mean'], 3)} against {name}"
        for name in bits
        if name != selected
    ]
    outcome = f"the best of the {len(bits)}" if best == selected else f"not the best: {best} is"
    return (
        f"Trained alike from the same start, the {selected} mix is {outcome} in mean held-out bits "
        f"per byte ({', '.join(others)}; lower is better)."
    )


def _bits(bits: dict[str, dict[str, float]]) -> Element:
    domains = list(next(iter(bits.values())))
    least = {domain: min(values[domain] for values in bits.values()) for domain in domains}
    rows = [
        [name, *(number(f"{values[d]:.3f}", strong=values[d] == least[d]) for d in domains)]
        for name, values in bits.items()
    ]
    return table(
        "Held-out bits per byte after training on each mix", ["bits per byte", *domains], rows
    )
