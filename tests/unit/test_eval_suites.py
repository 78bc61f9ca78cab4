"""Suites: what `pocketlm eval --suite` accepts, and what it says of a file it cannot."""

import gzip
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.eval.suites.named import load_problems, named_suites, over_families, shots_of
from pocketlm.eval.suites.own_problems import DrawnProblems
from pocketlm.eval.suites.protocols import BY_NAME, OURS, POCKET, PROTOCOLS, SUITES
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem
from pocketlm.model.json_shape import JsonObject
from pocketlm.problems.families import FAMILIES
from pocketlm.problems.generated import is_held_out


def problems_of(file):
    (suite,) = named_suites([str(file)])
    return load_problems(suite)


def test_the_pocket_suite_holds_only_held_out_questions_each_once():
    problems = load_problems(POCKET)
    drawn = POCKET.problems
    assert isinstance(drawn, DrawnProblems)
    assert len(problems) == len(drawn.families) * drawn.per_family >= 300
    assert len({p.prompt for p in problems}) == len(problems)
    assert all(is_held_out(FAMILIES[p.family].question_key(p.prompt)) for p in problems)


def test_a_family_that_repeats_itself_is_refused():
    # triangles with a whole angle of 10 to 99 degrees: a few hundred are held out
    drawn = DrawnProblems(families=("simple_geometry",), per_family=1000, seed=1)
    with pytest.raises(ValueError, match=r"simple_geometry: only \d+ distinct held-out"):
        list(drawn.load())


def test_a_users_jsonl_file_is_a_suite(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "1+1?", "answer": 2}\n\n{"prompt": "sky?", "answer": "blue", "family": "x"}\n'
    )
    first, second = problems_of(file)
    assert (first.id, first.family, first.answer) == ("mine-1", "mine", "2")
    assert (second.id, second.family) == ("mine-3", "x")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{oops", "not JSON"),
        ("[1]", "expected an object"),
        (json.dumps({"prompt": "?"}), '"answer" is missing'),
        (json.dumps({"prompt": " ", "answer": "2"}), '"prompt" is missing'),
        (json.dumps({"prompt": "?", "answer": True}), '"answer" is missing or not a text'),
        (
            '{"prompt": "a\\ud800", "answer": "2"}',
            '"prompt" holds half a surrogate pair at character 1',
        ),
        (
            json.dumps({"prompt": "?", "answer": "2", "family": ["a"]}),
            '"family" is list, not a text',
        ),
        ("[" * 100_000, "nested 100,000 deep"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, complaint):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "1+1?", "answer": "2"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"mine\.jsonl:2:.*{complaint}"):
        problems_of(file)


def test_packed_files_and_texts_with_unicode_line_separators_are_suites(tmp_path):
    file = tmp_path / "mine.jsonl.gz"
    rows = [
        {"prompt": "a\u2028b\u0085c?", "answer": 2, "id": 7},
        {"prompt": "sky?", "answer": "blue"},
    ]
    file.write_bytes(
        gzip.compress(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode("utf-8-sig")
        )
    )
    first, second = problems_of(file)
    assert first.prompt == "a\u2028b\u0085c?" and first.id == "7" and second.answer == "blue"


def test_an_empty_file_and_an_unknown_name_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no problems"):
        problems_of(tmp_path / "empty.jsonl")
    with pytest.raises(FileNotFoundError, match=r"'poket' is neither one of pocket, .*nor a file"):
        named_suites(["poket"])
    with pytest.raises(ValueError, match="no suite is named"):
        named_suites([])


# ---- benchmarks ----

ROWS = {
    "arc_easy_test": (
        {"query": "Question: Wet?\nAnswer:", "choices": ["sun", "rain"], "gold": 1, "id": "m1"},
        {
            "id": "m1",
            "question": "Wet?",
            "choices": {"text": ["sun", "rain"], "label": ["1", "2"]},
            "answerKey": "2",
        },
    ),
    "openbookqa_test": (
        {"query": "Question: Wet\nAnswer:", "choices": ["sun", "rain"], "gold": 1, "id": "m1"},
        {
            "id": "m1",
            "question_stem": "Wet",
            "choices": {"text": ["sun", "rain"], "label": ["A", "B"]},
            "answerKey": "B ",
        },
    ),
    "boolq_val": (
        {"question": "is it wet", "passage": "Rain.", "answer": True},
        {"question": "is it wet", "passage": "Rain.", "label": 1, "idx": 0},
    ),
}


@pytest.mark.parametrize("file", ROWS)
def test_a_folders_rows_and_the_hubs_give_the_same_problems(tmp_path, file):
    suite = next(suite for suite in SUITES.values() if getattr(suite.problems, "file", "") == file)
    both = []
    for row in ROWS[file]:
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
        both += load_problems(suite, tmp_path)
    assert both[0] == both[1] and both[0].choices[both[0].gold] == both[0].answer
    assert both[0].answer in ("rain", "yes")


def test_the_prompts_are_lm_evals(tmp_path):
    """Expected texts: lm-eval 0.4.13's doc_to_text on the same rows, with choices after a space."""
    rows = {
        "hellaswag_val": {
            "activity_label": "Baking",
            "ctx_a": "A man [title] stirs.",
            "ctx_b": "he",
            "endings": ["eats [step] it.", "sings  loud."],
            "label": "1",
        },
        "winogrande_val": {
            "sentence": "The cat saw the dog because _ was loud.",
            "option1": "the cat",
            "option2": "the dog",
            "answer": "2",
        },
        "siqa_val": {
            "context": "Al ran.",
            "question": "Why?",
            **{"answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        },
        "nq_open_val": {"question": "who ran", "answer": ["Al", "Bo"]},
        "triviaqa_val": {"question": "Who ran", "answer": {"aliases": ["Al", "Bo"]}},
        "mmlu_test": {
            "question": " 1+1? ",
            "choices": [*"1234"],
            "answer": 1,
            "subject": "high_maths",
        },
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (hella,) = load_problems(SUITES["hellaswag"], tmp_path)
    assert SUITES["hellaswag"].prompt(hella) == "Baking: A man. stirs. He"
    assert hella.choices == ("eats it.", "sings loud.") and hella.gold == 1
    (wino,) = load_problems(SUITES["winogrande"], tmp_path)
    assert wino.contexts == (
        "The cat saw the dog because the cat",
        "The cat saw the dog because the dog",
    )
    assert wino.choices == ("was loud.", "was loud.") and wino.prompt == wino.contexts[1]
    (siqa,) = load_problems(SUITES["siqa"], tmp_path)
    assert SUITES["siqa"].prompt(siqa) == "Q: Al ran. Why?\nA:" and siqa.answer == "c"
    (question,) = load_problems(SUITES["nq_open"], tmp_path)
    assert SUITES["nq_open"].before(question, [question]) == (
        "Answer these questions:\n\nQ: who ran?\nA: Al\n"
    )
    (question,) = load_problems(SUITES["triviaqa"], tmp_path)
    assert SUITES["triviaqa"].prompt(question) == "Question: Who ran?\nAnswer:"
    assert question.accepted == ("Al", "Bo")
    (mmlu,) = load_problems(SUITES["mmlu"], tmp_path)
    assert SUITES["mmlu"].prompt(mmlu) == "1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert SUITES["mmlu"].before(mmlu, [mmlu]) == (
        "The following are multiple choice questions (with answers) about high maths.\n\n"
        "1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{oops", "not JSON"),
        ("[1]", "expected an object"),
        ('{"query": "q", "choices": ["a"]}', "field gold is missing"),
        ('{"query": "q", "choices": ["a"], "gold": 1}', "the right choice is number 1 of 1"),
        ('{"query": "q", "choices": "ab", "gold": 0}', "field choices is the text 'ab'"),
        ('{"query": "q", "choices": ["a", " "], "gold": 0}', "an answer is empty"),
        ('{"query": "q\\ud800", "choices": ["a", "b"], "gold": 0}', "half a surrogate pair"),
    ],
)
def test_a_damaged_row_of_a_benchmark_is_named_by_file_and_line(tmp_path, line, complaint):
    file = tmp_path / "arc_easy_test.jsonl"
    file.write_text(json.dumps(ROWS["arc_easy_test"][0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"arc_easy_test\.jsonl:2.*{complaint}"):
        load_problems(SUITES["arc_easy"], tmp_path)
    assert len(load_problems(SUITES["arc_easy"], tmp_path, limit=1)) == 1


def test_a_part_of_a_benchmark_is_of_all_its_families() -> None:
    problems = [
        Problem(id=str(n), family=family, prompt="?", answer="A")
        for n, family in enumerate("aaaabbbbbc")
    ]
    chosen = {limit: over_families(iter(problems), limit) for limit in range(1, 12)}
    ids = {limit: [int(problem.id) for problem in part] for limit, part in chosen.items()}
    assert ids[1] == [0] and ids[2] == [0, 4] and ids[3] == [0, 4, 9]
    assert ids[4] == [0, 1, 4, 9] and ids[6] == [0, 1, 2, 4, 5, 9]
    assert ids[10] == ids[11] == list(range(10))
    for limit in range(1, 10):  # a longer part holds the shorter one
        assert set(ids[limit]) < set(ids[limit + 1])


def test_a_part_of_a_benchmark_without_families_is_its_beginning_and_no_more_is_read() -> None:
    def rows() -> Iterator[Problem]:
        for n in range(3):
            yield Problem(id=str(n), family="", prompt="?", answer="A")
        raise AssertionError("read too far")

    assert [problem.id for problem in over_families(rows(), 3)] == ["0", "1", "2"]


VALID = {
    "arc_easy": [*ROWS["arc_easy_test"]],
    "openbookqa": [*ROWS["openbookqa_test"]],
    "boolq": [*ROWS["boolq_val"]],
    "hellaswag": [
        {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "1"}
    ],
    "piqa": [{"goal": "a", "sol1": "b", "sol2": "c", "label": 1}],
    "siqa": [
        {
            "context": "a",
            "question": "b",
            "answerA": "c",
            "answerB": "d",
            "answerC": "e",
            "label": "2",
        }
    ],
    "winogrande": [{"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "1"}],
    "mmlu": [{"question": "a", "subject": "b", "choices": [*"cdef"], "answer": 2}],
    "gsm8k": [{"question": "a", "answer": "b #### 1"}],
    "math500": [{"problem": "a", "answer": "1", "unique_id": "c", "subject": "d"}],
    "triviaqa": [{"question": "a", "answer": {"aliases": ["b"]}}],
    "nq_open": [{"question": "a", "answer": ["b"]}],
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": "def a():\n",
            "canonical_solution": "    return 1",
            "entry_point": "a",
            "test": "def check(candidate):\n    assert candidate() == 1",
        }
    ],
    "mbpp": [
        {"text": "a", "code": "def b(): return 1", "test_list": ["assert b() == 1"]},
        {"prompt": "a", "code": "def b(): return 1", "test": ["assert b() == 1"], "task_id": 3},
    ],
}
VALID["ifeval"] = [
    {
        "key": 1,
        "prompt": "a",
        "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
        "kwargs": [{}, {"keyword": "b", "frequency": 2, "relation": "at least"}],
    }
]
VALID["ifeval_no_language"] = VALID["ifeval"]
VALID["csqa"] = [ROWS["arc_easy_test"][1]]
VALID["aime24"] = VALID["aime25"] = [
    {"problem": "a", "answer": "017", "id": 60},
    {"problem": "a", "answer": 17},
]
VALID["lambada"] = [{"text": "a b c"}, {"query": "a b", "answers_text": ["c"], "id": 1}]
VALID["open_rewrite"] = [{"comment": "a", "source": "b", "target": "c", "task": "d"}]
VALID["tldr9"] = [{"document": "a", "summary": "b", "id": "c"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def rows_of(name):
    """The rows that a suite's problems are made of, where it leaves some of them out too."""
    source = SUITES[name].problems
    source = getattr(source, "rows", source)
    assert isinstance(source, Rows)
    return source


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", VALID)
def test_a_row_with_anything_in_a_field_is_a_problem_or_named_by_its_line(
    tmp_path_factory, name, data
):
    row = dict(data.draw(st.sampled_from(VALID[name])))
    key = data.draw(st.sampled_from([*row]))
    if data.draw(st.booleans()):
        del row[key]
    else:
        row[key] = data.draw(JSON)
    source = rows_of(name)
    folder = tmp_path_factory.mktemp("rows")
    (folder / f"{source.file}.jsonl").write_text(json.dumps(row) + "\n")
    try:
        (problem,) = load_problems(SUITES[name], folder)
    except ValueError as error:
        assert f"{source.file}.jsonl:1" in str(error)
    else:
        assert problem.answer.strip() and isinstance(problem.prompt, str)


def test_every_benchmark_has_a_valid_row_here():
    # arc_challenge reads as arc_easy; BFCL and LiveCodeBench have files of their own, and needles
    # are drawn
    elsewhere = {*OURS, "arc_challenge", "bfcl", "livecodebench", "livecodebench_v6", "needles"}
    assert set(VALID) == set(SUITES) - elsewhere
    for name in VALID:
        source = rows_of(name)
        for row in VALID[name]:
            assert source.problem(JsonObject(row, "here")).answer


def test_a_suite_whose_data_is_on_no_hub_says_where_to_get_it(tmp_path):
    for place, error in ((None, ValueError), (tmp_path, FileNotFoundError)):
        with pytest.raises(error, match=r"open_rewrite.*google-research.*rewritelm/"):
            load_problems(SUITES["open_rewrite"], place)
        with pytest.raises(error, match=r"tldr9_test.*sajastu/reddit_collector"):
            load_problems(SUITES["tldr9"], place)


def test_a_missing_folder_file_or_hub_is_one_message(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none: no such folder; give --data DIR"):
        load_problems(SUITES["arc_easy"], tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no arc_easy_test\.jsonl \(nor"):
        load_problems(SUITES["arc_easy"], tmp_path)
    import datasets

    def offline(*arguments, **options):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"allenai/ai2_arc .*\(no network\); give --data DIR"):
        load_problems(SUITES["arc_easy"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: [ROWS["arc_easy_test"][1]])
    assert load_problems(SUITES["arc_easy"])[0].answer == "rain"


def test_shots_are_the_first_of_their_split_or_of_the_problems_family(tmp_path):
    rows = [
        {"question": f"{n}?", "choices": [*"1234"], "answer": n % 4, "subject": subject}
        for n in range(6)
        for subject in ("maths", "law")
    ]
    (tmp_path / "mmlu_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shots = shots_of(SUITES["mmlu"], tmp_path, {"law"})
    assert [shot.prompt[0] for shot in shots["law"]] == [*"01234"]
    assert {shot.family for shot in shots["law"]} == {"law"}
    with pytest.raises(ValueError, match="shows 5 examples, but there are only 0 of family art"):
        shots_of(SUITES["mmlu"], tmp_path, {"art"})


def test_every_row_of_a_protocol_says_where_its_fields_come_from():
    for name, rows in PROTOCOLS.items():
        assert named_suites([name]) == rows and rows
        for suite in rows:
            assert "shots" in suite.sources and BY_NAME[suite.name] == suite
            assert suite.protocol()["sources"] == suite.sources
    by_name = {suite.name: suite for suite in named_suites(["r1", "pro"])}
    assert by_name["r1-base.gsm8k"].shots == 8 and by_name["r1-base.mmlu"].shots == 5
    assert by_name["pro-base.arc_challenge"].shots == 25
    assert by_name["r1-final.math500"].sampling.temperature == 0.6
    assert len(named_suites(["arc_easy", "arc_easy"])) == 1


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.jsonl").write_text('{"prompt": "1?", "answer": "1"}\n')
    with pytest.raises(ValueError, match="two suites are called 'mine'"):
        named_suites([str(tmp_path / "a" / "mine.jsonl"), str(tmp_path / "b" / "mine.jsonl")])


def test_right_answers_are_text_where_bits_alone_are_measured(tmp_path):
    """MMLU's answer is what its letter stands for; MBPP's program has the line ends of Unix."""
    rows = {
        "mmlu_validation": {
            "question": " 1+1? ",
            "subject": "arithmetic",
            "choices": ["one", "two", "three", "four"],
            "answer": 1,
        },
        "mbpp_test": {"text": "Add.", "code": "def add(a):\r\n    return a ", "task_id": 11},
    }
    for file, row in rows.items():
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    (mmlu,) = load_problems(BY_NAME["bpb.mmlu"], tmp_path)
    assert BY_NAME["bpb.mmlu"].prompt(mmlu) == "Question: 1+1?\nAnswer:" and mmlu.answer == "two"
    (mbpp,) = load_problems(BY_NAME["bpb.mbpp"], tmp_path)
    assert BY_NAME["bpb.mbpp"].prompt(mbpp) == "Add.\n" and mbpp.id == "11"
    assert mbpp.answer == "def add(a):\n    return a"
    rows["mbpp_test"]["prompt"] = rows["mbpp_test"].pop("text")
    (tmp_path / "mbpp_test.jsonl").write_text(json.dumps(rows["mbpp_test"]) + "\n")
    assert load_problems(BY_NAME["bpb.mbpp"], tmp_path) == (mbpp,)
    assert {"bpb.mmlu", "bpb.mbpp", "bpb.gsm8k"} <= {suite.name for suite in PROTOCOLS["bpb"]}
