"""JSON of another shape: one ValueError with file and field, whatever stands where a value
should.
"""

from pathlib import Path

import pytest

from pocketlm.model.json_shape import (
    FLAG,
    KINDS,
    NUMBER,
    OR_NULL,
    TEXT,
    WHOLE,
    described,
    read_object,
)


def written(folder: Path, text: str) -> Path:
    file = folder / "some.json"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "some.json: expected an object, found a list of 2"),
        ('"a"', "some.json: expected an object, found the text 'a'"),
        ("null", "some.json: expected an object, found null"),
        ("", r"some.json:1: not JSON"),
        ('{\n"a": }', r"some.json:2: not JSON"),
        ("\ufeff{}", "BOM"),
        ('{"a":' * 100_000, "too deep in each other"),
        ('{"a":' * 201 + "1" + "}" * 201, "too deep in each other"),
        ("[" * 300 + "]" * 300, "too deep in each other"),
        ('{"a": 1' + "0" * 5000 + "}", "some.json: not read"),
    ],
)
def test_a_file_that_holds_no_object_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_object(file)
    assert str(file) in str(caught.value) and type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ('"320"', WHOLE, "field size is the text '320', a whole number is needed"),
        ("true", WHOLE, "field size is true, a whole number is needed"),
        ("1.0", WHOLE, "field size is 1.0, a whole number is needed"),
        ("null", WHOLE, "field size is null, a whole number is needed"),
        ("NaN", NUMBER, "field size is nan, a number is needed"),
        ("Infinity", NUMBER, "field size is inf, a number is needed"),
        ("1" + "0" * 400, NUMBER, "field size is a number of 401 digits, a number is needed"),
        ("-3", WHOLE, "field size is -3, at least 1 is needed"),
        ("17", WHOLE, "field size is 17, more than the 16 that can be"),
        ("[]", TEXT, "field size is a list of 0, text is needed"),
        ("{}", FLAG, "field size is an object, true or false is needed"),
    ],
)
def test_a_field_of_another_kind_is_named_with_what_it_is(value, kind, message, tmp_path) -> None:
    raw = read_object(written(tmp_path, f'{{"size": {value}}}'))
    with pytest.raises(ValueError, match=message) as caught:
        raw.typed("size", kind, least=1, most=16)
    assert str(caught.value).startswith(str(tmp_path / "some.json"))


def test_a_missing_field_is_named_by_its_place_and_never_a_key_error(tmp_path) -> None:
    raw = read_object(written(tmp_path, '{"a": {"b": [{"c": 1}]}, "n": null}'))
    with pytest.raises(ValueError, match=r"field a\.x is missing"):
        raw["a"]["x"]
    with pytest.raises(ValueError, match=r"field a\.b\[0\]\.x is missing"):
        raw["a"]["b"][0]["x"]
    with pytest.raises(ValueError, match="field a is an object, text is needed"):
        raw.typed("a", TEXT)
    with pytest.raises(ValueError, match="field n is null, an object is needed"):
        raw.object("n")
    assert raw.object("n", None) == {} and raw.object("other", None) == {}
    assert (
        raw.typed("other", TEXT, "default") == "default" and raw.typed("n", TEXT + OR_NULL) is None
    )


def test_every_kind_of_value_has_words() -> None:
    for value in (None, True, 1, 10**4000, 1.5, "\ud800" * 99, [], {}):
        described(value).encode()  # can be printed
        assert sum(check(value) for check in KINDS.values()) <= 3
