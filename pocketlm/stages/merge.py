"""Merge: specialists that grew from one trunk become one model by a weighted average, the weights
searched on one part of the validation text and reported on another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pocketlm.data.batches import Row, collate
from pocketlm.data.held_out_rows import two_parts
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.files import write_json
from pocketlm.model.merging import (
    Weights,
    average,
    check_mergeable,
    check_same_words,
    descend,
    single_weights,
    weight_grid,
)
from pocketlm.model.same_tokens import check_words
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.distributed.fsdp import to_device
from pocketlm.train.distributed.ranks import (
    all_reduce_sum,
    device,
    ranks,
    shows_progress,
    wait_for_ranks,
)
from pocketlm.train.losses import next_token_loss

GRID_BRANCHES = 3  # beyond them a grid has too many points, and slopes are the default
BATCH_ROWS = 4  # validation rows of one forward or backward pass
State = dict[str, Tensor]
Losses = dict[str, float]  # nats a token, of each domain and their weighted "mean"
Text = dict[str, list[Batch]]  # of each domain


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How weights are searched (Pro does not say how it does).

    search: "grid" tries every combination of multiples of 1/resolution; "slopes" takes num_steps
    steps down the loss, with the slopes along all weights from one backward pass; "auto" is a grid
    up to three models and slopes beyond; "uniform" searches nothing. split: of the corpus, on
    whose text weights are chosen and reported. validation_rows: of each domain, to choose weights
    on; as many others to report on. domain_weights: what the loss of each domain counts for; empty
    means equal.
    """

    on_all_ranks: ClassVar[bool] = True
    name: str
    seq_len: int
    validation_rows: int
    split: Literal["validation", "probe"] = "validation"
    search: Literal["auto", "grid", "slopes", "uniform"] = "auto"
    resolution: int = 10
    num_steps: int = 25
    domain_weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.search not in ("auto", "grid", "slopes", "uniform"):
            raise ValueError(
                f"search {self.search!r} is unknown; known: auto, grid, slopes, uniform"
            )
        if self.split not in ("validation", "probe"):
            raise ValueError(f"split {self.split!r} is unknown; known: validation, probe")
        for field in ("validation_rows", "resolution", "num_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} {getattr(self, field)} must be at least 1")

    def method(self, branches: int) -> str:
        """ "grid", "slopes" or "uniform" for so many models."""
        if self.search != "auto":
            return self.search
        return "grid" if branches <= GRID_BRANCHES else "slopes"

    def summary(self) -> str:
        ways = {
            "grid": f"weights in steps of 1/{self.resolution}",
            "slopes": f"weights by {self.num_steps} steps down the slopes",
            "uniform": "the uniform average",
        }
        way = ways.get(self.search, f"{ways['grid']} (slopes beyond {GRID_BRANCHES} models)")
        return f"{way}, {self.validation_rows} validation rows a domain"


def merge(
    config: MergeConfig, out: Path, *, corpus: Path, models: list[Path], trunk: Path | None = None
) -> Path:
    """A checkpoint in `out`: sum over branches of w_b x parameters (Pro, section 6), with
    merge.json: every weight that was tried, with its losses on the rows that weights are chosen on;
    and on other rows the merge, the uniform average, each specialist, and `trunk` where given.

    Ranks divide the merges of a grid, and the rows of a step down the slopes.
    """
    names = [path.name for path in models]
    if len(set(names)) != len(names):
        raise ValueError(
            "the models' folders must have different names, for merge.json to tell them apart; "
            f"got {names}"
        )
    labels = [*names, *([f"the trunk {trunk.name}"] if trunk else [])]
    networks, tokenizers = _load([*models, *([trunk] if trunk else [])])
    check_mergeable(networks[: len(names)], names)
    check_mergeable(networks, labels)
    check_same_words(tokenizers, labels)
    tokenizer, template_of = merged_tokenizer(tokenizers[: len(names)], names)
    check_words(tokenizer, names[0], corpus)
    states = [network.state_dict() for network in networks]
    branches, trunk_states = states[: len(names)], states[len(names) :]
    # of its own: a state dict shares its model's memory
    target = Transformer(networks[0].config).to(device())
    chosen_on, reported_on = validation_text(config, corpus, tokenizer.eos_id)
    method = config.method(len(models))
    tried = SEARCHES[method](config, target, branches, chosen_on)
    best = min(tried, key=lambda weights: tried[weights]["mean"])
    uniform = (1 / len(models),) * len(models)
    compared = [(branches, best), (branches, uniform), *branches, *trunk_states]
    reported = losses_of_states(config, target, compared, reported_on)
    if ranks().first:
        target.load_state_dict(average(branches, best))
        save_checkpoint(out, target.cpu(), tokenizer)
        report: dict[str, Any] = {
            "method": method,
            "chat_template_of": template_of,
            "weights": dict(zip(names, best, strict=True)),
            "chosen_on": _row_counts(chosen_on),
            "reported_on": _row_counts(reported_on),
            "best": reported[0],
            "uniform": reported[1],
            "single": dict(zip(names, reported[2 : 2 + len(names)], strict=True)),
            **({"trunk": reported[-1]} if trunk else {}),
            "search": [
                {"weights": dict(zip(names, weights, strict=True)), "loss": losses}
                for weights, losses in tried.items()
            ],
        }
        write_json(out / "merge.json", report)
    return out


def _load(paths: list[Path]) -> tuple[list[Transformer], list[Tokenizer]]:
    for path in paths:
        if quantization_of(path):
            raise ValueError(
                f"{path} is quantized ({quantization_of(path)}); merge its full-precision parent "
                "instead"
            )
    networks, tokenizers = zip(*(load_checkpoint(path) for path in paths), strict=True)
    return list(networks), list(tokenizers)


def merged_tokenizer(tokenizers: list[Tokenizer], names: list[str]) -> tuple[Tokenizer, str | None]:
    """(the tokenizer of the merged model, the name of that whose chat template it has): they mean
    the same by their ids. ValueError where two have different chat templates.

    Where some have no template at all (a trunk beside a chat model grown from it) the merged model
    has that of the others: without one it could not be talked to, and there is no second one that
    it would contradict.
    """
    chatting = [i for i, tokenizer in enumerate(tokenizers) if tokenizer.chat_template is not None]
    for i in chatting:
        if tokenizers[i].chat_template != tokenizers[chatting[0]].chat_template:
            raise ValueError(
                f"{names[chatting[0]]} and {names[i]} have different chat templates: each learnt "
                "its answers after other words; train one of them again with the template of the "
                "other"
            )
    if not chatting:
        return tokenizers[0], None
    if len(chatting) < len(tokenizers) and ranks().first:
        text = (
            "  not all models have a chat template; the merged one has that of "
            f"{names[chatting[0]]}"
        )
        Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True)
    return tokenizers[chatting[0]], names[chatting[0]]


# ---- the search ----


def search_grid(
    config: MergeConfig, target: Transformer, branches: list[State], text: Text
) -> dict[Weights, Losses]:
    """The losses of every point of the grid, and of the uniform average."""
    grid = weight_grid(len(branches), config.resolution)
    points = list(dict.fromkeys([*grid, (1 / len(branches),) * len(branches)]))
    averages = [(branches, weights) for weights in points]
    losses = losses_of_states(config, target, averages, text)
    return dict(zip(points, losses, strict=True))


def search_uniform(
    config: MergeConfig, target: Transformer, branches: list[State], text: Text
) -> dict[Weights, Losses]:
    """The losses of the uniform average, the only one that is tried."""
    weights = (1 / len(branches),) * len(branches)
    return {weights: losses_of_states(config, target, [(branches, weights)], text)[0]}


def search_slopes(
    config: MergeConfig, target: Transformer, branches: list[State], text: Text
) -> dict[Weights, Losses]:
    """The losses at every step down the slopes, and of each branch alone, which steps only near."""
    singles = single_weights(len(branches))
    alone = losses_of_states(config, target, branches, text)
    tried = dict(zip(singles, alone, strict=True))

    def measure(weights: Weights) -> tuple[float, list[float]]:
        target.load_state_dict(average(branches, weights))
        tried[weights], slopes = losses_and_slopes(config, target, branches, text)
        return tried[weights]["mean"], slopes

    descend(measure, len(branches), config.num_steps)
    return tried


SEARCHES = {"grid": search_grid, "slopes": search_slopes, "uniform": search_uniform}


def losses_and_slopes(
    config: MergeConfig, target: Transformer, branches: list[State], text: Text
) -> tuple[Losses, list[float]]:
    """(losses of the target, the derivative of their mean by the weight of each branch).

    The target is sum_b w_b theta_b, so dL/dw_b = <dL/dtheta, theta_b>: one backward pass serves all
    branches. Each rank passes some of the batches; sums are over all.
    """
    process, labels = ranks(), {domain: _num_labels(batches) for domain, batches in text.items()}
    share = mean_shares(list(text), config.domain_weights)
    sums = dict.fromkeys(text, 0.0)
    target.zero_grad()
    jobs = [(domain, batch) for domain, batches in text.items() for batch in batches]
    for domain, batch in jobs[process.rank :: process.world_size]:
        loss = next_token_loss(target, to_device(batch, device())) / labels[domain]
        sums[domain] += loss.item()
        (share[domain] * loss).backward()
    gradients = {name: p.grad for name, p in target.named_parameters() if p.grad is not None}
    slopes = [
        sum(
            float((gradient.double() * state[name].to(gradient.device)).sum())
            for name, gradient in gradients.items()
        )
        for state in branches
    ]
    target.zero_grad()
    wait_for_ranks()  # one may have passed a batch more than others, and that for long
    totals = all_reduce_sum(*sums.values(), *slopes)
    losses = dict(zip(text, totals[: len(text)], strict=True))
    return _with_mean(losses, config.domain_weights), totals[len(text) :]


# ---- losses ----


def losses_of_states(
    config: MergeConfig,
    target: Transformer,
    states: Sequence[State | tuple[list[State], Weights]],
    text: Text,
) -> list[Losses]:
    """The losses of each state, or average of states, computed by one rank, known to all."""
    process = ranks()
    sums = {number: dict.fromkeys(text, 0.0) for number in range(len(states))}
    for number in track(
        range(process.rank, len(states), process.world_size),
        "  losses of merges",
        console=Console(stderr=True),
        disable=not shows_progress(),
    ):
        state = states[number]
        target.load_state_dict(average(*state) if isinstance(state, tuple) else state)
        sums[number] = domain_losses(target, text)
    wait_for_ranks()  # one may have had a state more than others
    totals = iter(all_reduce_sum(*(loss for losses in sums.values() for loss in losses.values())))
    return [
        _with_mean({domain: next(totals) for domain in text}, config.domain_weights) for _ in states
    ]


@torch.no_grad()
def domain_losses(model: Transformer, text: Text) -> Losses:
    """Mean loss (nats a token) of each domain."""
    where = next(model.parameters()).device
    return {
        domain: sum(float(next_token_loss(model, to_device(batch, where))) for batch in batches)
        / _num_labels(batches)
        for domain, batches in text.items()
    }


def mean_shares(domains: list[str], domain_weights: dict[str, float] | None) -> Losses:
    """What the loss of each domain counts for in the mean; ValueError for an unknown domain."""
    weights = domain_weights or dict.fromkeys(domains, 1.0)
    unknown = sorted(set(weights) - set(domains))
    if unknown:
        raise ValueError(
            f"domain_weights names {', '.join(unknown)}; the corpus has {', '.join(domains)}"
        )
    return {domain: weights.get(domain, 0.0) / sum(weights.values()) for domain in domains}


def _with_mean(losses: Losses, domain_weights: dict[str, float] | None) -> Losses:
    shares = mean_shares(list(losses), domain_weights)
    return losses | {"mean": sum(shares[domain] * loss for domain, loss in losses.items())}


def _num_labels(batches: list[Batch]) -> int:
    return sum(batch.num_labels for batch in batches)


# ---- validation text ----


def validation_text(config: MergeConfig, corpus: Path, eos_id: int) -> tuple[Text, Text]:
    """(rows of each domain to choose weights on, as many others to report on), in batches."""
    parts = two_parts(corpus, config.split, config.seq_len, config.validation_rows, eos_id)
    chosen, reported = ({name: _batches(rows) for name, rows in part.items()} for part in parts)
    return chosen, reported


def _batches(rows: list[Row]) -> list[Batch]:
    return [
        collate(rows[first : first + BATCH_ROWS], separate_documents=False)
        for first in range(0, len(rows), BATCH_ROWS)
    ]


def _row_counts(text: Text) -> dict[str, int]:
    return {
        domain: sum(len(batch.input_ids) for batch in batches) for domain, batches in text.items()
    }
