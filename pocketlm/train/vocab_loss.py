"""Losses over the whole vocabulary whose logits are never held: some tokens after others, and of
those a block of words.

Logits of 8,192 tokens over 202,048 words take 6.6 GB in float32, and their gradients as much again.
Here those of as many tokens as fit in KEPT_BYTES are there at a time, in the dtype of the products:
each is worked out once.

Shapes: N tokens, D hidden, V vocabulary, W words of a block, E entries that a cached teacher stores
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.kernels.linear import linear
from pocketlm.model.transformer import Transformer

# of a block's logits in float32: the passes over them stay in the processor's cache
BLOCK_BYTES = 2**23
# of the logits of the tokens worked on at a time, the model's and a live teacher's
KEPT_BYTES = 400 * 2**20
# log-probability, 1e-10, that a teacher gives a word beyond its own (our choice; only padding is)
UNKNOWN = -23.0


@dataclass(frozen=True)
class Scores:
    """Logits [N, V] not yet worked out: x [N, D] times weight [V, D] in `dtype` (None: their own).
    No weight: x is logits.
    """

    x: Tensor
    weight: Tensor | None = None
    dtype: torch.dtype | None = None

    @property
    def vocab_size(self) -> int:
        return self.x.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def itemsize(self) -> int:
        """Bytes of a logit as it is kept between the passes over a vocabulary."""
        return (self.dtype or self.x.dtype).itemsize

    def rows(self, chosen: Tensor | slice) -> "Scores":
        """Those of some tokens alone."""
        return replace(self, x=self.x[chosen])

    def block(self, words: slice) -> Tensor:
        """Logits [N, W] of these words."""
        return (
            self.x[:, words]
            if self.weight is None
            else linear(self.x, self.weight[words], self.dtype)
        )


@dataclass(frozen=True)
class SparseScores:
    """Log-probabilities [N, V] of which few are stored; every other word gets a token's level and
    its own share.

    Of entry e: owners [E], its token; ids [E], its word, ascending; values [E], its
    log-probability. levels [N, 1] plus shares [V], logs both, are the log-probability of a word
    that has no entry. They need not sum to 1 exactly.
    """

    owners: Tensor
    ids: Tensor
    values: Tensor
    levels: Tensor
    shares: Tensor
    itemsize = 0  # nothing is kept: a block costs an addition

    @property
    def vocab_size(self) -> int:
        return len(self.shares)

    def rows(self, chosen: Tensor | slice) -> "SparseScores":
        """Those of some tokens alone."""
        levels = self.levels[chosen]
        number = self.owners.new_full((len(self.levels),), -1)
        number[chosen] = torch.arange(len(levels), device=number.device)
        owners = number[self.owners]
        here = owners >= 0
        return replace(
            self, owners=owners[here], ids=self.ids[here], values=self.values[here], levels=levels
        )

    def block(self, words: slice) -> Tensor:
        """Log-probabilities [N, W] of these words."""
        found = self.levels + self.shares[words]
        first, last = torch.searchsorted(
            self.ids, self.ids.new_tensor([words.start, words.stop])
        ).tolist()
        found[self.owners[first:last], self.ids[first:last] - words.start] = self.values[first:last]
        return found


TeacherScores = Scores | SparseScores


def scores(model: Transformer, hidden: Tensor) -> Scores:
    """The scores of hidden states [N, D] at the model's head, on its grid if it has one."""
    layer = model.model.embed_tokens if model.lm_head is None else model.lm_head
    return Scores(*layer.operands(hidden, model.compute.dtype), model.compute.dtype)


@dataclass(frozen=True)
class Divergence:
    """A distance of the model's distribution p from the teacher's q, by what one word adds to it.

    parts: (log p, log q), both [N, W] -> (the distance's part, slopes [N, W]); a slope is p times
    the distance's derivative by p. It may write over log q. slope_sum: of a token's slopes where it
    is always the same, else None. The gradient by a logit is slope - p x (sum of slopes).
    """

    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    slope_sum: float | None = None


def _forward(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    return log_q.sub_(log_p).mul_(q).sum(), q.neg_()


def _reverse(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    terms = log_p.exp().mul_(log_p - log_q)
    return terms.sum(), terms


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    slopes = (0.5 * log_p.exp()).mul_(log_p - log_m)
    return slopes.sum() + (0.5 * log_q.exp()).mul_(log_q.sub_(log_m)).sum(), slopes


FORWARD_KL = Divergence(_forward, slope_sum=-1.0)  # KL(q || p): both papers' distillation
REVERSE_KL = Divergence(_reverse)  # KL(p || q)
JENSEN_SHANNON = Divergence(_jensen_shannon)  # of p and q to their mean, each by half


def head_loss(
    model: Scores,
    *,
    labels: Tensor | None = None,
    teacher: TeacherScores | None = None,
    divergence: Divergence = FORWARD_KL,
    temperature: float = 1.0,
    label_share: float = 1.0,
) -> Tensor:
    """Float32 sum over N tokens: label_share x cross-entropy with labels [N] + the rest x the
    divergence from a teacher.

    Distributions are taken at `temperature`, cross-entropy at 1; nothing is multiplied by
    temperature squared. Gradients go to the model's x and weight. Vocabularies padded to different
    sizes: words that only the teacher has are left out of its distribution; to those that only the
    model has it gives UNKNOWN, so they are learnt to be improbable. ValueError: nothing to learn
    from.
    """
    if (labels is None and label_share > 0) or (teacher is None and label_share < 1):
        raise ValueError(
            f"label_share {label_share} needs {'labels' if labels is None else 'a teacher'}"
        )
    task = _Task(labels, teacher, divergence, temperature, label_share, model.dtype)
    return _HeadLoss.apply(model.x, model.weight, task)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Task:
    labels: Tensor | None
    teacher: TeacherScores | None
    divergence: Divergence
    temperature: float
    label_share: float
    dtype: torch.dtype | None

    def rows(self, chosen: slice) -> "_Task":
        labels = None if self.labels is None else self.labels[chosen]
        return replace(
            self, labels=labels, teacher=None if self.teacher is None else self.teacher.rows(chosen)
        )


class _HeadLoss(torch.autograd.Function):
    """Gradients are worked out with the value, while the logits are there; the way back only scales
    them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, task: _Task) -> Tensor:
        loss, *ctx.gradients = _value_and_gradients(
            Scores(x, weight, task.dtype), task, any(ctx.needs_input_grad)
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of a head_loss can be taken once: it is scaled where it lies"
            )
        (of_x, of_weight), ctx.gradients = ctx.gradients, None
        return (
            of_x.mul_(upstream[0]),
            None if of_weight is None else of_weight.mul_(upstream[0]),
            None,
        )


def _value_and_gradients(
    scores: Scores, task: _Task, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(loss, gradient [N, D] by x, gradient [V, D] by the weight); None where there is no weight or
    none is wanted.
    """
    x, weight = scores.x, scores.weight
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    of_x = torch.empty_like(x, dtype=exact) if wanted else None
    of_weight = torch.zeros_like(weight, dtype=exact) if wanted and weight is not None else None
    loss = torch.zeros((), dtype=exact, device=x.device)
    for some in _few_tokens(scores, task):
        # no name for a pass: its logits go before the next one's come
        of_some = None if of_x is None else of_x[some]
        loss += _Pass(scores.rows(some), task.rows(some), exact).run(
            of_some, of_weight, first=some.start == 0
        )
    return loss, of_x, of_weight


def _few_tokens(scores: Scores, task: _Task) -> Iterator[slice]:
    """All tokens in as few equal parts as let the logits of each be kept."""
    N = scores.x.shape[0]
    sides = [scores] if task.teacher is None or task.label_share == 1 else [scores, task.teacher]
    size = tokens_at_a_time(N, scores.vocab_size * sum(side.itemsize for side in sides))
    return (slice(first, min(first + size, N)) for first in range(0, N, max(1, size)))


def tokens_at_a_time(num_tokens: int, bytes_each: int) -> int:
    """Tokens in each of the fewest even parts whose logits fit in KEPT_BYTES; bytes_each: of one
    token's.
    """
    parts = math.ceil(num_tokens / max(1, KEPT_BYTES // bytes_each))
    return math.ceil(num_tokens / max(1, parts))


class _Pass:
    """The loss of some tokens: the passes over the blocks of the vocabulary, and what they hand to
    each other.
    """

    def __init__(self, scores: Scores, task: _Task, exact: torch.dtype) -> None:
        self.scores, self.task, self.exact = scores, task, exact
        self.teacher = task.teacher if task.label_share < 1 else None
        width = max(1, BLOCK_BYTES // (4 * scores.x.shape[0]))
        size = scores.vocab_size
        self.blocks = [slice(first, min(first + width, size)) for first in range(0, size, width)]
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.norms = self._norms()

    def logits(self, side: TeacherScores, words: slice, temperature: float = 1.0) -> Tensor:
        """[N, W], worked out, or kept from an earlier pass; to be written over."""
        key = (id(side), words.start)
        found = self.kept.get(key)
        if found is None:
            found = side.block(words)
            if side.itemsize:
                self.kept[key] = found
        copied = found.to(self.exact, copy=bool(side.itemsize))
        return copied if temperature == 1 else copied.div_(temperature)

    def _norms(self) -> dict[str, Tensor]:
        """Log of the sum of exponentials [N, 1]: of the model at temperature 1, and of both at the
        task's.
        """
        T, teacher = self.task.temperature, self.teacher
        parts: dict[str, list[Tensor]] = {"labels": [], "model": [], "teacher": []}
        for words in self.blocks:
            if self.task.label_share > 0:
                parts["labels"].append(_logsumexp(self.logits(self.scores, words)))
            if teacher is not None and not (parts["labels"] and T == 1):
                parts["model"].append(_logsumexp(self.logits(self.scores, words, T)))
            if teacher is not None and words.start < teacher.vocab_size:
                parts["teacher"].append(_logsumexp(self.logits(teacher, _known(words, teacher), T)))
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

    def run(self, of_x: Tensor | None, of_weight: Tensor | None, first: bool) -> Tensor:
        """The loss. Gradients [N, D] by x are written to of_x, those [V, D] by the weight added to
        of_weight.
        """
        x, weight = self.scores.x, self.scores.weight
        narrow = self.scores.dtype or x.dtype
        inputs = x.to(narrow)
        slope_sum = self.slope_sum()
        loss = torch.zeros((), dtype=self.exact, device=x.device)
        if of_x is not None:
            of_x.zero_()
        for words in self.blocks:
            value, gradient = self.block(words, slope_sum)
            loss += value
            if of_x is not None and weight is None:
                of_x[:, words] = gradient
            elif of_x is not None and weight is not None:
                gradient = gradient.to(narrow)
                of_x += gradient @ weight[words].to(narrow)
                if of_weight is not None:
                    theirs = gradient.T @ inputs
                    of_weight[words] = theirs if first else of_weight[words].add_(theirs)
        return loss

    def block(self, words: slice, slope_sum: Tensor | float) -> tuple[Tensor, Tensor]:
        """(what these words add to the loss, its gradient [N, W] by their logits)."""
        task = self.task
        value = torch.zeros((), dtype=self.exact, device=self.scores.x.device)
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
            log_p = self.logits(self.scores, words).sub_(self.norms["labels"])
            here = ((task.labels >= words.start) & (task.labels < words.stop)).nonzero()[:, 0]
            places = (here, task.labels[here] - words.start)
            value -= task.label_share * log_p[places].sum()
            own = log_p.exp_()
            own[places] -= 1
            if gradient is not None:
                gradient.add_(own, alpha=task.label_share)
            else:
                gradient = own if task.label_share == 1 else own.mul_(task.label_share)
        assert gradient is not None
        return value, gradient


def _known(words: slice, teacher: TeacherScores) -> slice:
    """Those of the words that the teacher has."""
    return slice(words.start, min(words.stop, teacher.vocab_size))


def _logsumexp(logits: Tensor) -> Tensor:
    """[N] of logits [N, W], which are written over."""
    highest = logits.amax(-1, keepdim=True)
    return logits.sub_(highest).exp_().sum(-1).log_().add_(highest[:, 0])
