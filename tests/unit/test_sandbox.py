"""The sandbox: values cross as they are, verdicts are the right ones, failures of the machine are
never the model's.
"""

import math
import os
import subprocess
import sys
import time
from array import array
from collections import Counter, OrderedDict, deque
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.sandbox import sandbox as sandbox_module
from pocketlm.sandbox.judge import Cases, Task, judge_once
from pocketlm.sandbox.layers import Layer, Limits, base_python
from pocketlm.sandbox.sandbox import (
    Sandbox,
    SandboxError,
    judge,
    judge_cases,
    open_sandbox,
    run_program,
    same_output,
)
from pocketlm.sandbox.values import MAX_DEPTH, decode, encode

LIMITS = Limits(cpu_seconds=2, wall_seconds=20.0)
PATIENT = replace(LIMITS, cpu_seconds=20, wall_seconds=60.0)  # for what a slow processor computes


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


@pytest.mark.parametrize(
    "value",
    [
        *(Fraction(-(2**70), 3), Decimal("1.20"), Decimal("sNaN"), deque([1, (2,)], 3), deque()),
        *(
            Counter("abca"),
            OrderedDict([(2, "b"), (1, "a")]),
            timedelta(-1, 5, 7),
            date(2024, 2, 29),
        ),
        *(datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=2))), array("d", [0.5])),
        *(int, dict, ValueError, [Fraction(1, 2)], {Fraction(1, 2): Decimal(1)}),
    ],
)
def test_objects_of_the_standard_library_come_back_as_they_are(value):
    assert repr(again(value)) == repr(value)
    assert type(again(value)) is type(value)


def test_a_class_that_only_calls_itself_a_fraction_gives_no_object_of_its_own():
    class Fraction:
        numerator, denominator = "1", "2"

    Fraction.__module__ = "fractions"
    with pytest.raises(ValueError, match="no plain value"):
        again(Fraction())
    for payload in ('["x", "os.system", ["id"]]', '["type", "print"]', '["type", "os"]'):
        with pytest.raises(ValueError, match="no plain value"):
            decode(payload.encode(), no_handle)


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
    tests += "assert a.next and a.next is a.next and a.next != a\n"
    assert verdict(program, box, tests, ("Node", "total")).verdict == "pass"
    wrong = tests + "assert not a.next\n"
    assert verdict(program, box, wrong, ("Node", "total")).verdict == "fail"


@pytest.mark.parametrize(
    ("result", "assertion"),
    [
        ("Fraction(x, 6)", "f(3) == Fraction(1, 2) == 0.5"),
        ("Decimal(x) / 4", "f(3) == Decimal('0.75')"),
        ("reversed([x, 2])", "list(f(3)) == [2, 3]"),
        ("reversed({x: 1})", "list(f(3)) == [3]"),
        (
            "(n for n in itertools.count(x))",
            "next(f(3)) == 3 and list(zip(f(5), 'ab'))[1] == (6, 'b')",
        ),
        ("itertools.chain('a', [x])", "set(f(3)) == {'a', 3} and 3 in f(3)"),
        ("re.search('b+', 'abb' * x)", "f(1) and f(1).group() == 'bb' and f(1).span() == (1, 3)"),
        ("re.search('c', 'ab' * x)", "not f(1)"),
        ("re.finditer('b', 'ab' * x)", "[m.start() for m in f(2)] == [1, 3]"),
        (
            "Odd(x)",
            "not f(0) and f(2) and len(f(2)) == 2 and f(2)[1] == 1 and str(f(2)) == 'odd 2'",
        ),
        ("Odd(x)", "list(f(3)) == [0, 1, 2]"),
        ("deque([x])", "f(3) == deque([3]) and f(3).popleft() == 3"),
        ("Counter('aab' * x).most_common(1)", "f(2) == [('a', 4)]"),
        ("type(x)", "f(3) == int and f('') is str"),
        ("lambda n: n + x", "f(3)(4) == 7"),
        ("SAME", "f(1) is f(2) and f(1) == f(2)"),
        ("apply(x)", "f(abs_of) == 5"),
    ],
)
def test_what_a_plain_assert_takes_passes_here(result, assertion, box):
    imports = "import itertools, re\nfrom collections import Counter, deque\n"
    imports += "from decimal import Decimal\nfrom fractions import Fraction\n"
    program = (
        f"{imports}class Odd:\n    def __init__(self, n):\n        self.n = n\n"
        "    def __len__(self):\n        return self.n\n"
        "    def __getitem__(self, i):\n        return range(self.n)[i]\n"
        "    def __str__(self):\n        return f'odd {self.n}'\n"
        "SAME = Odd(1)\ndef abs_of(n):\n    return abs(n)\ndef apply(g):\n    return g(-5)\n"
        f"def f(x):\n    return {result}\n"
    )
    tests = f"{imports}assert {assertion}\n"
    exec(compile(program + tests, "plain", "exec"), {})
    assert verdict(program, box, tests, ("f", "abs_of")).verdict == "pass"
    wrong = f"{imports}assert not ({assertion})\n"
    assert verdict(program, box, wrong, ("f", "abs_of")).verdict == "fail"


def test_no_comparison_of_the_programs_own_counts(box):
    program = (
        "class Same:\n    def __eq__(self, other):\n        return True\n"
        "    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__\n"
        "    def __sub__(self, other):\n        return 0\n    __rsub__ = __radd__ = __sub__\n"
        "    def __abs__(self):\n        return 0\n"
        "    def __iter__(self):\n        return iter(())\n"
        "def f(x):\n    return Same()\n"
    )
    for claim in (
        "f(1) == 5",
        "5 == f(1)",
        "f(1) < 5",
        "5 in f(1)",
        "f(1) in [5]",
        "abs(f(1) - 5) < 1",
    ):
        assert verdict(program, box, f"assert {claim}\n", ("f",)).verdict == "fail"
    assert verdict(program, box, "assert f(1) != 5\n", ("f",)).verdict == "pass"
    assert verdict(program, box, "assert not (f(1) == 5)\n", ("f",)).verdict == "pass"


def test_the_tests_own_iterators_and_large_values_reach_the_program(box):
    total = "def f(x):\n    return sum(x)\n"
    for asked in ("iter([1, 2])", "(n for n in [1, 2])", "map(int, '12')"):
        assert verdict(total, box, f"assert f({asked}) == 3\n", ("f",)).verdict == "pass"
    many = Task(program=total, tests="assert f([1] * 2_000_000) == 2_000_000\n", names=("f",))
    assert judge_once(many, box.layer, box.python, PATIENT).verdict == "pass"
    deep = "x = []\nfor _ in range(200):\n    x = [x]\nf(x)\n"
    assert verdict(total, box, deep, ("f",)).verdict == "infrastructure"


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
    assert (run.verdict, run.status, run.stdout, run.stderr) == ("finished", 0, "6\n", "")
    run = run_program("import sys\nprint('half')\nsys.exit(3)", "x" * 10**6, box)
    assert (run.verdict, run.status, run.stdout) == ("finished", 3, "half\n")
    run = run_program("1 / 0", "", box)
    assert (run.status, "ZeroDivisionError" in run.stderr) == (1, True)


def test_anybody_may_run_a_program_without_opening_a_sandbox(monkeypatch, box):
    opened = []
    monkeypatch.setattr(sandbox_module, "open_sandbox", lambda: opened.append(1) or box)
    sandbox_module._opened_once.cache_clear()
    outcome = run_program("print('hello')")
    assert (outcome.stdout, outcome.stderr, outcome.verdict) == ("hello\n", "", "finished")
    assert 0 < outcome.seconds < 20
    assert run_program("print(input())", "again").stdout == "again\n"
    assert opened == [1]
    sandbox_module._opened_once.cache_clear()


def test_output_is_kept_up_to_the_cap(box):
    small = replace(box, limits=replace(LIMITS, output_bytes=1000))
    outcome = run_program("print('x' * 5000)", "", small)
    assert (outcome.verdict, outcome.stdout) == ("output cap", "x" * 1000)
    outcome = run_program("import sys\nsys.stderr.write('y' * 5000)", "", small)
    assert (outcome.verdict, outcome.stderr) == ("output cap", "y" * 1000)


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
    assert run_program(program, "", box).verdict == ended


CLOSES = "import os\nos.closerange(0, 64)\nwhile True:\n    pass\n"


def test_a_worker_that_the_judge_had_to_kill_is_not_short_of_memory(box):
    slow = replace(box, limits=replace(LIMITS, cpu_seconds=30, wall_seconds=1.5))
    outcome = run_program(CLOSES, "", slow)
    assert (outcome.verdict, outcome.detail) == ("timeout", "1.5 seconds")
    task = Task(program=f"{ADD}{CLOSES}", tests=TESTS, names=("add",))
    judgement = judge_once(task, slow.layer, slow.python, slow.limits)
    assert judgement.verdict == "crash" and "did not end" in judgement.detail


def test_a_programs_output_is_compared_for_each_input(box):
    asked: list[tuple[str, str] | Task] = [("2\n", "4"), ("3\n", "9\n")]
    cases = Cases(read=lambda: asked, digest="", cpu_seconds=2)
    assert judge_cases("print(int(input()) ** 2)", cases, box).verdict == "pass"
    wrong = judge_cases("print(4)", cases, box)
    assert (wrong.verdict, wrong.detail) == ("fail", "case 2: another output")
    assert judge_cases("print(4, flush=True)\n1 / 0", cases, box).verdict == "fail"
    assert "ZeroDivisionError" in judge_cases("1 / 0", cases, box).detail


def test_each_case_has_its_own_seconds_and_room_for_the_output_it_wants(box):
    small = replace(box, limits=replace(LIMITS, output_bytes=1000))
    busy = "import time\nwhile time.process_time() < 2:\n    pass\n"
    task = Task(program="", tests="assert add(1, 2) == 3\n", names=("add",))
    asked = [("", "x" * 1500), ("", "x" * 1500), task]
    program = f"{busy}print('x' * 1500, flush=True)\n{ADD}"
    # six seconds for all three, four for each: also on a slow machine the start takes less than two
    cases = Cases(read=lambda: asked, digest="", cpu_seconds=4)
    assert judge_cases(program, cases, replace(small, limits=LIMITS)).verdict == "pass"
    slower = program.replace("< 2", "< 20")
    assert judge_cases(slower, cases, small).verdict == "timeout"
    assert judge_cases(program, cases, small).detail == "case 3: more than 1,000 bytes printed"


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
    output = run_program(source, "", box).stdout
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
