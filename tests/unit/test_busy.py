"""A busy machine is noticed, by the kernel's own count, and said once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketlm.cli import SPINS, spin_briefly
from pocketlm.train import busy
from pocketlm.train.busy import BusyMonitor, CoreWait, waited_by_thread


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the system counts nothing")
def test_a_thread_that_shares_its_core_has_waited_for_it() -> None:
    before, core = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # the processes started now inherit it
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.5)  # until they compute
        wait, end = CoreWait(), time.perf_counter() + 1.0
        while time.perf_counter() < end:
            pass
        assert wait.share() > 0.4  # of four a quarter of the time each
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        os.sched_setaffinity(0, before)


def test_a_busy_machine_is_said_once_and_an_idle_one_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, waited = [0.0], [0.0]
    monkeypatch.setattr(busy.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(busy, "waited_by_thread", lambda: {"1": waited[0], "2": 0.0})
    monkeypatch.setattr(busy.torch, "get_num_threads", lambda: 2)
    monitor = BusyMonitor("base")
    for step in range(100):
        clock[0] += 1.0
        waited[0] += 0.1 if step < 50 else 0.6
        monitor.look()
        if step < 50:
            assert capsys.readouterr().err == ""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("  base: the machine is busy: other processes")
    assert "OMP_NUM_THREADS=1" in lines[0]


def test_where_the_system_counts_nothing_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(busy, "TASKS", tmp_path)
    assert waited_by_thread() == {} and CoreWait().share() == 0.0


def test_threads_sleep_soon_unless_the_user_says_how_they_wait() -> None:
    for given in ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(given)
        spin_briefly(environment)
        assert environment == (given or {"GOMP_SPINCOUNT": SPINS})
