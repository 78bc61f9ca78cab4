"""Merge: specialists that grew from one trunk become one model by a weighted average, the weights
searched on validation.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards, source_domains
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.files import write_json
from pocketlm.model.same_tokens import (
    pipeline_differences,
    role_differences,
    vocabulary_differences,
)
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.train.losses import next_token_loss

MAX_SEARCH = 2000


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Weights are multiples of 1/resolution; every combination is tried (Pro does not say how it
    searched).

    domain_weights: what the validation loss of each domain counts for; empty means equal.
    """

    name: str
    resolution: int
    seq_len: int
    validation_rows: int
    domain_weights: dict[str, float] | None = None

    def summary(self) -> str:
        return (
            f"weights in steps of 1/{self.resolution}, {self.validation_rows} validation rows a "
            "domain"
        )


def merge(config: MergeConfig, out: Path, *, corpus: Path, models: list[Path]) -> Path:
    """A checkpoint in `out`: sum over branches of w_b x parameters (Pro, section 6), with
    merge.json, the whole search.

    The uniform average and each single specialist are scored beside it, on the same validation
    rows.
    """
    names = [path.name for path in models]
    if len(set(names)) != len(names):
        raise ValueError(
            "the models' folders must have different names, for merge.json to tell them apart; "
            f"got {names}"
        )
    for path in models:
        if quantization_of(path):
            raise ValueError(
                f"{path} is quantized ({quantization_of(path)}); merge its full-precision parent "
                "instead"
            )
    loaded = [load_checkpoint(path) for path in models]
    networks = [network for network, _ in loaded]
    check_mergeable(networks, names)
    tokenizer, template_of = common_tokenizer([tokenizer for _, tokenizer in loaded], names)
    check_corpus(tokenizer, names[0], corpus)
    states = [network.state_dict() for network in networks]
    target = Transformer(networks[0].config)  # of its own: a state dict shares its model's memory
    validation = _validation(config, corpus, tokenizer.eos_id)
    grid = weight_grid(len(models), config.resolution)
    uniform = tuple(1 / len(models) for _ in models)
    scored: dict[tuple[float, ...], dict[str, float]] = {}
    for weights in track([*grid, uniform], "  merge weights", console=Console(stderr=True)):
        if weights not in scored:
            target.load_state_dict(average(states, weights))
            scored[weights] = domain_losses(target, validation, config.domain_weights)
    best = min(grid, key=lambda weights: scored[weights]["mean"])
    target.load_state_dict(average(states, best))
    save_checkpoint(out, target, tokenizer)
    single = {
        name: scored[tuple(float(i == j) for j in range(len(names)))]
        for i, name in enumerate(names)
    }
    report = {
        "chat_template_of": template_of,
        "weights": dict(zip(names, best, strict=True)),
        "best": scored[best],
        "uniform": scored[uniform],
        "single": single,
        "search": [{"weights": dict(zip(names, w, strict=True)), "loss": scored[w]} for w in grid],
    }
    write_json(out / "merge.json", report)
    return out


def check_mergeable(networks: list[Transformer], names: list[str]) -> None:
    """Nothing, or a ValueError where there are too few models, or two of different shapes: with the
    fields that differ.
    """
    if len(networks) < 2:
        raise ValueError("merge needs at least two models")
    first = asdict(networks[0].config)
    for network, name in zip(networks, names, strict=True):
        other = asdict(network.config)
        differing = [
            f"{field} {first[field]} and {other[field]}"
            for field in first
            if first[field] != other[field]
        ]
        if differing:
            raise ValueError(
                f"{names[0]} and {name} have different shapes ({'; '.join(differing)}); only "
                "branches of one trunk can be "
                "merged"
            )


def common_tokenizer(tokenizers: list[Tokenizer], names: list[str]) -> tuple[Tokenizer, str | None]:
    """(the tokenizer of the merged model, whose chat template it has): all models must mean the
    same by their ids.

    ValueError names what differs: words, the way text is cut into them, special tokens, chat
    templates. Where some have no template at all (a trunk beside a chat model grown from it) the
    merged model has that of the others: without one it could not be talked to, and there is no
    second one that it would contradict.
    """
    for tokenizer, name in zip(tokenizers, names, strict=True):
        for what, compared in (
            ("words", vocabulary_differences),
            ("ways to cut text into words", pipeline_differences),
            ("special tokens", role_differences),
        ):
            differences = compared(tokenizers[0], tokenizer)
            if differences:
                raise ValueError(
                    f"{names[0]} and {name} have different {what}: {'; '.join(differences)}; their "
                    "weights mean other "
                    "things by the same ids, so an average would mean nothing"
                )
    chatting = [i for i, tokenizer in enumerate(tokenizers) if tokenizer.chat_template is not None]
    for i in chatting:
        if tokenizers[i].chat_template != tokenizers[chatting[0]].chat_template:
            raise ValueError(
                f"{names[chatting[0]]} and {names[i]} have different chat templates: each learnt "
                "its answers after "
                "other words; train one of them again with the template of the other"
            )
    if not chatting:
        return tokenizers[0], None
    if len(chatting) < len(tokenizers):
        text = (
            "  not all models have a chat template; the merged one has that of "
            f"{names[chatting[0]]}"
        )
        Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True)
    return tokenizers[chatting[0]], names[chatting[0]]


def check_corpus(tokenizer: Tokenizer, name: str, corpus: Path) -> None:
    """Nothing, or a ValueError where the validation text was encoded with other words than the
    models'.
    """
    differences = vocabulary_differences(tokenizer, Tokenizer.load(corpus / "tokenizer"))
    if differences:
        raise ValueError(
            f"the tokenizer of {name} is not the one {corpus} was encoded with: "
            f"{'; '.join(differences)} (the model first); "
            "curate with tokenizer= one of the models"
        )


def weight_grid(branches: int, resolution: int) -> list[tuple[float, ...]]:
    """Every way to share `resolution` parts among the branches, as weights that sum to 1."""
    bars = list(combinations(range(resolution + branches - 1), branches - 1))
    if len(bars) > MAX_SEARCH:
        raise ValueError(
            f"{branches} branches at resolution {resolution} are {len(bars)} merges to try; lower "
            "resolution"
        )
    grid = []
    for places in bars:
        edges = [-1, *places, resolution + branches - 1]
        grid.append(tuple((edges[i + 1] - edges[i] - 1) / resolution for i in range(branches)))
    return grid


def average(states: list[dict[str, Tensor]], weights: tuple[float, ...]) -> dict[str, Tensor]:
    """The weighted sum of state dicts, tensor by tensor, summed in float64 so that merging a model
    with itself is exact.
    """
    return {
        name: sum(
            w * state[name].double() for w, state in zip(weights, states, strict=True)
        ).float()  # type: ignore[union-attr]
        for name in states[0]
    }


def domain_losses(
    model: Transformer, validation: dict[str, Batch], domain_weights: dict[str, float] | None
) -> dict[str, float]:
    """Mean loss (nats a token) of each domain, and "mean", their weighted mean."""
    with torch.no_grad():
        losses = {
            domain: float(next_token_loss(model, batch)) / batch.num_labels
            for domain, batch in validation.items()
        }
    weights = domain_weights or dict.fromkeys(losses, 1.0)
    unknown = sorted(set(weights) - set(losses))
    if unknown:
        raise ValueError(
            f"domain_weights names {', '.join(unknown)}; the corpus has {', '.join(losses)}"
        )
    mean = sum(weights.get(d, 0.0) * losses[d] for d in losses) / sum(weights.values())
    return losses | {"mean": mean}


def _validation(config: MergeConfig, corpus: Path, eos_id: int) -> dict[str, Batch]:
    domains = source_domains(corpus)
    shards = open_shards(corpus, "validation")
    found = {}
    for domain in sorted(set(domains.values())):
        own = [
            TextRows(shards[name], config.seq_len, eos_id)
            for name in shards
            if domains[name] == domain
        ]
        rows = [
            source[i] for i in range(config.validation_rows) for source in own if i < len(source)
        ]
        if not rows:
            raise ValueError(
                f"no validation text of domain {domain!r}; raise validation_share in curate"
            )
        found[domain] = collate(rows[: config.validation_rows], separate_documents=False)
    return found
