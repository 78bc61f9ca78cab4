"""Which files of weights a folder is read from: as transformers chooses, and what is not read is
told.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small

from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import INDEX, WEIGHTS, unread_weights

SHAPE = small(vocab_size=288)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint in two shards, in a folder of its own."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    save_checkpoint(folder, Transformer(SHAPE, seed=1), tokenizer)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: SHARDS[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in SHARDS:
        save_file({name: t for name, t in tensors.items() if places[name] == file}, folder / file)
    write_index(folder, places)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_of_an_index_and_a_single_file_the_single_file_is_read_and_said(
    shards: Path, capsys
) -> None:
    newer = Transformer(SHAPE, seed=2)
    tokenizer = load_checkpoint(shards)[1]
    assert capsys.readouterr().err == ""
    save_checkpoint(shards, newer, tokenizer)
    (shards / SHARDS[0]).unlink()  # nothing of the old ones is needed
    assert torch.equal(load_checkpoint(shards)[0].model.norm.weight, newer.model.norm.weight)
    ids = torch.arange(20)[None]
    assert torch.equal(load_checkpoint(shards)[0](ids), newer(ids))
    assert f"{WEIGHTS} is read, not the shards of {INDEX}" in capsys.readouterr().err
    assert unread_weights(shards).keys() == {INDEX, SHARDS[1]}


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/tmp/outside.safetensors", "a/../../x.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(place: str, shards: Path) -> None:
    (shards.parent / "outside.safetensors").write_bytes((shards / SHARDS[0]).read_bytes())
    write_index(shards, {"model.norm.weight": place})
    with pytest.raises(ValueError, match="weight_map leads out of the folder"):
        load_checkpoint(shards)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"metadata": {}}, "field weight_map is missing"),
        (
            {"metadata": {}, "weight_map": []},
            "field weight_map is a list of 0, an object is needed",
        ),
        ({"metadata": {}, "weight_map": {}}, "weight_map names no tensor"),
        ({"metadata": {}, "weight_map": {"a": 1}}, "field weight_map.a is 1, text is needed"),
        ({"metadata": {}, "weight_map": {"a": "x.bin"}}, "'x.bin', which is no safetensors file"),
        ({"weight_map": {"a": SHARDS[0]}}, "field metadata is missing"),
        ([], "expected an object, found a list of 0"),
    ],
)
def test_an_index_of_another_shape_is_one_message(
    index: object, message: str, shards: Path
) -> None:
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(shards)
    assert str(shards / INDEX) in str(caught.value)


def test_shards_that_are_missing_are_named(shards: Path) -> None:
    (shards / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks the weights file {SHARDS[1]}"):
        load_checkpoint(shards)


def test_a_tensor_in_two_shards_is_read_where_both_agree_and_refused_where_not(
    shards: Path,
) -> None:
    first, second = (load_file(shards / file) for file in SHARDS)
    name = next(iter(first))
    save_file(second | {name: first[name]}, shards / SHARDS[1])
    load_checkpoint(shards)
    save_file(second | {name: first[name] + 1}, shards / SHARDS[1])
    with pytest.raises(ValueError, match=f"{name} is in another shard"):
        load_checkpoint(shards)


def test_shards_that_the_index_does_not_name_are_told(shards: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, shards / "model-00003-of-00003.safetensors")
    (shards / "pytorch_model.bin").write_bytes(b"a pickle")
    unread = unread_weights(shards)
    assert unread["model-00003-of-00003.safetensors"] == f"{INDEX} does not name it"
    assert "pickle" in unread["pytorch_model.bin"] and len(unread) == 2
    load_checkpoint(shards)


def test_weights_of_whole_numbers_are_refused_by_name(shards: Path) -> None:
    first = load_file(shards / SHARDS[0])
    name = next(iter(first))
    save_file(first | {name: first[name].to(torch.int8)}, shards / SHARDS[0])
    with pytest.raises(ValueError, match=rf"{name} is of torch\.int8"):
        load_checkpoint(shards)


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"]
)
def test_sizes_that_nobody_has_memory_for_are_refused_before_they_are_allocated(
    field: str, shards: Path
) -> None:
    config = json.loads((shards / "config.json").read_text())
    config |= {field: 4096 if field == "num_hidden_layers" else 2**24, "layer_types": None}
    (shards / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="whose sizes ask for"):
        load_checkpoint(shards)
