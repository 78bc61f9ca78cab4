"""The plan of a run against the run: tokens, disk and time of what is finished."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.estimate.estimate import actual_seconds, estimate
from pocketlm.estimate.stage import Stage
from pocketlm.estimate.stages import plan_stages
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def stages(finished: Path, documents: Path) -> dict[str, Stage]:
    dry = dry_run(load_recipe(TINY), finished, folder=documents)
    return {stage.call.name: stage for stage in plan_stages(dry.calls)}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_planned_tokens_are_those_that_were_trained_on(
    stages: dict[str, Stage], finished: Path
) -> None:
    trained = {
        name: stage
        for name, stage in stages.items()
        if (finished / name / "metrics.jsonl").is_file()
    }
    assert len(trained) == 10
    for name, stage in trained.items():
        assert stage.tokens == sum(row["tokens"] for row in rows(finished / name)), name


def test_planned_checkpoints_are_as_large_as_those_that_were_written(
    stages: dict[str, Stage], finished: Path
) -> None:
    """Within 2 %: a file has a header besides, of 8 KB here."""
    written = {
        path.parent.name: path.stat().st_size for path in finished.glob("*/model.safetensors")
    }
    assert len(written) == 12
    for name, size in written.items():
        assert stages[name].disk == pytest.approx(size - 8_000, rel=0.02), name


def test_a_finished_corpus_is_counted(stages: dict[str, Stage], finished: Path) -> None:
    kept = json.loads((finished / "corpus" / "curation.json").read_text())["sources"]
    assert stages["corpus"].tokens == sum(
        source["kept"]["train"]["tokens"] for source in kept.values()
    )
    assert stages["corpus"].disk == sum(
        path.stat().st_size for path in (finished / "corpus").rglob("*") if path.is_file()
    )


def test_what_a_selection_reads_and_writes_is_at_most_what_was_planned(
    stages: dict[str, Stage], finished: Path
) -> None:
    kept = json.loads((finished / "select" / "selection.json").read_text())["kept"].values()
    tokens, disk = stages["select"].tokens, stages["select"].disk
    assert tokens and disk and sum(source["tokens"] for source in kept) <= tokens <= 4 * (1500 + 64)
    assert (
        sum(path.stat().st_size for path in (finished / "select" / "shards").rglob("*.tokens.npy"))
        <= disk + 4 * 128
    )


def test_actual_time_stands_beside_the_plan_of_finished_stages(
    stages: dict[str, Stage], finished: Path, documents: Path, tmp_path: Path
) -> None:
    for name, stage in stages.items():
        assert (
            actual_seconds(stage)
            == json.loads((finished / name / "stage.json").read_text())["seconds"]
        )
    told = estimate(stages["base"], None, 1)
    assert told.seconds and told.actual_seconds and told.ratio == told.actual_seconds / told.seconds
    file = tmp_path / "plan.json"
    words = ["plan", str(TINY), str(documents), "--out", str(finished), "--json", str(file)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    shown = " ".join(result.output.split())  # wherever the title was broken
    assert result.exit_code == 0 and "ratio" in shown and "this machine's processor" in shown
    assert json.loads(file.read_text())["together"]["actual_over_planned"] > 0


def test_a_changed_stage_has_no_actual_time(finished: Path, documents: Path) -> None:
    changed = dry_run(load_recipe(TINY), finished, {"chat": {"seed": "9"}}, folder=documents)
    found = {stage.call.name: actual_seconds(stage) for stage in plan_stages(changed.calls)}
    assert found["chat"] is None and found["merged"] is not None


def test_an_unfinished_stage_is_carried_on_at_its_pace(
    stages: dict[str, Stage], finished: Path, documents: Path
) -> None:
    record = finished / "base" / "stage.json"
    before = record.read_text()
    try:
        record.write_text(json.dumps({**json.loads(before), "status": "started"}))
        paces = sorted(row["tokens_per_second"] for row in rows(finished / "base"))
        middle = (paces[1] + paces[2]) / 2
        assert actual_seconds(stages["base"]) == pytest.approx(4 * 4 * 64 / middle)
    finally:
        record.write_text(before)
