"""Suites whose answers are programs: tests become tasks, answers keep their indentation, pass@k."""

import json
import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from pocketlm.eval.answer_program import answered_program, between_last_fences
from pocketlm.eval.answers_file import documents_digest, keep_to
from pocketlm.eval.code_scorer import (
    code_scorer,
    over_samples,
    pass_at_k,
    program_of,
    verdict_counts,
)
from pocketlm.eval.figures import figures_of
from pocketlm.eval.harness import run_suite
from pocketlm.eval.prompts import requests_of
from pocketlm.eval.scorers import without_thinking
from pocketlm.eval.suites.named import load_problems, named_suites, shots_of
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.report.evaluation import limits_reached
from pocketlm.sandbox import sandbox as sandbox_module
from pocketlm.sandbox.judge import Judgement, Task
from pocketlm.sandbox.layers import Limits
from pocketlm.sandbox.sandbox import Sandbox, SandboxError, open_sandbox
from tests.unit.silent_runtime import SilentRuntime

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def code(text):\n    return text[::-1]\n\n\ndef decode(text):\n    '''back'''\n",
    "canonical_solution": "    return text[::-1]\n",
    "entry_point": "decode",
    "test": "def check(candidate):\n    for text in ('ab', 'abc'):\n"
    "        assert candidate(code(text)) == text\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "class Pair:\r\n  def __init__(self, a, b):\r\n    self.a, self.b = a, b\r\n"
    "def sum(p):\r\n  return p.a + p.b\r\n",
    "test_setup_code": "p = Pair(1, 2)\r\np.a = 5",
    "test_list": ["assert sum(p) == 7", "assert sum(Pair(0, 0)) == 0"],
}


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(unsafe_exec=True)


@pytest.fixture()
def data(tmp_path):
    shots = [{**MBPP, "task_id": number} for number in (1, 2, 3, 4)]
    for name, rows in (("HumanEval", [HUMANEVAL]), ("mbpp_test", [MBPP]), ("mbpp", shots)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def passes(suite, data, box, completion):
    (problem,) = load_problems(SUITES[suite], data)
    return code_scorer(box)(problem, completion)["pass@1"]


def test_references_pass_and_other_programs_fail(data, box):
    for suite in ("humaneval", "mbpp"):
        (problem,) = load_problems(SUITES[suite], data)
        assert passes(suite, data, box, problem.answer) == 1.0
    assert passes("humaneval", data, box, "    return text\n") == 0.0
    assert passes("mbpp", data, box, MBPP["code"].replace("+", "-")) == 0.0


def test_helpers_of_the_prompt_that_a_model_redefines_change_no_test(data, box):
    forged = "    return text\ndef code(text):\n    return text\n"
    assert passes("humaneval", data, box, forged) == 0.0


def test_a_fenced_answer_is_taken_alone(data, box):
    whole = "Sure:\n```python\ndef decode(text):\n    return text[::-1]\n```\nThat is it."
    assert passes("humaneval", data, box, whole) == 1.0
    fenced = f"```\n{MBPP['code']}\n```"
    assert passes("mbpp", data, box, fenced) == 1.0
    (problem,) = load_problems(SUITES["humaneval"], data)
    assert problem.task is not None
    assert program_of(problem.task, "    return 1") == HUMANEVAL["prompt"] + "    return 1"


BEGIN = HUMANEVAL["prompt"]
RIGHT = "def decode(text):\n    return text[::-1]\n"
WRONG = "def decode(text):\n    return text\n"


def fenced(*blocks):
    return "Words.\n".join(f"```python\n{block}\n```\n" for block in blocks)


@pytest.mark.parametrize(
    "answer",
    [
        fenced(RIGHT, "print(decode('abc'))"),
        fenced(RIGHT, "result = decode('abc')\nassert result == 1"),
        fenced(WRONG, RIGHT, "decode('a')"),
        f"```bash\npip install x\n```\nThen\n```python\n{RIGHT}```\n```\ncba\n```",
        f"```python3\n{RIGHT}```\nIt prints\n```text\ndef decode(text):\n```",
        f"~~~~py\n{RIGHT}~~~~",
        "1. So:\n   ```python\n   def decode(text):\n       return text[::-1]\n   ```\n",
        f"```Python\r\n{RIGHT}```\r\n",
        f"```python\n{RIGHT}",
        fenced("class Other:\n    def decode(self, text):\n        return text", RIGHT),
        fenced(RIGHT, "class Other:\n    def decode(self, text):\n        return text"),
        fenced("import math as m", "def decode(text):\n    return text[:: -int(m.cos(0))]"),
        fenced("from math import *", "def decode(text):\n    return text[:: -int(cos(0))]"),
        fenced(
            "def decode(text):\n    return turn(text)",
            "def turn(x):\n    return x[::STEP]\nSTEP = -1",
        ),
        fenced("data = input()\nimport sys", RIGHT, "sys.exit(decode(data))"),
        fenced("from __future__ import annotations\n" + RIGHT),
        fenced("import os", "from __future__ import annotations\nimport os.path\n" + RIGHT),
        fenced(
            "decode = lambda text: text[::-1]", "def twice(text):\n    return decode(decode(text))"
        ),
        fenced("    return text[::-1]", "print(decode('abc'))"),
        fenced("import math", "    return text[:: -int(math.cos(0))]"),
        "    return text[::-1]\n```\nThat was the body.",
        "    return text[::-1]\n```\nThen\n```python\nprint(decode('a'))\n```",
        fenced(RIGHT, "def decode(text):\n    return text[:"),
        fenced("if True:\n    def decode(text):\n        return text[::-1]", "decode('a')"),
        fenced("async def decode(text):\n    pass", RIGHT),
        fenced(RIGHT, "print([decode for decode in 'abc'])"),
    ],
)
def test_the_program_of_an_answer_is_the_block_that_defines_it(answer, data, box):
    assert passes("humaneval", data, box, answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        fenced(RIGHT, WRONG),
        fenced("print(decode('abc'))"),
        fenced("class Other:\n    def decode(self, text):\n        return text[::-1]"),
        "```\n```",
        "```",
        "",
        "```json\n{}\n```",
        fenced("\x00"),
        fenced("(" * 5000),
        fenced("x" + ".y" * 20_000),
        fenced("-" * 20_000 + "1"),
    ],
)
def test_an_answer_without_a_right_definition_fails(answer, data, box):
    assert passes("humaneval", data, box, answer) == 0.0


def test_two_halves_of_a_program_in_two_blocks_are_one(data, box):
    first, second = MBPP["code"].replace("\r", "").split("def sum")
    second = f"def sum{second}"
    for answer in (fenced(first, second), fenced(second, first), fenced(first, second, "sum(1)")):
        assert passes("mbpp", data, box, answer) == 1.0
    assert passes("mbpp", data, box, fenced(second)) == 0.0


def test_an_answer_without_fences_goes_on_where_the_prompt_ends():
    assert answered_program(BEGIN, ["decode"], "    return 1") == BEGIN + "    return 1"
    assert between_last_fences("a\n```python\nx\n```\nb\n```\ny\n```\n```z") == ""
    assert between_last_fences("a\n```python\nx\ny\n```\nb") == "x\ny"
    assert between_last_fences("```python\nx") == ""


def test_mbpp_shows_the_three_shots_of_the_paper_with_their_end_marks(data):
    suite = SUITES["mbpp"]
    shots = shots_of(suite, data, {""})
    assert [shot.id for shot in shots[""]] == ["2", "3", "4"]
    before = suite.before(load_problems(suite, data)[0], shots[""])
    assert before.count("[BEGIN]\nclass Pair") == 3 and before.count("\n[DONE]\n\n") == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"code": "def sum(\n"}, "field code is no Python"),
        ({"test_list": ["assert ("]}, "field test_list is no Python"),
        ({"test_list": ["assert 1 == 1"], "test_setup_code": ""}, "field test_list calls nothing"),
    ],
)
def test_a_damaged_row_is_said_with_its_line(tmp_path, change, complaint):
    (tmp_path / "mbpp_test.jsonl").write_text(json.dumps({**MBPP, **change}) + "\n")
    with pytest.raises(ValueError, match=rf"mbpp_test.jsonl:1: {complaint}"):
        load_problems(SUITES["mbpp"], tmp_path)


def test_r1_has_rows_for_both():
    names = {suite.name: suite for suite in named_suites(["r1-base"])}
    assert names["r1-base.mbpp"].shots == 3 and names["r1-base.humaneval"].shots == 0


def test_without_a_sandbox_no_program_runs(data):
    suite = SUITES["humaneval"]
    (problem,) = load_problems(suite, data)
    with pytest.raises(SandboxError, match="HumanEval/0"):
        suite.scorer(problem, "    return 1\n")


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (5, 2), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(n, correct):
    for k in range(1, n + 1):
        draws = list(combinations([True] * correct + [False] * (n - correct), k))
        assert math.isclose(pass_at_k(n, correct, k), sum(map(any, draws)) / len(draws))


def test_pass_at_more_than_there_are_samples_is_refused():
    with pytest.raises(ValueError, match="pass@3 of 1 correct among 2"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="2 samples give no pass@"):
        replace(SUITES["humaneval"], samples=2, pass_at=(1, 4))


def test_scores_of_several_samples_are_means():
    scores = [{"pass@1": 1.0}, {"pass@1": 0.0}, {"pass@1": 0.0}]
    assert over_samples(scores, (2, 3)) == {
        "pass@1": pytest.approx(1 / 3),
        "pass@2": pytest.approx(2 / 3),
        "pass@3": 1.0,
    }


class Writer(SilentRuntime):
    """Writes these completions one after another, whatever it is asked."""

    max_length = 2000

    def __init__(self, completions):
        self.completions = completions
        self.tokenizer = train_tokenizer([HUMANEVAL["prompt"], *completions], 280)
        self.seeds = []

    def generate(self, prompts, *, sampling, **options):
        self.seeds.append(sampling.seed)
        return [self.tokenizer.encode(self.completions[i]) for i in range(len(prompts))]


def test_a_suite_of_programs_keeps_indentation_and_estimates_pass_at_k(data, box):
    suite = replace(
        SUITES["humaneval"], samples=3, pass_at=(2,), scorer=code_scorer(box), max_new_tokens=100
    )
    answers = ["    return text[::-1]\n", "return text[::-1]", "    return ''\n\ndef more():"]
    model: Any = Writer(answers)
    problems = load_problems(suite, data)
    rows = run_suite(model, suite, problems)
    assert rows[0]["samples"] == ["    return text[::-1]", "return text[::-1]", "    return ''"]
    figures = figures_of(suite, rows)
    assert figures["value"] == pytest.approx(1 / 3)
    counts = {name: count for name, count in figures["verdicts"].items() if count}
    assert counts == {"pass": 1, "fail": 2} and rows[0]["scores"]["timeout"] == 0.0
    assert figures["scores"]["pass@2"]["value"] == pytest.approx(2 / 3)
    assert suite.protocol()["samples"] == 3 and "samples" not in SUITES["humaneval"].protocol()


def test_pass_at_k_of_a_scorer_without_pass_at_1_is_refused():
    with pytest.raises(ValueError, match="pass@2 needs a scorer that gives pass@1"):
        over_samples([{"math_verify": 1.0}] * 4, (2,))


def test_a_program_after_thinking_keeps_its_indentation():
    answer = "<think>a</think>\n    y = x\n    return y\n"
    assert without_thinking(answer, program=True) == "    y = x\n    return y"
    assert without_thinking(answer) == "y = x\n    return y"


def test_every_verdict_and_failed_attempt_is_counted(data, box, monkeypatch):
    (problem,) = load_problems(SUITES["humaneval"], data)
    small = Sandbox(box.layer, box.python, Limits(cpu_seconds=1, output_bytes=1000))
    score = code_scorer(small)
    bodies = {
        "pass@1": "return text[::-1]",
        "fail": "return text",
        "timeout": "while True: pass",
        "memory": "return bytearray(2**40)",
        "crash": "import os; os.abort()",
        "protocol": "x = []; x.append(x); return x",
        "output_cap": "print('x' * 5000, flush=True)",
    }
    rows: list[Any] = []
    for expected, body in bodies.items():
        scores = score(problem, f"    {body}\n")
        assert [name for name, value in scores.items() if value] == [expected]
        rows.append({"scores": scores})
    assert set(verdict_counts(rows).values()) == {0, 1}
    assert verdict_counts(rows)["infrastructure"] == 0
    real, failures = sandbox_module.judge_once, iter((True, True, False))
    broken = Judgement(verdict="infrastructure", detail="no memory", seconds=0.0)
    monkeypatch.setattr(
        sandbox_module, "judge_once", lambda *a: broken if next(failures) else real(*a)
    )
    scores = score(problem, "    return text[::-1]\n")
    assert (scores["pass@1"], scores["infrastructure"]) == (1.0, 2.0)
    assert verdict_counts([{"scores": scores, "samples": ["a"]}])["infrastructure"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"tests": "assert f() == 2\n"},
        {"prelude": "x = 1\n"},
        {"names": ("f", "g")},
        {"begin": "import os\n"},
    ],
)
def test_a_verdict_is_not_kept_for_other_tests(change, data):
    suite, tokenizer = SUITES["humaneval"], train_tokenizer([HUMANEVAL["prompt"]], 270)
    (problem,) = load_problems(suite, data)
    assert isinstance(problem.task, Task)
    other = replace(problem, task=replace(problem.task, **change))
    first, second = requests_of(tokenizer, suite, [problem, other], {"": []})
    assert first.text == second.text and first.key != second.key
    assert documents_digest([problem], {}) != documents_digest([other], {})


def test_kept_answers_stop_for_other_documents_or_another_sandbox(tmp_path):
    (tmp_path / "transcripts").mkdir()
    asked = {"humaneval": {"documents": "a", "sandbox": "landlock + seccomp"}}
    keep_to(tmp_path, asked)
    keep_to(tmp_path, asked)
    for what, complaint in (
        ("documents", "a there and is b"),
        ("sandbox", "seccomp there and is b"),
    ):
        with pytest.raises(ValueError, match=f"humaneval, whose {what} changed: .*{complaint}"):
            keep_to(tmp_path, {"humaneval": {**asked["humaneval"], what: "b"}})
    keep_to(tmp_path, {"mbpp": {"documents": "c", "sandbox": "none"}})
    with pytest.raises(ValueError, match="whose documents changed"):
        keep_to(tmp_path, {"humaneval": {"documents": "b", "sandbox": "landlock + seccomp"}})


def test_the_verdicts_that_came_are_shown_with_the_figures():
    figures = {"n": 3, "verdicts": {"pass": 1, "fail": 0, "output cap": 2}}
    evaluation = {
        "suites": {"mbpp": {"sandbox": "x"}},
        "models": {"a": {"suites": {"mbpp": figures}}},
    }
    assert limits_reached(evaluation)[0] == "a: verdicts on its programs: 1 pass, 2 output cap"
