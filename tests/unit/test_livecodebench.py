"""LiveCodeBench from files in the hub's form: tests of both kinds, pickles that are only read."""

import base64
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketlm.eval.code_scorer import code_scorer
from pocketlm.eval.figures import figures_of
from pocketlm.eval.harness import run_suite
from pocketlm.eval.suites import code_livecodebench as livecodebench
from pocketlm.eval.suites.named import load_problems, named_suites
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.sandbox.sandbox import Sandbox, SandboxError, open_sandbox
from tests.unit.silent_runtime import SilentRuntime

SUITE = SUITES["livecodebench"]


def packed(content: Any, protocol: int | None = None) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(content, protocol))).decode()


def pairs_of(kind: str, *pairs: tuple[str, str]) -> str:
    return json.dumps([{"input": i, "output": o, "testtype": kind} for i, o in pairs])


SQUARES = {
    "question_title": "Squares",
    "question_content": "Print the square of each number.",
    "platform": "atcoder",
    "question_id": "abc001_a",
    "contest_id": "abc001",
    "contest_date": "2025-01-04T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": pairs_of("stdin", ("2\n", "4\n")),
    "private_test_cases": packed(pairs_of("stdin", ("3\n5\n", "9\n25\n"), ("1.5\n", "2.250"))),
    "metadata": "{}",
}
PAIRS = SQUARES | {
    "question_id": "3000",
    "starter_code": "class Solution:\n    def pairs(self, n: int, names: List[str]) -> List[int]:",
    "difficulty": "hard",
    "public_test_cases": pairs_of("functional", ('2\n["a", "b"]', "[2, 1]")),
    "private_test_cases": pairs_of("functional", ('0\n["é"]', "[0, 1]")),
    "metadata": json.dumps({"func_name": "pairs"}),
}
SQUARE = (
    "for line in stdin:\n    x = float(line)\n    y = x * x\n    print(y if y % 1 else int(y))\n"
)
METHOD = (
    "class Solution:\n    def pairs(self, n: int, names: List[str]) -> List[int]:\n"
    "        return [n, len(names[0])]\n"
)


def fenced(code: str) -> str:
    return f"So:\n```python\n{code}\n```\nThat is it."


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    """A folder of benchmarks with the six files: these rows in the first, PAIRS in the last."""
    (folder / "livecodebench").mkdir(exist_ok=True)
    for name in livecodebench.FILES:
        content = rows if name == livecodebench.FILES[0] else ()
        content = (PAIRS,) if name == livecodebench.FILES[-1] else content
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / "livecodebench" / name).write_text(text)
    return folder


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    return written(tmp_path, SQUARES)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(unsafe_exec=True)


def verdict(problem: Any, answer: str, box: Sandbox) -> str:
    (name,) = (name for name, value in code_scorer(box)(problem, answer).items() if value)
    return name


def test_problems_of_both_kinds_are_read_and_asked_as_livecodebench_asks(data: Path) -> None:
    squares, pairs = load_problems(SUITE, data)
    assert (squares.id, squares.family, pairs.id, pairs.family) == (
        *("abc001_a", "easy"),
        *("3000", "hard"),
    )
    assert squares.prompt.startswith(
        "### Question:\nPrint the square of each number.\n\n### Format"
    )
    assert "# YOUR CODE HERE" in squares.prompt and "Read the inputs from stdin" in squares.prompt
    assert PAIRS["starter_code"] in pairs.prompt
    assert (SUITE.samples, SUITE.sampling.temperature, SUITE.sampling.top_p) == (10, 0.2, 0.95)
    (row,) = named_suites(["r1-final.livecodebench"])
    assert (row.samples, row.sampling.temperature, row.sampling.top_p) == (16, 0.6, 0.95)
    assert row.protocol()["sources"]["sampling"].startswith("not found")


def test_programs_that_read_and_print_are_compared_by_their_output(
    data: Path, box: Sandbox
) -> None:
    problem = load_problems(SUITE, data)[0]
    assert verdict(problem, fenced(SQUARE), box) == "pass@1"
    main = (
        "def main():\n    for line in stdin:\n        print(float(line) ** 2)\n"
        "if __name__ == '__main__':\n    main()"
    )
    assert verdict(problem, fenced(main), box) == "pass@1"  # 4.0 is 4
    assert verdict(problem, fenced(SQUARE.replace("x * x", "x + x")), box) == "fail"
    assert verdict(problem, fenced(SQUARE) + fenced("print(1)"), box) == "fail"  # the last counts
    assert verdict(problem, SQUARE, box) == "fail"  # no fence, no program
    assert problem.task is not None and problem.task.cpu_seconds == 6  # type: ignore[union-attr]
    short = replace(problem, task=replace(problem.task, cpu_seconds=1))  # type: ignore[call-arg]
    assert verdict(short, fenced("while True: pass"), box) == "timeout"


def test_functions_are_called_with_the_arguments_on_their_lines(data: Path, box: Sandbox) -> None:
    problem = load_problems(SUITE, data)[1]
    assert verdict(problem, fenced(METHOD), box) == "pass@1"
    assert verdict(problem, fenced(METHOD.replace("[n, len(names[0])]", "n, 1")), box) == "pass@1"
    assert verdict(problem, fenced("def pairs(n, names):\n    return [n, 1]"), box) == "pass@1"
    assert verdict(problem, fenced(METHOD.replace("[n,", "[n + 1,")), box) == "fail"
    assert verdict(problem, fenced("class Solution:\n    pass"), box) == "fail"


def test_sixteen_answers_count_by_their_mean(data: Path, box: Sandbox) -> None:
    class Writer(SilentRuntime):
        max_length = 4000

        def __init__(self) -> None:
            self.tokenizer = train_tokenizer([SQUARES["question_content"], SQUARE, METHOD], 290)

        def generate(self, prompts: Any, **options: Any) -> list[list[int]]:
            right, wrong = fenced(SQUARE), fenced("print(0)")
            return [self.tokenizer.encode(wrong if n % 4 else right) for n in range(len(prompts))]

    suite = replace(SUITE, samples=16, scorer=code_scorer(box), max_new_tokens=300)
    rows = run_suite(Writer(), suite, load_problems(suite, data, 1))  # type: ignore[abstract]
    figures = figures_of(suite, rows)
    assert figures["value"] == 0.25
    assert (figures["verdicts"]["pass"], figures["verdicts"]["fail"]) == (4, 12)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_private_tests_are_read_out_of_a_pickle_of_any_protocol(
    protocol: int, tmp_path: Path
) -> None:
    text = pairs_of("stdin", ("é\n" * 300, "1"))
    row = {**SQUARES, "private_test_cases": packed(text, protocol)}
    (problem,) = load_problems(SUITE, written(tmp_path, row), 1)
    assert problem.task is not None
    assert list(problem.task.read()) == [("2\n", "4\n"), ("é\n" * 300, "1")]  # type: ignore[union-attr]


class Attack:
    """A pickle of it makes a file where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def test_a_pickle_that_holds_anything_but_a_text_is_refused_and_never_opened(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    packs = [Attack(mark), [pairs_of("stdin", ("1", "1"))], {"a": 1}, b"[]", None, 3]
    function, arguments = Attack(mark).__reduce__()
    function(*arguments).close()
    assert mark.is_file()  # so the attack is one
    mark.unlink()
    for content in packs:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            row = {**SQUARES, "private_test_cases": packed(content, protocol)}
            with pytest.raises(
                ValueError, match=r"test.jsonl:1: field private_test_cases is neithe"
            ):
                load_problems(SUITE, written(tmp_path, row))
            assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"private_test_cases": "%%%"}, "field private_test_cases is neither JSON nor .*no base64"),
        ({"private_test_cases": ""}, "private_test_cases is neither .*cut"),
        ({"private_test_cases": "QUJD"}, "private_test_cases is neither .*incorrect header"),
        ({"private_test_cases": packed("[]")[:-8]}, "private_test_cases is neither"),
        ({"private_test_cases": packed("{")}, "private_test_cases:1: not JSON"),
        ({"private_test_cases": packed("x" * 3000)}, "private_test_cases is neither .*than 2,"),
        ({"private_test_cases": "[1]"}, "private_test_cases holds something else"),
        ({"private_test_cases": '[{"input": 1}]'}, "input is 1, text is needed"),
        ({"private_test_cases": "[", "public_test_cases": "["}, "public_test_cases:1: not JSON"),
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "holds no test"),
        ({"metadata": "[]"}, "field metadata holds no object"),
        ({"metadata": '{"func_name": "a b"}'}, "names no function"),
        ({"metadata": '{"func_name": "f"}', "private_test_cases": "[]",
          "public_test_cases": pairs_of("functional", ("x", "1"))}, "a test of f that is no JSON"),
        ({"question_content": "\ud800"}, "half a surrogate pair"),
        ({"question_title": json.loads('{"a":' * 400 + "1" + "}" * 400)}, "too deep in each other"),
        ({"question_id": 7}, "field question_id is 7, text is needed"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_said_with_its_file_and_line(
    change: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livecodebench, "MOST_BYTES", 2_000)
    with pytest.raises(ValueError, match=rf"test.jsonl:1.*{complaint}"):
        load_problems(SUITE, written(tmp_path, {**SQUARES, **change}))


def test_files_that_are_missing_or_change_are_said(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squares, _ = load_problems(SUITE, data)
    written(data, {**SQUARES, "metadata": "{ }"})
    assert squares.task is not None
    with pytest.raises(ValueError, match=r"test.jsonl:1: changed while it was read"):
        squares.task.read()  # type: ignore[union-attr]
    (data / "livecodebench" / "test4.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no test4.jsonl; .*test6.jsonl"):
        load_problems(SUITE, data)
    import huggingface_hub as hub

    def fetch(name: str, **options: Any) -> str:
        assert (name, options["repo_type"]) == (livecodebench.DATASET, "dataset")
        assert options["allow_patterns"] == list(livecodebench.FILES)
        return str(written(data, SQUARES) / "livecodebench")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert len(load_problems(SUITE)) == 2
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(ValueError, match=r"hub \(division by zero\); give --data DIR"):
        load_problems(SUITE)


def test_what_the_newest_release_added_needs_its_one_file_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in livecodebench.FILES[:-1]:
        (data / "livecodebench" / name).unlink()
    newest = SUITES["livecodebench_v6"]
    (pairs,) = load_problems(newest, data)
    assert pairs.id == "3000"
    with pytest.raises(FileNotFoundError, match=r"holds no test\.jsonl, test2"):
        load_problems(SUITE, data)
    import huggingface_hub as hub

    def fetch(name: str, **options: Any) -> str:
        assert options["allow_patterns"] == ["test6.jsonl"]
        return str(data / "livecodebench")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert [problem.id for problem in load_problems(newest)] == ["3000"]


def test_without_a_sandbox_no_program_runs(data: Path) -> None:
    with pytest.raises(SandboxError, match="abc001_a"):
        SUITE.scorer(load_problems(SUITE, data)[0], fenced(SQUARE))
