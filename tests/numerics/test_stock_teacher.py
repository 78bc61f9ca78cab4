"""A teacher of a family that our own network does not hold: its scores are those of stock
transformers for each document by itself, and the student learns from them as from any other.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import small
from stock_families import BATCH, LENGTHS, TEACHERS, save_family
from torch import Tensor
from transformers import AutoModelForCausalLM

from pocketlm.data.shards import write_shard
from pocketlm.inference.stock_network import load_stock_network
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.teach import TeachConfig, teach
from pocketlm.train.distill.cache import open_cache
from pocketlm.train.distill.codec import decode
from pocketlm.train.distill.encode import read_windows
from pocketlm.train.distill.teacher import live_teacher, network_shape, open_teacher
from pocketlm.train.losses import Distillation, distillation_loss
from pocketlm.train.optim import OptimConfig

OPTIM = OptimConfig(
    lr=1e-2, num_steps=2, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)
VOCAB = 300
STUDENT = small(vocab_size=VOCAB, max_position_embeddings=128, initializer_range=0.2)
TOLERANCE = 1e-4  # of logits of about two units, float32
PACKING = (
    "gpt_neox",
    "phi",
    "phi3",
    "stablelm",
    "gemma2",
    "cohere",
    "granite",
    "mixtral",
    "llama4_text",
)
NOT_PACKING = ("opt", "bloom", "mamba")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


@pytest.fixture(scope="module")
def teachers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            save_family(kind, tokenizer, root / kind)
        return root / kind

    return folder


def stock_log_probs(folder: Path, batch: Batch) -> Tensor:
    """[B, T, V] by transformers alone: a row in one piece, or each of its documents by itself."""
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for row, lengths in enumerate(LENGTHS):
            parts = batch.input_ids[row].split(lengths if batch.doc_ids is not None else 40)
            rows.append(torch.cat([network(part[None]).logits[0] for part in parts]))
    return torch.stack(rows).log_softmax(-1)


def plain_loss(student: Transformer, batch: Batch, log_q: Tensor) -> Tensor:
    """Forward KL summed over the labels that count, from whole logits."""
    logits = student(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    kl = (log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1)
    return kl[batch.labels != IGNORE_INDEX].sum()


def gradients(student: Transformer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", PACKING)
def test_a_student_learns_what_a_plain_loss_teaches(kind, teachers, tokenizer) -> None:
    folder = teachers(kind)
    reader = open_teacher(folder, tokenizer, {}, OPTIM, reads=128)
    students = [Transformer(STUDENT, seed=4) for _ in range(2)]
    loss = distillation_loss(reader)(students[0], BATCH)
    expected = plain_loss(students[1], BATCH, stock_log_probs(folder, BATCH))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    grads = [gradients(student) for student in students]
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm()


@pytest.mark.parametrize("kind", NOT_PACKING)
def test_a_family_that_mixes_documents_is_refused_for_packed_rows_alone(
    kind, teachers, tokenizer
) -> None:
    folder = teachers(kind)
    reader = open_teacher(folder, tokenizer, {}, OPTIM)
    with pytest.raises(ValueError, match=r"does not keep the documents of a row apart; run teach"):
        reader(BATCH)
    whole = replace(BATCH, positions=None, doc_ids=None)
    log_q = stock_log_probs(folder, whole).flatten(0, 1)
    scores = reader(whole).block(slice(0, VOCAB)).log_softmax(-1)
    assert (scores - log_q).abs().max() <= TOLERANCE


def test_what_stands_in_one_document_changes_nothing_in_another(teachers, tokenizer) -> None:
    reader = open_teacher(teachers("gemma2"), tokenizer, {}, OPTIM)
    other = BATCH.input_ids.clone()
    other[0, :9] = (other[0, :9] + 7) % VOCAB
    scores = [
        reader(replace(BATCH, input_ids=ids)).block(slice(0, VOCAB)).view(2, -1, VOCAB)
        for ids in (BATCH.input_ids, other)
    ]
    assert (scores[0][0, :9] - scores[1][0, :9]).abs().max() > 0.1
    assert (scores[0][0, 9:] - scores[1][0, 9:]).abs().max() <= 1e-6
    assert (scores[0][1] - scores[1][1]).abs().max() <= 1e-6


def test_only_the_student_has_gradients(teachers) -> None:
    network, student = load_stock_network(teachers("phi3"), None), Transformer(STUDENT)
    distillation_loss(live_teacher(network, OPTIM))(student, BATCH).backward()
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_blocks_of_words_are_the_head_s_own_logits(teachers) -> None:
    """A bias, a factor and a soft cap go with their words; padding that only the teacher has."""
    for kind in ("phi", "cohere", "gemma2"):
        network = load_stock_network(teachers(kind), None)
        scores = live_teacher(network, OPTIM)(BATCH)
        whole = network.head(network.hidden(BATCH.input_ids, doc_ids=BATCH.doc_ids)).flatten(0, 1)
        blocks = [scores.block(slice(n, n + 77)) for n in range(0, VOCAB, 77)]
        assert (torch.cat(blocks, 1) - whole).abs().max() <= 1e-6
        some = torch.arange(0, 80, 3)
        assert torch.equal(scores.rows(some).block(slice(3, 9)), scores.block(slice(3, 9))[some])


def test_a_llama_folder_teaches_the_same_through_our_network_and_through_transformers(
    tokenizer, tmp_path
) -> None:
    shape = small(vocab_size=VOCAB, use_qk_norm=False, initializer_range=0.3)
    save_checkpoint(tmp_path, Transformer(shape, seed=5), tokenizer)
    losses = []
    for network in (load_checkpoint(tmp_path)[0], load_stock_network(tmp_path, None)):
        how = Distillation(label_share=0.2, temperature=1.5)
        losses.append(
            distillation_loss(live_teacher(network, OPTIM), how)(Transformer(STUDENT), BATCH).item()
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_vocabulary_is_one_message_before_any_weights_are_read(
    teachers, tokenizer, tmp_path
) -> None:
    save_family("gpt_neox", tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    other = train_tokenizer(["quite another text, about numbers: 1 2 3"], 270)
    with pytest.raises(ValueError, match="teacher and student have different vocabularies"):
        open_teacher(tmp_path, other, {}, OPTIM)
    with pytest.raises(ValueError, match="reads 128 tokens, not the 129 required"):
        open_teacher(teachers("gpt_neox"), tokenizer, {}, OPTIM, reads=129)


def test_a_model_that_sees_later_tokens_is_no_teacher(teachers, tokenizer) -> None:
    with pytest.raises(ValueError, match="after a token depends on later tokens"):
        open_teacher(teachers("bert"), tokenizer, {}, OPTIM)


def test_a_head_that_is_not_the_states_times_a_matrix_is_no_teacher(teachers) -> None:
    network = load_stock_network(teachers("cohere"), None)
    network.factor = 1.0  # as in a family whose factor has a name that is not known
    with pytest.raises(ValueError, match="are not its last states times its head"):
        network.check()


def test_weights_are_as_wide_as_the_products(teachers) -> None:
    wide, narrow = (load_stock_network(teachers("phi3"), dtype) for dtype in (None, torch.bfloat16))
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    narrow.check()
    assert narrow.separates_documents
    logits = [network.head(network.hidden(BATCH.input_ids)) for network in (wide, narrow)]
    assert logits[1].dtype == torch.float32
    assert (logits[0] - logits[1]).square().mean().sqrt() <= 0.05 * logits[0].std()


def test_a_rotary_table_that_changes_with_the_longest_text_is_refused_beyond_it(teachers) -> None:
    network = load_stock_network(teachers("phi3"), None)
    network.mixed_length = 39
    with pytest.raises(ValueError, match=r"beyond 39 tokens the rotary table .* up to 40 lie"):
        network.hidden(BATCH.input_ids, doc_ids=BATCH.doc_ids)
    network.mixed_length = 40
    network.hidden(BATCH.input_ids, doc_ids=BATCH.doc_ids)


# ---- a cache on disk ----


@pytest.mark.parametrize("kind", ["bloom", "gemma2", "mamba"])
def test_documents_read_together_are_read_as_each_alone(kind, teachers) -> None:
    model = load_stock_network(teachers(kind), None)
    network: Any = AutoModelForCausalLM.from_pretrained(teachers(kind), dtype=torch.float32).eval()
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, VOCAB, size) for size in (3, 40, 41, 7)]
    read = [torch.full((len(ids), VOCAB), torch.nan) for ids in documents]
    for document, first, logits in read_windows(model, documents, 64, 100):
        read[document][first : first + len(logits)] = logits
    for ids, logits in zip(documents, read, strict=True):
        with torch.no_grad():
            expected = network(torch.from_numpy(ids)[None]).logits[0]
        assert (logits - expected).abs().max() <= TOLERANCE


def test_teach_writes_what_such_a_teacher_says(teachers, tokenizer, tmp_path) -> None:
    """Of bloom, which no live training with packed rows takes."""
    corpus, out = tmp_path / "corpus", tmp_path / "cache"
    (corpus / "shards" / "one").mkdir(parents=True)
    (corpus / "tokenizer").mkdir()
    out.mkdir()
    tokenizer.save(corpus / "tokenizer")
    documents = [list(range(1, 30)), list(range(100, 117))]
    write_shard(corpus / "shards" / "one", "train", documents, vocab_size=280)
    config = TeachConfig(name="taught", window=64, min_gain=1e-6, compute_dtype="float32")
    cache = open_cache(teach(config, out, corpus=corpus, teacher=teachers("bloom")))
    network: Any = AutoModelForCausalLM.from_pretrained(teachers("bloom")).float().eval()
    assert len(cache.index) == 2
    for entry in cache.index:
        coded = cache.read(entry["key"].tobytes(), 0, int(entry["tokens"]))
        assert coded is not None
        ids = next(d for d in documents if len(d) == len(coded))
        with torch.no_grad():
            log_q = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        back = decode(coded, cache.tail_prior).block(slice(0, VOCAB)).log_softmax(-1)
        assert (log_q.exp() * (log_q - back)).sum(-1).max() <= 0.02  # of 6 bits, as for ours


# ---- a stage ----


def test_a_stage_trains_with_it_and_stops_before_training_where_it_cannot(
    teachers, tokenizer, tmp_path
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    (corpus / "shards" / "one").mkdir(parents=True)
    (corpus / "tokenizer").mkdir()
    out.mkdir()
    tokenizer.save(corpus / "tokenizer")
    documents = [list(range(first, first + 20)) for first in range(1, 200, 9)]
    write_shard(corpus / "shards" / "one", "train", documents, vocab_size=280)
    config = PretrainConfig(
        name="mid",
        optim=OPTIM,
        seq_len=32,
        rows_per_step=4,
        micro_batch_size=2,
        seed=1,
        model=STUDENT,
        shares={"one": 1.0},
        separate_documents=True,
        packing="concatenate",
    )
    pretrain(config, out, corpus=corpus, teacher=teachers("gemma2"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(0 < line["loss"] < 10 for line in lines)
    assert load_checkpoint(out)[0].config == STUDENT
    other = train_tokenizer(["quite another text, about numbers: 1 2 3"], 270)
    save_family("gpt_neox", other, tmp_path / "other")
    (tmp_path / "refused").mkdir()
    with pytest.raises(ValueError, match="different vocabularies"):
        pretrain(config, tmp_path / "refused", corpus=corpus, teacher=tmp_path / "other")
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


# ---- its size ----


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_parameters_are_counted_from_the_config_alone(kind, teachers, tmp_path) -> None:
    network: Any = AutoModelForCausalLM.from_pretrained(teachers(kind))
    (tmp_path / "config.json").write_text((teachers(kind) / "config.json").read_text())
    shape: Any = network_shape(tmp_path)
    assert shape.parameters == sum(p.numel() for p in network.parameters())
    assert shape.hidden_size == 32 and shape.num_hidden_layers == 3
    in_blocks = shape.parameters - shape.outside_blocks
    assert shape.largest_block <= in_blocks
    assert kind == "bert" or in_blocks == pytest.approx(3 * shape.largest_block, rel=0.01)
    if kind in ("mixtral", "llama4_text"):
        assert shape.experts == 4
