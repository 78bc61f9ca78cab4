"""GRPO and its kin against the formulas of TRL's GRPOTrainer, the ratio and the clip written out on
whole logits: values and gradients, of one micro-batch and of several.
"""

from typing import Any

import pytest
import torch
from shapes import small
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX
from pocketlm.model.transformer import Transformer
from pocketlm.train.losses import next_token_loss
from pocketlm.train.rollout import Answer, PolicyLoss, advantages, policy_batch

LONGEST = 9
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2], [0.0, 0.5, 1.0, 0.0]])


def answers() -> list[Answer]:
    """Three groups of four, of different lengths."""
    drawn = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 290, (count,), generator=drawn).tolist()

    made = []
    for length in (3, 5, 2):
        prompt = ids(length)
        made += [Answer(prompt, ids(size), size == LONGEST) for size in (4, LONGEST, 1, 6)]
    return made


def log_probs(model: Transformer, answer: Answer) -> Tensor:
    """Of each token of the answer."""
    whole = torch.tensor(answer.prompt + answer.ids)
    logits = model(whole[None, :-1])[0].log_softmax(-1)
    each = logits[torch.arange(len(whole) - 1), whole[1:]]
    return each[len(answer.prompt) - 1 :]


def trl(model: Transformer, made: list[Answer], loss: str) -> Tensor:
    """TRL's compute_loss: scale_rewards "group" (dr_grpo: none), beta 0, epsilon 0.2, one
    iteration, so that the old log-probabilities are the detached new ones.
    """
    grouped = REWARDS.view(-1, 4)
    mean = grouped.mean(1).repeat_interleave(4)
    adv = REWARDS.view(-1) - mean
    if loss in ("grpo", "dapo"):
        adv = adv / (grouped.std(1).repeat_interleave(4) + 1e-4)
    T = max(len(a.ids) for a in made)
    per_token_loss, mask = torch.zeros(len(made), T), torch.zeros(len(made), T)
    for row, answer in enumerate(made):
        new = log_probs(model, answer)
        ratio = torch.exp(new - new.detach())
        clipped = torch.clamp(ratio, 0.8, 1.2)
        each = -torch.min(ratio * adv[row], clipped * adv[row])
        place = (torch.full((len(each),), row), torch.arange(len(each)))
        per_token_loss = per_token_loss.index_put(place, each)
        mask[row, : len(each)] = 1
    if loss == "grpo":
        return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss == "dr_grpo":
        return (per_token_loss * mask).sum() / (per_token_loss.size(0) * LONGEST)
    return (per_token_loss * mask).sum() / mask.sum()  # dapo: the tokens of the global batch


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_gradients_are_trls(loss: PolicyLoss, parts: int) -> None:
    """Of the value only the gradient is the policy's: TRL's ratio is 1, our weight multiplies a
    log-probability.
    """
    model, made = Transformer(small(initializer_range=0.2), seed=1), answers()
    trl(model, made, loss).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    values = advantages(REWARDS, loss).flatten().tolist()
    size = len(made) // parts
    batches = [
        policy_batch(made[n : n + size], values[n : n + size], loss, longest=LONGEST)
        for n in range(0, len(made), size)
    ]
    divisor = sum(batch.divisor for batch in batches)
    for batch in batches:
        (next_token_loss(model, batch) / divisor).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 10
    for mine, right in zip(found, expected, strict=True):
        assert (mine - right).norm() <= 1e-4 * right.norm() + 1e-7


def test_the_value_is_that_of_weighted_log_probabilities() -> None:
    model, made = Transformer(small(initializer_range=0.2), seed=1), answers()
    values = advantages(REWARDS, "grpo").flatten()
    batch = policy_batch(made, values.tolist(), "grpo", longest=LONGEST)
    expected = sum(
        -value * log_probs(model, answer).mean() for value, answer in zip(values, made, strict=True)
    )
    assert float(next_token_loss(model, batch)) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("reinforce", [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [-0.375, 0.125, 0.625, -0.375]]),
        ("rejection", [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]),
        ("opd", [[1.0] * 4] * 3),
    ],
)
def test_what_the_others_count(loss: Any, expected: list[list[float]]) -> None:
    assert torch.allclose(advantages(REWARDS, loss), torch.tensor(expected, dtype=torch.float32))


def test_rejection_is_fine_tuning_on_the_best_answers() -> None:
    """The mean cross-entropy of their tokens; a step without any changes nothing."""
    model, made = Transformer(small(initializer_range=0.2), seed=1), answers()
    values = advantages(REWARDS, "rejection").flatten().tolist()
    batch = policy_batch(made, values, "rejection", longest=LONGEST)
    kept = [log_probs(model, answer) for answer, v in zip(made, values, strict=True) if v]
    expected = -torch.cat(kept).mean()
    loss = next_token_loss(model, batch) / batch.divisor
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    none = policy_batch(made, [0.0] * len(made), "rejection", longest=LONGEST)
    assert float(next_token_loss(model, none) / none.divisor) == 0.0 and none.num_labels > 0


def test_rows_hold_the_prompt_and_the_answer_and_labels_the_answer_alone() -> None:
    made = answers()
    batch = policy_batch(made, [1.0] * len(made), "dapo", longest=LONGEST)
    assert batch.weights is not None and batch.input_ids.shape[1] % 64 == 0
    for row, answer in enumerate(made):
        whole = answer.prompt + answer.ids
        assert batch.input_ids[row, : len(whole) - 1].tolist() == whole[:-1]
        counted = batch.labels[row] != IGNORE_INDEX
        assert batch.labels[row][counted].tolist() == answer.ids
        assert int(counted.nonzero()[0]) == len(answer.prompt) - 1
        assert batch.weights[row][~counted].abs().sum() == 0
