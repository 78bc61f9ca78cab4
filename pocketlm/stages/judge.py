"""Judge: a claim of a paper, by rules written before the runs, over several seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pocketlm.model.files import write_json
from pocketlm.model.json_shape import NUMBER, read_object
from pocketlm.report.claims import judge_over_seeds, outcome_of
from pocketlm.report.evaluation import read_evaluation
from pocketlm.report.goals import Goal, measured


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """claim: one sentence. source: the paper and its section. parts: what must hold, each a goal on
    the evaluated models; the claim is shown when all are, and refuted when one is.

    arms: what each label of the evaluations is, in the order of the table. measures: its columns;
    the first is drawn. note: how the setting differs from the paper's. numbered: the seeds stand in
    one evaluation, as LABEL-1, LABEL-2 and so on, in place of one evaluation each.
    """

    name: str
    claim: str
    source: str
    parts: tuple[Goal, ...]
    arms: Mapping[str, str]
    measures: tuple[str, ...]
    note: str = ""
    numbered: bool = False

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"{self.name}: a claim needs at least one part to judge")
        if not self.measures:
            raise ValueError(f"{self.name}: measures is empty; name at least one to draw")

    def summary(self) -> str:
        return f"{self.claim} {len(self.parts)} conditions, {len(self.arms)} arms"


def judge(
    config: JudgeConfig, out: Path, *, evaluations: list[Path], records: list[Path] | None = None
) -> Path:
    """`out`, with claim.json: the verdict, each condition with its figures and interval, the mean
    and standard deviation of every arm over the seeds, and the seconds that `records` add up to.

    evaluations: the folder of one evaluate stage for each seed, with the same labels. records: the
    stage.json of each stage of the claim.
    """
    runs = [read_evaluation(folder)["models"] for folder in evaluations]
    if config.numbered:
        runs = [seed for models in runs for seed in by_number(models, list(config.arms))]
    parts = [judge_over_seeds(goal, runs) for goal in config.parts]
    arms = {
        label: {
            "what": what,
            "figures": {
                measure: _over_seeds([measured(run[label], measure) for run in runs])
                for measure in config.measures
            },
        }
        for label, what in config.arms.items()
    }
    write_json(
        out / "claim.json",
        {
            "claim": config.claim,
            "source": config.source,
            "outcome": outcome_of(parts),
            "seeds": len(runs),
            "seconds": sum(read_object(file).typed("seconds", NUMBER) for file in records or ()),
            "parts": [part.as_data() for part in parts],
            "arms": arms,
            "note": config.note,
        },
    )
    return out


def by_number(models: Mapping[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    """The models of each seed by label, of an evaluation that calls them LABEL-1, LABEL-2 and so
    on. ValueError: a label without a first, or with more seeds than another.
    """
    counts = {label: 0 for label in labels}
    for label in labels:
        while f"{label}-{counts[label] + 1}" in models:
            counts[label] += 1
    if len(set(counts.values())) > 1 or 0 in counts.values():
        numbers = ", ".join(f"{label}: {count}" for label, count in counts.items())
        raise ValueError(
            f"an evaluation of LABEL-1, LABEL-2 and so on must hold as many seeds of each label; "
            f"it holds {numbers}"
        )
    return [
        {label: models[f"{label}-{number + 1}"] for label in labels}
        for number in range(counts[labels[0]])
    ]


def _over_seeds(figures: list[float | None]) -> dict[str, Any]:
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return {"mean": None, "deviation": None, "figures": figures}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": fmean(known), "deviation": deviation, "figures": known}
