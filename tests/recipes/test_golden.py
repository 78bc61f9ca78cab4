"""The first 20 steps of the tiny recipe are those kept in the repository."""

import json
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN, first_steps, machine

# relative, on another machine than golden.json's: docs/numerics.md
TOLERANCES = {"loss": 1e-5, "grad_norm": 1e-5}
AGAIN = "if that is meant, run: python tests/recipes/golden.py"


@pytest.fixture(scope="module")
def found(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return first_steps(documents, tmp_path_factory.mktemp("golden"))


def test_the_first_steps_read_the_tokens_kept_in_the_repository(
    found: list[dict[str, Any]],
) -> None:
    kept = json.loads(GOLDEN.read_text())["steps"]
    assert [step["token_digest"] for step in found] == [step["token_digest"] for step in kept], (
        AGAIN
    )


def test_the_first_losses_are_those_kept_in_the_repository(found: list[dict[str, Any]]) -> None:
    """To the bit on a machine as it was made on; to a tolerance on another, whose kernels round
    otherwise.
    """
    golden = json.loads(GOLDEN.read_text())
    for key, tolerance in TOLERANCES.items():
        own, kept = [step[key] for step in found], [step[key] for step in golden["steps"]]
        if machine() == golden["machine"]:
            assert own == kept, f"{key}: not the bits kept, on the same kind of machine; {AGAIN}"
        else:
            where = (
                f"{key} on {machine()}, kept from {golden['machine']}: compared to {tolerance:g} "
                f"alone; {AGAIN}"
            )
            assert own == pytest.approx(kept, rel=tolerance), where
