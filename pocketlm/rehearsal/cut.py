"""A stage's config cut to seconds: fewer steps, rows and tokens, a narrow network, and the same
fields, tables and shares.

Cutting goes by the names of fields, so that a stage with new ones needs nothing here as long as its
defaults are quick.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

# the most that a field keeps
MOST: dict[str, float] = {
    "num_steps": 2,
    "warmup_steps": 1,
    "every_steps": 1,
    "candidate_tokens": 2_000,
    "probe_rows": 2,
    "batch_rows": 2,
    "ask_tokens": 32,
    "min_quality": -100.0,  # the stand-in for a scorer has its own scale
    "examples_per_source": 8,
    "budget_tokens": 1_000,
    "validation_rows": 1,
    "resolution": 2,
    "num_gradient_probes": 2,
    "representative_rows": 4,
    "hessian_rows": 2,
    "milestones": 2,
    "validation_tokens": 300,
    "probe_tokens": 300,
    "num_seeds": 2,
    "max_new_tokens": 4,
    "bits_tokens": 200,
    "rank_tokens": 200,
    "needle_trials": 1,
    "distractors": 0,  # notes have none
    "speed_tokens": 2,
    "new_tokens": 2,
    "repeats": 1,
    "batch_tokens": 1_000,
    "shard_tokens": 2_000,
    "tokenizer_sample_bytes": 40_000,
    "count": 200,
    "max_bytes": 50_000,
    "max_conversations": 20,
    "micro_batch_size": 2,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "min_agreement": 0.0,  # random weights have no likeliest token to agree on
}
# the least that a field keeps, where it is not 0: a small corpus needs more of it
LEAST: dict[str, float] = {
    **{"validation_share": 0.25, "probe_share": 0.25, "max_epochs": 50.0, "top_share": 1.0}
}
# fields that hold numbers of tokens in a row: they keep their order
LENGTHS = {
    *("seq_len", "window", "context_length", "max_position_embeddings", "sliding_window"),
    *("bits_window", "needle_tokens", "contexts"),
}
DOCUMENTS = 2  # of each suite that is measured
# how a corpus of seconds is read: starting processes, or waiting for a cluster's, would take longer
EXECUTOR = "local:1"
# in a prompt where a text comes, which is all that a prompt keeps: a stand-in reads few tokens
PLACE = "{text}"
SLOW_FORMATS = ("pte",)  # of an export: lowering takes a minute, whatever the size
# tokens of the shortest length of a recipe, which hold a generated conversation; and by how many
# the next one is longer
SHORTEST, LONGER = 96, 64


@dataclass(frozen=True, kw_only=True)
class Cut:
    """lengths: what each length of the recipe becomes. processes: that take part. vocab_size: of
    the tokenizer that stands in for the recipe's. all_formats: of exports, the slow ones too.
    """

    lengths: Mapping[int, int]
    processes: int
    vocab_size: int
    all_formats: bool = False

    def length(self, tokens: int) -> int:
        """A length as it is cut; one that the recipe does not name becomes the next longer one."""
        longer = [length for length in sorted(self.lengths) if length >= tokens]
        return self.lengths[longer[0] if longer else max(self.lengths)]


def length_map(configs: Iterable[Any]) -> dict[int, int]:
    """What every length that stands in the configs becomes: as many lengths, in their order."""
    lengths = sorted({length for config in configs for length in _lengths(config)})
    return {length: SHORTEST + place * LONGER for place, length in enumerate(lengths)}


def _lengths(value: Any, name: str = "") -> Iterator[int]:
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _lengths(getattr(value, field.name), field.name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _lengths(item, name)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _lengths(item, name)
    elif name in LENGTHS and isinstance(value, int):
        yield value


def cut_config(config: Any, cut: Cut) -> Any:
    """The config, or a part of one, with the same fields and small numbers."""
    if isinstance(config, (list, tuple)):
        return type(config)(cut_config(item, cut) for item in config)
    if isinstance(config, dict):
        return {name: cut_config(item, cut) for name, item in config.items()}
    if isinstance(config, str) and PLACE in config:
        return PLACE
    if not is_dataclass(config) or isinstance(config, type):
        return config
    if hasattr(config, "num_hidden_layers"):
        return _cut_model(config, cut)
    changes = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    changes = {name: _cut_field(name, value, cut) for name, value in changes.items()}
    if "rows_per_step" in changes:
        changes["rows_per_step"] = _cut_rows(config, changes.get("micro_batch_size"), cut)
    return replace(config, **changes)


def _cut_field(name: str, value: Any, cut: Cut) -> Any:
    if name == "executor":
        return EXECUTOR
    if name == "limit":
        return DOCUMENTS
    if isinstance(value, bool) or value is None:
        return value
    if name == "vocab_size":
        return cut.vocab_size
    if name == "needle":
        return "note"  # a small tokenizer splits the names of facts
    if name == "formats" and not cut.all_formats:
        return tuple(format for format in value if format not in SLOW_FORMATS) or value
    if name in LENGTHS:
        if isinstance(value, (list, tuple)):
            return type(value)(cut.length(item) for item in value)
        return cut.length(value)
    if name in MOST and isinstance(value, dict):
        return {key: _cut_field(name, item, cut) for key, item in value.items()}
    if name in MOST:
        return min(value, type(value)(MOST[name]))
    if name in LEAST and value:
        return max(value, LEAST[name])
    return cut_config(value, cut)


def _cut_rows(config: Any, micro_batch_size: int | None, cut: Cut) -> int:
    """As few rows as keep every process busy; two micro-batches each where a step has more."""
    if micro_batch_size is None:
        return min(config.rows_per_step, 4)
    per_rank = config.rows_per_step // (config.micro_batch_size * cut.processes)
    return micro_batch_size * cut.processes * min(2, max(1, per_rank))


def _cut_model(shape: Any, cut: Cut) -> Any:
    """A network of the same kind: grouped heads stay grouped, both kinds of layers stay."""
    kinds = tuple(shape.layer_types)
    layers = min(shape.num_hidden_layers, 4 if len(set(kinds)) > 1 else 2)
    grouped = shape.num_key_value_heads < shape.num_attention_heads
    window = shape.sliding_window
    return replace(
        shape,
        vocab_size=cut.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1 if grouped else 2,
        head_dim=16,
        max_position_embeddings=cut.length(shape.max_position_embeddings),
        layer_types=kinds[:layers],
        sliding_window=None if window is None else cut.length(window),
    )


def cut_lines(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """What was cut, a line for each number: "optim.num_steps 500,000 -> 2"."""
    if hasattr(before, "num_hidden_layers") and before != after:
        shapes = (
            f"{one.num_hidden_layers} layers of {one.hidden_size:,}" for one in (before, after)
        )
        yield f"{where} {' -> '.join(shapes)}"
    elif is_dataclass(before) and not isinstance(before, type):
        for field in fields(before):
            place = f"{where}.{field.name}" if where else field.name
            yield from cut_lines(getattr(before, field.name), getattr(after, field.name), place)
    elif isinstance(before, dict):
        for name in before:
            yield from cut_lines(before[name], after[name], f"{where}.{name}")
    elif isinstance(before, (list, tuple)) and before and is_dataclass(before[0]):
        changed = sum(one != other for one, other in zip(before, after, strict=True))
        if changed:
            yield f"{changed} of {len(before)} {where} with generated or fewer rows"
    elif before != after:
        yield f"{where} {_words(before)} -> {_words(after)}"


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value}"
