"""Losses over the whole vocabulary whose logits are never held: a block of words after the other, values and gradients.

Logits of 8,192 tokens over 202,048 words take 6.6 GB in float32, and their gradients as much again. Here a block of
them is there at a time; where all of them are few they are kept between the passes, else worked out once more.

Shapes: N tokens, D hidden, V vocabulary, W words of a block
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pocketlm.model.transformer import Transformer, product

BLOCK_BYTES = 2**23  # of a block's logits in float32: the passes over them stay in the processor's cache
KEPT_BYTES = 400 * 2**20  # of all logits, in the dtype of the products: as many are kept from one pass to the next


@dataclass(frozen=True)
class Scores:
    """Logits [N, V] not yet worked out: x [N, D] times weight [V, D] in `dtype` (None: their own). No weight: x is logits."""

    x: Tensor
    weight: Tensor | None = None
    dtype: torch.dtype | None = None

    @property
    def vocab_size(self) -> int:
        return self.x.shape[-1] if self.weight is None else self.weight.shape[0]

    def rows(self, chosen: Tensor) -> "Scores":
        """Those of some tokens alone."""
        return replace(self, x=self.x[chosen])

    def block(self, words: slice) -> Tensor:
        """Logits [N, W] of these words."""
        return self.x[:, words] if self.weight is None else product(self.x, self.weight[words], self.dtype)


def scores(model: Transformer, hidden: Tensor) -> Scores:
    """The scores of hidden states [N, D] at the model's head, on its grid if it has one."""
    layer = model.model.embed_tokens if model.lm_head is None else model.lm_head
    return Scores(*layer.operands(hidden), layer.compute_dtype)


@dataclass(frozen=True)
class Divergence:
    """A distance of the model's distribution p from the teacher's q, by what one word adds to it.

    parts: (log p, log q), both [N, W] -> (terms, slopes); the terms' sum is the distance, a slope is p times the
    distance's derivative by p. slope_sum: of a token's slopes where it is always the same, else None. The gradient by
    a logit is slope - p x (sum of slopes).
    """

    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    slope_sum: float | None = None


def _forward(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    return q * (log_q - log_p), -q


def _reverse(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    terms = log_p.exp() * (log_p - log_q)
    return terms, terms


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    slopes = 0.5 * log_p.exp() * (log_p - log_m)
    return slopes + 0.5 * log_q.exp() * (log_q - log_m), slopes


FORWARD_KL = Divergence(_forward, slope_sum=-1.0)  # KL(q || p): both papers' distillation
REVERSE_KL = Divergence(_reverse)  # KL(p || q)
JENSEN_SHANNON = Divergence(_jensen_shannon)  # of p and q to their mean, each by half


def head_loss(
    model: Scores,
    *,
    labels: Tensor | None = None,
    teacher: Scores | None = None,
    divergence: Divergence = FORWARD_KL,
    temperature: float = 1.0,
    label_share: float = 1.0,
) -> Tensor:
    """Float32 sum over N tokens: label_share x cross-entropy with labels [N] + the rest x the divergence from a teacher.

    Distributions are taken at `temperature`, cross-entropy at 1; nothing is multiplied by temperature squared. Gradients
    go to the model's x and weight. ValueError: a teacher of another vocabulary, or nothing to learn from.
    """
    if (labels is None and label_share > 0) or (teacher is None and label_share < 1):
        raise ValueError(f"label_share {label_share} needs {'labels' if labels is None else 'a teacher'}")
    if teacher is not None and teacher.vocab_size != model.vocab_size:
        raise ValueError(
            f"the teacher knows {teacher.vocab_size} words and the model {model.vocab_size}; a divergence needs the same ones"
        )
    weight = model.weight if model.weight is not None else torch.empty(0)
    task = _Task(labels, teacher, divergence, temperature, label_share, model.dtype)
    return _HeadLoss.apply(model.x, weight, task)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Task:
    labels: Tensor | None
    teacher: Scores | None
    divergence: Divergence
    temperature: float
    label_share: float
    dtype: torch.dtype | None


class _HeadLoss(torch.autograd.Function):
    """Gradients are worked out with the value, while the logits are there; the way back only scales them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, task: _Task) -> Tensor:
        scores = Scores(x, weight if weight.numel() else None, task.dtype)
        loss, *ctx.gradients = _Pass(scores, task).run(wanted=any(ctx.needs_input_grad))
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a head_loss can be taken once: it is scaled where it lies")
        (of_x, of_weight), ctx.gradients = ctx.gradients, None
        return of_x.mul_(upstream[0]), of_weight.mul_(upstream[0]) if of_weight.numel() else None, None


class _Pass:
    """One loss: the passes over the blocks of the vocabulary, and what they hand to each other."""

    def __init__(self, scores: Scores, task: _Task) -> None:
        self.scores, self.task = scores, task
        self.exact = torch.float64 if scores.x.dtype == torch.float64 else torch.float32
        self.N = scores.x.shape[0]
        width = max(1, BLOCK_BYTES // (4 * max(1, self.N)))
        size = scores.vocab_size
        self.blocks = [slice(first, min(first + width, size)) for first in range(0, size, width)]
        self.kept: dict[tuple[int, int], Tensor] = {}
        sides = [scores] if task.teacher is None else [scores, task.teacher]
        self.keeps = sum(self.N * size * (side.dtype or side.x.dtype).itemsize for side in sides) <= KEPT_BYTES
        self.norms = self._norms()

    def logits(self, side: Scores, words: slice) -> Tensor:
        """[N, W], worked out, or kept from an earlier pass."""
        key = (id(side), words.start)
        if key not in self.kept:
            found = side.block(words)
            if not self.keeps:
                return found.to(self.exact)
            self.kept[key] = found
        return self.kept[key].to(self.exact)

    def _norms(self) -> dict[str, Tensor]:
        """Log of the sum of exponentials [N, 1]: of the model at temperature 1, and of both at the task's."""
        T, teacher = self.task.temperature, self.task.teacher
        parts: dict[str, list[Tensor]] = {"labels": [], "model": [], "teacher": []}
        for words in self.blocks:
            logits = self.logits(self.scores, words)
            if self.task.label_share > 0:
                parts["labels"].append(logits.logsumexp(-1))
            if teacher is not None:
                parts["model"].append(tempered(logits, T).logsumexp(-1))
                parts["teacher"].append(tempered(self.logits(teacher, words), T).logsumexp(-1))
        return {name: torch.stack(sums).logsumexp(0)[:, None] for name, sums in parts.items() if sums}

    def logs(self, words: slice) -> tuple[Tensor, Tensor]:
        """(log p, log q) [N, W] of the model and the teacher."""
        T, teacher = self.task.temperature, self.task.teacher
        assert teacher is not None
        log_p = tempered(self.logits(self.scores, words), T) - self.norms["model"]
        return log_p, tempered(self.logits(teacher, words), T) - self.norms["teacher"]

    def slope_sum(self) -> Tensor | float:
        """Of each token's slopes over all words: known beforehand, or a pass of its own."""
        divergence = self.task.divergence
        if self.task.teacher is None or divergence.slope_sum is not None:
            return divergence.slope_sum or 0.0
        return sum((divergence.parts(*self.logs(words))[1].sum(-1, keepdim=True) for words in self.blocks), 0.0)

    def run(self, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, gradient [N, D] by x, gradient [V, D] by the weight), empty where there is no weight or none is wanted."""
        x, weight = self.scores.x, self.scores.weight
        narrow = self.scores.dtype or x.dtype
        of_x = torch.zeros_like(x, dtype=self.exact) if wanted else torch.empty(0)
        of_weight = torch.empty_like(weight, dtype=self.exact) if wanted and weight is not None else torch.empty(0)
        inputs = x.to(narrow)
        slope_sum = self.slope_sum()
        loss = torch.zeros((), dtype=self.exact, device=x.device)
        for words in self.blocks:
            value, gradient = self.block(words, slope_sum)
            loss += value
            if wanted and weight is None:
                of_x[:, words] = gradient
            elif wanted and weight is not None:
                gradient = gradient.to(narrow)
                of_x += gradient @ weight[words].to(narrow)
                of_weight[words] = gradient.T @ inputs
        return loss, of_x, of_weight

    def block(self, words: slice, slope_sum: Tensor | float) -> tuple[Tensor, Tensor]:
        """(what these words add to the loss, its gradient [N, W] by their logits)."""
        task = self.task
        value = torch.zeros((), dtype=self.exact, device=self.scores.x.device)
        gradient: Tensor | None = None
        if task.teacher is not None and task.label_share < 1:
            log_p, log_q = self.logs(words)
            terms, slopes = task.divergence.parts(log_p, log_q)
            value += (1 - task.label_share) * terms.sum()
            gradient = (slopes - log_p.exp_().mul_(slope_sum)).mul_((1 - task.label_share) / task.temperature)
        if task.labels is not None and task.label_share > 0:
            log_p = self.logits(self.scores, words) - self.norms["labels"]
            here = ((task.labels >= words.start) & (task.labels < words.stop)).nonzero()[:, 0]
            places = (here, task.labels[here] - words.start)
            value -= task.label_share * log_p[places].sum()
            own = log_p.exp_()
            own[places] -= 1
            gradient = own.mul_(task.label_share) if gradient is None else gradient.add_(own, alpha=task.label_share)
        assert gradient is not None
        return value, gradient


def tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature
