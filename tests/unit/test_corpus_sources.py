"""Sources: every kind and file format read, and every bad input answered with the place where it
is.
"""

import bz2
import copy
import gzip
import json
import lzma
import os
import random
import sys
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pocketlm.corpus.documents import conversation, document_json, read_documents, row_document
from pocketlm.corpus.join import Join
from pocketlm.corpus.local import PACKED_PARTS
from pocketlm.corpus.parts import check_source, read_part, read_source, split_source
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import (
    KINDS,
    HubSource,
    LocalSource,
    NoteSource,
    ProblemSource,
    RowSource,
    Source,
)
from pocketlm.model.json_lines import Span, json_lines
from pocketlm.model.unpacked import unpacked_size
from pocketlm.runner.record import differences, make_record
from pocketlm.stages.curate import CurateConfig, curate

ROWS = [{"text": "first"}, {"text": "second"}, {"text": "third"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACK = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def local(path, **fields):
    return LocalSource(name="here", domain="knowledge", path=str(path), **fields)


def texts(source):
    return [document.text for document in read_source(source)]


@pytest.mark.parametrize("packed", PACK)
def test_rows_and_texts_are_read_plain_and_packed(tmp_path, packed):
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACK[packed](JSONL))
    (tmp_path / f"b.txt{packed}").write_bytes(PACK[packed]("é\n".encode()))
    assert texts(local(tmp_path)) == ["first", "second", "third", "é\n"]
    assert next(d.id for d in read_source(local(tmp_path))) == f"a.jsonl{packed}:1"


def test_a_folder_is_read_in_name_order_without_hidden_or_other_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.md", "sub/a.py", "a.txt", ".hidden.txt", "picture.png"):
        (tmp_path / name).write_text(name)
    assert texts(local(tmp_path)) == ["a.txt", "b.md", "sub/a.py"]


def test_what_people_plainly_mean_is_read(tmp_path):
    contents = {
        "a.json": json.dumps(ROWS[:2], indent=1),
        "b.json": '{"text": "c"}\n{"text": "d"}\n',
        "c.json": '{\n"text": "e"\n}',
        "d.ndjson": '{"text": "f"}\n',
        "e.rst": "Title\n=====\n",
        "f.text": "g",
        "G.TXT": "h",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    expected = {"first", "second", "c", "d", "e", "f", "Title\n=====\n", "g", "h"}
    reading = Reading()
    assert {document.text for document in read_source(local(tmp_path), reading)} == expected
    assert reading.summary() == {"found": 7, "read": 7, "unread": {}}
    assert [d.id for d in read_source(local(tmp_path / "a.json"))] == ["a.json:1", "a.json:2"]


def test_each_file_of_a_folder_is_read_or_counted_by_reason(tmp_path):
    (tmp_path / "sub" / ".cache").mkdir(parents=True)
    for name in (
        "a.txt",
        ".b.txt",
        "sub/.cache/c.txt",
        "d.pdf",
        "e",
        "f.tar.gz",
        "sub/g.csv",
        "h.csv",
        "i.csv",
    ):
        (tmp_path / name).write_text("text")
    for name, content in {
        "j.txt": "",
        "k.jsonl": "\n\n",
        "l.parquet.gz": None,
        "m.json": '{"name": "x", "v": 1}',
    }.items():
        if content is None:
            empty = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(pyarrow.table({"text": []}), empty)
            (tmp_path / name).write_bytes(gzip.compress(empty.getvalue().to_pybytes()))
        else:
            (tmp_path / name).write_text(content)
    (tmp_path / "n.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "o.txt")
    reading = Reading()
    assert [document.text for document in read_source(local(tmp_path), reading)] == ["text"]
    told = reading.summary()
    counts = {reason: part["count"] for reason, part in told["unread"].items()}
    assert counts == {
        "hidden": 2,
        "kind_not_read": 6,
        "empty": 2,
        "no_rows": 2,
        "link_to_nothing": 1,
        "no_file_of_content": 1,
    }
    assert told["found"] == 1 + sum(counts.values()) and told["read"] == 1
    # the first five
    assert told["unread"]["kind_not_read"]["names"] == ["d.pdf", "e", "f.tar.gz", "h.csv", "i.csv"]
    assert told["unread"]["no_rows"]["names"] == ["l.parquet.gz", "m.json"]


def test_a_file_name_that_is_not_utf8_is_written_with_its_bytes(tmp_path):
    for name in (b"caf\xe9.txt", b"caf\xe9.csv"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write("text")
    reading = Reading()
    assert [document.id for document in read_source(local(tmp_path), reading)] == ["caf\\xe9.txt"]
    assert reading.unread["kind_not_read"]["names"] == ["caf\\xe9.csv"]


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    docs, more = tmp_path / "docs", tmp_path / "more"
    (docs / "z").mkdir(parents=True)
    more.mkdir()
    (docs / "z" / "a.txt").write_text("own")
    (more / "b.txt").write_text("behind a link")
    (docs / "a-link").symlink_to("z")  # to a folder of its own: that one is read under its own name
    (docs / "link").symlink_to(more)
    (more / "back").symlink_to(docs)
    (docs / "file.txt").symlink_to(more / "b.txt")
    reading = Reading()
    found = {document.id: document.text for document in read_source(local(docs), reading)}
    assert found == {"file.txt": "behind a link", "link/b.txt": "behind a link", "z/a.txt": "own"}
    assert reading.unread == {
        "linked_folder_seen_already": {"count": 2, "names": ["a-link", "link/back"]}
    }


def test_a_json_file_that_holds_rows_of_another_shape_is_an_error_and_not_left_out(tmp_path):
    (tmp_path / "a.json").write_text('[{"body": "one"}, {"body": "two"}]')
    with pytest.raises(ValueError, match=r'a\.json: row 1: no field "text".*the row has body'):
        texts(local(tmp_path))
    (tmp_path / "a.json").write_text('{"settings": 1}')
    with pytest.raises(ValueError, match=r'a\.json:1: no field "text".*the row has settings'):
        texts(local(tmp_path / "a.json"))  # named by the user: it must hold rows
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"body": "two"}]')
    with pytest.raises(ValueError, match=r'a\.json: row 2: no field "text"'):
        texts(local(tmp_path))


def test_parquet_and_several_zstd_frames_are_read(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert texts(local(tmp_path / "a.parquet")) == ["first", "second", "third"]
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "b.jsonl.zst").write_bytes(pack(JSONL[:20]) + pack(JSONL[20:]))
    assert texts(local(tmp_path / "b.jsonl.zst")) == ["first", "second", "third"]


def test_rows_become_texts_or_conversations():
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    by_messages = row_document(
        {"messages": turns, "family": "sums", "answer": "4"}, "1", "here", None
    )
    by_pair = row_document({"prompt": "2+2?", "response": "4"}, "1", "here", None)
    assert by_messages.text == by_pair.text == "Question: 2+2?\nAnswer: 4"
    assert (
        by_messages.prompts == ["2+2?"]
        and by_messages.family == "sums"
        and by_messages.answer == "4"
    )
    assert (
        row_document({"prompt": "p", "response": "r", "body": "b"}, "1", "here", "body").text == "b"
    )
    system = [{"role": "system", "content": "Be brief."}, *turns]
    assert conversation("1", system).text == "Be brief.\nQuestion: 2+2?\nAnswer: 4"


def test_documents_on_disk_read_back_as_they_were(tmp_path):
    folder = tmp_path / "documents" / "sums"
    folder.mkdir(parents=True)
    turns = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "4"}]
    written = conversation("1", turns, family="sums", answer="4")
    (folder / "train.jsonl").write_text(document_json(written), encoding="utf-8", newline="\n")
    assert list(read_documents(tmp_path, "sums", "train")) == [written]
    with pytest.raises(FileNotFoundError, match=r"probe\.jsonl is missing"):
        list(read_documents(tmp_path, "sums", "probe"))


@pytest.mark.parametrize(
    ("kind", "domain", "says"),
    [
        ("stdlib_code", "code", "import "),
        ("stdlib_docstrings", "knowledge", "module "),
        ("language_reference", "knowledge", "assert"),
    ],
)
def test_what_comes_with_python_is_read_and_its_order_is_fixed(kind, domain, says):
    source = Source(name="here", domain=domain, kind=kind)
    found = list(islice(read_source(source), 5))
    assert found == list(islice(read_source(source), 5))
    assert any(says in document.text for document in found)
    assert all(not document.id.startswith("/") for document in found)


def test_problems_and_notes_are_drawn_by_count_and_seed():
    fields = {"name": "sums", "domain": "maths", "families": ("chain_sum",), "count": 3}
    first, second = (list(read_source(ProblemSource(**fields, seed=seed))) for seed in (1, 2))
    assert len(first) == 3 and first != second
    assert (
        first[0].messages[1]["content"].endswith(f"#### {first[0].answer}")
        and first[0].family == "chain_sum"
    )
    notes = NoteSource(name="notes", domain="knowledge", count=2, pairs_range=(1, 2))
    assert len(texts(notes)) == 2 and "Note:" in texts(notes)[0]


def fake_hub(monkeypatch, rows, fail_after=None):
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(name=name, config=config, **options)

        def stream():
            for number, row in enumerate(rows):
                if number == fail_after:
                    raise ConnectionError("the line went dead\nwith details")
                yield row

        return stream()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def hub(**fields):
    return HubSource(
        name="web", domain="knowledge", dataset="org/web", config="en", split="train", **fields
    )


def test_a_hub_dataset_is_streamed_with_its_own_fields(monkeypatch):
    asked = fake_hub(monkeypatch, [{"body": "one"}, {"body": "two"}])
    assert texts(hub(text_field="body", revision="abc")) == ["one", "two"]
    assert asked == {
        "name": "org/web",
        "config": "en",
        "split": "train",
        "revision": "abc",
        "streaming": True,
    }


def test_a_hub_that_does_not_answer_is_named(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to host\nwith details")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"source 'web': hub dataset 'org/web' .*host; run again"):
        split_source(hub(), 10**6, Reading())


def test_hub_failures_name_the_dataset_and_the_row(monkeypatch):
    fake_hub(monkeypatch, ROWS, fail_after=2)
    with pytest.raises(
        ValueError, match=r"source 'web': hub dataset 'org/web' failed after row 2: .*dead; run"
    ):
        texts(hub())
    fake_hub(monkeypatch, [{"body": "one"}])
    with pytest.raises(
        ValueError, match=r"hub dataset 'org/web', row 1: no field \"text\".*the row has body"
    ):
        texts(hub())


BAD_LINES = {
    b'{"text": "a",}\n': r"bad\.jsonl:2:14: not JSON",
    b'{"text": "caf\xe9"}\n': r"bad\.jsonl:2:14: not UTF-8 at byte 13 of the line",
    b'{"body": "a", "n": 1}\n': r'bad\.jsonl:2: no field "text".*the row has body, n',
    b'{"text": null}\n': r'bad\.jsonl:2: field "text" is NoneType',
    b'{"text": "\\ud800"}\n': r"bad\.jsonl:2: .*half a surrogate pair at character 0",
    b"[1, 2]\n": r"bad\.jsonl:2: a row must be an object",
    b"[" * 100_000 + b"\n": r"bad\.jsonl:2:100000: nested 100,000 deep",
    b'{"messages": []}\n': r'bad\.jsonl:2: "messages" must be a list',
    b'{"messages": [{"role": "bot", "content": "a"}]}\n': r'bad\.jsonl:2: message 0 needs a "role"',
    b'{"messages": [{"role": "user"}]}\n': r'bad\.jsonl:2: message 0, "content" is NoneType',
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=list(BAD_LINES.values()))
def test_a_bad_line_is_named_with_its_place(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=message) as caught:
        texts(local(tmp_path))
    assert str(caught.value).startswith("source 'here': ") and "\n" not in str(caught.value)


def test_a_text_that_is_not_utf8_is_named_with_line_and_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\ngood \xff\n")
    with pytest.raises(ValueError, match=r"bad\.txt:2: not UTF-8 at byte 10 of the file"):
        texts(local(tmp_path))


@pytest.mark.parametrize("packed", [suffix for suffix in PACK if suffix])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_packed_file_cut_short_is_named(tmp_path, packed, keep):
    content = PACK[packed](b"".join(b'{"text": "%d"}\n' % (7**n) for n in range(300)))
    (tmp_path / f"a.jsonl{packed}").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"a\.jsonl\{packed}: (cut short|damaged)"):
        texts(local(tmp_path))


@pytest.mark.parametrize("packed", [suffix for suffix in PACK if suffix])
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path, packed):
    (tmp_path / f"a.jsonl{packed}").write_bytes(b"plain text, not packed at all")
    with pytest.raises(ValueError, match=rf"a\.jsonl\{packed}: .*fetch it again"):
        texts(local(tmp_path))


def test_a_parquet_file_cut_short_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, 3, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.parquet: not a whole parquet file"):
            texts(local(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: row 1: no field \"text\".*body"):
        texts(local(tmp_path))


def test_a_missing_path_and_an_unknown_kind_of_file_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"source 'here': .*nowhere: no such file or folder"
    ):
        check_source(local(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="source 'here'"):
        texts(local(tmp_path / "nowhere"))
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.docx: cannot read this kind of file; use \.txt"):
        texts(local(tmp_path / "a.docx"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "source 'a/b': a name is letters"),
        ({"name": ".."}, "a name is letters"),
        ({"domain": "math"}, "domain 'math' is none of code, maths, knowledge"),
        ({"kind": "web"}, f"kind 'web' is none of {', '.join(KINDS)}"),
        ({"path": None}, "kind 'local' needs the field path"),
        ({"count": 3}, "kind 'local' does not read the field count"),
        ({"filters": ("lenght",)}, "filter 'lenght' is none of length"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"prompt_field": "q"}, "give prompt_field and response_field together"),
    ],
)
def test_a_wrong_row_says_which_field(fields, message):
    row = {"name": "here", "domain": "knowledge", "kind": "local", "path": "x"}
    with pytest.raises(ValueError, match=message):
        Source(**(row | fields))


def test_a_row_of_plain_data_becomes_the_class_of_its_kind():
    row = {"name": "here", "domain": "maths", "count": 3, "pairs_range": (1, 2)}
    for kind in ("notes", "recall"):
        source = Source(kind=kind, **row)
        assert type(source) is KINDS[kind] and source == KINDS[kind](**row)
        assert vars(replace(source, **{"seed": 4}))["seed"] == 4 and copy.deepcopy(source) == source
    with pytest.raises(ValueError, match="kind 'hub' is not that of a NoteSource; leave it out"):
        NoteSource(kind="hub", **row)
    with pytest.raises(TypeError, match=r"Mute has no documents\(part, reading\)"):
        type("Mute", (RowSource,), {"kind": "mute"})
    assert "mute" not in KINDS


def test_a_record_of_a_version_with_one_class_of_source_differs_in_one_line(tmp_path):
    def stage(config, out):
        raise AssertionError

    config = CurateConfig(
        name="corpus", sources=(local("x"), hub(text_field="body")), vocab_size=300
    )
    new = make_record(stage, config, {}, tmp_path, {})
    old = json.loads(json.dumps(new))
    for source in old["config"]["sources"]:
        source |= {"class": "Source", "kind": "local", "families": None, "count": None}
    assert differences(old, new) == ['sources: "Source" -> "HubSource, LocalSource"']
    changed = make_record(stage, replace(config, sources=(local("y"),)), {}, tmp_path, {})
    assert len(differences(new, changed)) == 1  # a source less
    changed = make_record(stage, replace(config, sources=(local("y"), hub())), {}, tmp_path, {})
    assert differences(new, changed) == [
        'sources.0.path: "x" -> "y"',
        'sources.1.text_field: "body" -> null',
    ]


def by_parts(source, part_bytes):
    """The documents of each part, by tasks that know nothing of each other."""
    reading = Reading()
    parts = split_source(source, part_bytes, reading)
    places = json.loads(json.dumps([part.place for part in parts]))  # as the plan keeps them
    return [list(read_part(source, place, reading)) for place in places], reading


@pytest.mark.parametrize("part_bytes", [1, 40, 300, 10**9])
def test_a_file_of_lines_is_cut_between_lines(tmp_path, part_bytes):
    rows = [{"text": f"é{number} " * (number % 7 + 1)} for number in range(60)]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())  # no last line feed
    whole = list(read_source(local(tmp_path)))
    parts, reading = by_parts(local(tmp_path), part_bytes)
    assert [document for part in parts for document in part] == whole and len(whole) == 60
    assert {1: len(parts) > 50, 40: len(parts) > 20, 300: 5 < len(parts) < 20}.get(
        part_bytes, len(parts) == 1
    )
    assert reading.summary() == {"found": 1, "read": 1, "unread": {}}


@pytest.mark.parametrize("packed", [name for name in PACK if name])
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_packed_file_of_lines_is_cut_by_what_its_text_holds(tmp_path, packed, last):
    """Each line is of one part, with its number in the file, however the text is cut; and a line
    longer than a part leaves the next one nothing."""
    rows = [{"text": f"é{number} " * (number * number % 41 + 1)} for number in range(60)]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + last
    file = tmp_path / f"a.jsonl{packed}"
    file.write_bytes(PACK[packed](b"\xef\xbb\xbf" + content.encode()))
    whole = list(read_source(local(tmp_path)))
    assert len(whole) == 60 and whole[7].id == f"a.jsonl{packed}:15"
    size = unpacked_size(file)
    assert size == len(content.encode()) + 3
    for part_bytes in (1, 40, size // 5, size - 1, size):
        parts, reading = by_parts(local(tmp_path), part_bytes)
        assert [document for part in parts for document in part] == whole
        assert len(parts) == min(PACKED_PARTS, -(-size // part_bytes))
        assert reading.summary() == {"found": 1, "read": 1, "unread": {}}


def test_any_two_places_cut_a_packed_text_into_the_same_lines(tmp_path):
    lines = [b'"a"', b"", b'"bcd"', b'"' + b"e" * 9 + b'"', b"", b'"f"']
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    whole = list(json_lines(file))
    for first in range(1, 28):
        for second in range(first, 28):
            spans = Span(0, first, 1), Span(first, second, 1), Span(second, 0, 1)
            spans = spans if second > first else (spans[0], spans[2])
            assert [row for span in spans for row in json_lines(file, span=span)] == whole


def test_the_size_of_a_packed_text_is_told_from_its_beginning(tmp_path):
    rows = b"".join(json.dumps({"n": n, "text": "x" * (n % 50)}).encode() + b"\n" for n in range(9))
    for packed, pack in PACK.items():
        if packed:
            file = tmp_path / f"frames.jsonl{packed}"
            file.write_bytes(pack(rows) * 50)  # as some tools write them
            assert unpacked_size(file) == len(rows) * 50
            file.write_bytes(b"no such thing")
            assert unpacked_size(file) == 13
    many = random.Random(0).randbytes(1_500_000).hex().encode()  # packed more than is looked at
    for packed in (".gz", ".bz2", ".zst"):
        file = tmp_path / f"long.jsonl{packed}"
        file.write_bytes(PACK[packed](many))
        assert file.stat().st_size > 1_200_000
        assert unpacked_size(file) == pytest.approx(len(many), rel=0.05)


def test_a_packed_file_cut_short_is_named_by_its_last_part(tmp_path):
    rows = "".join(json.dumps({"text": str(n) * 1000}) + "\n" for n in range(1000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-20])
    parts = split_source(local(tmp_path), 10**6, Reading())
    assert len(parts) > 2 and list(read_part(local(tmp_path), parts[0].place, Reading()))
    with pytest.raises(ValueError, match=r"source 'here': .*a\.jsonl\.gz: cut short or damaged"):
        list(read_part(local(tmp_path), parts[-1].place, Reading()))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_bad_line_of_a_part_is_named_with_its_place_in_the_file(tmp_path, packed):
    content = JSONL * 20 + b"{broken\n" + JSONL
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACK[packed](content))
    with pytest.raises(ValueError, match=rf"source 'here': .*a\.jsonl{packed}:61:2: not JSON"):
        by_parts(local(tmp_path), 100)


@pytest.mark.parametrize("part_bytes", [1, 500, 10**9])
def test_a_parquet_file_is_cut_between_row_groups(tmp_path, part_bytes):
    table = pyarrow.Table.from_pylist([{"text": f"row {number}"} for number in range(50)])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    whole = list(read_source(local(tmp_path)))
    parts, _ = by_parts(local(tmp_path), part_bytes)
    assert [document for part in parts for document in part] == whole and len(whole) == 50
    assert len(parts) == {1: 8, 500: len(parts), 10**9: 1}[part_bytes] <= 8


def test_small_files_share_a_part_and_a_capped_source_is_one(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(str(number) * 100)
    parts, _ = by_parts(local(tmp_path), 250)
    assert [len(part) for part in parts] == [2, 2, 2, 2, 1]
    parts, _ = by_parts(local(tmp_path, max_bytes=10**6), 250)
    assert [len(part) for part in parts] == [9]


def test_a_compressed_file_counts_as_much_as_its_text_when_files_are_shared(tmp_path):
    """Eight files of text would else be one task, and a second worker idle."""
    text = b"the quick brown fox " * 20
    for number in range(4):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(text))
    for part_bytes, sizes in ((2 * len(text), [2, 2]), (len(text), [1] * 4), (10**4, [4])):
        parts, _ = by_parts(local(tmp_path), part_bytes)
        assert [len(part) for part in parts] == sizes


def test_a_hub_dataset_is_read_by_its_files(tmp_path, monkeypatch):
    """datasets itself streams, from parquet files of this machine."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        rows = [{"body": f"file {number} row {row}"} for row in range(4)]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / f"train-{number}.parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = HubSource(
        name="web", domain="knowledge", dataset=str(folder), split="train", text_field="body"
    )
    parts, _ = by_parts(source, 1)
    assert [[document.text for document in part] for part in parts] == [
        [f"file {number} row {row}" for row in range(4)] for number in range(3)
    ]
    ids = [document.id for part in parts for document in part]
    assert ids[:2] == ["train:1:1", "train:1:2"] and len(set(ids)) == 12
    parts, _ = by_parts(replace(source, max_bytes=1000), 1)
    assert [len(part) for part in parts] == [12]


def test_questions_that_stand_in_other_sets_are_joined_and_the_others_counted(
    monkeypatch, tmp_path
):
    place = {"split": "train", "index": "1"}
    rows = [
        {"question": "-", "answer": "one", "dataset": "taco", **place},
        {"question": "own", "answer": "two", "dataset": "taco", **place},
        {"question": "-", "answer": "three", "dataset": "taco", "split": "test", "index": "7"},
        {"question": "-", "answer": "four", "dataset": "elsewhere", **place},
        {"question": "-", "answer": "five", "dataset": "apps", **place},
    ]
    sets = {
        "org/web": rows,
        "BAAI/TACO": [{"question": "first"}, {"question": "asked in TACO"}],
        "apps": [{"title": "t", "body": ""}, {"title": "Title", "body": "asked in APPS"}],
    }
    opened = []

    def load_dataset(name, config, *, split, **options):
        opened.append((name, config, split))
        return iter(sets[name])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    joins = (
        Join(name="taco", dataset="BAAI/TACO", fields=("question",), config="ALL"),
        Join(name="apps", dataset="apps", fields=("title", "body")),
    )
    source = hub(prompt_field="question", response_field="answer", joins=joins)
    found = [(d.prompts, d.dropped_by) for d in read_source(source)]
    assert found == [
        (["asked in TACO"], ""),
        (["own"], ""),
        ([], "not_joined"),
        ([], "not_joined"),
        (["Title\n\nasked in APPS"], ""),
    ]
    assert sorted(opened)[0] == ("BAAI/TACO", "ALL", "test") and len(opened) == 5
    config = CurateConfig(name="corpus", sources=(source,), vocab_size=280, ngram=5)
    curate(config, tmp_path)
    counts = json.loads((tmp_path / "curation.json").read_text())
    assert counts["sources"]["web"]["dropped"] == {"not_joined": 2}
    assert "elsewhere" in counts["examples"]["not_joined"][1]
    with pytest.raises(ValueError, match="join 'taco': fields is empty"):
        replace(joins[0], fields=())


def test_where_curation_runs_is_no_part_of_what_a_finished_stage_is_compared_by(tmp_path):
    def stage(config, out):
        raise AssertionError

    config = CurateConfig(name="corpus", sources=(local("x"),), vocab_size=300)
    records = [
        make_record(stage, replace(config, executor=executor), {}, tmp_path, {})
        for executor in (None, "local:3", "slurm:cpu")
    ]
    assert records[0] == records[1] == records[2] and "executor" not in records[0]["config"]
