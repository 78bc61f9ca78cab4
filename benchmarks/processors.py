"""Bitwise reproducibility under every instruction set that this processor can be restricted to.

    python benchmarks/processors.py                    # all settings: some 10 minutes each on two
    cores
    python benchmarks/processors.py --quick            # some 2 minutes each: no killed ranks, no
    compiler, one kill
    python benchmarks/processors.py --quick --settings "float32 forced"        # what .ci/run asks
    for beside `make test`

Under each setting of the environment the tests of TESTS run, and `pocketlm verify-resume` kills the
short recipe of tests/recipes/tiny.py at random and compares. Prints a table; the exit status is 1
where anything failed or was not equal.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
ALONE = "tests/recipes/test_tiny_recipe.py::test_one_stage_alone"
COMPILED = (
    "tests/unit/test_train_loop.py::"
    "test_a_compiled_training_resumes_with_the_same_weights_and_is_near_the_other"
)
EXACT_TESTS = (
    "tests/recipes/test_golden.py",
    "tests/unit/test_train_loop.py",
    "tests/unit/test_muon.py",
    "tests/unit/test_state.py",
    "tests/unit/test_milestones.py",
    "tests/unit/test_run.py",
    "tests/recipes/test_old_runs.py",
    "tests/unit/test_generate.py",
)
QUICK_TESTS = (
    *EXACT_TESTS,
    f"{ALONE}_is_run_with_only",
    f"{ALONE}_on_two_threads_is_the_same_in_this_process_and_in_another",
    f"--deselect={COMPILED}",
)
TESTS = (
    *EXACT_TESTS,
    "tests/recipes/test_tiny_recipe.py",
    "tests/recipes/test_killed.py",
    "tests/unit/test_resharding.py",
    "tests/unit/test_parallel.py",
    "tests/numerics/test_losses.py",
    "tests/numerics/test_attention.py",
    "tests/numerics/test_transformers.py",
)
FLOAT32 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # `auto` takes float32 then (pocketlm/train/optim.py)


@dataclass(frozen=True)
class Outcome:
    """Of one setting; failed: names of tests."""

    passed: int
    failed: list[str]
    equal: bool
    seconds: float

    @property
    def good(self) -> bool:
        return not self.failed and self.passed > 0 and self.equal


def settings() -> dict[str, dict[str, str]]:
    """Environments to compute in, by name: all that this processor has."""
    wide = torch.cpu._is_avx512_supported()
    levels = ["default", "avx2", *(["avx512"] if wide else [])]
    return {
        "as it is": {},
        "float32 forced": {**FLOAT32, "OMP_NUM_THREADS": "1"},
        **{f"OMP_NUM_THREADS={threads}": {"OMP_NUM_THREADS": threads} for threads in ("1", "2")},
        **{f"ATEN_CPU_CAPABILITY={level}": {"ATEN_CPU_CAPABILITY": level} for level in levels},
        "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        **(
            {"ONEDNN_MAX_CPU_ISA=AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}}
            if wide
            else {}
        ),
        **{
            f"MKL_CBWR={mode}": {"MKL_CBWR": mode}
            for mode in ("COMPATIBLE", "AVX2", *(["AVX512"] if wide else []))
        },
    }


def main() -> None:
    known = settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--quick", action="store_true", help="fewer tests, no compiler, one kill")
    parser.add_argument("--kills", type=int, default=4)
    arguments = parser.parse_args()
    tests, kills = (QUICK_TESTS, 1) if arguments.quick else (TESTS, arguments.kills)
    print(
        "| environment | passed | failed | verify-resume | seconds |\n|---|---|---|---|---|",
        flush=True,
    )
    outcomes = []
    for name in arguments.settings:
        outcome = measure(known[name], tests, kills)
        equal = "equal" if outcome.equal else "NOT EQUAL"
        print(
            f"| {name} | {outcome.passed} | {len(outcome.failed)} | {equal} | "
            f"{outcome.seconds:.0f} |",
            flush=True,
        )
        for test in outcome.failed:
            print(f"    {test}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    sys.exit(not all(outcome.good for outcome in outcomes))


def measure(setting: dict[str, str], tests: tuple[str, ...], kills: int) -> Outcome:
    """What the tests and `verify-resume` say in this environment."""
    environment = {**os.environ, **setting, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    output = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
    ).stdout
    passed = re.search(r"(\d+) passed", output)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return Outcome(
        int(passed[1]) if passed else 0,
        failed,
        resumes(environment, kills),
        time.monotonic() - started,
    )


def resumes(environment: dict[str, str], kills: int) -> bool:
    """Whether the short recipe, killed so often, ends with the bits of an unbroken run."""
    with tempfile.TemporaryDirectory() as place:
        sys.path.insert(0, str(REPOSITORY / "tests" / "recipes"))
        from documents import write_documents  # type: ignore[import-not-found]

        documents = write_documents(Path(place))
        recipe = REPOSITORY / "tests" / "recipes" / "tiny.py"
        command = [
            sys.executable,
            "-m",
            "pocketlm.cli",
            "verify-resume",
            recipe,
            documents,
            "--short",
        ]
        command += ["--kills", kills, "--out", Path(place) / "proof"]
        words = [str(word) for word in command]
        return (
            subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True).returncode
            == 0
        )


if __name__ == "__main__":
    main()
