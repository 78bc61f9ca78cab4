"""Tokenizer files that somebody changed by hand, or that a library stumbles over: one message with
the file.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketlm.model.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280).save(tmp_path)
    return tmp_path


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pad_token", ["x"], "field pad_token is a list of 1, a text is needed"),
        ("bos_token", True, "field bos_token is true, a text is needed"),
        ("eos_token", {"value": "x"}, "field eos_token is an object, a text is needed"),
        ("unk_token", "\ud800", "field unk_token is the text '.ud800', a text is needed"),
        ("tokenizer_class", 3, "field tokenizer_class is 3, a text is needed"),
    ],
)
def test_a_special_token_of_ours_that_is_no_text_is_named(
    field: str, value: Any, message: str, folder: Path
) -> None:
    edit(folder / "tokenizer_config.json", **{field: value})
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(folder)
    assert str(folder / "tokenizer_config.json") in str(caught.value)


def test_a_panic_of_the_tokenizers_library_is_one_message(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "longer than the words of the merges" * 4
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a tokenizer the `tokenizers` library reads"):
        Tokenizer.load(folder)
