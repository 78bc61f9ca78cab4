"""Report: a finished run as one HTML page that opens anywhere and fetches nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.eval.answers_file import transcript
from pocketlm.model.files import read_json, write_text
from pocketlm.model.json_lines import json_lines
from pocketlm.model.json_shape import read_object
from pocketlm.report.added import added
from pocketlm.report.conversations import conversations_section
from pocketlm.report.corpus import curation_section, selection_section
from pocketlm.report.evaluation import first_suite, read_evaluation
from pocketlm.report.goals import Goal, judge
from pocketlm.report.leave_one_out import leave_one_out_section
from pocketlm.report.merging import merging_section
from pocketlm.report.mixing import mix_section
from pocketlm.report.model_table import evaluation_section
from pocketlm.report.number_format import duration
from pocketlm.report.page import page
from pocketlm.report.probes import probes_section
from pocketlm.report.results import goals_section, headline, shipped_labels, transcripts_section
from pocketlm.report.road_picture import road_picture
from pocketlm.report.speed import speed_section
from pocketlm.report.timeline import Stage, curves_section, recipe_section, road_section

RECORD = "stage.json"
SHOWN_FILES = (
    "curation.json",
    "throughput.json",
    "conversations.json",
    "probes.json",
    "mix.json",
    "leave_one_out.json",
    "selection.json",
    "merge.json",
    "export.json",
    "evaluation.json",
    "bench.json",
)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """title: of the page. goals: what the recipe promised, judged by the evaluation; none, no
    table.

    claims: of the papers, judged alike and told apart: a recipe does not promise them. examples:
    how many right and how many wrong answers are shown, and texts that each filter dropped.
    """

    name: str
    title: str
    goals: tuple[Goal, ...] = ()
    claims: tuple[Goal, ...] = ()
    examples: int = 4

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"{self.name}.examples is {self.examples}; it must be 0 or more")

    def summary(self) -> str:
        return f"{self.title!r}, {len(self.goals)} goals"


def report(config: ReportConfig, out: Path, *, stages: list[Path], evaluation: Path) -> Path:
    """`out`, with report.html: results, goals, the road, and whatever the stages left that can be
    drawn.

    `stages` are finished stage folders in the order of the recipe; `evaluation`, the folder of an
    evaluate stage, comes last if it is not among them. A part whose stage the recipe lacks is left
    out. ValueError: a folder that is no finished stage, a file that cannot be read, or a goal about
    a model not evaluated.
    """
    folders = [*stages, *([] if evaluation in stages else [evaluation])]
    read = [read_stage(folder) for folder in folders]
    measured = read_evaluation(evaluation)
    models = measured["models"]
    verdicts = [judge(goal, models) for goal in config.goals]
    claims = [judge(claim, models) for claim in config.claims]
    exports = [stage.files["export.json"] for stage in read if "export.json" in stage.files]
    seconds = sum(stage.seconds for stage in read)
    label = shipped_labels(models)[0]
    answers = read_answers(evaluation, label, first_suite(measured))
    first = next((row for row in answers if "completion" in row), None)
    sections = [
        headline(measured, exports, verdicts, seconds, first, road_picture(read, measured)),
        road_section(read, added(read, measured)),
        evaluation_section(measured),
        goals_section(verdicts, claims),
        speed_section(read),
        curves_section(read),
        curation_section(read, config.examples),
        conversations_section(read),
        probes_section(read, config.examples),
        mix_section(read),
        leave_one_out_section(read),
        selection_section(read),
        merging_section(read),
        transcripts_section(label, answers, config.examples),
        recipe_section(read),
    ]
    write_text(out / "report.html", page(config.title, sections, _footer(read, seconds)))
    return out


def read_stage(folder: Path) -> Stage:
    """A finished stage's record and figures. ValueError if the folder is none."""
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"{folder} is no stage of a run (no {RECORD}); give folders that stages returned"
        )
    record = read_json(folder / RECORD)
    if (
        not isinstance(record, dict)
        or not {"stage", "config", "inputs", "status", "seconds"} <= record.keys()
    ):
        raise ValueError(
            f"{folder / RECORD}: not the record of a stage; restore the file, or run the stage anew"
        )
    if record["status"] != "finished":
        raise ValueError(
            f"the stage in {folder} has not finished (it is {record['status']}); finish it first"
        )
    files = {name: read_object(folder / name) for name in SHOWN_FILES if (folder / name).is_file()}
    metrics = folder / "metrics.jsonl"
    return Stage(folder.name, record, files, read_lines(metrics) if metrics.is_file() else ())


def read_answers(evaluation: Path, label: str, suite: str) -> list[dict[str, Any]]:
    """A model's answers to a suite; versions up to 0.1 kept them in transcripts/<label>.jsonl."""
    before = evaluation / "transcripts" / f"{label}.jsonl"
    for path in (transcript(evaluation, label, suite), before):
        if path.is_file():
            return read_lines(path)
    return []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a ValueError names the line that is none."""
    return [row for _, row in json_lines(path, "restore or delete the file")]


def _footer(stages: list[Stage], seconds: float) -> str:
    """When the run began, how long it took, and with which version."""
    first = stages[0].record
    began = f"Begun {first['started'].replace('T', ' ')}, " if "started" in first else ""
    return (
        f"{began}{duration(seconds)} of computing, pocketlm "
        f"{first.get('pocketlm', 'not installed')}."
    )
