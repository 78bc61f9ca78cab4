"""Writes docs/results/mixing.md, and the picture beside it, from a finished run of
recipes/mixing_study.py.

    python benchmarks/mixing_study.py runs/mixing

The rule of the verdict is the recipe's, and was there before any run: the objective is the mean
over the answer sets of the right answers' bits per byte, and two mixes differ where their means
over seeds are further apart than two standard errors, the deviations of all mixes pooled.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree.ElementTree import Element, tostring

from pocketlm.data.rank_correlation import spearman
from pocketlm.model.costs import num_parameters
from pocketlm.model.files import read_json, write_text
from pocketlm.model.model_config import ModelConfig
from pocketlm.report.markup import node
from pocketlm.report.spread import least_difference, not_beaten

PAGE, PICTURE = Path("docs/results/mixing.md"), "mixing.svg"
CONTROLS, SWARM = ("proportional", "uniform"), "swarm"
WIDTH, NAMES, ROW = 640.0, 170.0, 30.0
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.axis{stroke:#b3bac3}"
    ".seed{fill:#56b4e9}.mean{fill:#0072b2}.error{stroke:#0072b2;stroke-width:2}"
    "rect{fill:#fff}"
)


@dataclass(frozen=True)
class Study:
    """by_seed[mix]: for each seed the bits per byte of each answer set. mixes: those of mix.json.
    left_out: leave_one_out.json. steps, parameters: of the trainings that are compared, and of
    the proxies that mixes are found with.
    """

    by_seed: dict[str, list[dict[str, float]]]
    mixes: dict[str, Any]
    left_out: dict[str, Any]
    steps: int
    parameters: int
    proxy_steps: int
    proxy_parameters: int

    @property
    def seeds(self) -> int:
        return len(next(iter(self.by_seed.values())))

    def means(self, answers: str | None = None) -> dict[str, float]:
        """Of every mix over seeds: of one answer set, or of the mean of all."""
        return {mix: mean(values) for mix, values in self.values(answers).items()}

    def values(self, answers: str | None = None) -> dict[str, list[float]]:
        """The figure of each seed, for every mix."""
        return {
            mix: [figures[answers] if answers else mean(figures.values()) for figures in by_seed]
            for mix, by_seed in self.by_seed.items()
        }

    def least(self) -> float | None:
        """The difference beyond which two mixes differ; None with one seed."""
        if self.seeds < 2:
            return None
        return least_difference([stdev(values) for values in self.values().values()], self.seeds)


def read_study(run: Path) -> Study:
    """The study of a run folder. FileNotFoundError: a stage that has not finished."""
    for stage, file in (
        ("mix", "mix"),
        ("left-out", "leave_one_out"),
        ("evaluation", "evaluation"),
    ):
        if not (run / stage / f"{file}.json").is_file():
            raise FileNotFoundError(
                f"{run / stage} holds no {file}.json; finish the run first: pocketlm run "
                f"recipes/mixing_study.py DATA ANSWERS --out {run}"
            )
    mixes = read_json(run / "mix" / "mix.json")["mixes"]
    models = read_json(run / "evaluation" / "evaluation.json")["models"]
    by_seed: dict[str, list[dict[str, float]]] = {name: [] for name in mixes}
    for name, figures in by_seed.items():
        while model := models.get(f"{name.replace(' ', '-')}-{len(figures) + 1}"):
            suites = model["suites"].items()
            figures.append({suite.removeprefix("bpb."): part["value"] for suite, part in suites})
    by_seed = {name: figures for name, figures in by_seed.items() if figures}
    record = read_json(run / f"{next(iter(by_seed)).replace(' ', '-')}-1" / "stage.json")
    proxies = read_json(run / "mix" / "stage.json")
    return Study(
        by_seed,
        mixes,
        read_json(run / "left-out" / "leave_one_out.json"),
        record["config"]["optim"]["num_steps"],
        _size(record["config"]["model"]),
        proxies["config"]["optim"]["num_steps"],
        _size(proxies["config"]["proxy"]),
    )


def _size(recorded: Mapping[str, Any]) -> int:
    """Parameters of a network as a stage's record holds its config."""
    return num_parameters(ModelConfig(**{k: v for k, v in recorded.items() if k != "class"}))


# ---- words ----


def verdict(study: Study) -> list[str]:
    """What the rule says, a sentence each, whatever it is."""
    means, least = study.means(), study.least()
    ordered = sorted(means, key=lambda name: means[name])
    if least is None:
        return [
            f"Lowest: {ordered[0]}, at {means[ordered[0]]:.4f}. With one seed nothing is decided."
        ]
    level = not_beaten(means, least)
    rule = f"Two mixes differ beyond {least:.4f} bits per byte."
    lines = [rule]
    if len(level) == 1:
        lines.append(f"{level[0]} is better than every other mix.")
    else:
        lines.append(f"Nothing separates {', '.join(level[:-1])} and {level[-1]}, the lowest.")
    for control in [name for name in CONTROLS if name in means]:
        better = [name for name in ordered if means[control] - means[name] > least]
        worse = [name for name in ordered if means[name] - means[control] > least]
        lines.append(
            f"Against {control}: better are {', '.join(better) or 'none'}; worse are "
            f"{', '.join(worse) or 'none'}."
        )
    return [*lines, *cost_against_swarm(study, least), *transfer(study)]


def cost_against_swarm(study: Study, least: float) -> list[str]:
    """For every method that is not worse than the swarm beyond the spread, its FLOPs over those of
    the swarm; and which are worse.
    """
    costs = {name: mix.get("cost", {}).get("flops") for name, mix in study.mixes.items()}
    means = study.means()
    if SWARM not in means or not costs.get(SWARM):
        return []
    others = [name for name in means if name != SWARM and costs.get(name) is not None]
    level = [name for name in others if means[name] - means[SWARM] <= least]
    worse = [name for name in others if name not in level]
    parts = [f"{name} ({costs[name] / costs[SWARM]:.3g} of its FLOPs)" for name in level]
    return [
        f"To find a mix no worse than the {SWARM}'s: {', '.join(parts) or 'none'}; worse than it "
        f"are {', '.join(worse) or 'none'}."
    ]


def transfer(study: Study) -> list[str]:
    """How far the proxies' own comparison foretold this one."""
    names = list(study.by_seed)
    proxies = [study.mixes[name]["bits_per_byte"]["mean"] for name in names]
    value = spearman(proxies, [study.means()[name] for name in names])
    if value is None:
        return []
    return [
        f"The proxies' order of the {len(names)} mixes on validation text of the sources and the "
        f"order here: rank correlation {value:.2f}."
    ]


def table(study: Study) -> list[str]:
    """One row a mix, the lowest mean first."""
    sets = list(next(iter(study.by_seed.values()))[0])
    means, values = study.means(), study.values()
    lines = [
        f"| mix | {' | '.join(sets)} | mean | deviation | to find it |",
        f"|---|{'---|' * len(sets)}---|---|---|",
    ]
    for mix in sorted(means, key=lambda name: means[name]):
        cells = [f"{study.means(answers)[mix]:.3f}" for answers in sets]
        spread = f"{stdev(values[mix]):.4f}" if study.seeds > 1 else "–"
        cost = study.mixes[mix].get("cost", {}).get("flops")
        found = "–" if cost is None else f"{cost:.2g} FLOPs" if cost else "nothing"
        lines.append(f"| {mix} | {' | '.join(cells)} | **{means[mix]:.4f}** | {spread} | {found} |")
    return lines


def shares_table(study: Study) -> list[str]:
    """The shares themselves."""
    sources = list(next(iter(study.mixes.values()))["shares"])
    lines = [f"| share, % | {' | '.join(sources)} |", f"|---|{'---|' * len(sources)}"]
    for mix in study.by_seed:
        shares = study.mixes[mix]["shares"]
        cells = " | ".join(f"{100 * shares[source]:.1f}" for source in sources)
        lines.append(f"| {mix} | {cells} |")
    return lines


# figures beside a method's own ranks: steps that it tried, counts
UNRANKED = ("line_search", "influence.rows", "influence.positive_mass")


def left_out_lines(left_out: Mapping[str, Any]) -> list[str]:
    """Equation 1's matrix, the rank correlations with it, and what limits them."""
    effects = left_out["effects"]
    capabilities = list(next(iter(effects.values())))
    lines = [f"| without | {' | '.join(capabilities)} |", f"|---|{'---|' * len(capabilities)}"]
    deviations = left_out.get("effects_deviation")
    for source, row in effects.items():
        cells = [
            f"{row[name]:+.3f}" + (f" ± {deviations[source][name]:.3f}" if deviations else "")
            for name in capabilities
        ]
        lines.append(f"| {source} | {' | '.join(cells)} |")
    lines += ["", "| rank correlation with it | capability | Spearman |", "|---|---|---|"]
    for row in left_out.get("rank_correlations", []):
        if row["figure"].startswith(UNRANKED):
            continue
        value = "constant" if row["spearman"] is None else f"{row['spearman']:+.2f}"
        lines.append(f"| {row['mix']}: {row['figure']} | {row['capability']} | {value} |")
    return [*lines, "", *(f"Note: {warning}." for warning in left_out["warnings"])]


def page(study: Study) -> str:
    """docs/results/mixing.md."""
    return "\n".join(
        [
            "# Which way of mixing is worth its cost",
            "",
            "Written by `benchmarks/mixing_study.py` from a run of `recipes/mixing_study.py`,",
            "whose docstring says what was fixed before. Shares are found with proxies of",
            f"{study.proxy_parameters / 1e6:.1f}M parameters and {study.proxy_steps:,} steps,",
            f"and compared at {study.parameters / 1e6:.1f}M and {study.steps:,} steps,",
            f"{study.seeds} seed{'s' * (study.seeds > 1)} each:",
            "bits per byte of the right answers, lower is better; deviation: of one seed.",
            "",
            *(f"- {line}" for line in verdict(study)),
            "",
            *table(study),
            "",
            f"![mean bits per byte of each mix, and of each of its seeds]({PICTURE})",
            "",
            *shares_table(study),
            "",
            "## What is lost without each source",
            "",
            "Rise of the loss in nats a token on each capability's probe set when a source is left",
            "out (R1, equation 1), of proxies, mean and deviation over seeds.",
            "",
            *left_out_lines(study.left_out),
            "",
        ]
    )


# ---- picture ----


def picture(study: Study) -> Element:
    """A row a mix: a dot for each seed, and the mean with two standard errors to both sides."""
    values, means, least = study.values(), study.means(), study.least() or 0.0
    # of one mean: that of a difference is sqrt(2) times as wide
    half = least / 2**0.5
    numbers = [number for by_seed in values.values() for number in by_seed]
    low = min([*numbers, *(means[name] - half for name in means)])
    high = max([*numbers, *(means[name] + half for name in means)])
    span = high - low or 1.0

    def x(value: float) -> float:
        return NAMES + 12 + (value - low) / span * (WIDTH - NAMES - 32)

    height = ROW * (len(means) + 1) + 8
    shapes: list[Element] = [node("rect", width=WIDTH, height=height)]
    for line, name in enumerate(sorted(means, key=lambda mix: means[mix])):
        y = ROW * (line + 0.5) + 4
        shapes.append(node("text", name, x=NAMES, y=y + 4.5, text_anchor="end"))
        left, right = x(means[name] - half), x(means[name] + half)
        shapes.append(node("line", x1=left, x2=right, y1=y, y2=y, class_="error"))
        shapes += [node("circle", cx=x(v), cy=y, r=3.5, class_="seed") for v in values[name]]
        shapes.append(node("circle", cx=x(means[name]), cy=y, r=5, class_="mean"))
    y = ROW * len(means) + 6
    shapes.append(node("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="axis"))
    for value, anchor in ((low, "start"), (high, "end")):
        shapes.append(node("text", f"{value:.3f}", x=x(value), y=y + 18, text_anchor=anchor))
    return node(
        "svg",
        node("title", "Bits per byte of right answers, by mix"),
        node("style", STYLE),
        *shapes,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        xmlns="http://www.w3.org/2000/svg",
    )


def main(words: Sequence[str]) -> None:
    if len(words) != 1:
        sys.exit(str(__doc__))
    try:
        study = read_study(Path(words[0]))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    write_text(PAGE.with_name(PICTURE), tostring(picture(study), encoding="unicode") + "\n")
    write_text(PAGE, page(study))
    print(f"{PAGE}\n" + "\n".join(verdict(study)))


if __name__ == "__main__":
    main(sys.argv[1:])
