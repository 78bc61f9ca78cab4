"""Token shards: written, opened as memory maps, and refused when damaged."""

import numpy as np
import pytest

from pocketlm.data.shards import list_sources, open_shard, read_shard, write_shard

DOCUMENTS = [[0, 5, 6], [0], [0, 7, 65535]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_shards_round_trip_in_the_smallest_type_that_fits(tmp_path, vocab_size, dtype):
    write_shard(tmp_path, "train", iter(DOCUMENTS), vocab_size=vocab_size)
    shard = read_shard(tmp_path, "train")
    assert isinstance(shard.tokens, np.memmap) and shard.tokens.dtype == dtype
    assert shard.offsets.dtype == np.int64
    assert [shard.document(number).tolist() for number in range(len(shard))] == DOCUMENTS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.offsets.npy", "train.tokens.npy"]


def test_a_split_without_documents_is_an_empty_shard(tmp_path):
    assert len(write_shard(tmp_path, "probe", [], vocab_size=300)) == 0
    assert len(read_shard(tmp_path, "probe").tokens) == 0


@pytest.mark.parametrize("ids", [[], [0, 300], [-1]])
def test_ids_outside_the_vocabulary_and_empty_documents_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="document 1 of split 'train'"):
        write_shard(tmp_path, "train", [[0], ids], vocab_size=300)


def test_a_damaged_or_missing_shard_is_named(tmp_path):
    write_shard(tmp_path, "train", DOCUMENTS, vocab_size=65536)
    tokens = tmp_path / "train.tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=r"train\.tokens\.npy"):
        read_shard(tmp_path, "train")
    np.save(tokens, np.zeros(3, dtype=np.uint16))
    with pytest.raises(ValueError, match="does not fit the 3 ids"):
        read_shard(tmp_path, "train")
    np.save(tokens, np.zeros(7, dtype=np.float32))
    with pytest.raises(ValueError, match="float32"):
        read_shard(tmp_path, "train")
    tokens.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.tokens\.npy is missing"):
        read_shard(tmp_path, "train")


def test_pickled_arrays_are_refused(tmp_path):
    write_shard(tmp_path, "train", DOCUMENTS, vocab_size=65536)
    np.save(tmp_path / "train.tokens.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"train\.tokens\.npy"):
        read_shard(tmp_path, "train")


def test_a_corpus_lists_its_sources(tmp_path):
    folder = tmp_path / "shards" / "web"
    folder.mkdir(parents=True)
    write_shard(folder, "train", DOCUMENTS, vocab_size=65536)
    assert list_sources(tmp_path) == ["web"]
    assert len(open_shard(tmp_path, "web", "train")) == 3
    with pytest.raises(ValueError, match="it has web"):
        open_shard(tmp_path, "wab", "train")
    with pytest.raises(ValueError, match="train, validation, probe"):
        open_shard(tmp_path, "web", "test")
    with pytest.raises(FileNotFoundError, match="no shards/ folder"):
        list_sources(tmp_path / "nowhere")
