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

# Files of tests that take some five seconds or more: processes started, killed and started again,
# exports, compilers, proxies trained. `make quick` does not even import them.
SLOW = (
    *("numerics/test_attention.py", "numerics/test_config_fields.py", "numerics/test_layouts.py"),
    *("numerics/test_llamacpp.py", "numerics/test_llamacpp_text.py", "numerics/test_runtimes.py"),
    *("numerics/test_transformers_runtime.py", "recipes/test_bad_input.py"),
    *("recipes/test_bad_states.py", "recipes/test_every_field.py", "recipes/test_examples.py"),
    "recipes/test_killed.py",
    *("recipes/test_mixing_study.py", "recipes/test_plan_against_run.py", "recipes/test_readme.py"),
    *("recipes/test_rehearse.py", "recipes/test_rehearse_ranks.py", "recipes/test_specialize.py"),
    *("recipes/test_tiny_recipe.py", "recipes/test_torchrun.py", "recipes/test_verify_resume.py"),
    *("serve/test_command.py", "serve/test_contract.py"),
    *("unit/test_bench.py", "unit/test_build_probes.py", "unit/test_corpus_curate.py"),
    *("unit/test_corpus_duplicates.py", "unit/test_costs.py", "unit/test_executorch.py"),
    *("unit/test_export_gate.py", "unit/test_find_mix.py", "unit/test_gpu_benchmark.py"),
    *("unit/test_gpu_path.py", "unit/test_leave_one_out.py"),
    *("unit/test_milestones.py", "unit/test_mixing_influence.py", "unit/test_mixing_utility.py"),
    *("unit/test_packaging.py", "unit/test_parallel.py", "unit/test_plan.py"),
    *("unit/test_pte_cache.py", "unit/test_pte_runner.py", "unit/test_ranks.py"),
    *("unit/test_resharding.py", "unit/test_rounded.py", "unit/test_sandbox.py"),
    *("unit/test_long_waits.py", "unit/test_sandbox_attacks.py"),
    *("unit/test_stock_teacher_ranks.py", "unit/test_stopping.py"),
)
SLOW_FILES = {Path(__file__).parent / name for name in SLOW}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True for a slow file where slow tests are not asked for."""
    return True if collection_path in SLOW_FILES and "not slow" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the slow files, and the one that compiles; slow files come first, so that
    no process is left alone with one at the end.
    """
    if gone := [file for file in SLOW_FILES if not file.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {gone}")
    for item in items:
        if item.path in SLOW_FILES or "compiled_training" in item.name:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
