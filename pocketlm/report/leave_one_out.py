"""What each source does for each capability, measured by leaving it out."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any
from xml.etree.ElementTree import Element

from pocketlm.report.heat_map import heat_map
from pocketlm.report.markup import node
from pocketlm.report.number_format import MISSING, signed, significant
from pocketlm.report.page import Cell, figure, number, paragraph, section, table
from pocketlm.report.spread import ERRORS
from pocketlm.report.timeline import Stage


def leave_one_out_section(stages: Sequence[Stage]) -> Element | None:
    """A heat map of effects, and how far the figures of the mixes order the sources alike."""
    files = {
        stage.name: stage.files["leave_one_out.json"]
        for stage in stages
        if "leave_one_out.json" in stage.files
    }
    parts = [
        part for name, file in files.items() for part in _parts(name, file, named=len(files) > 1)
    ]
    return section("leave-one-out", "What is lost without each source", *parts) if parts else None


def _parts(name: str, file: Mapping[str, Any], *, named: bool) -> list[Element]:
    effects, clear = file["effects"], clear_effects(file)
    label = "Rise of the loss, in nats a token, on each capability when a source is left out"
    chart = figure(
        heat_map(label, effects, spread=file.get("effects_deviation"), clear=clear),
        f"{label} (R1, equation 1): above 0 the source helps. ",
        _spread_words(file),
    )
    chart.set("class", "one")
    return [
        *([node("h3", name)] if named else []),
        paragraph(_sentence(file)),
        *[paragraph(f"{line[0].upper()}{line[1:]}.", quiet=True) for line in file["warnings"]],
        chart,
        _losses(file),
        *([_correlations(file)] if file.get("rank_correlations") else []),
    ]


def clear_effects(file: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(source, capability) of the effects that are further from 0 than two standard errors over
    seeds; none where there is one seed.
    """
    deviations = file.get("effects_deviation")
    if deviations is None:
        return set()
    return {
        (source, capability)
        for source, row in file["effects"].items()
        for capability, effect in row.items()
        if abs(effect) > ERRORS * deviations[source][capability] / sqrt(file["num_seeds"])
    }


def _spread_words(file: Mapping[str, Any]) -> str:
    if file["num_seeds"] < 2:
        return "One seed: how much of it is chance is unknown."
    return (
        f"Means over {file['num_seeds']} seeds; bold: further from 0 than two standard errors of "
        "its own seeds."
    )


def _sentence(file: Mapping[str, Any]) -> str:
    """For each capability the source that is missed most."""
    effects = file["effects"]
    capabilities = list(next(iter(effects.values())))
    parts = []
    for capability in capabilities:
        most = max(effects, key=lambda source: effects[source][capability])
        parts.append(f"{capability} {most} ({signed(effects[most][capability], 3)})")
    return (
        "One small network was trained on all sources in equal shares, and one without each. "
        f"Missed most, by the loss in nats a token: for {', for '.join(parts)}."
    )


def _losses(file: Mapping[str, Any]) -> Element:
    losses = file["losses"]
    runs = {"untrained": losses["start"], "all sources": losses["all"]}
    runs |= {f"without {source}": loss for source, loss in losses["without"].items()}
    capabilities = list(losses["all"])
    rows: list[list[Cell]] = [
        [
            run,
            *(number(f"{by_capability[name]['nats_per_token']:.3f}") for name in capabilities),
            *(number(f"{by_capability[name]['bits_per_byte']:.3f}") for name in capabilities),
        ]
        for run, by_capability in runs.items()
    ]
    headings: list[Cell] = ["trained on", *(f"{name}, nats a token" for name in capabilities)]
    headings += [f"{name}, bits per byte" for name in capabilities]
    return table("Loss of every proxy on each probe set", headings, rows)


def _correlations(file: Mapping[str, Any]) -> Element:
    """A row for each figure of each mix, a column for each capability."""
    values = {
        (row["mix"], row["figure"], row["capability"]): row["spearman"]
        for row in file["rank_correlations"]
    }
    capabilities = [*next(iter(file["effects"].values())), "all"]
    count = file["rank_correlations"][0]["sources"]
    rows: list[list[Cell]] = []
    for mix, name in dict.fromkeys((mix, name) for mix, name, _ in values):
        row: list[Cell] = [f"{mix}: {name.replace('_', ' ')}"]
        for capability in capabilities:
            value = values.get((mix, name, capability))
            row.append(number(MISSING if value is None else significant(round(value, 2))))
        rows.append(row)
    return table(
        f"Spearman's rank correlation with these effects, over {count} sources",
        [f"rank correlation over {count} sources", *capabilities],
        rows,
    )
