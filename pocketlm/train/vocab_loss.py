"""Memory-efficient cross-entropy and divergences: chunked over tokens and vocabulary
(vocab_blocks.py), so that the logits of a batch are never held. A loss computes each once.

Shapes: N tokens, D hidden, V vocabulary, W words of a block
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.train.divergences import FORWARD_KL, Divergence
from pocketlm.train.lazy_logits import LazyLogits, TeacherScores
from pocketlm.train.vocab_blocks import (
    accurate_dtype,
    label_places,
    logsumexp,
    token_slices,
    word_slices,
)

# log-probability, 1e-10, that a teacher gives a word beyond its own (our choice; only padding is)
UNKNOWN = -23.0


def head_loss(
    model: LazyLogits,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    teacher: TeacherScores | None = None,
    divergence: Divergence = FORWARD_KL,
    temperature: float = 1.0,
    label_share: float = 1.0,
) -> Tensor:
    """Float32 sum over N tokens: label_share x cross-entropy with labels [N] + the rest x the
    divergence from a teacher.

    weights: float32 [N], what each token's cross-entropy counts; None: 1. Distributions are taken
    at `temperature`, cross-entropy at 1; nothing is multiplied by temperature squared. Gradients go
    to the model's x and weight. Vocabularies padded to different sizes: words that only the teacher
    has are left out of its distribution; to those that only the model has it gives UNKNOWN, so they
    are learnt to be improbable. ValueError: nothing to learn from, or weights with a teacher.
    """
    if (labels is None and label_share > 0) or (teacher is None and label_share < 1):
        raise ValueError(
            f"label_share {label_share} needs {'labels' if labels is None else 'a teacher'}"
        )
    if weights is not None and label_share < 1:
        raise ValueError(
            f"label_share {label_share} takes no weights of tokens: a divergence from a teacher "
            "counts each token alike; leave the weights out, or set label_share=1"
        )
    task = _Task(labels, weights, teacher, divergence, temperature, label_share, model.dtype)
    return _HeadLoss.apply(model.x, model.weight, task)  # type: ignore[return-value]


# ---- the loss ----


@dataclass(frozen=True)
class _Task:
    """What is learnt from: the arguments of head_loss."""

    labels: Tensor | None
    weights: Tensor | None
    teacher: TeacherScores | None
    divergence: Divergence
    temperature: float
    label_share: float
    dtype: torch.dtype | None

    def rows(self, chosen: slice) -> "_Task":
        return replace(
            self,
            labels=None if self.labels is None else self.labels[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            teacher=None if self.teacher is None else self.teacher.rows(chosen),
        )


class _HeadLoss(torch.autograd.Function):
    """Gradients are computed with the value, while the logits exist; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, task: _Task) -> Tensor:
        wanted = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        loss, *ctx.gradients = _value_and_gradients(LazyLogits(x, weight, task.dtype), task, wanted)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of a head_loss can be taken once: it is scaled in place"
            )
        (grad_x, grad_weight), ctx.gradients = ctx.gradients, None
        return (
            grad_x.mul_(upstream[0]),
            None if grad_weight is None else grad_weight.mul_(upstream[0]),
            None,
        )


def _value_and_gradients(
    logits: LazyLogits, task: _Task, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(loss, gradient [N, D] by x, gradient [V, D] by the weight); None where there is no weight or
    none is wanted. wanted: of x, or of any; of the weight, which may be frozen.
    """
    x, weight, accurate = logits.x, logits.weight, accurate_dtype(logits.x)
    grad_x = torch.empty_like(x, dtype=accurate) if wanted[0] else None
    grad_weight = (
        torch.zeros_like(weight, dtype=accurate) if wanted[1] and weight is not None else None
    )
    loss = torch.zeros((), dtype=accurate, device=x.device)
    sides = [logits] if task.teacher is None or task.label_share == 1 else [logits, task.teacher]
    bytes_each = logits.vocab_size * sum(side.itemsize for side in sides)
    for tokens in token_slices(x.shape[0], bytes_each, x.device):
        # no name for the chunks: their logits are freed before the next ones are computed
        chunk_grad = None if grad_x is None else grad_x[tokens]
        loss += VocabChunks(logits.rows(tokens), task.rows(tokens), accurate).run(
            chunk_grad, grad_weight, first=tokens.start == 0
        )
    return loss, grad_x, grad_weight


class VocabChunks:
    """The loss of a chunk of tokens: passes over blocks of the vocabulary, that share logits."""

    def __init__(self, scores: LazyLogits, task: _Task, accurate: torch.dtype) -> None:
        self.scores, self.task, self.accurate = scores, task, accurate
        self.teacher = task.teacher if task.label_share < 1 else None
        self.blocks = word_slices(scores.vocab_size, scores.x.shape[0], scores.x.device)
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.norms = self._norms()

    def logits(self, side: TeacherScores, words: slice, temperature: float = 1.0) -> Tensor:
        """[N, W], computed, or kept from an earlier pass; to be written over."""
        key = (id(side), words.start)
        block = self.kept.get(key)
        if block is None:
            block = side.block(words)
            if side.itemsize:
                self.kept[key] = block
        copied = block.to(self.accurate, copy=bool(side.itemsize))
        return copied if temperature == 1 else copied.div_(temperature)

    def _norms(self) -> dict[str, Tensor]:
        """Log of the sum of exponentials [N, 1]: of the model at temperature 1, and of both at the
        task's.
        """
        T, teacher = self.task.temperature, self.teacher
        parts: dict[str, list[Tensor]] = {"labels": [], "model": [], "teacher": []}
        for words in self.blocks:
            if self.task.label_share > 0:
                parts["labels"].append(logsumexp(self.logits(self.scores, words)))
            if teacher is not None and not (parts["labels"] and T == 1):
                parts["model"].append(logsumexp(self.logits(self.scores, words, T)))
            if teacher is not None and words.start < teacher.vocab_size:
                parts["teacher"].append(logsumexp(self.logits(teacher, _known(words, teacher), T)))
        parts["model"] = parts["model"] or parts["labels"]
        return {
            name: torch.stack(sums).logsumexp(0)[:, None] for name, sums in parts.items() if sums
        }

    def logs(self, words: slice) -> tuple[Tensor, Tensor]:
        """(log p, log q) [N, W] of the model and the teacher."""
        T, teacher = self.task.temperature, self.teacher
        assert teacher is not None
        log_p = self.logits(self.scores, words, T).sub_(self.norms["model"])
        if words.start >= teacher.vocab_size:
            return log_p, torch.full_like(log_p, UNKNOWN)
        log_q = self.logits(teacher, _known(words, teacher), T).sub_(self.norms["teacher"])
        beyond = log_p.shape[1] - log_q.shape[1]
        return log_p, F.pad(log_q, (0, beyond), value=UNKNOWN) if beyond else log_q

    def slope_sum(self) -> Tensor | float:
        """Of each token's slopes over all words: known beforehand, or a pass of its own."""
        divergence = self.task.divergence
        if self.teacher is None or divergence.slope_sum is not None:
            return divergence.slope_sum or 0.0
        return sum(
            (divergence.parts(*self.logs(words))[1].sum(-1, keepdim=True) for words in self.blocks),
            0.0,
        )

    def run(self, grad_x: Tensor | None, grad_weight: Tensor | None, first: bool) -> Tensor:
        """The loss. Gradients [N, D] by x are written to grad_x, those [V, D] by the weight added
        to grad_weight.
        """
        x, weight = self.scores.x, self.scores.weight
        narrow = self.scores.dtype or x.dtype
        inputs = x.to(narrow)
        slope_sum = self.slope_sum()
        loss = torch.zeros((), dtype=self.accurate, device=x.device)
        if grad_x is not None:
            grad_x.zero_()
        for words in self.blocks:
            value, gradient = self.block(words, slope_sum)
            loss += value
            if grad_x is not None and weight is None:
                grad_x[:, words] = gradient
            elif grad_x is not None and weight is not None:
                gradient = gradient.to(narrow)
                grad_x += gradient @ weight[words].to(narrow)
                if grad_weight is not None:
                    part = gradient.T @ inputs
                    grad_weight[words] = part if first else grad_weight[words].add_(part)
        return loss

    def block(self, words: slice, slope_sum: Tensor | float) -> tuple[Tensor, Tensor]:
        """(what these words add to the loss, its gradient [N, W] by their logits)."""
        task = self.task
        value = torch.zeros((), dtype=self.accurate, device=self.scores.x.device)
        gradient: Tensor | None = None
        if self.teacher is not None:
            log_p, log_q = self.logs(words)
            part, slopes = task.divergence.parts(log_p, log_q)
            value += (1 - task.label_share) * part
            p = log_p.exp_()
            gradient = (
                p.add_(slopes) if task.divergence.slope_sum == -1 else slopes - p.mul_(slope_sum)
            )
            if (share := (1 - task.label_share) / task.temperature) != 1:
                gradient.mul_(share)
        if task.labels is not None and task.label_share > 0:
            part, slope = self.cross_entropy(words, task.labels)
            value += task.label_share * part
            if gradient is not None:
                gradient.add_(slope, alpha=task.label_share)
            else:
                gradient = slope if task.label_share == 1 else slope.mul_(task.label_share)
        assert gradient is not None
        return value, gradient

    def cross_entropy(self, words: slice, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(the weighted cross-entropy of the labels among these words, its gradient [N, W])."""
        log_p = self.logits(self.scores, words).sub_(self.norms["labels"])
        places, weights = label_places(labels, words), self.task.weights
        chosen = places.of(log_p)
        value = -(chosen if weights is None else chosen * weights[places.tokens]).sum()
        gradient = places.take_one(log_p.exp_())
        return value, gradient if weights is None else gradient.mul_(weights[:, None])


def _known(words: slice, teacher: TeacherScores) -> slice:
    """Those of the words that the teacher has."""
    return slice(words.start, min(words.stop, teacher.vocab_size))
