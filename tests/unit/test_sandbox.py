"""The sandbox: values cross as they are, verdicts are the right ones, failures of the machine are
never the model's.
"""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.sandbox import sandbox as sandbox_module
from pocketlm.sandbox.judge import Task, judge_once
from pocketlm.sandbox.layers import Layer, Limits, base_python
from pocketlm.sandbox.sandbox import (
    Sandbox,
    SandboxError,
    judge,
    judge_program,
    open_sandbox,
    run_program,
    same_output,
)
from pocketlm.sandbox.values import MAX_DEPTH, decode, encode

LIMITS = Limits(cpu_seconds=2, wall_seconds=20.0)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(unsafe_exec=True, limits=LIMITS)


def no_handle(*value):
    raise TypeError(str(value))


def again(value):
    return decode(encode(value, no_handle), no_handle)


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    *(st.complex_numbers(allow_nan=False), st.binary()),
)
HASHABLE = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=3)
VALUES = st.one_of(
    *(SCALARS, st.binary().map(bytearray), st.sets(HASHABLE, max_size=3)),
    *(st.lists(HASHABLE, max_size=3), st.dictionaries(HASHABLE, st.lists(SCALARS), max_size=3)),
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_values_come_back_equal_and_of_the_same_types(value):
    assert again(value) == value
    assert type(again(value)) is type(value)


@settings(max_examples=100, deadline=None)
@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.sampled_from("hibBcrdltsf"),
        lambda inner: st.lists(inner, max_size=4),
    ).map(lambda tree: repr(tree).replace("'", '"').replace("None", "null").encode())
)
def test_any_other_text_is_refused_with_a_value_error(payload):
    try:
        decode(payload, lambda number, kind: None)
    except ValueError as error:
        assert str(error).startswith("no plain value")


@pytest.mark.parametrize(
    "value",
    [2**200, -(2**53), math.inf, -0.0, "\ud800", {1: {2: (3, [])}}, range(1, 9, 2), {True: 1.0}],
)
def test_edges_of_values(value):
    assert repr(again(value)) == repr(value)


def test_subclasses_come_back_as_the_built_in_type():
    class Odd(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert type(again(Odd(3))) is int
    assert again(Odd(3)) != 4


def test_an_iterator_is_no_list():
    assert again(map(abs, [-1])) != [1]
    assert list(again(map(abs, [-1]))) == [1]


def test_a_value_deeper_than_the_limit_is_refused():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper"):
        again(deep)


TESTS = "assert add(1, 2) == 3\nassert add([1], [2]) == [1, 2]\n"
ADD = "def add(a, b):\n    return a + b\n"


def verdict(program, box, tests=TESTS, names=("add",), prelude=""):
    task = Task(program=program, tests=tests, names=names, prelude=prelude)
    return judge_once(task, box.layer, box.python, LIMITS)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (ADD, "pass"),
        ("print('hello')\n" + ADD, "pass"),
        ("import re, math, collections, itertools, functools, typing, dataclasses\n" + ADD, "pass"),
        ("def add(a, b):\n    return a - b\n", "fail"),
        ("def add(a, b):\n    return str(a + b)\n", "fail"),
        ("def add(a)\n", "fail"),
        ("", "fail"),
        ("\x00", "fail"),
        ("x = '\ud800'\n" + ADD, "pass"),
        ("raise MemoryError\n", "memory"),
        ("if __name__ == '__main__':\n    input()\n" + ADD, "pass"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n" + ADD, "pass"),
    ],
)
def test_verdicts(program, expected, box):
    assert verdict(program, box).verdict == expected


def test_why_an_answer_fails_is_said(box):
    assert "ZeroDivisionError" in verdict("def add(a, b):\n    return 1 / 0\n", box).detail
    assert "SyntaxError" in verdict("def add(\n", box).detail


def test_a_test_may_catch_what_the_program_raises(box):
    tests = "try:\n    add(1)\nexcept TypeError:\n    pass\nelse:\n    assert False\n"
    assert verdict(ADD, box, tests).verdict == "pass"
    assert verdict("def add(*a):\n    return 1\n", box, tests).verdict == "fail"


def test_objects_of_the_programs_classes_stay_with_it(box):
    program = (
        "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
        "def total(node):\n    return 0 if node is None else node.value + total(node.next)\n"
    )
    tests = "a = Node(1)\na.next = Node(2)\nassert total(a) == 3\nassert a.next.value == 2\n"
    assert verdict(program, box, tests, ("Node", "total")).verdict == "pass"
    assert verdict(program, box, tests + "assert a.next\n", ("Node", "total")).verdict == "fail"


def test_a_program_cannot_replace_what_the_tests_use(box):
    tests = "assert abs(add(1, 2) - helper(3)) < 1\n"
    forged = "def add(a, b):\n    return 99\ndef helper(n):\n    return 99\nabs = helper\n"
    prelude = "def helper(n):\n    return n\n"
    assert verdict(forged, box, tests, prelude=prelude).verdict == "fail"
    assert verdict(ADD, box, tests, prelude=prelude).verdict == "pass"


@pytest.mark.parametrize(
    ("tests", "prelude"),
    [("x = 1\n", ""), ("assert add(\n", ""), (TESTS, "1 / 0\n"), ("add(print, 1)\n", "")],
)
def test_a_benchmarks_own_faults_are_not_the_models(tests, prelude, box):
    assert verdict(ADD, box, tests, prelude=prelude).verdict == "infrastructure"


def test_a_worker_that_does_not_start_is_not_the_models_fault(box):
    task = Task(program=ADD, tests=TESTS, names=("add",))
    gone = judge_once(task, box.layer, "/no/such/python", LIMITS)
    wrong = judge_once(task, box.layer, "/bin/false", LIMITS)
    assert gone.verdict == wrong.verdict == "infrastructure"
    broken = Sandbox(box.layer, "/bin/false", LIMITS)
    with pytest.raises(SandboxError, match="cannot be judged"):
        judge(task, broken)
    assert broken.counts["infrastructure"] == sandbox_module.ATTEMPTS


def test_a_layer_that_the_kernel_does_not_give_is_no_pass(box):
    layer = Layer(name="dream", needs=frozenset({"dream"}))
    judgement = judge_once(
        Task(program=ADD, tests=TESTS, names=("add",)), layer, box.python, LIMITS
    )
    assert (judgement.verdict, "no dream" in judgement.detail) == ("infrastructure", True)


def test_too_many_failures_of_the_machine_stop_the_run(box):
    often = Sandbox(box.layer, "/bin/false", LIMITS)
    often.counts.update({"pass": 97, "infrastructure": 2})
    with pytest.raises(SandboxError, match="3 of 100 attempts"):
        judge(Task(program=ADD, tests=TESTS, names=("add",)), often)


def test_without_a_layer_nothing_runs_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(sandbox_module, "layers", lambda python: iter(()))
    with pytest.raises(SandboxError, match="--unsafe-exec"):
        open_sandbox()
    assert open_sandbox(unsafe_exec=True).layer.name == "none"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's user ids")
def test_a_layer_through_which_files_are_read_is_refused(monkeypatch):
    leaky = Layer(name="leaky", user=None)
    monkeypatch.setattr(sandbox_module, "layers", lambda python: iter([leaky]))
    with pytest.raises(SandboxError, match="leaky: a program in it reaches a file"):
        open_sandbox()


def test_programs_read_input_and_print(box):
    run = run_program("print(sum(map(int, input().split())))", "1 2 3\n", box)
    assert (run.ended, run.status, run.output, run.errors) == ("finished", 0, "6\n", "")
    run = run_program("import sys\nprint('half')\nsys.exit(3)", "x" * 10**6, box)
    assert (run.ended, run.status, run.output) == ("finished", 3, "half\n")
    run = run_program("1 / 0", "", box)
    assert (run.status, "ZeroDivisionError" in run.errors) == (1, True)


@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("while True:\n    pass", "timeout"),
        ("while True:\n    print('x' * 1000)", "output cap"),
        ("x = bytearray(8 * 2**30)", "memory"),
        ("import ctypes\nctypes.string_at(0)", "crash"),
    ],
)
def test_how_a_program_ends(program, ended, box):
    assert run_program(program, "", box).ended == ended


def test_a_programs_output_is_compared_for_each_input(box):
    examples = [("2\n", "4"), ("3\n", "9\n")]
    assert judge_program("print(int(input()) ** 2)", examples, box).verdict == "pass"
    wrong = judge_program("print(4)", examples, box)
    assert (wrong.verdict, wrong.detail) == ("fail", "input 2: output")
    assert judge_program("print(4, flush=True)\n1 / 0", examples, box).verdict == "fail"


@pytest.mark.parametrize(
    ("given_text", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1.0 \n2", "1\n2.00", True),
        ("nan", "nan", True),
        ("nan", "NaN", False),
        ("1 2", "1\n2", False),
        ("YES", "yes", False),
    ],
)
def test_output_is_compared_by_lines_and_numbers(given_text, expected, same):
    assert same_output(given_text, expected) is same


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_bytes", "wall_seconds"])
def test_a_limit_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})


def test_a_worker_has_no_environment_and_no_packages(box):
    source = (
        "import os, sys\nprint(sorted(os.environ), [p for p in sys.path if 'site-packages' in p])"
    )
    os.environ["SECRET_OF_A_TEST"] = "1"
    output = run_program(source, "", box).output
    assert "SECRET_OF_A_TEST" not in output
    assert output.endswith("[]\n")
    assert base_python() == os.path.realpath(base_python())


FRAMES = """
import os, struct
for fd in range(3, 32):
    try:
        os.write(fd, struct.pack(">cI", b"X", 100000) + b"[" * 100000)
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("program", "tests", "verdicts"),
    [
        # it would end the tests' own loop before it fails
        (
            "def f(x):\n    raise StopIteration",
            "assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (2, 3)]))",
            ("fail",),
        ),
        # a number too long to print, in the message of the test
        ("def f(x):\n    return 10**5000", "r = f(1)\nassert r == 5, r", ("fail",)),
        # what a failed load says is nested deeper than the judge can read
        (FRAMES, "assert f(1) == 1", ("protocol", "crash", "fail")),
    ],
)
def test_a_program_neither_passes_by_its_exceptions_nor_fails_its_judge(
    program, tests, verdicts, box
):
    task = Task(program=program, tests=tests, names=("f",))
    assert judge_once(task, box.layer, box.python, LIMITS).verdict in verdicts


def test_no_worker_outlives_its_judge(box, tmp_path):
    """Killed at once, the judge cannot end what it started: the kernel does."""
    if not Path("/proc").is_dir():
        pytest.skip("only Linux ends a process with its parent")
    script = (
        "from pocketlm.sandbox.judge import Task, judge_once\n"
        "from pocketlm.sandbox.sandbox import open_sandbox\n"
        "box = open_sandbox(unsafe_exec=True)\n"
        "task = Task(program='import time\\ntime.sleep(1000)', tests='f()', names=('f',))\n"
        "print('ready', flush=True)\n"
        "judge_once(task, box.layer, box.python, box.limits)\n"
    )
    judge = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert judge.stdout is not None and judge.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not (workers := children_of(judge.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)  # both have started and one sleeps
    workers = children_of(judge.pid)
    judge.kill()
    judge.wait()
    assert len(workers) == 2
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
