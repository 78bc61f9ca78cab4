"""What every test needs: Ctrl-C works here and in the processes tests start, even when a shell in
the background ignores it.

Several pytest processes beside each other compute on one thread each, and a thread that waits for
another sleeps: threads that wait by turning in circles while both cores are taken make a test
several times slower. Tests of more threads ask for them.
"""

import os
import signal
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # torch reads both when it is imported, which is later
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# an ignored signal would be inherited as ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of tests that take some 20 seconds or more each: processes started, killed and started
# again, exports, compilers
SLOW = (
    *("numerics/test_attention.py", "recipes/test_bad_input.py", "recipes/test_bad_states.py"),
    *("recipes/test_every_field.py", "recipes/test_killed.py", "recipes/test_plan_against_run.py"),
    *("recipes/test_rehearse_ranks.py", "recipes/test_rehearse.py", "recipes/test_readme.py"),
    *("recipes/test_tiny_recipe.py", "recipes/test_torchrun.py", "recipes/test_verify_resume.py"),
    *(
        "unit/test_bench.py",
        "unit/test_corpus_duplicates.py",
        "unit/test_executorch.py",
        "unit/test_export_gate.py",
        "unit/test_parallel.py",
    ),
    *(
        "unit/test_pte_cache.py",
        "unit/test_pte_runner.py",
        "unit/test_resharding.py",
        "unit/test_sandbox_attacks.py",
        "unit/test_stopping.py",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the slow files, and the one that compiles; slow files come first, so that
    no process is left alone with one at the end.
    """
    slow = {Path(__file__).parent / name for name in SLOW}
    if gone := [file for file in slow if not file.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {gone}")
    for item in items:
        if item.path in slow or "compiled_training" in item.name:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
