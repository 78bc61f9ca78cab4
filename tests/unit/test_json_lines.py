"""JSON lines: what is a row, where a mistake is, and that long lines take no longer than short
ones.
"""

import bz2
import gzip
import json
import lzma
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.model.json_lines import json_lines, json_rows
from pocketlm.model.unpacked import CHUNK_BYTES

PACK = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def written(folder: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("packed", PACK)
def test_rows_come_with_their_line_numbers_plain_and_packed(tmp_path: Path, packed: str) -> None:
    content = (
        b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n"\xe2\x80\xa8"\n{"a": NaN}\n'
        b'{"last": "without a line feed"}'
    )
    rows = list(json_lines(written(tmp_path, PACK[packed](content), f"rows.jsonl{packed}")))
    assert [number for number, _ in rows] == [1, 4, 5, 6, 7]
    assert [row for _, row in rows[:3]] == [{"a": 1}, [2], "\u2028"] and rows[3][1]["a"] != rows[3][
        1
    ]["a"]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.text(st.characters(codec="utf-8")), max_size=8), seed=st.integers(1, 40))
def test_whatever_characters_rows_hold_and_wherever_pieces_end_they_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], seed: int
) -> None:
    content = "".join(json.dumps(row, ensure_ascii=seed % 2 == 0) + "\n" for row in rows).encode()
    path = written(tmp_path_factory.mktemp("rows"), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketlm.model.unpacked.CHUNK_BYTES", seed)
        assert list(json_lines(path)) == list(enumerate(rows, start=1))


def test_a_long_line_takes_time_in_proportion_to_its_length(tmp_path: Path) -> None:
    def seconds(megabytes: int) -> float:
        text = "x" * (megabytes * CHUNK_BYTES)
        path = written(tmp_path, json.dumps({"text": text}).encode() + b"\n")
        started = time.perf_counter()
        ((_, row),) = json_lines(path)
        assert len(row["text"]) == len(text)
        return time.perf_counter() - started

    seconds(1)
    # 8 times as long; joining all that came before took 64 times
    assert seconds(64) < 40 * max(seconds(8), 0.01)


MISTAKES = {
    b'{"text": "caf\xc3\xa9", }': "2:18: not JSON",
    b'{"text": "caf\xc3\xa9\xe9"}': "2:15: not UTF-8 at byte 15 of the line; convert",
    b"\xef\xbb\xbf{}": "2:1: not JSON",
    b"{} {}": r"2:4: not JSON \(Extra data\)",
    b'{"a": "[[", "b": ' + b"[" * 100_000: r"2:100017: nested 100,001 deep",
    b'{"a": "'
    + b"1" * 5000
    + b'", "b": '
    + b"7" * 5000
    + b"}": r"2:5016: a number of 5,000 digits, more than the 4,300",
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=list(MISTAKES.values()))
def test_a_mistake_is_named_by_file_line_and_column(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = written(tmp_path, b'{"good": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:{message}") as caught:
        list(json_lines(path, "write it anew"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


ROWS = [{"a": 1}, {"a": "[2]"}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff\n" + json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
        "\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n",
    ],
    ids=["array", "indented", "after a mark", "lines", "lines apart"],
)
def test_a_json_file_is_an_array_or_lines(tmp_path: Path, content: str) -> None:
    assert [row for *_, row in json_rows(written(tmp_path, content.encode(), "a.json"))] == ROWS


def test_a_json_file_of_one_object_or_of_nothing(tmp_path: Path) -> None:
    assert [row for *_, row in json_rows(written(tmp_path, b'{\n "a":\n 1}', "a.json"))] == [
        {"a": 1}
    ]
    assert list(json_rows(written(tmp_path, b" \n\n", "a.json"))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n {"a": 1},\n {"a": 2},,\n]', r"a\.json:3:11: not JSON"),
        (b'[{"a": 1}', r"a\.json:1:10: not JSON"),
        (b'{"a": 1}\n{"a": 2\n', r"a\.json:2:8: not JSON"),
        (b'[\n"caf\xe9"]', r"a\.json:2:5: not UTF-8 at byte 4 of the line"),
        (b"[\n" + b"8" * 5000 + b"]", r"a\.json:2:1: a number of 5,000 digits"),
    ],
)
def test_a_mistake_in_a_json_file_is_named_too(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(json_rows(written(tmp_path, content, "a.json")))
