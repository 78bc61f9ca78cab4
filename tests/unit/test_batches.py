"""Batches are pure functions of the step: which rows, from which source, in which order, and what
their labels are.
"""

import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.data import rows as rows_module
from pocketlm.data.batches import (
    BatchPlan,
    ConversationRows,
    TextRows,
    collate,
    make_batches,
    pack,
    permuted,
)
from pocketlm.data.rows import Packing
from pocketlm.data.shards import read_shard, write_array, write_shard
from pocketlm.model.batch import IGNORE_INDEX, Batch

EOS = 0
LAYOUT = BatchPlan(seq_len=16, rows_per_step=24, micro_batch_size=4, seed=5)
SHARES = {"code": 0.5, "maths": 0.3, "web": 0.2}


def drawn_documents(seed: int, count: int = 40, longest: int = 50) -> list[list[int]]:
    """Documents of random lengths; every token tells its document and place: 0, then ids that never
    repeat.
    """
    draw = np.random.default_rng(seed)
    documents, following = [], 1
    for length in draw.integers(1, longest, count):
        documents.append([EOS, *range(following, following + int(length) - 1)])
        following += int(length) - 1
    return documents


def text_rows(
    folder: Path, documents: list[list[int]], seq_len: int = 16, packing: Packing = "document_heads"
) -> TextRows:
    folder.mkdir(parents=True, exist_ok=True)
    shard = write_shard(folder, "train", documents, vocab_size=65536)
    return TextRows(shard, seq_len, EOS, packing)


@pytest.fixture()
def sources(tmp_path) -> dict[str, TextRows]:
    return {
        name: text_rows(tmp_path / name, drawn_documents(seed)) for seed, name in enumerate(SHARES)
    }


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def stacked(micro_batches: list[Batch]) -> torch.Tensor:
    return torch.cat([torch.cat([batch.input_ids, batch.labels], 1) for batch in micro_batches])


@pytest.mark.parametrize("separate", [False, True])
def test_the_same_step_gives_the_same_batch_in_any_order_and_any_process(sources, separate):
    first = make_batches(sources, SHARES, LAYOUT, separate_documents=separate)
    again = make_batches(
        dict(reversed(sources.items())), SHARES, LAYOUT, separate_documents=separate
    )
    in_order = [first(step) for step in range(12)]
    np.random.seed(1)  # nothing comes from global state
    torch.manual_seed(1)
    for step in (11, 3, 0, 7, 3):
        assert all(same(a, b) for a, b in zip(again(step), in_order[step], strict=True))
    assert not torch.equal(stacked(in_order[0]), stacked(in_order[1]))


def test_another_seed_gives_other_rows(sources):
    other = make_batches(sources, SHARES, replace(LAYOUT, seed=6), separate_documents=False)
    own = make_batches(sources, SHARES, LAYOUT, separate_documents=False)
    assert not torch.equal(stacked(own(0)), stacked(other(0)))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_rows_put_together_are_those_of_one_rank(sources, world_size):
    whole = make_batches(sources, SHARES, LAYOUT, separate_documents=False)
    ranks = [
        make_batches(
            sources,
            SHARES,
            replace(LAYOUT, rank=rank, world_size=world_size),
            separate_documents=False,
        )
        for rank in range(world_size)
    ]
    for step in (0, 5, 40):
        assert torch.equal(torch.cat([stacked(rank(step)) for rank in ranks]), stacked(whole(step)))


@pytest.mark.parametrize("size", [1, 2, 8, 24])
def test_micro_batches_cut_the_same_rows_otherwise(sources, size):
    whole = stacked(make_batches(sources, SHARES, LAYOUT, separate_documents=False)(3))
    cut = make_batches(
        sources, SHARES, replace(LAYOUT, micro_batch_size=size), separate_documents=False
    )(3)
    assert [len(batch.input_ids) for batch in cut] == [size] * (24 // size)
    assert torch.equal(stacked(cut), whole)


def test_a_step_that_does_not_divide_among_ranks_and_micro_batches_is_refused():
    with pytest.raises(
        ValueError, match="rows_per_step 24 does not divide into micro-batches of 5 on 1 ranks"
    ):
        replace(LAYOUT, micro_batch_size=5)
    with pytest.raises(ValueError, match="micro-batches of 4 on 4 ranks"):
        replace(LAYOUT, world_size=4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 257, 1000])
def test_a_permutation_is_a_bijection_for_every_key(size):
    for key in [(0, 0, 0), (5, 1, 0), (5, 1, 1), (123456789, 3, 7)]:
        assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_look_shuffled_and_differ_between_epochs():
    orders = [[permuted(i, 1000, (5, 0, epoch)) for i in range(1000)] for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.1
        assert sum(a == i for i, a in enumerate(order)) < 8  # about one fixed point is expected


def test_every_row_of_a_source_comes_once_in_each_epoch(sources):
    rows = sources["code"]
    layout = BatchPlan(seq_len=16, rows_per_step=len(rows), micro_batch_size=len(rows), seed=2)
    batches = make_batches({"code": rows}, {"code": 1.0}, layout, separate_documents=False)
    expected = Counter(tuple(row[0].tolist()) for row in map(rows.__getitem__, range(len(rows))))
    epochs = [[tuple(ids) for ids in batches(step)[0].input_ids.tolist()] for step in range(3)]
    assert all(Counter(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1]


def row_starts(offsets: np.ndarray, seq_len: int) -> list[int]:
    """One row after the other: the reference."""
    starts, start, end = [], 0, int(offsets[-1])
    while start < end:
        starts.append(start)
        document = int(offsets[np.searchsorted(offsets, start + seq_len, side="right") - 1])
        start = document if start < document < end else start + seq_len
    return starts


@pytest.mark.parametrize("at_once", [1, 3, 1000])  # documents worked on together
@pytest.mark.parametrize("seq_len", [1, 4, 16, 37, 500])
def test_rows_found_by_number_are_those_found_one_after_the_other(
    seq_len, at_once, tmp_path, monkeypatch
):
    """In memory, and from the file that a large shard keeps; the second time nothing is worked
    out.
    """
    monkeypatch.setattr(rows_module, "AT_ONCE", at_once)
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        shard = write_shard(folder, "train", drawn_documents(seed), vocab_size=65536)
        expected = row_starts(shard.offsets, seq_len)
        index = None
        for _ in range(2):
            index = rows_module.row_index(shard, seq_len, "document_heads")
            assert [index.start(number) for number in range(len(index))] == expected
            kept = len(shard) > at_once
            assert (folder / f"train.rows-{seq_len}").is_dir() == kept
            if kept:
                monkeypatch.setattr(rows_module, "row_runs", None)
        monkeypatch.undo()
        monkeypatch.setattr(rows_module, "AT_ONCE", at_once)
        assert index is not None
        with pytest.raises(
            IndexError, match=f"row {len(index)} of a shard that holds {len(index)}"
        ):
            index.start(len(index))


def test_a_shard_of_a_million_million_tokens_opens_and_gives_a_row_at_once(tmp_path):
    """Its file has holes for tokens: reading them would take an hour."""
    books, tokens = 1000, 10**12
    np.save(tmp_path / "train.offsets.npy", np.arange(books + 1) * (tokens // books))
    (tmp_path / "raw").touch()
    write_array(tmp_path / "train.tokens.npy", tmp_path / "raw", np.dtype(np.uint16), tokens)
    with open(tmp_path / "train.tokens.npy", "r+b") as file:
        header = file.seek(0, 2)
        file.truncate(header + 2 * tokens)
        file.seek(header + 2 * (tokens - 5))
        file.write(np.asarray([7, 8, 9], dtype=np.uint16).tobytes())
    started = time.perf_counter()
    found = TextRows(read_shard(tmp_path, "train"), 2048, EOS)
    ids, _, documents = found[len(found) - 1]
    assert time.perf_counter() - started < 1  # 3 ms on a quiet machine
    assert len(found) == books * -(-tokens // books // 2048)
    place = (tokens // books) % 2048 - 5
    assert ids[place : place + 3].tolist() == [7, 8, 9] and set(
        documents[: place + 5].tolist()
    ) == {books}


def test_offsets_that_fall_are_found_before_a_row_is_given(tmp_path):
    write_shard(tmp_path, "train", [[EOS, 1], [EOS, 2, 3]], vocab_size=65536)
    np.save(tmp_path / "train.offsets.npy", np.asarray([0, 7, 5]))
    with pytest.raises(ValueError, match="do not rise from document to document"):
        TextRows(read_shard(tmp_path, "train"), 4, EOS)


@pytest.mark.parametrize("seq_len", [4, 16, 37])
def test_rows_begin_where_documents_begin_or_where_a_long_one_was_cut(seq_len):
    for seed in range(20):
        offsets = np.cumsum([0, *(len(d) for d in drawn_documents(seed))])
        starts = row_starts(offsets, seq_len)
        documents = set(offsets[:-1].tolist())
        for before, start in pairwise(starts):
            assert start in documents or start == before + seq_len
            # cut inside a document that began no later than the row before
            if start not in documents:
                own = offsets[np.searchsorted(offsets, start, side="right") - 1]
                assert own <= before
        assert starts[0] == 0


@pytest.mark.parametrize("seq_len", [4, 16, 37])
def test_every_token_but_the_first_is_a_label_and_no_row_is_empty(seq_len, tmp_path):
    """A document cut by the end of its row comes again whole, so tokens may come twice but never go
    missing.
    """
    documents = drawn_documents(3)
    rows = text_rows(tmp_path, documents, seq_len)
    labels = {int(label) for row in map(rows.__getitem__, range(len(rows))) for label in row[1]} - {
        IGNORE_INDEX,
        EOS,
    }
    assert labels == {i for document in documents for i in document} - {EOS}
    for number in range(len(rows) - 1):
        assert (rows[number][1] != IGNORE_INDEX).all()


@pytest.mark.parametrize("seq_len", [1, 4, 16, 37, 5000])
def test_concatenated_every_token_of_an_epoch_is_read_once_and_learnt_once(seq_len, tmp_path):
    """The first token is no label and the last no input: nothing precedes and nothing follows."""
    for seed in range(5):
        documents = drawn_documents(seed)
        stream = [token for document in documents for token in document]
        rows = text_rows(tmp_path / str(seed), documents, seq_len, "concatenate")
        plan = BatchPlan(seq_len=seq_len, rows_per_step=len(rows), micro_batch_size=1, seed=seed)
        batches = make_batches({"text": rows}, {"text": 1.0}, plan, separate_documents=True)
        for epoch in (0, 1):
            inputs, labels = [], []
            for batch in sorted(batches(epoch), key=lambda batch: batch.rows[0][1]):
                learnt = batch.labels[0] != IGNORE_INDEX
                inputs += batch.input_ids[0][learnt].tolist()
                labels += batch.labels[0][learnt].tolist()
            assert (inputs, labels) == (stream[:-1], stream[1:])


def test_document_heads_are_read_again_and_concatenation_needs_fewer_rows(tmp_path):
    documents = drawn_documents(1, count=400, longest=30)
    heads, whole = (
        text_rows(tmp_path / name, documents, 32, name)
        for name in ("document_heads", "concatenate")
    )
    tokens = sum(map(len, documents))
    assert len(whole) == -(-(tokens - 1) // 32) and len(heads) > 1.15 * len(whole)


def test_a_shard_of_one_token_has_no_row_to_concatenate_and_an_unknown_packing_is_refused(tmp_path):
    assert len(text_rows(tmp_path / "one", [[EOS]], 16, "concatenate")) == 0
    with pytest.raises(ValueError, match="packing 'tight' is unknown; known: concatenate, doc"):
        text_rows(tmp_path / "two", [[EOS]], 16, "tight")  # type: ignore[arg-type]


def test_pieces_of_concatenated_documents_know_where_in_them_they_begin(tmp_path):
    rows = text_rows(tmp_path, [[0, 1, 2, 3, 4], [0, 5, 6], [0, 7]], 4, "concatenate")
    spans = [[(s.start, s.stop, s.offset) for s in rows.spans(n)] for n in range(len(rows))]
    assert spans == [[(0, 4, 0)], [(0, 1, 4), (1, 4, 0)], [(0, 2, 0)]]


def test_labels_are_the_next_tokens_and_padding_has_none(tmp_path):
    rows = text_rows(tmp_path, [[0, 1, 2, 3, 4], [0, 5, 6], [0, 7]], seq_len=6)
    found = [tuple(part.tolist() for part in rows[i]) for i in range(len(rows))]
    x = IGNORE_INDEX
    assert found == [
        ([0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 5], [1, 1, 1, 1, 1, 2]),
        ([0, 5, 6, 0, 7, 0], [5, 6, 0, 7, x, x], [2, 2, 2, 3, 3, 4]),
    ]


def test_separate_documents_get_their_own_positions_and_ids(tmp_path):
    rows = text_rows(tmp_path, [[0, 1, 2, 3, 4], [0, 5, 6], [0, 7]], seq_len=6)
    batch = collate([rows[0], rows[1]], separate_documents=True)
    assert batch.positions is not None and batch.doc_ids is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 0]]
    assert batch.doc_ids.tolist() == [[1, 1, 1, 1, 1, 2], [2, 2, 2, 3, 3, 4]]
    together = collate([rows[0], rows[1]], separate_documents=False)
    assert together.positions is None and together.doc_ids is None
    assert (
        together.input_ids.dtype == together.labels.dtype == torch.int64
        and together.num_labels == 10
    )


def test_a_source_without_rows_is_refused_and_one_without_a_share_is_not_read(sources, tmp_path):
    empty = text_rows(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no rows in empty, yet the mix asks for them"):
        make_batches(
            sources | {"empty": empty}, SHARES | {"empty": 0.1}, LAYOUT, separate_documents=False
        )
    make_batches(sources, SHARES | {"absent": 0.0}, LAYOUT, separate_documents=False)(0)


def drawn_conversations(seed: int, count: int = 60) -> list[tuple[list[int], list[bool]]]:
    """Conversation c uses the ids 100 c + 1 ... alone, so a row tells whose tokens it holds."""
    draw = np.random.default_rng(seed)
    found = []
    for c in range(count):
        length = int(draw.integers(2, 40))
        own = draw.random(length) < 0.5
        own[-1] = True
        found.append(([100 * c + i + 1 for i in range(length)], own.tolist()))
    return found


def test_conversations_in_a_row_never_see_or_predict_each_other():
    conversations = drawn_conversations(0)
    rows = ConversationRows(conversations, 64, EOS)
    assert any(len(row) > 1 for row in rows.rows)
    seen = []
    for number in range(len(rows)):
        ids, labels, _ = rows[number]
        batch = collate([rows[number]], separate_documents=True)
        assert batch.doc_ids is not None and batch.positions is not None
        documents, positions = batch.doc_ids[0].tolist(), batch.positions[0].tolist()
        for token, label, document, position in zip(ids, labels, documents, positions, strict=True):
            if document == -1:
                assert token == EOS and label == IGNORE_INDEX
                continue
            which = (int(token) - 1) // 100
            assert which == rows.rows[number][document] and position == (int(token) - 1) % 100
            seen.append(int(token))
            own = conversations[which][1]
            assert label == (token + 1 if own[position + 1] else IGNORE_INDEX)
    read = [i for ids, _ in conversations for i in ids[:-1]]  # the last of each is a label alone
    assert sorted(seen) == sorted(read)


@pytest.mark.parametrize("open_rows", [1, 4, 32])
def test_packing_loses_and_splits_nothing_and_overfills_no_row(open_rows):
    lengths = np.random.default_rng(0).integers(1, 65, 500).tolist()
    rows = pack(lengths, 64, open_rows)
    assert sorted(item for row in rows for item in row) == list(range(500))
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)
    assert pack(lengths, 64, open_rows) == rows


def test_packing_puts_each_item_into_the_first_row_with_room():
    assert pack([5, 4, 3, 5, 2, 1], 8) == [[0, 2], [1, 4, 5], [3]]
    assert pack([5, 4, 3, 5, 2, 1], 8, open_rows=1) == [[0], [1, 2], [3, 4, 5]]
    assert pack([8, 8], 8) == [[0], [1]] and pack([], 8) == []


def test_packed_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(1, 33, 2000).tolist()
    assert sum(lengths) / (64 * len(pack(lengths, 64))) > 0.95


def test_a_conversation_longer_than_a_row_is_named():
    with pytest.raises(
        ValueError, match="conversation 1 has 9 tokens, a row holds 8; raise seq_len or drop it"
    ):
        pack([8, 9], 8)
