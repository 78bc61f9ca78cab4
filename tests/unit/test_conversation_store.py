"""Conversations on disk give the rows that those in memory give, and any number opens at once."""

import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from pocketlm.data.batches import BatchPlan, ConversationRows, make_batches
from pocketlm.data.conversation_store import (
    EXAMPLES,
    LEARNT,
    OFFSETS,
    StoredRows,
    is_store_of,
    read_tally,
    write_store,
)
from pocketlm.data.conversations import Pair, Tally
from pocketlm.data.shards import write_shard

SEQ_LEN, EOS = 48, 1


def some_pairs(count: int) -> list[Pair]:
    random = Random(3)
    pairs = []
    for _ in range(count):
        n = random.randrange(2, SEQ_LEN + 2)
        ids = [random.randrange(300) for _ in range(n)]
        pairs.append((ids, [random.random() < 0.4 for _ in ids]))
    return pairs


def stored(folder: Path, pairs: Iterable[Pair], packed: bool = True) -> StoredRows:
    tally = Tally(rows=7, learnt=5, examples=6)
    tally.left_out["longer than 49 tokens"] += 2
    write_store(
        folder, iter(pairs), tally, seq_len=SEQ_LEN, vocab_size=300, packed=packed, made_of={"a": 1}
    )
    assert read_tally(folder) == tally
    return StoredRows(folder, SEQ_LEN, EOS)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_on_disk_are_those_in_memory(packed: bool, tmp_path: Path) -> None:
    pairs = some_pairs(203)
    memory = ConversationRows(pairs, SEQ_LEN, EOS, packed=packed)
    disk = stored(tmp_path / "store", pairs, packed)
    assert len(disk) == len(memory) and disk.documents() == memory.documents() == 203
    for number in range(len(memory)):
        for one, other in zip(memory[number], disk[number], strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
        assert list(memory.spans(number, 2)) == list(disk.spans(number, 2))
    assert (tmp_path / "store" / OFFSETS).is_file() == packed
    plan = BatchPlan(seq_len=SEQ_LEN, rows_per_step=4, micro_batch_size=2, seed=1)
    draw = [
        make_batches({"chats": rows}, {"chats": 1.0}, plan, separate_documents=True)
        for rows in (memory, disk)
    ]
    for step in range(20):
        for one, other in zip(draw[0](step), draw[1](step), strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.labels, other.labels)


def test_a_token_costs_its_id_and_a_bit(tmp_path: Path) -> None:
    pairs = some_pairs(500)
    stored(tmp_path / "store", pairs)
    tokens = sum(len(ids) for ids, _ in pairs)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "store").iterdir()}
    assert sizes["conversations.tokens.npy"] == 2 * tokens + 128
    assert sizes[LEARNT] == -(-tokens // 8) + 128


def test_a_store_is_known_by_what_it_was_made_of_and_half_of_one_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    assert not is_store_of(folder, {"a": 1})

    def breaking():
        yield from some_pairs(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(folder, breaking())
    assert not folder.exists()
    stored(folder, some_pairs(3))
    assert is_store_of(folder, {"a": 1}) and not is_store_of(folder, {"a": 2})


def test_ten_million_conversations_open_in_less_than_a_second(tmp_path: Path) -> None:
    """Of four tokens each, two to a row: what opening costs hangs on their number alone."""
    count = 10_000_000
    write_shard(tmp_path, "conversations", [np.arange(4)], vocab_size=300)
    np.save(tmp_path / "conversations.tokens.npy", np.tile(np.arange(4, dtype=np.uint16), count))
    np.save(tmp_path / "conversations.offsets.npy", np.arange(0, 4 * count + 1, 4))
    np.save(tmp_path / LEARNT, np.full(count // 2, 0b1100_1100, dtype=np.uint8))
    np.save(tmp_path / EXAMPLES, np.arange(count))
    np.save(tmp_path / OFFSETS, np.arange(0, count + 1, 2))
    started = time.perf_counter()
    rows = StoredRows(tmp_path, 8, EOS)
    plan = BatchPlan(seq_len=8, rows_per_step=4, micro_batch_size=4, seed=1)
    draw = make_batches({"chats": rows}, {"chats": 1.0}, plan, separate_documents=True)
    (batch,) = draw(123_456)
    assert time.perf_counter() - started < 1.0
    assert len(rows) == count // 2 and rows.documents() == count
    assert batch.input_ids.tolist() == [[0, 1, 2, 0, 1, 2, EOS, EOS]] * 4
    assert batch.labels.tolist() == [[-100, 2, 3, -100, 2, 3, -100, -100]] * 4
