"""Run: finished stages are remembered, unfinished ones resumed, changed ones never silently
reused.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pocketlm.model.arithmetic import arithmetic, on_threads
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.overrides import apply_settings, parse_settings
from pocketlm.runner.run import Run
from pocketlm.runner.tables import key_figures


@dataclass(frozen=True, kw_only=True)
class Schedule:
    lr: float
    warmup_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Write:
    name: str
    text: str = "hello"
    num_steps: int | None = None
    schedule: Schedule = Schedule(lr=0.1)
    mix: dict[str, float] | None = None
    phases: tuple[Schedule, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.schedule.lr < 0:
            raise ValueError(f"lr {self.schedule.lr} is negative; choose a positive one")


@dataclass(frozen=True, kw_only=True)
class Copy:
    name: str


CALLS: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def write(config: Write, out: Path, documents: Path | None = None) -> Path:
    CALLS.append(config.name)
    (out / "text.txt").write_text(config.text)
    return out


def copy(config: Copy, out: Path, sources: list[Path]) -> Path:
    CALLS.append(config.name)
    (out / "copies.txt").write_text(
        "".join((source / "text.txt").read_text() for source in sources)
    )
    return out


def failing(config: Write, out: Path) -> Path:
    CALLS.append(config.name)
    if not (out / "half").exists():
        (out / "half").touch()
        raise ValueError("the corpus is empty")
    return out


def record_of(folder: Path) -> dict:
    return json.loads((folder / "stage.json").read_text())


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        with Run(tmp_path) as run:
            folders.append(run(write, Write(name="a")))
    assert CALLS == ["a"] and folders == [tmp_path / "a"] * 2
    record = record_of(folders[0])
    assert (
        record["status"] == "finished"
        and record["files"] == {"text.txt": 5}
        and record["seconds"] >= 0
    )
    assert record["stage"] == "write" and record["config"]["schedule"] == {
        "class": "Schedule",
        "lr": 0.1,
        "warmup_steps": 0,
    }


def test_stages_side_by_side_run_one_after_another_in_one_process(tmp_path: Path) -> None:
    configs = [Write(name="one"), Write(name="two")]
    dry = dry_run(lambda run: run.side_by_side(write, configs), tmp_path)
    assert [call.side_by_side for call in dry.calls] == [("one", "two")] * 2
    with Run(tmp_path, plan=dry) as run:
        assert run.side_by_side(write, configs) == [tmp_path / "one", tmp_path / "two"]
        assert run.side_by_side(write, []) == []
    assert CALLS == ["one", "two"]
    assert [record_of(tmp_path / name)["status"] for name in CALLS] == ["finished"] * 2


def test_a_stage_that_failed_is_called_again_on_its_folder(tmp_path: Path) -> None:
    with Run(tmp_path) as run, pytest.raises(ValueError, match="the corpus is empty"):
        run(failing, Write(name="a"))
    assert record_of(tmp_path / "a")["status"] == "started"
    with Run(tmp_path) as run:
        run(failing, Write(name="a"))
    assert CALLS == ["a", "a"] and record_of(tmp_path / "a")["status"] == "finished"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"text": "bye"}, 'text: "hello" -> "bye"'),
        ({"schedule": Schedule(lr=0.2)}, "schedule.lr: 0.1 -> 0.2"),
        ({"mix": {"web": 1.0}}, 'mix: null -> {"web": 1.0}'),
        ({"phases": (Schedule(lr=1.0),)}, "phases: [] -> "),
        ({"betas": (0.9, 0.99)}, "betas.1: 0.95 -> 0.99"),
        ({"num_steps": 7}, "num_steps: null -> 7"),
    ],
)
def test_every_change_of_a_config_stops_the_run_and_is_shown(
    tmp_path: Path, change: dict, line: str
) -> None:
    with Run(tmp_path) as run:
        run(write, Write(name="a"))
    with Run(tmp_path) as run, pytest.raises(ValueError, match="another configuration") as error:
        run(write, replace(Write(name="a"), **change))
    assert (
        line in str(error.value)
        and str(tmp_path / "a") in str(error.value)
        and "--out" in str(error.value)
    )
    assert CALLS == ["a"] and record_of(tmp_path / "a")["config"]["text"] == "hello"


def test_a_field_that_a_later_version_added_is_no_change_where_it_has_its_default(
    tmp_path: Path,
) -> None:
    def recipe(run) -> None:
        first = run(write, Write(name="first"))
        run(copy, Copy(name="second"), sources=[first])

    with Run(tmp_path) as run:
        recipe(run)
    record = record_of(tmp_path / "first")
    for config, field in (
        (record["config"], "betas"),
        (record["config"]["schedule"], "warmup_steps"),
    ):
        del config[field]
    record["digest"] = "of-the-older"  # the version without these fields made another
    (tmp_path / "first" / "stage.json").write_text(json.dumps(record))
    later = record_of(tmp_path / "second")
    later["inputs"]["sources"][0]["fingerprint"] = "stage of-the-older"
    (tmp_path / "second" / "stage.json").write_text(json.dumps(later))
    assert [call.state() for call in dry_run(recipe, tmp_path).calls] == ["done", "done"]
    with Run(tmp_path) as run:
        recipe(run)
    assert CALLS == ["first", "second"]
    with (
        Run(tmp_path) as run,
        pytest.raises(ValueError, match=r"betas: \(not there\) -> \[0\.9, 0"),
    ):
        run(write, Write(name="first", betas=(0.9, 0.99)))


def test_another_stage_function_under_the_same_name_is_a_change(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run(write, Write(name="a"))
    with Run(tmp_path) as run, pytest.raises(ValueError, match='stage: "write" -> "failing"'):
        run(failing, Write(name="a"))


def two_stages(run, text: str = "hello") -> None:
    first = run(write, Write(name="first", text=text))
    second = run(write, Write(name="second"))
    run(copy, Copy(name="both"), sources=[first, second])


def test_a_change_above_reaches_the_stages_below(tmp_path: Path) -> None:
    with Run(tmp_path, plan=dry_run(two_stages, tmp_path)) as run:
        two_stages(run)
    dry = dry_run(two_stages, tmp_path, text="other")
    assert [call.state() for call in dry.calls] == ["changed", "done", "changed"]
    with pytest.raises(ValueError, match="stage first") as error:
        Run(tmp_path, plan=dry)
    assert f"rm -r {tmp_path / 'first'} {tmp_path / 'both'}" in str(error.value)
    assert CALLS == ["first", "second", "both"]


def test_the_users_own_files_count_by_their_contents_not_their_place(tmp_path: Path) -> None:
    data, out = tmp_path / "notes.txt", tmp_path / "run"
    data.write_text("one")
    with Run(out) as run:
        run(write, Write(name="a"), documents=data)
    moved = data.rename(tmp_path / "moved.txt")
    with Run(out) as run:
        run(write, Write(name="a"), documents=moved)
    assert CALLS == ["a"]
    moved.write_text("two")
    with (
        Run(out) as run,
        pytest.raises(ValueError, match=r"input documents: .*notes.txt \(file .* -> .*moved.txt"),
    ):
        run(write, Write(name="a"), documents=moved)


def test_a_folder_of_the_user_counts_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("one")

    def fingerprint() -> str:
        dry = dry_run(lambda run: run(write, Write(name="a"), documents=folder), tmp_path / "run")
        return dry.calls[0].digest

    before = fingerprint()
    assert fingerprint() == before
    (folder / "deep" / "a.txt").write_text("two")
    changed = fingerprint()
    (folder / "deep" / "a.txt").rename(folder / "a.txt")
    assert len({before, changed, fingerprint()}) == 3


def test_files_that_a_config_names_are_compared_too(tmp_path: Path) -> None:
    class Reading(Write):
        def reads(self) -> list[Path]:
            return [Path(self.text)]

    data = tmp_path / "notes.txt"
    data.write_text("one")
    with Run(tmp_path / "run") as run:
        run(write, Reading(name="a", text=str(data)))
    data.write_text("two")
    with (
        Run(tmp_path / "run") as run,
        pytest.raises(ValueError, match=r"input reads\.0: .*notes\.txt \(file"),
    ):
        run(write, Reading(name="a", text=str(data)))


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        Run(tmp_path) as run,
        pytest.raises(FileNotFoundError, match="stage a: input documents: nowhere does not exist"),
    ):
        run(write, Write(name="a"), documents=Path("nowhere"))


def test_a_stage_of_another_run_must_have_finished(tmp_path: Path) -> None:
    with Run(tmp_path / "one") as run, pytest.raises(ValueError, match="empty"):
        run(failing, Write(name="a"))
    with Run(tmp_path / "two") as run, pytest.raises(ValueError, match="has not finished"):
        run(write, Write(name="b"), documents=tmp_path / "one" / "a")


def test_files_that_vanished_from_a_finished_stage_stop_the_run(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run(write, Write(name="a"))
    (tmp_path / "a" / "text.txt").write_text("cut")
    with Run(tmp_path) as run, pytest.raises(ValueError, match=r"text\.txt has 3 bytes, not 5"):
        run(write, Write(name="a"))


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    with Run(tmp_path / "here") as run:
        two_stages(run)
    (tmp_path / "here").rename(tmp_path / "there")
    with Run(tmp_path / "there") as run:
        two_stages(run)
    assert CALLS == ["first", "second", "both"]


@pytest.mark.parametrize("name", ["", "../a", "a.b", "a b", None])
def test_a_name_must_be_a_folders_name(tmp_path: Path, name: str) -> None:
    with Run(tmp_path) as run, pytest.raises(ValueError, match="needs a name"):
        run(write, Write(name=name))


def test_two_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run(write, Write(name="a"))
        with pytest.raises(ValueError, match="two stages of the recipe are named 'a'"):
            run(write, Write(name="a", text="other"))


def test_one_stage_alone_needs_finished_inputs(tmp_path: Path) -> None:
    def run_only(stage: str) -> None:
        with Run(tmp_path, plan=dry_run(two_stages, tmp_path), only=stage) as run:
            two_stages(run)

    with pytest.raises(ValueError, match="stage both needs first, which is to do"):
        run_only("both")
    for stage in ("first", "second", "both"):
        run_only(stage)
    assert CALLS == ["first", "second", "both"]
    with pytest.raises(ValueError, match="no stage 'bith'; did you mean 'both'"):
        run_only("bith")


def test_a_dry_run_runs_and_writes_nothing(tmp_path: Path) -> None:
    dry = dry_run(two_stages, tmp_path / "run")
    assert [(call.name, call.state()) for call in dry.calls] == [
        ("first", "to do"),
        ("second", "to do"),
        ("both", "to do"),
    ]
    assert not CALLS and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("a.text=a=b", "text", "a=b"),
        ("a.num_steps=1e3", "num_steps", 1000),
        ("a.num_steps=none", "num_steps", None),
        ("a.schedule.lr=3e-4", "schedule", Schedule(lr=3e-4)),
        ("a.mix.web=0.25", "mix", {"web": 0.25, "maths": 0.5}),
        ("a.phases.0.warmup_steps=9", "phases", (Schedule(lr=1.0, warmup_steps=9),)),
        ("a.betas=0.8, 0.9", "betas", (0.8, 0.9)),
    ],
)
def test_a_setting_is_read_as_the_type_of_its_field(
    setting: str, field: str, value: object
) -> None:
    config = Write(name="a", mix={"web": 0.5, "maths": 0.5}, phases=(Schedule(lr=1.0),))
    changed = apply_settings(config, parse_settings([setting])["a"])
    assert getattr(changed, field) == value
    assert replace(changed, **{field: getattr(config, field)}) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.txt=b", "Write has no field 'txt'; did you mean 'text'"),
        ("a.num_steps=many", "'many' is not a whole number or none"),
        ("a.num_steps=1.5", "'1.5' is not a whole number or none"),
        ("a.schedule.lr=-1", "lr -1.0 is negative"),
        ("a.schedule.rl=1", "Schedule has no field 'rl'"),
        ("a.mix.code=1", "there is no 'code'"),
        ("a.phases.3.lr=1", "'3' is not a position in a row of 1"),
        ("a.betas=1", "is not"),
        ("a.name=b", "fixed by the recipe"),
        ("a.text", "write stage.field=value"),
    ],
)
def test_a_setting_that_fits_nothing_is_refused(setting: str, message: str) -> None:
    config = Write(name="a", mix={"web": 1.0}, phases=(Schedule(lr=1.0),))
    with pytest.raises(ValueError, match=message):
        apply_settings(config, parse_settings([setting])["a"])


def test_a_setting_for_an_unknown_stage_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'frist'; did you mean 'first'"):
        dry_run(two_stages, tmp_path, parse_settings(["frist.text=a"]))


def test_key_figures_are_the_configs_own_summary_or_its_first_plain_fields() -> None:
    class Told(Write):
        def summary(self) -> str:
            return "20 steps"

    assert key_figures(Told(name="a")) == "20 steps"
    assert key_figures(Write(name="a", num_steps=3)) == "text=hello num_steps=3"


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from pocketlm.runner.run import Run

@dataclass(frozen=True, kw_only=True)
class Count:
    name: str
    num_steps: int

def count(config, out):
    done = len(list(out.glob("step-*")))
    for step in range(done, config.num_steps):
        (out / f"step-{step}").touch()
        if step == 2 and "wait" in sys.argv:
            print("waiting", flush=True)
            time.sleep(60)
    (out / "resumed-at.txt").write_text(str(done))
    return out

with Run(Path(sys.argv[1])) as run:
    run(count, Count(name="count", num_steps=5))
"""


def start_slow(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), "wait"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "waiting\n"
    return process


def test_a_killed_run_goes_on_where_it_stopped_and_a_second_one_waits_its_turn(
    tmp_path: Path,
) -> None:
    process = start_slow(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {process.pid}"):
        Run(tmp_path)
    assert record_of(tmp_path / "count")["status"] == "started"
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, "-c", SLOW, str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "count" / "resumed-at.txt").read_text() == "3"
    assert record_of(tmp_path / "count")["status"] == "finished"


def test_an_interrupted_stage_keeps_its_seconds(tmp_path: Path) -> None:
    def interrupted(config: Write, out: Path) -> Path:
        time.sleep(0.05)
        if not (out / "again").exists():
            (out / "again").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return out

    with Run(tmp_path) as run, pytest.raises(KeyboardInterrupt):
        run(interrupted, Write(name="a"))
    assert (
        record_of(tmp_path / "a")["status"] == "started"
        and record_of(tmp_path / "a")["seconds"] >= 0.05
    )
    with Run(tmp_path) as run:
        run(interrupted, Write(name="a"))
    assert record_of(tmp_path / "a")["seconds"] >= 0.1


def count_threads(config: Write, out: Path) -> Path:
    """Notes with how many threads it computes, and fails the first time."""
    with open(out / "threads.txt", "a") as file:
        file.write(f"{torch.get_num_threads()}\n")
    if config.text == "fails" and not (out / "again").exists():
        (out / "again").touch()
        raise RuntimeError("the first time")
    return out


@pytest.mark.parametrize(("begun", "later"), [(1, 2), (2, 1)])
def test_a_stage_goes_on_with_the_number_of_threads_it_began_with(
    begun, later, tmp_path, capfd
) -> None:
    with (
        on_threads(begun),
        Run(tmp_path) as run,
        pytest.raises(RuntimeError, match="the first time"),
    ):
        run(count_threads, Write(name="a", text="fails"))
    assert record_of(tmp_path / "a")["arithmetic"]["threads"] == begun
    with on_threads(later), Run(tmp_path) as run:
        run(count_threads, Write(name="a", text="fails"))
        run(count_threads, Write(name="b"))  # a new one takes what the process has
        assert torch.get_num_threads() == later
        assert record_of(tmp_path / "b")["arithmetic"] == arithmetic()
    assert (tmp_path / "a" / "threads.txt").read_text().split() == [str(begun)] * 2
    assert (tmp_path / "b" / "threads.txt").read_text().split() == [str(later)]
    assert record_of(tmp_path / "a")["arithmetic"]["threads"] == begun
    output = capfd.readouterr().err
    assert (
        output.count(
            f"stage a goes on with the number of threads it began with, {begun}, not {later}"
        )
        == 1
    )


def test_a_stage_that_goes_on_on_another_processor_says_so(tmp_path, capfd, monkeypatch) -> None:
    with on_threads(1), Run(tmp_path) as run, pytest.raises(RuntimeError, match="the first time"):
        run(count_threads, Write(name="a", text="fails"))
    monkeypatch.setattr("pocketlm.model.arithmetic.processor_name", lambda: "Another 3000")
    with on_threads(2), Run(tmp_path) as run:
        run(count_threads, Write(name="a", text="fails"))
    assert (tmp_path / "a" / "threads.txt").read_text().split() == ["1", "2"]
    output = " ".join(capfd.readouterr().err.split())
    assert output.count("its last bits may differ") == 1 and "-> Another 3000" in output
