"""BFCL's comparison of function calls: what is accepted, and what is not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.eval.function_calls import Expected, bfcl, calls_in, calls_match
from pocketlm.eval.suites.named import load_problems
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.eval.suites.suite import Problem

SCHEMA = {
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "float"},
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "pair": {"type": "tuple", "items": {"type": "integer"}},
        "on": {"type": "boolean"},
        "map": {"type": "dict"},
        "rows": {"type": "array", "items": {"type": "dict"}},
        "any": {"type": "any"},
    },
    "required": ["n"],
}
ACCEPTED = {
    "n": [3],
    "x": [2.0, 2.5, ""],
    "name": ["April 1, 2024", "", "o'clock"],
    "tags": [["a b", "c"], ""],
    "pair": [[1, 2], ""],
    "on": [True, ""],
    "map": [{"city": ["Paris", "Paris, France"], "zip": ["", 7]}, ""],
    "rows": [[{"k": [1]}, {"k": [2]}], ""],
    "any": ["v", ""],
}
ONE = Expected({"geo.find": SCHEMA}, (("geo.find", ACCEPTED),))


def score(answer, expected=ONE):
    problem = Problem(id="1", family="", prompt="p", answer="a", expected=expected)
    return bfcl(problem, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "[geo.find(n=3)]",
        "geo.find(n=3)",
        "```python\n[geo.find(n=3)]\n```",
        "[geo.find(n=2 + 1)]",
        "[geo.find(n=3, x=2)]",  # int counts as float
        "[geo.find(n=3, name='april-1 2024')]",
        '[geo.find(n=3, name="O\'CLOCK")]',
        "[geo.find(n=3, tags=['A-B', 'c'])]",
        "[geo.find(n=3, tags=[])]",  # as the reference has it: an optional list may be empty
        "[geo.find(n=3, pair=(1, 2))]",
        "[geo.find(n=3, pair=[1, 2])]",
        "[geo.find(n=3, on=True)]",
        "[geo.find(n=3, map={'city': 'paris france'})]",
        "[geo.find(n=3, map={'city': 'Paris', 'zip': 7})]",
        "[geo.find(n=3, rows=[{'k': 1}, {'k': 2}])]",
        "[geo.find(n=3, any='V')]",
    ],
)
def test_a_call_of_the_right_types_and_values_is_accepted(answer):
    assert score(answer) == {"ast": 1.0, "no_call": 0.0}


@pytest.mark.parametrize(
    "answer",
    [
        "[geo.find()]",  # a required parameter is missing
        "[find(n=3)]",
        "[geo.find(n=3.0)]",  # float does not count as int
        "[geo.find(n=True)]",
        "[geo.find(n='3')]",
        "[geo.find(n=4)]",
        "[geo.find(n=3, m=1)]",
        "[geo.find(3)]",
        "[geo.find(n=3, x='2.0')]",
        "[geo.find(n=3, tags=['c', 'a b'])]",
        "[geo.find(n=3, tags=['a b', 1])]",
        "[geo.find(n=3, tags='a b')]",
        "[geo.find(n=3, tags=('a b', 'c'))]",  # a tuple counts as list where one is stated alone
        "[geo.find(n=3, on=1)]",
        "[geo.find(n=3, map={'zip': 7})]",
        "[geo.find(n=3, map={'city': 'Rome'})]",
        "[geo.find(n=3, map={'city': 'Paris', 'land': 'F'})]",
        "[geo.find(n=3, rows=[{'k': 2}, {'k': 1}])]",
        "[geo.find(n=3, rows=[{'k': 1}])]",
        "[geo.find(n=3), geo.find(n=3)]",
        "[]",
    ],
)
def test_another_call_is_not(answer):
    assert score(answer) == {"ast": 0.0, "no_call": 0.0}


@pytest.mark.parametrize(
    "answer",
    [
        "I would call geo.find",
        "",
        "[geo.find(n=3",
        "[geo.find(**{'n': 3})]",
        "[1]",
        "[geo.find(n=9**9**9)]",
        "[geo.find(n=1/0)]",
        "[geo.find(n=[x for x in 'ab'])]",
        "[(lambda: 1)(n=3)]",
        "[geo.find(n={[]: 1})]",
        "(" * 5000,
    ],
)
def test_what_is_no_list_of_calls_is_counted_and_never_run(answer):
    assert score(answer) == {"ast": 0.0, "no_call": 1.0}


def test_a_variable_is_compared_exactly_where_texts_are_accepted_for_a_number():
    expected = Expected(
        {"f": {"properties": {"n": {"type": "integer"}}}}, (("f", {"n": ["Size"]}),)
    )
    assert score("f(n=Size)", expected)["ast"] == 1.0
    assert score("f(n=size)", expected)["ast"] == 0.0


def test_parallel_calls_are_taken_in_any_order_each_once():
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    expected = Expected(
        {"f": schema, "g": schema}, (("f", {"a": [1, 2]}), ("f", {"a": [1]}), ("g", {"a": [3]}))
    )
    assert calls_match(calls_in("[g(a=3), f(a=2), f(a=1)]") or [], expected)
    assert not calls_match(calls_in("[g(a=3), f(a=2), f(a=2)]") or [], expected)
    assert not calls_match(calls_in("[f(a=1), f(a=1)]") or [], expected)
    # the first that fits is taken, as in the reference: f(a=1) serves the first, none the second
    assert not calls_match(calls_in("[f(a=1), f(a=2), g(a=3)]") or [], expected)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text("[](){}=,'\"fab123.*-+ \n", max_size=40))
def test_any_answer_gets_a_score(answer):
    assert set(score(answer).values()) <= {0.0, 1.0}


ROW = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "Find 3."}]],
    "function": [
        {
            "name": "f",
            "parameters": {
                "type": "dict",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
            },
        }
    ],
}
TRUTH = {"id": "simple_0", "ground_truth": [{"f": {"n": [3]}}]}


def write(folder, rows=(ROW,), truths=(TRUTH,), names=None):
    (folder / "possible_answer").mkdir(exist_ok=True)
    names = names or [
        *("BFCL_v4_simple_python", "BFCL_v3_multiple", "BFCL_v4_parallel"),
        "BFCL_v2_parallel_multiple",
    ]
    for name in names:
        for place, lines in ((folder, rows), (folder / "possible_answer", truths)):
            (place / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in lines))


def test_bfcls_files_are_read_whatever_their_version(tmp_path):
    write(tmp_path)
    problems = load_problems(SUITES["bfcl"], tmp_path)
    assert [problem.family for problem in problems] == [
        *("simple", "multiple", "parallel", "parallel_multiple")
    ]
    assert "Find 3." in problems[0].prompt and '"name": "f"' in problems[0].prompt
    assert SUITES["bfcl"].macro and bfcl(problems[0], "[f(n=3)]")["ast"] == 1.0
    folder = tmp_path / "data"
    (folder / "bfcl").mkdir(parents=True)
    write(folder / "bfcl")
    assert load_problems(SUITES["bfcl"], folder) == problems


@pytest.mark.parametrize(
    ("rows", "truths", "complaint"),
    [
        ([3], [TRUTH], "expected an object"),
        ([ROW], [3], "expected an object"),
        ([ROW | {"id": 5}], [TRUTH], "field id is 5"),
        ([ROW], [TRUTH | {"id": "other"}], "has no accepted calls"),
        ([ROW | {"function": [{"name": "f"}]}], [TRUTH], r"parameters is missing"),
        ([ROW | {"function": []}], [TRUTH], "names none"),
        ([ROW], [TRUTH | {"ground_truth": [{"g": {}}]}], "call of 'g', which is none"),
        ([ROW], [TRUTH | {"ground_truth": [{"f": {"n": 3}}]}], "that are no lists"),
        ([ROW], [TRUTH | {"ground_truth": ["f"]}], "no object with one name"),
        ([ROW | {"question": [[1]]}], [TRUTH], "holds what is no message"),
        ([ROW | {"question": [1]}], [TRUTH], "holds what is no message"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, rows, truths, complaint):
    write(tmp_path, rows, truths, ["BFCL_v4_simple_python"])
    with pytest.raises(ValueError, match=rf"BFCL_v4_simple_python\.json:1.*{complaint}"):
        load_problems(SUITES["bfcl"], tmp_path)


def test_a_type_that_is_unknown_is_said_at_the_door(tmp_path):
    row = json.loads(json.dumps(ROW))
    row["function"][0]["parameters"]["properties"]["n"]["type"] = "array"
    write(tmp_path, [row], names=["BFCL_v4_simple_python"])
    with pytest.raises(ValueError, match="items is missing"):
        load_problems(SUITES["bfcl"], tmp_path)


def test_bfcl_without_its_files_says_where_they_are(tmp_path):
    with pytest.raises(ValueError, match="package bfcl-eval"):
        load_problems(SUITES["bfcl"], None)
    with pytest.raises(FileNotFoundError, match=r"BFCL_v4_simple_python or .*package bfcl-eval"):
        load_problems(SUITES["bfcl"], tmp_path)
    write(tmp_path)
    (tmp_path / "possible_answer" / "BFCL_v3_multiple.json").unlink()
    with pytest.raises(FileNotFoundError, match="is missing: the accepted calls"):
        load_problems(SUITES["bfcl"], tmp_path)
