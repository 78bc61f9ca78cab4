"""Suites: what `pocketlm eval --suite` accepts, and what it says of a file it cannot."""

import gzip
import json

import pytest

from pocketlm.eval.suites import SUITES, load_suite
from pocketlm.problems.families import FAMILIES
from pocketlm.problems.generated import generate_problems, is_held_out


def test_the_pocket_suite_holds_only_held_out_questions_each_once():
    suite = load_suite("pocket", generate_problems)
    row = SUITES["pocket"]
    assert len(suite.problems) == len(row.families) * row.per_family >= 300
    assert len({p["prompt"] for p in suite.problems}) == len(suite.problems)
    assert all(is_held_out(FAMILIES[p["family"]].asked(p["prompt"])) for p in suite.problems)


def test_a_generator_that_repeats_itself_is_refused():
    def one_problem(families, count, seed, held_out):
        return (
            {"prompt": "1+1", "answer": "2", "family": families[0], "id": str(i)}
            for i in range(count)
        )

    with pytest.raises(ValueError, match="only 1 distinct held-out"):
        load_suite("pocket", one_problem)


def test_a_users_jsonl_file_is_a_suite(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "1+1?", "answer": 2}\n\n{"prompt": "sky?", "answer": "blue", "family": "x"}\n'
    )
    first, second = load_suite(str(file)).problems
    assert (first["id"], first["family"], first["answer"]) == ("mine-1", "mine", "2")
    assert (second["id"], second["family"]) == ("mine-3", "x")


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
        load_suite(str(file))


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
    first, second = load_suite(str(file)).problems
    assert (
        first["prompt"] == "a\u2028b\u0085c?" and first["id"] == "7" and second["answer"] == "blue"
    )


def test_an_empty_file_and_an_unknown_name_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no problems"):
        load_suite(str(tmp_path / "empty.jsonl"))
    with pytest.raises(FileNotFoundError, match="neither one of pocket nor a file"):
        load_suite("poket")
    with pytest.raises(ValueError, match="problem generator"):
        load_suite("pocket")
