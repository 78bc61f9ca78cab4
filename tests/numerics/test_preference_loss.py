"""The losses on preferences against their papers' formulas, in the words of TRL's DPOTrainer
before 1.16 (which has neither cDPO's smoothing nor rpo_alpha), on whole logits: values and
gradients.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.preference_loss import Preference, answer_log_probs, preference_loss

PAIRS, LENGTHS = 3, ((9, 4), (5, 7), (11, 3))  # tokens of each side, prompt included
PROMPTS = ((4, 2), (2, 2), (6, 1))


def pairs_of() -> Batch:
    """Rows of two documents and padding; the answers' tokens are labels."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 290, (PAIRS, 20), generator=drawn)
    labels = torch.full_like(ids, IGNORE_INDEX)
    doc_ids, positions = torch.full_like(ids, -1), torch.zeros_like(ids)
    for row in range(PAIRS):
        at = 0
        for side in (0, 1):
            length, prompt = LENGTHS[row][side], PROMPTS[row][side]
            doc_ids[row, at : at + length] = side
            positions[row, at : at + length] = torch.arange(length)
            labels[row, at + prompt : at + length] = torch.randint(
                3, 290, (length - prompt,), generator=drawn
            )
            at += length
        positions[row, at:] = torch.arange(20 - at)
    return Batch(input_ids=ids, labels=labels, positions=positions, doc_ids=doc_ids)


def side_log_probs(model: Transformer, batch: Batch, side: int) -> tuple[Tensor, Tensor]:
    """(log-probabilities of each label [PAIRS, T], mask of those that count), each side by itself
    as TRL reads it, from whole logits.
    """
    values = torch.zeros(PAIRS, 20)
    mask = torch.zeros(PAIRS, 20, dtype=torch.bool)
    assert batch.doc_ids is not None
    for row in range(PAIRS):
        mine = batch.doc_ids[row] == side
        logits = model(batch.input_ids[row, mine][None])[0]
        labels = batch.labels[row, mine]
        counted = labels != IGNORE_INDEX
        each = torch.log_softmax(logits, -1)[torch.arange(len(labels)), labels.clamp(min=0)]
        values = values.index_put(
            (torch.full((len(labels),), row), torch.arange(len(labels))), each * counted
        )
        mask[row, : len(labels)] = counted
    return values, mask


def trl(model: Transformer, before: Tensor, batch: Batch, how: Preference) -> Tensor:
    """dpo_loss and the rpo_alpha term, of each answer's mean."""
    chosen, chosen_mask = side_log_probs(model, batch, 0)
    rejected, rejected_mask = side_log_probs(model, batch, 1)
    chosen_logps, rejected_logps = chosen.sum(1), rejected.sum(1)
    ref_chosen_logps, ref_rejected_logps = before.unbind(1)
    nll = -(chosen_logps / chosen_mask.sum(1))
    if how.loss == "ipo":
        chosen_logps, ref_chosen_logps = (
            x / chosen_mask.sum(1) for x in (chosen_logps, ref_chosen_logps)
        )
        rejected_logps, ref_rejected_logps = (
            x / rejected_mask.sum(1) for x in (rejected_logps, ref_rejected_logps)
        )
    logratios, ref_logratios = chosen_logps - rejected_logps, ref_chosen_logps - ref_rejected_logps
    logits = logratios - ref_logratios
    if how.loss == "ipo":
        losses = (logits - 1 / (2 * how.beta)) ** 2
    else:
        losses = (
            -F.logsigmoid(how.beta * logits) * (1 - how.label_smoothing)
            - F.logsigmoid(-how.beta * logits) * how.label_smoothing
        )
    return (losses + how.sft_weight * nll).sum()


CASES: dict[str, dict[str, Any]] = {
    "dpo": {"sft_weight": 0.0},
    "dpo, beta 0.7": {"beta": 0.7, "sft_weight": 0.0},
    "dpo, smoothed": {"label_smoothing": 0.2, "sft_weight": 0.0},
    "dpo with its sft term": {"sft_weight": 1.5},
    "ipo": {"loss": "ipo", "sft_weight": 0.0},
    "ipo with its sft term": {"loss": "ipo", "beta": 0.3, "sft_weight": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_trls(case: str) -> None:
    how, batch = Preference(**CASES[case]), pairs_of()
    model = Transformer(small(initializer_range=0.2), seed=1)
    with torch.no_grad():
        before = answer_log_probs(Transformer(small(initializer_range=0.2), seed=2), batch)
    results = []
    for ours in (True, False):
        model.zero_grad()
        if ours:
            loss = preference_loss(lambda _: before.log_probs, how)(model, batch)
        else:
            loss = trl(model, before.log_probs, batch, how)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), gradients))
    (value, gradients), (right, expected) = results
    assert value == pytest.approx(float(right), rel=1e-5)
    assert len(gradients) == len(expected) > 10
    for mine, other in zip(gradients, expected, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm() + 1e-6


def test_at_the_beginning_dpo_is_log_2_and_pulls_both_sides_apart() -> None:
    """The known value, and the gradient in the log-probabilities: -beta / 2 and beta / 2."""
    batch, model = pairs_of(), Transformer(small(), seed=1)
    with torch.no_grad():
        before = answer_log_probs(model, batch).log_probs
    loss = preference_loss(lambda _: before, Preference(beta=0.4, sft_weight=0.0))
    assert float(loss(model, batch)) == pytest.approx(PAIRS * 0.693147, rel=1e-5)
    leaf = before.clone().requires_grad_()
    margin = (leaf - before)[:, 0] - (leaf - before)[:, 1]
    (-F.logsigmoid(0.4 * margin)).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, torch.tensor([-0.2, 0.2]).expand(PAIRS, 2))
