"""Ranks that compute for longer than a collective may last wait for each other all the same, and
none looks for files that went when the first rank returned.
"""

import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rank_processes import on_ranks
from test_build_probes import CONFIG as PROBES
from test_build_probes import asker, labels, planted  # noqa: F401
from test_find_mix import CONFIG as MIX
from test_merge_stage import CONFIG as MERGE
from test_merge_stage import folders as merge_folders  # noqa: F401
from test_select import CONFIG as SELECT
from test_select import folders  # noqa: F401
from torch.distributed.distributed_c10d import _set_pg_timeout

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.stages import merge, probes, select
from pocketlm.stages.proxies import Proxies
from pocketlm.train.checkpoint import RESUME
from pocketlm.train.distributed.ranks import all_reduce_sum, on_first_rank, ranks

TIMEOUT, LONG = 0.7, 1.5  # seconds: of a collective, and of what one rank computes meanwhile


def slowed(module_name: str, name: str, *, call: int = 1, on: int = 1) -> None:
    """One call of a function takes long on one rank."""
    module, calls = import_module(f"pocketlm.{module_name}"), 0
    function = getattr(module, name)

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and ranks().rank == on:
            time.sleep(LONG)
        return function(*arguments, **options)

    setattr(module, name, slow)


def run(stage: Callable[[], object], out: Path, *slow: Callable[[], None]) -> None:
    """The stage on this rank; as the runner does, the first deletes what resuming needs."""
    _set_pg_timeout(timedelta(seconds=TIMEOUT))
    for slow_down in slow:
        slow_down()
    stage()
    if ranks().first:
        shutil.rmtree(out / RESUME, ignore_errors=True)


def test_a_selection_waits_for_a_rank_that_scores_for_long(folders, tmp_path):  # noqa: F811
    corpus, model = folders
    out = tmp_path / "out"
    out.mkdir()
    stage = partial(select.select, SELECT, out, corpus=corpus, model=model)
    # passing its probe rows, and scoring
    slow = [partial(slowed, "stages.select", name) for name in ("score_directions", "influence")]
    assert on_ranks(2, tmp_path, run, stage, out, *slow) == [None] * 2
    assert (out / "selection.json").is_file() and not (out / RESUME).exists()


def test_no_rank_scores_again_what_the_first_has_deleted(folders, tmp_path):  # noqa: F811
    corpus, model = folders
    out = tmp_path / "out"
    out.mkdir()
    select.select(SELECT, out, corpus=corpus, model=model)  # all is scored
    stage = partial(select.select, SELECT, out, corpus=corpus, model=model)
    slow = partial(slowed, "stages.select", "score", call=2)
    assert on_ranks(2, tmp_path, run, stage, out, slow) == [None] * 2
    assert not (out / RESUME).exists()


def test_probes_wait_for_ranks_that_are_asked_and_that_read_for_long(
    planted,  # noqa: F811
    asker,  # noqa: F811
    tmp_path,
):
    out = tmp_path / "out"
    out.mkdir()
    stage = partial(probes.build_probes, PROBES, out, corpus=planted.corpus, asker=asker)
    asked = partial(slowed, "data.probe_building.ask", "next_logits")
    # the last of its calls, after which the first rank works alone: that is slow too
    read = partial(slowed, "stages.probes", "examples", call=7)
    first = partial(slowed, "stages.probes", "without_duplicates", on=0)
    assert on_ranks(2, tmp_path, run, stage, out, asked, read, first) == [None] * 2
    assert (out / "probes.json").is_file() and not (out / RESUME).exists()


def test_a_merge_waits_for_a_rank_with_a_state_more(merge_folders, tmp_path):  # noqa: F811
    corpus, *models = merge_folders
    out = tmp_path / "out"
    out.mkdir()
    stage = partial(merge.merge, MERGE, out, corpus=corpus, models=models)
    slow = partial(slowed, "stages.merge", "domain_losses")
    assert on_ranks(2, tmp_path, run, stage, out, slow) == [None] * 2
    assert (out / "merge.json").is_file()


def measured(out: Path, corpus: Path) -> dict[str, dict[str, Any]]:
    _set_pg_timeout(timedelta(seconds=TIMEOUT))
    proxies = Proxies(MIX, out, corpus)
    slowed("train.milestones", "save_checkpoint", on=0)

    def slow(model: LanguageModel) -> float:
        time.sleep(LONG * ranks().rank)
        return float(model.model.model.embed_tokens.weight.detach().sum())

    flat = dict.fromkeys(proxies.rows, 1 / len(proxies.rows))
    figures = proxies.measured({"flat": flat}, {"first": slow, "second": slow})
    proxies.remove_states()
    return figures


def test_proxies_wait_for_a_rank_that_writes_or_measures_for_long(folders, tmp_path):  # noqa: F811
    one, other = on_ranks(2, tmp_path, measured, tmp_path / "out", folders[0])
    assert one == other and one["flat"]["first"] == one["flat"]["second"]
    assert not list((tmp_path / "out").rglob(RESUME))


def written_by_first(folder: Path) -> bool:
    _set_pg_timeout(timedelta(seconds=TIMEOUT))

    def work() -> None:
        time.sleep(LONG)
        (folder / "written.txt").touch()

    on_first_rank(work)
    assert all_reduce_sum(1.0) == [2.0]  # the group is as it was
    return (folder / "written.txt").exists()


def test_the_others_wait_for_long_work_of_the_first_rank(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, written_by_first, tmp_path) == [True] * 2
