"""Memory-efficient cross-entropy, divergences and log-probabilities: chunked over tokens and
vocabulary, so that the logits of a batch are never held.

Logits of 8,192 tokens over 202,048 words take 6.6 GB in float32, and their gradients as much again.
Here those of as many tokens as fit in KEPT_BYTES exist at a time, in the dtype of the products; a
loss computes each once.

Shapes: N tokens, D hidden, V vocabulary, W words of a block
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.transformer import Transformer
from pocketlm.train.divergences import FORWARD_KL, Divergence
from pocketlm.train.lazy_logits import LazyLogits, TeacherScores, scores

# of a block's logits in float32: the passes over them stay in the processor's cache
BLOCK_BYTES = 2**23
# of the logits of a chunk of tokens, the model's and a live teacher's
KEPT_BYTES = 400 * 2**20
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


def token_log_probs(model: Transformer, batch: Batch) -> Tensor:
    """Float32 [B, T]: the log-probability of each label after its token; 0 where the label is
    IGNORE_INDEX.

    Differentiable in the model's weights by any function of it (preference and policy losses). The
    backward pass computes the logits once more, for no gradient is known before.
    """
    counted = batch.labels != IGNORE_INDEX
    hidden = model.hidden(batch.input_ids, batch.positions, doc_ids=batch.doc_ids)
    logits = scores(model, hidden[counted])
    values = _LabelLogProbs.apply(logits.x, logits.weight, batch.labels[counted], logits.dtype)
    return values.new_zeros(counted.shape).masked_scatter(counted, values)  # type: ignore[union-attr]


def tokens_at_a_time(num_tokens: int, bytes_each: int) -> int:
    """Tokens in each of the fewest even chunks whose logits, of bytes_each, fit in KEPT_BYTES."""
    chunks = math.ceil(num_tokens / max(1, KEPT_BYTES // bytes_each))
    return math.ceil(num_tokens / max(1, chunks))


def _token_slices(num_tokens: int, bytes_each: int) -> Iterator[slice]:
    size = tokens_at_a_time(num_tokens, bytes_each)
    firsts = range(0, num_tokens, max(1, size))
    return (slice(first, min(first + size, num_tokens)) for first in firsts)


def _word_slices(vocab_size: int, num_tokens: int) -> list[slice]:
    """Blocks of words; logits [num_tokens, W] of each take BLOCK_BYTES in float32."""
    width = max(1, BLOCK_BYTES // (4 * num_tokens))
    return [slice(first, min(first + width, vocab_size)) for first in range(0, vocab_size, width)]


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _logsumexp(logits: Tensor) -> Tensor:
    """[N] of logits [N, W], which are written over."""
    highest = logits.amax(-1, keepdim=True)
    return logits.sub_(highest).exp_().sum(-1).log_().add_(highest[:, 0])


def _label_places(labels: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(tokens, columns) at which the labels [N] lie in logits [N, W] of these words."""
    tokens = ((labels >= words.start) & (labels < words.stop)).nonzero()[:, 0]
    return tokens, labels[tokens] - words.start


# ---- the log-probability of each label ----


class _LabelLogProbs(torch.autograd.Function):
    """[N] of x [N, D], weight [V, D] and labels [N]; products in `dtype`, or their own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        logits = LazyLogits(x, weight, dtype)
        norms = torch.empty(len(x), dtype=_accurate(x), device=x.device)
        values = torch.empty_like(norms)
        for tokens in _token_slices(len(x), logits.vocab_size * logits.itemsize):
            chunk, chunk_values, parts = logits.rows(tokens), values[tokens], []
            for words in _word_slices(logits.vocab_size, tokens.stop - tokens.start):
                block = chunk.block(words).to(norms.dtype, copy=True)
                places = _label_places(labels[tokens], words)
                chunk_values[places[0]] = block[places]
                parts.append(_logsumexp(block))
            norms[tokens] = torch.stack(parts).logsumexp(0)
        ctx.save_for_backward(x, weight, labels, norms)
        ctx.dtype = dtype
        return values.sub_(norms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, labels, norms = ctx.saved_tensors
        logits = LazyLogits(x, weight, ctx.dtype)
        narrow = ctx.dtype or x.dtype
        grad_x = torch.zeros_like(x, dtype=norms.dtype)
        grad_weight = torch.zeros_like(weight, dtype=norms.dtype)
        for tokens in _token_slices(len(x), logits.vocab_size * logits.itemsize):
            chunk, inputs = logits.rows(tokens), x[tokens].to(narrow)
            for words in _word_slices(logits.vocab_size, tokens.stop - tokens.start):
                block = chunk.block(words).to(norms.dtype, copy=True)
                p = block.sub_(norms[tokens, None]).exp_()
                p[_label_places(labels[tokens], words)] -= 1
                gradient = p.mul_(-upstream[0][tokens, None]).to(narrow)
                grad_x[tokens] += gradient @ weight[words].to(narrow)
                grad_weight[words] += gradient.T @ inputs
        return grad_x, grad_weight, None, None


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
        loss, *ctx.gradients = _value_and_gradients(
            LazyLogits(x, weight, task.dtype), task, any(ctx.needs_input_grad)
        )
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
    logits: LazyLogits, task: _Task, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(loss, gradient [N, D] by x, gradient [V, D] by the weight); None where there is no weight or
    none is wanted.
    """
    x, weight, accurate = logits.x, logits.weight, _accurate(logits.x)
    grad_x = torch.empty_like(x, dtype=accurate) if wanted else None
    grad_weight = (
        torch.zeros_like(weight, dtype=accurate) if wanted and weight is not None else None
    )
    loss = torch.zeros((), dtype=accurate, device=x.device)
    sides = [logits] if task.teacher is None or task.label_share == 1 else [logits, task.teacher]
    bytes_each = logits.vocab_size * sum(side.itemsize for side in sides)
    for tokens in _token_slices(x.shape[0], bytes_each):
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
        self.blocks = _word_slices(scores.vocab_size, scores.x.shape[0])
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
        places, weights = _label_places(labels, words), self.task.weights
        chosen = log_p[places]
        value = -(chosen if weights is None else chosen * weights[places[0]]).sum()
        gradient = log_p.exp_()
        gradient[places] -= 1
        return value, gradient if weights is None else gradient.mul_(weights[:, None])


def _known(words: slice, teacher: TeacherScores) -> slice:
    """Those of the words that the teacher has."""
    return slice(words.start, min(words.stop, teacher.vocab_size))
