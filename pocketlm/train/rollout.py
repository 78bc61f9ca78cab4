"""Learning from answers that the model itself wrote: which rows a step trains on, and what each of
their tokens counts.

One update follows each set of answers, so the policy that learns is the one that wrote them: the
ratio of both is 1 and no clip acts. What GRPO and its kin then differ in is what an answer's reward
is compared with and what the sum is divided by.

Shapes: P prompts, S answers to each, B rows, T tokens
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch

PolicyLoss = Literal["grpo", "dr_grpo", "dapo", "reinforce", "rejection", "opd"]
POLICY_LOSSES = ("grpo", "dr_grpo", "dapo", "reinforce", "rejection", "opd")
MULTIPLE = 64  # lengths of rows: each is a shape of its own to a compiler
EPSILON = 1e-4  # beside a group's deviation, as in TRL


@dataclass(frozen=True)
class Answer:
    """ids: of the answer, with the token that ends it unless it was cut."""

    prompt: list[int]
    ids: list[int]
    cut: bool


def seed_of(seed: int, step: int) -> int:
    """Where the draws of a step begin: far from those of any other, though rows draw with numbers
    in a row.
    """
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def advantages(rewards: Tensor, loss: PolicyLoss) -> Tensor:
    """What each answer [P, S] counts, from rewards [P, S] of groups of answers to one prompt.

    grpo, dapo: the reward less the group's mean, over its deviation (Shao et al. 2024,
    arXiv 2402.03300; Yu et al. 2025, arXiv 2503.14476). dr_grpo, reinforce: less the mean alone
    (Liu et al. 2025, arXiv 2503.20783). rejection: 1 for the group's best answers where it has
    worse ones, else 0. opd: 1, a teacher judges.
    """
    if loss == "opd":
        return torch.ones_like(rewards)
    mean = rewards.mean(1, keepdim=True)
    if loss == "rejection":
        best = rewards == rewards.amax(1, keepdim=True)
        return (best & (rewards > mean)).to(rewards.dtype)
    centred = rewards - mean
    if loss in ("dr_grpo", "reinforce"):
        return centred
    return centred / (rewards.std(1, keepdim=True) + EPSILON)


def policy_batch(
    answers: Sequence[Answer], values: Sequence[float], loss: PolicyLoss, *, longest: int
) -> Batch:
    """Rows of answers after their prompts; labels are the answers' tokens, each with its weight.

    values: what each answer counts. longest: the most tokens of an answer, by which dr_grpo
    divides. The mean is over answers (grpo: each by its own length; dr_grpo: all by one constant),
    or over tokens (dapo, reinforce, rejection, opd), of the whole step: the loop divides once.
    """
    size = max(len(a.prompt) + len(a.ids) for a in answers) - 1
    size = -(-size // MULTIPLE) * MULTIPLE
    ids = torch.zeros(len(answers), size, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    weights = torch.zeros(ids.shape)
    for row, (answer, value) in enumerate(zip(answers, values, strict=True)):
        whole = torch.tensor(answer.prompt + answer.ids)
        first, last = len(answer.prompt) - 1, len(whole) - 1
        ids[row, :last] = whole[:-1]
        labels[row, first:last] = whole[first + 1 :]
        share = {"grpo": 1 / max(1, len(answer.ids)), "dr_grpo": 1 / longest}.get(loss, 1.0)
        weights[row, first:last] = value * share
    units: float | None = None
    if loss in ("grpo", "dr_grpo"):
        units = len(answers)
    elif loss == "rejection":  # of what was kept: a step without any changes nothing
        units = float((weights != 0).sum()) or 1e-9
    if loss == "opd":
        return Batch(input_ids=ids, labels=labels)
    return Batch(input_ids=ids, labels=labels, weights=weights, units=units)
