"""A recipe on several ranks: the first decides, writes and explains; the others join it where a
stage asks for all.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from rank_processes import on_ranks, start_ranks

from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.runner.record import Call
from pocketlm.runner.schedule import idle_ranks
from pocketlm.train.distributed.ranks import ALONE, joined, on_first_rank, ranks

RECIPE = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from pocketlm.train.distributed.ranks import ALONE, all_reduce_sum, ranks

@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    optim: str | None = "some"
    rows_per_step: int = 12
    micro_batch_size: int = 1
    failing: str = ""  # ranks that do
    seconds: float = 0.0
    awaits: str = ""  # a stage that must have begun before this one ends

@dataclass(frozen=True, kw_only=True)
class Training(Config):
    on_all_ranks: ClassVar[bool] = True

def leave_trace(config, out, **inputs):
    time.sleep(config.seconds)
    assert all(list(path.glob("rank-*")) for path in inputs.values())
    rank = os.environ.get("RANK", "0")
    (out / f"rank-{rank}").touch()
    if rank in config.failing:
        raise ValueError(f"{config.name} cannot be done")
    deadline = time.monotonic() + 20
    while config.awaits and not list((out.parent / config.awaits).glob("rank-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return out

def train(config, out, **inputs):
    assert all_reduce_sum(1.0) == [ranks().world_size]
    (out / f"world-{ranks().world_size}").touch()
    return leave_trace(config, out, **inputs)

def prepare(config, out, **inputs):
    assert ranks() is ALONE and all_reduce_sum(1.0) == [1.0]
    return leave_trace(config, out, **inputs)

def recipe(run):
    """Four stages."""
    text = run(prepare, Config(name="text", seconds=0.3))
    base = run(train, Training(name="base"), text=text)
    chosen = run(prepare, Config(name="chosen", seconds=0.3), base=base)
    return run(train, Training(name="chat"), base=base, chosen=chosen)
'''


BRANCHES = (
    RECIPE[: RECIPE.index("def recipe")]
    + '''
def recipe(run):
    """Three stages side by side, between two on all ranks."""
    base = run(train, Training(name="base"))
    branches = run.side_by_side(train, [Training(name=name) for name in "abc"], base=base)
    return run(train, Training(name="merged"), **dict(zip("abc", branches)))
'''
)


def command(words: list[str], log: str) -> None:
    from pocketlm.cli import app

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    app(words)


def run_on(
    world_size: int, folder: Path, *words: str, text: str = RECIPE
) -> tuple[list[int | None], str]:
    """(exit status of each rank, what they showed together) of `pocketlm run` with a recipe
    above.
    """
    recipe, log = folder / "four.py", folder / "output.txt"
    recipe.write_text(text)
    log.write_text("")
    arguments = ["run", str(recipe), "--out", str(folder / "run"), *words]
    processes = start_ranks(world_size, command, arguments, str(log))
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes], log.read_text()


def traces(folder: Path) -> dict[str, list[str]]:
    """Which ranks ran each stage."""
    stages = sorted(path for path in (folder / "run").iterdir() if path.is_dir())
    return {stage.name: sorted(path.name[-1] for path in stage.glob("rank-*")) for stage in stages}


def test_stages_that_train_run_on_all_ranks_and_the_others_on_the_first_alone(
    tmp_path: Path,
) -> None:
    statuses, output = run_on(3, tmp_path)
    assert statuses == [0, 0, 0], output
    assert traces(tmp_path) == {
        "base": ["0", "1", "2"],
        "chat": ["0", "1", "2"],
        "chosen": ["0"],
        "text": ["0"],
    }
    assert output.count("stage 2 of 4 · train · base") == 1


def test_a_finished_stage_is_passed_by_all_ranks(tmp_path: Path) -> None:
    for stage in ("text", "base"):
        assert run_on(2, tmp_path, "--only", stage)[0] == [0, 0]
    statuses, output = run_on(2, tmp_path)
    assert statuses == [0, 0] and "base: done before" in output and "chat: ran" in output
    assert traces(tmp_path) == {
        "base": ["0", "1"],
        "chat": ["0", "1"],
        "chosen": ["0"],
        "text": ["0"],
    }


def side_by_side(world_size: int, folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """(the ranks of each stage, what was shown) of a run of BRANCHES that ends well."""
    statuses, output = run_on(world_size, folder, *words, text=BRANCHES)
    assert statuses == [0] * world_size, output
    ranks_of = {stage: "".join(names) for stage, names in traces(folder).items()}
    for stage, numbers in ranks_of.items():
        assert (folder / "run" / stage / f"world-{len(numbers)}").exists()
    return ranks_of, output


@pytest.mark.parametrize(
    ("world_size", "a", "b", "c"),
    [(1, "0", "0", "0"), (2, "0", "1", "0"), (4, "0", "1", "2"), (6, "01", "23", "45")],
)
def test_stages_side_by_side_share_the_ranks_and_come_by_turns_where_these_are_few(
    world_size: int, a: str, b: str, c: str, tmp_path: Path
) -> None:
    ranks_of, output = side_by_side(world_size, tmp_path)
    everyone = "012345"[:world_size]
    assert ranks_of == {"base": everyone, "a": a, "b": b, "c": c, "merged": everyone}
    assert [output.count(f"{stage}: ran") for stage in ranks_of] == [1] * 5
    assert output.count("stage 3 of 5 · train · b") == 1


def test_stages_side_by_side_run_at_the_same_time(tmp_path: Path) -> None:
    side_by_side(2, tmp_path, "--set", "a.awaits=b", "--set", "b.awaits=a")


def test_a_stage_takes_no_more_of_its_ranks_than_its_rows_divide_into(tmp_path: Path) -> None:
    ranks_of, output = side_by_side(6, tmp_path, "--set", "b.rows_per_step=3")
    assert (ranks_of["a"], ranks_of["b"], ranks_of["c"]) == ("01", "2", "45")
    line = "side by side: of 6 ranks a 2, b 1, c 2; 1 waits until these are done"
    assert output.count(line) == 1


@pytest.mark.parametrize(
    ("world_size", "lines"),
    [
        (1, []),
        (2, ["of 2 ranks c 1; 1 waits until it is done"]),
        (3, []),
        (5, ["of 5 ranks a 1, b 1, c 1; 2 wait until these are done"]),
        (6, []),
        (8, ["of 8 ranks a 2, b 2, c 2; 2 wait until these are done"]),
    ],
)
def test_ranks_that_stages_side_by_side_leave_idle_are_told(
    world_size: int, lines: list[str], tmp_path: Path
) -> None:
    calls = three_branches(tmp_path)
    assert idle_ranks(calls, world_size) == [f"side by side: {line}" for line in lines]


def test_a_dry_run_tells_which_ranks_wait(tmp_path: Path) -> None:
    statuses, output = run_on(2, tmp_path, "--dry-run", text=BRANCHES)
    assert statuses == [0, 0] and not (tmp_path / "run").exists()
    assert output.count("side by side: of 2 ranks c 1; 1 waits until it is done") == 1


def three_branches(folder: Path) -> list[Call]:
    """The calls of BRANCHES, of which nothing ran."""
    (folder / "branches.py").write_text(BRANCHES)
    recipe = load_recipe(folder / "branches.py")
    return dry_run(recipe, folder / "run", missing_ok=True).calls


def test_a_stage_run_alone_has_the_ranks_that_it_has_beside_others(tmp_path: Path) -> None:
    assert side_by_side(2, tmp_path, "--only", "base")[0] == {"base": "01"}
    assert side_by_side(2, tmp_path, "--only", "b")[0] == {"base": "01", "b": "1"}
    ranks_of, output = side_by_side(2, tmp_path)
    assert (ranks_of["a"], ranks_of["b"], ranks_of["c"]) == ("0", "1", "0")
    assert "b: done before" in output and "a: ran" in output


@pytest.mark.parametrize("failing", ["0", "1"])
def test_an_error_of_one_of_the_stages_side_by_side_is_told_once_and_ends_all_ranks(
    failing: str, tmp_path: Path
) -> None:
    stage = "ab"[int(failing)]
    statuses, output = run_on(2, tmp_path, "--set", f"{stage}.failing={failing}", text=BRANCHES)
    assert statuses == [2, 2], output
    assert output.count(f"{stage} cannot be done") == 1 and "Traceback" not in output
    statuses, output = run_on(2, tmp_path, "--only", "c", text=BRANCHES)
    assert statuses == [0, 0] and traces(tmp_path)["c"] == ["0"]


@pytest.mark.parametrize(("stage", "failing"), [("text", "0"), ("base", "0 1 2"), ("chat", "0")])
def test_an_error_is_told_once_and_ends_all_ranks(stage: str, failing: str, tmp_path: Path) -> None:
    statuses, output = run_on(3, tmp_path, "--set", f"{stage}.failing={failing}")
    assert statuses == [2, 2, 2]
    assert output.count(f"{stage} cannot be done") == 1 and "Traceback" not in output
    assert "cannot be done" in (tmp_path / "run" / "error.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set", "base.rows_per_step=4"],
            "base.rows_per_step 4 does not divide into micro-batches of base.micro_batch_size 1 on "
            "3 ranks; make it a "
            "multiple of 3",
        ),
        (["--set", "nothing.x=1"], "the recipe has no stage 'nothing'"),
        (["--wrong"], "No such option: --wrong"),
    ],
)
def test_bad_input_is_told_once_before_anything_starts(
    words: list[str], message: str, tmp_path: Path
) -> None:
    statuses, output = run_on(3, tmp_path, *words)
    assert statuses == [2, 2, 2] and not (tmp_path / "run").exists()
    assert output.count(message) == 1


@pytest.mark.parametrize(("word", "shows"), [("--dry-run", "4 stages"), ("--help", "Four stages.")])
def test_a_dry_run_and_help_end_all_ranks_in_order(word: str, shows: str, tmp_path: Path) -> None:
    statuses, output = run_on(2, tmp_path, word)
    assert statuses == [0, 0] and not (tmp_path / "run").exists()
    assert " ".join(output.split()).count(shows) == 1  # wherever a title was broken


@pytest.mark.parametrize("target", [0, 1])
def test_a_rank_that_waits_or_works_alone_can_be_asked_to_stop(target: int, tmp_path: Path) -> None:
    recipe, log = tmp_path / "four.py", tmp_path / "output.txt"
    recipe.write_text(RECIPE)
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--set", "text.seconds=20"]
    processes = start_ranks(2, command, arguments, str(log))
    while not (tmp_path / "run" / "text" / "stage.json").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(processes[target].pid or 0, signal.SIGTERM)
    processes[target].join(10)
    assert processes[target].exitcode == 130
    if target == 1:  # torchrun would pass it on
        os.kill(processes[0].pid or 0, signal.SIGTERM)
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [130, 130]
    assert (
        log.read_text().count("interrupted in stage text; run the same command again to go on") == 1
    )


def test_alone_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as launch:
        assert ranks() is ALONE and launch.may_explain() and launch.may_explain()
        launch.broadcast("go")  # to nobody


def write_once(folder: Path) -> tuple[bool, int]:
    """(whether the file is there when the ranks go on, how many wrote it)."""

    def work() -> None:
        time.sleep(0.5)
        with open(folder / "written.txt", "a") as file:
            file.write("once ")

    on_first_rank(work)
    return (folder / "written.txt").exists(), (folder / "written.txt").read_text().count("once")


def test_the_others_wait_for_what_the_first_rank_does(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, write_once, tmp_path) == [(True, 1)] * 2


def fail_first(folder: Path) -> None:
    def work() -> None:
        raise ValueError("nothing to train on")

    on_first_rank(work)


def test_an_error_of_the_first_rank_is_its_own_and_ends_the_others(tmp_path: Path) -> None:
    first, other = on_ranks(2, tmp_path, fail_first, tmp_path)
    assert isinstance(first, ValueError) and isinstance(other, ConnectionError)
