"""Micro-batches end at their longest row, and nothing that is learnt changes."""

from dataclasses import replace
from random import Random

import pytest
import torch
from test_train_loop import CONFIG

from pocketlm.data.batches import BatchPlan, ConversationRows, collate, make_batches
from pocketlm.data.padding import MULTIPLE, trim_padding, trimmed
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.health import token_digest
from pocketlm.train.losses import next_token_loss

SEQ_LEN, EOS = 512, 1
MODEL = replace(CONFIG, max_position_embeddings=SEQ_LEN)


def some_rows() -> ConversationRows:
    """A conversation a row, of 2 to 300 tokens: mostly padding, as in R1's script."""
    random = Random(5)
    lengths = [random.randrange(2, 300) for _ in range(16)]
    pairs = [([random.randrange(300) for _ in range(n)], [n > 1] * n) for n in lengths]
    return ConversationRows(pairs, SEQ_LEN, EOS, packed=False)


def drawn(micro_batch_size: int = 2):
    plan = BatchPlan(seq_len=SEQ_LEN, rows_per_step=4, micro_batch_size=micro_batch_size, seed=1)
    return make_batches({"chats": some_rows()}, {"chats": 1.0}, plan, separate_documents=True)


def loss_and_gradients(batch: Batch) -> tuple[float, list[torch.Tensor]]:
    model = Transformer(MODEL)
    loss = next_token_loss(model, batch)
    (loss / batch.num_labels).backward()
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def test_a_trimmed_batch_has_the_loss_and_gradients_of_the_whole_one() -> None:
    for step in range(3):
        for whole, short in zip(drawn()(step), trimmed(drawn())(step), strict=True):
            assert short.input_ids.shape[1] < whole.input_ids.shape[1] == SEQ_LEN
            assert short.num_labels == whole.num_labels and short.rows == whole.rows
            (loss, gradients), (kept, same) = loss_and_gradients(whole), loss_and_gradients(short)
            assert kept == pytest.approx(loss, rel=1e-6)
            for one, other in zip(gradients, same, strict=True):
                assert (one - other).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("longest", "length"), [(1, MULTIPLE), (64, 64), (65, 128), (511, 512), (512, 512)]
)
def test_the_length_is_the_next_multiple_of_64_and_at_most_the_rows_own(
    longest: int, length: int
) -> None:
    ids = list(range(2, longest + 3))
    rows = ConversationRows(
        [(ids, [True] * len(ids)), ([5, 6], [True] * 2)], SEQ_LEN, EOS, packed=False
    )
    batch = collate([rows[0], rows[1]], separate_documents=True)
    short = trim_padding(batch)
    assert short.input_ids.shape == short.labels.shape == (2, length)
    assert short.positions is not None and short.positions.shape == (2, length)
    assert torch.equal(short.input_ids, batch.input_ids[:, :length])
    assert (batch.labels[:, length:] == IGNORE_INDEX).all()


def test_rows_of_text_stay_whole() -> None:
    batch = Batch(input_ids=torch.ones(2, 100).long(), labels=torch.ones(2, 100).long())
    assert trim_padding(batch) is batch


def test_a_token_digest_does_not_depend_on_the_padding() -> None:
    for step in range(3):
        digests = {
            token_digest(make(drawn(size))(step))
            for size in (1, 2, 4)
            for make in (trimmed, lambda batches: batches)
        }
        assert len(digests) == 1
