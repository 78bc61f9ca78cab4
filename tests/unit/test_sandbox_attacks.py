"""Attacks on the sandbox: none passes, none harms what is outside, none leaves a process behind.

All of them with the kernel's layer; those on what is outside also with limits alone, and where this
process is root, as an ordinary user.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from sandbox_attacks import (
    ATTACKS,
    LIMITS,
    OUTSIDE,
    PATIENT,
    READING,
    Outside,
    adopt_orphans,
    descendants,
    judged,
    orphans,
    outside,
    program,
    python_of,
)

from pocketlm.sandbox.layers import NOBODY, Layer, base_python, layers
from pocketlm.sandbox.sandbox import fault_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="attacks on Linux's layers")

FILTERS = frozenset({"landlock", "seccomp"})
LANDLOCK = Layer(name="landlock + seccomp", landlock=True, needs=FILTERS)
BARE = Layer(name="none", needs=frozenset({"seccomp"}))
NO_PASS = ("fail", "timeout", "memory", "crash", "protocol", "output cap")


USERS = (None, NOBODY) if os.geteuid() == 0 else (None,)
# where it is installed; its filters are the worker's own
BUBBLEWRAP = [layer for layer in layers(base_python()) if layer.name == "bubblewrap"][-1:]
# without a layer files can be read, as --unsafe-exec says
CASES = [(LANDLOCK, None, name) for name in ATTACKS]
CASES += [(LANDLOCK, user, name) for user in USERS[1:] for name in (*OUTSIDE, *READING)]
CASES += [(BARE, user, name) for user in USERS for name in OUTSIDE]
CASES += [(layer, None, name) for layer in BUBBLEWRAP for name in (*OUTSIDE, *READING)]


def id_of(case: tuple[Layer, int | None, str]) -> str:
    layer, user, name = case
    return f"{layer.name}, {'another user' if user else 'this user'}: {name}"


@cache
def place(layer: Layer, user: int | None) -> tuple[Layer, str]:
    """The layer for a user, and an interpreter."""
    python = python_of(user)
    if python is None:
        pytest.skip(f"no interpreter that user {user} may start")
    layer = replace(layer, user=user)
    if layer.name != "none" and (why := fault_of(layer, python)):
        pytest.skip(why)
    return layer, python


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    adopt_orphans()
    with outside() as places:
        yield places


@pytest.fixture(scope="module")
def before(world: Outside) -> frozenset[int]:
    """What ran below this process before any attack."""
    return frozenset(descendants())


@pytest.mark.parametrize("layer", (LANDLOCK, BARE, *BUBBLEWRAP), ids=lambda layer: layer.name)
@pytest.mark.parametrize("user", USERS)
def test_the_right_answers_pass(layer: Layer, user: int | None, world: Outside) -> None:
    right = f"def solve(n):\n    return {world.answers}[str(n)]\n"
    assert judged(right, world, *place(layer, user), PATIENT).verdict == "pass"
    assert world.harm() == []


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_an_attack_fails_and_reaches_nothing(
    case: tuple[Layer, int | None, str], world: Outside, before: frozenset[int]
) -> None:
    layer, user, name = case
    verdicts = ATTACKS[name][1] or NO_PASS
    limits = LIMITS if "timeout" in verdicts else PATIENT
    judgement = judged(program(name, world.places), world, *place(layer, user), limits)
    assert judgement.verdict in verdicts, judgement
    assert world.harm() == []
    assert orphans(before) == []


def test_an_orphan_that_has_become_another_program_is_seen(before: frozenset[int]) -> None:
    escape = (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.execve('/bin/sleep', ['/bin/sleep', '600'], {})\n    os._exit(0)\nos.wait()\n"
    )
    subprocess.run([sys.executable, "-c", escape], check=True)
    ran = set(descendants()) - before
    try:
        assert orphans(before) == ["/bin/sleep 600 "] and len(ran) == 1
    finally:
        for pid in ran:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_files_can_be_read_without_a_layer_and_the_harness_sees_a_pass(world: Outside) -> None:
    source = program("answers read from disk", world.places)
    assert judged(source, world, *place(BARE, None), PATIENT).verdict == "pass"


def test_there_are_at_least_forty_attacks() -> None:
    assert len(ATTACKS) >= 40
