"""`pocketlm rehearse` as it is typed, as four ranks. `make rehearsals` does R1's other sizes."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_rehearse import OWN

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = {
    "r1-140m": (["r1.py", "--size", "140m"], "files"),
    "pro": (["pro.py"], "instruct"),
    "specialize": (["specialize.py", *OWN], "files"),
}


# with one process test_rehearse.py runs them
@pytest.mark.parametrize("name", COMMANDS)
def test_it_reaches_the_last_stage_and_says_what_each_will_need(
    name: str, environment: dict[str, str]
) -> None:
    words, last = COMMANDS[name]
    command = [sys.executable, "-m", "pocketlm.cli", "rehearse", str(RECIPES / words[0])]
    command += [*words[1:], "--processes", "4", "--count", "128"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"stages, to {last}" in done.stdout and "at full size, on 128 x h100:" in done.stdout
    assert "TOO LARGE" not in done.stdout and "Traceback" not in done.stderr
    if words[0] != "specialize.py":  # whose base is nowhere
        assert done.stdout.count("of 80 GB: fits") >= 6


def test_a_stage_that_stops_ends_the_rehearsal_with_its_message(
    environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = tmp_path / "broken.py"
    text = (RECIPES / "r1.py").read_text().replace('"starcoder": 10.66', '"starcodes": 10.66')
    recipe.write_text(text)
    command = [sys.executable, "-m", "pocketlm.cli", "rehearse", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2 and "the rehearsal stopped" in done.stdout
    assert "shares name unknown sources starcodes" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
