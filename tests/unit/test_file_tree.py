"""The files below a folder: those behind links too, each once, and what is no file by its
reason.
"""

import os
from pathlib import Path

from pocketlm.model.file_tree import files_below
from pocketlm.runner.record import content_hash


def test_files_come_in_the_order_of_their_names_and_the_rest_is_told(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/.hidden/d", "a-b/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "z").symlink_to("nowhere")
    (tmp_path / "a" / "up").symlink_to("..")
    files, others = files_below(tmp_path)
    assert files == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 4
    assert others == {
        tmp_path / "a" / "up": "linked_folder_seen_already",
        tmp_path / "z": "link_to_nothing",
    }


def test_what_lies_behind_a_linked_folder_is_part_of_an_inputs_fingerprint(tmp_path: Path) -> None:
    docs, more = tmp_path / "docs", tmp_path / "more"
    docs.mkdir()
    more.mkdir()
    (docs / "link").symlink_to(more)
    (docs / "circle").symlink_to(docs)
    (more / "a.txt").write_text("one")
    before = content_hash(docs)
    (more / "a.txt").write_text("other")
    changed = content_hash(docs)
    assert changed != before
    with open(os.path.join(os.fsencode(more), b"caf\xe9.txt"), "w"):  # a name that is not UTF-8
        assert content_hash(docs) != changed
