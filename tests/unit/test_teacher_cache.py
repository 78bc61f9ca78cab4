"""A teacher on disk: what is read back is what it said, wherever its documents stand; damage and
strangers are named.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.data.batches import BatchPlan, ConversationRows, TextRows, make_batches
from pocketlm.data.shards import open_shard, write_shard
from pocketlm.model.batch import Batch, Span, document_key
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages import teach as stage
from pocketlm.stages.teach import TeachConfig, teach
from pocketlm.stages.vocabulary import VocabularyConfig, check_vocabulary
from pocketlm.train.distill import cache as cache_file
from pocketlm.train.distill.cache import DONE, cached_scores, open_cache
from pocketlm.train.distill.codec import (
    Encoded,
    decode,
    encode,
    from_bytes,
    id_bits,
    tail_mass,
    tail_prior,
    to_bytes,
)
from pocketlm.train.distill.encode import read_windows, windows
from pocketlm.train.distill.teacher import live_teacher, open_teacher
from pocketlm.train.losses import Distillation, distillation_loss
from pocketlm.train.optim import OptimConfig

VOCAB = 300
SHAPE = small(vocab_size=VOCAB, intermediate_size=32, initializer_range=0.3)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=2, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)
CONFIG = TeachConfig(
    name="cache",
    window=64,
    min_gain=1e-6,
    batch_tokens=200,
    shard_tokens=300,
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus of 30 documents of 1 to 50 tokens and one of 200, in two sources, and a teacher."""
    folder = tmp_path_factory.mktemp("teaching")
    draw = np.random.default_rng(1)
    tokenizer = train_tokenizer(
        ["the river and the stone " * 30 + "".join(map(chr, range(32, 120)))] * 3, 270
    )
    (folder / "corpus" / "tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "corpus" / "tokenizer")
    for name, lengths in (
        ("one", [*draw.integers(1, 50, 15), 200]),
        ("two", draw.integers(1, 50, 15)),
    ):
        documents = [[0, *draw.integers(1, 270, length).tolist()] for length in lengths]
        (folder / "corpus" / "shards" / name).mkdir(parents=True)
        write_shard(folder / "corpus" / "shards" / name, "train", documents, vocab_size=270)
    (folder / "teacher").mkdir()
    save_checkpoint(folder / "teacher", Transformer(SHAPE, seed=3), tokenizer)
    taught(folder, folder / "cache")
    return folder


def taught(folder: Path, out: Path, **changes) -> Path:
    out.mkdir(exist_ok=True)
    return teach(
        replace(CONFIG, **changes), out, corpus=folder / "corpus", teacher=folder / "teacher"
    )


def sources_of(folder: Path, seq_len: int) -> dict[str, TextRows]:
    return {
        name: TextRows(open_shard(folder / "corpus", name, "train"), seq_len, 0)
        for name in ("one", "two")
    }


def drawn(
    folder: Path, seq_len: int, size: int, seed: int, step: int = 0
) -> tuple[Batch, tuple[Span, ...]]:
    """A batch of the corpus, and which documents it is of."""
    layout = BatchPlan(seq_len=seq_len, rows_per_step=size, micro_batch_size=size, seed=seed)
    shares = {"one": 0.5, "two": 0.5}
    draw = make_batches(
        sources_of(folder, seq_len), shares, layout, separate_documents=True, name_documents=True
    )
    (batch,) = draw(step)
    assert batch.spans is not None
    return batch, batch.spans


# ---- the encoding ----


def drawn_logits(tokens: int, vocab_size: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(tokens, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("vocab_size", [3, 256, 300, 49_152, 128_256, 202_048])
def test_any_tokens_of_a_document_come_back_from_its_bytes(vocab_size):
    draw = np.random.default_rng(vocab_size)
    counts = draw.integers(0, min(40, vocab_size), 50).astype(np.uint8)
    entries = int(counts.sum())
    coded = Encoded(
        counts,
        draw.integers(0, 256, 50).astype(np.uint8),
        draw.integers(0, vocab_size, entries).astype(np.uint32),
        draw.integers(0, 64, entries).astype(np.uint8),
    )
    raw = np.frombuffer(to_bytes(coded, id_bits(vocab_size)), np.uint8)
    for first, stop in ((0, 50), (0, 1), (7, 31), (49, 50)):
        found, expected = (
            from_bytes(raw, 50, id_bits(vocab_size), first, stop),
            coded.part(first, stop),
        )
        assert all(
            np.array_equal(getattr(found, name), getattr(expected, name)) for name in vars(coded)
        )


def test_the_error_told_is_the_divergence_of_what_is_decoded():
    logits = drawn_logits(20, VOCAB, 1)
    shares = tail_prior(tail_mass(drawn_logits(50, VOCAB, 2)))
    coded, told = encode(logits, shares, 1e-3)
    q, back = (
        logits.double().log_softmax(-1),
        decode(coded, shares).block(slice(0, VOCAB)).double().log_softmax(-1),
    )
    assert (told - (q.exp() * (q - back)).sum(-1)).abs().max() <= 1e-5


def test_a_smaller_gain_costs_bytes_and_lessens_the_error_down_to_that_of_rounding():
    logits, shares = drawn_logits(40, 200, 1), torch.full((200,), 1 / 200).log()
    found = [encode(logits, shares, gain) for gain in (1e-1, 1e-2, 1e-3, 1e-9)]
    sizes = [len(coded.ids) for coded, _ in found]
    errors = [float(kl.mean()) for _, kl in found]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 4e-3  # rounding alone: measured 1.8e-3


def test_a_token_never_has_more_entries_than_a_byte_counts():
    coded, _ = encode(drawn_logits(3, 600, 1, spread=0.3), torch.full((600,), 1 / 600).log(), 1e-12)
    assert coded.counts.max() == 255 and len(coded.ids) == coded.counts.sum(dtype=int)


# ---- reading documents ----


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 28, 29, 100])
def test_windows_take_each_token_once_and_show_it_a_quarter_of_a_window(tokens):
    found = list(windows(0, tokens, 16))
    assert [n for each in found for n in range(each.first, each.stop)] == list(range(tokens))
    assert all(each.stop - each.start <= 16 for each in found)
    assert all(each.first - each.start >= 4 for each in found[1:]) and found[0].start == 0


def test_documents_read_together_are_read_as_each_alone(folder):
    model = load_checkpoint(folder / "teacher")[0].eval()
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, VOCAB, size) for size in (3, 40, 41, 7, 30)]
    found = [torch.full((len(ids), VOCAB), torch.nan) for ids in documents]
    for document, first, logits in read_windows(model, documents, 64, 100):
        found[document][first : first + len(logits)] = logits
    for ids, logits in zip(documents, found, strict=True):
        assert (logits - model(torch.from_numpy(ids)[None])[0]).abs().max() <= 1e-4


# ---- the cache ----


@pytest.mark.parametrize(
    ("seq_len", "size", "seed"), [(48, 4, 1), (48, 1, 2), (33, 6, 3), (64, 2, 4)]
)
def test_a_cached_teacher_says_what_a_live_one_says_in_any_packing(folder, seq_len, size, seed):
    """Of documents that do not see each other, and that the row does not cut at their beginning."""
    network = load_checkpoint(folder / "teacher")[0]
    cache = open_cache(folder / "cache")
    compared = 0
    for step in range(4):
        batch, spans = drawn(folder, seq_len, size, seed, step)
        live = live_teacher(network, OPTIM)(batch).block(slice(0, VOCAB)).log_softmax(-1)
        back = cached_scores(cache, batch).block(slice(0, VOCAB)).log_softmax(-1)
        for span in spans:
            if span.offset == 0:
                here = slice(span.row * seq_len + span.start, span.row * seq_len + span.stop)
                kl = (live[here].exp() * (live[here] - back[here])).sum(-1)
                assert kl.max() <= 0.02  # 6 bits, and at most 255 of 300 words: measured 1.2e-2
                compared += len(kl)
    assert compared > 60


def test_spans_name_the_documents_their_tokens_are_from(folder):
    batch, spans = drawn(folder, 40, 6, 5)
    shards = {name: rows.shard for name, rows in sources_of(folder, 40).items()}
    documents = {
        document_key(s.document(n)): s.document(n) for s in shards.values() for n in range(len(s))
    }
    for span in spans:
        ids = documents[span.key][span.offset : span.offset + span.stop - span.start]
        assert batch.input_ids[span.row, span.start : span.stop].tolist() == ids.tolist()
    inside = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for span in spans:
        assert not inside[span.row, span.start : span.stop].any()
        inside[span.row, span.start : span.stop] = True
    assert inside[batch.labels != -100].all()


def test_spans_name_conversations(folder):
    conversations = [([5, 6, 7], [False, True, True]), ([8, 9], [False, True])]
    rows = ConversationRows(conversations, 8, 0)
    assert [(s.start, s.stop, s.key) for s in rows.spans(0)] == [
        (0, 2, document_key([5, 6, 7])),
        (2, 3, document_key(np.asarray([8, 9], np.uint16))),
    ]


def test_a_long_document_is_taught_from_windows_wherever_a_row_cuts_it(folder):
    network = load_checkpoint(folder / "teacher")[0].eval()
    cache = open_cache(folder / "cache")
    ids = open_shard(folder / "corpus", "one", "train").document(15)
    assert len(ids) == 201
    coded = cache.read(document_key(ids), 64, 112)  # of the second window, which begins at 48
    assert coded is not None
    logits = network(torch.from_numpy(ids[48:112].astype(int))[None])[0, 16:].log_softmax(-1)
    back = decode(coded, cache.tail_prior).block(slice(0, VOCAB)).log_softmax(-1)
    assert (logits.exp() * (logits - back)).sum(-1).max() <= 0.02


def test_a_student_learns_from_disk_as_from_the_live_teacher(folder):
    batch, spans = drawn(folder, 48, 4, 1)
    whole = {span.row for span in spans if span.offset} ^ set(range(4))
    labels = batch.labels.clone()
    labels[[row for row in range(4) if row not in whole]] = -100
    batch = replace(batch, labels=labels)
    tokenizer = Tokenizer.load(folder / "teacher")
    gradients = []
    for place in ("teacher", "cache"):
        # padded further than the teacher
        student = Transformer(replace(SHAPE, vocab_size=310), seed=9)
        reader = open_teacher(folder / place, tokenizer, sources_of(folder, 48), OPTIM)
        distillation_loss(reader, Distillation(label_share=0.1, temperature=2.0))(
            student, batch
        ).backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        )
    assert (gradients[0] - gradients[1]).norm() <= 0.05 * gradients[0].norm()


# ---- stopping, damage, strangers ----


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_cache_interrupted_goes_on_and_ends_with_the_same_files(
    folder, stop_after, tmp_path, monkeypatch
):
    written = cache_file.CacheWriter.write_shard
    calls = []

    def interrupted(self, documents):
        if len(calls) == stop_after:
            (self.folder / ".00009.bin.partial").write_bytes(b"torn")
            raise KeyboardInterrupt
        calls.append(written(self, documents))

    monkeypatch.setattr(cache_file.CacheWriter, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taught(folder, tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"holds no teacher.json.*run teach"):
        open_cache(tmp_path / "cache")
    monkeypatch.setattr(cache_file.CacheWriter, "write_shard", written)
    taught(folder, tmp_path / "cache")
    found = contents(tmp_path / "cache")
    found.pop(".00009.bin.partial")
    assert found == contents(folder / "cache")


def test_another_teacher_does_not_go_on_with_a_cache(folder, tmp_path):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"was begun otherwise \(min_gain: 1e-06 -> 0.01\); delete the folder"
    ):
        taught(folder, tmp_path / "cache", min_gain=1e-2)


def test_a_flipped_bit_is_found_when_its_document_is_read(folder, tmp_path):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    file = tmp_path / "cache" / "00000.bin"
    raw = bytearray(file.read_bytes())
    raw[5] ^= 4
    file.write_bytes(raw)
    cache = open_cache(tmp_path / "cache")
    first = next(entry for entry in cache.index if entry["shard"] == 0 and entry["start"] == 0)
    with pytest.raises(ValueError, match=r"00000.bin is damaged at byte 0"):
        cache.read(first["key"].tobytes(), 0, 1)


@pytest.mark.parametrize("name", ["index.npy", "shares.npy", "begun.json"])
def test_a_damaged_file_is_named(name, folder, tmp_path):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    file = tmp_path / "cache" / name
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        open_cache(tmp_path / "cache")


def test_a_cut_or_missing_shard_is_named(folder, tmp_path):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    file = tmp_path / "cache" / "00001.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"00001.bin has {size - 1} bytes, not {size}"):
        open_cache(tmp_path / "cache")
    file.unlink()
    with pytest.raises(ValueError, match=r"00001.bin has no bytes"):
        open_cache(tmp_path / "cache")


def test_a_cache_without_the_documents_is_refused_before_training(folder, tmp_path):
    strangers = TextRows(write_shard(tmp_path, "train", [[0, 1, 2]], vocab_size=270), 16, 0)
    tokenizer = Tokenizer.load(folder / "teacher")
    with pytest.raises(ValueError, match=r"holds nothing for document 0 of mine.*another corpus"):
        open_teacher(folder / "cache", tokenizer, {"mine": strangers}, OPTIM)
    rows = make_batches(
        {"mine": strangers},
        {"mine": 1.0},
        BatchPlan(seq_len=16, rows_per_step=1, micro_batch_size=1, seed=1),
        separate_documents=True,
        name_documents=True,
    )
    with pytest.raises(ValueError, match=r"holds nothing for tokens 0-2 of row 0 of mine"):
        cached_scores(open_cache(folder / "cache"), rows(0)[0])


def test_a_cache_of_another_tokenizer_is_refused(folder):
    other = train_tokenizer(["other words entirely, and no river at all " * 20], 262)
    with pytest.raises(
        ValueError, match=r"another vocabulary \(270 tokens\) than the student \(262\)"
    ):
        open_teacher(folder / "cache", other, {}, OPTIM)


def test_a_cache_that_reads_less_far_than_the_student_is_refused(folder):
    with pytest.raises(ValueError, match="reads 64 tokens, not the 96 required"):
        open_teacher(folder / "cache", Tokenizer.load(folder / "teacher"), {}, OPTIM, reads=96)


def test_a_cache_is_compared_with_a_recipes_words_before_anything_trains(folder, tmp_path):
    config = VocabularyConfig(name="words", tokenizer=str(folder / "teacher"), window=64)
    check_vocabulary(config, tmp_path, teacher=folder / "cache")
    assert read_json(tmp_path / "vocabulary.json") == {"tokens": 270, "positions": 64}
    with pytest.raises(ValueError, match=r"cache reads 64 tokens, words\.window asks for 65"):
        check_vocabulary(replace(config, window=65), tmp_path, teacher=folder / "cache")


def test_every_token_of_concatenated_rows_is_found_in_the_cache(folder):
    """Also of rows that open inside a document."""
    rows = TextRows(open_shard(folder / "corpus", "one", "train"), 24, 0, "concatenate")
    plan = BatchPlan(seq_len=24, rows_per_step=len(rows), micro_batch_size=len(rows), seed=1)
    whole = make_batches(
        {"one": rows}, {"one": 1.0}, plan, separate_documents=True, name_documents=True
    )(0)[0]
    spans = whole.spans
    assert spans and any(span.offset > 0 and span.start == 0 for span in spans)
    read = sum(span.stop - span.start for span in spans)
    assert read == len(rows.shard.tokens)
    assert cached_scores(open_cache(folder / "cache"), whole) is not None


def test_too_little_room_is_told_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000)
    )
    with pytest.raises(ValueError, match=r"room for 0.0 MB; raise min_gain, name fewer sources"):
        taught(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.bin"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 65}, "cache.window 65 exceeds the teacher's 64 positions"),
        ({"min_gain": 0.0}, "min_gain 0.0 must be above 0"),
        ({"window": 3}, "window 3 is below 4"),
        ({"compute_dtype": "int8"}, "compute_dtype 'int8' is unknown"),
        ({"sources": ("three",)}, "has no source 'three'; it has one, two"),
    ],
)
def test_a_config_that_cannot_teach_says_which_field(changes, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        taught(folder, tmp_path / "cache", **changes)


def test_teacher_json_tells_what_was_measured(folder):
    told = json.loads((folder / "cache" / DONE).read_text())
    shards = [file for file in (folder / "cache").glob("*.bin")]
    assert told["documents"] == 31 and len(shards) > 2
    assert told["bytes_per_token"] == sum(file.stat().st_size for file in shards) / told["tokens"]
    assert 0 < told["kl"] < 0.01
