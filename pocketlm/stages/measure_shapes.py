"""Measure shapes: how long networks of many shapes take on this device, through the real exporters,
and a model of it.

MobileLLM-Flash (arXiv 2603.15954) measured some 800 shapes on a phone, since neither parameters nor
FLOPs tell latency (Kendall's tau 0.40 and 0.46 there). Its code is not published.
"""

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pocketlm.eval.hardware import available_cores
from pocketlm.eval.latency import measure_speed
from pocketlm.eval.latency_model import (
    explained,
    fit_latency,
    forward_flops,
    held_out,
    kendall,
    parts_of,
)
from pocketlm.export.gguf import write_gguf
from pocketlm.inference.open import opened
from pocketlm.model.checkpoint import shape_of
from pocketlm.model.costs import num_parameters
from pocketlm.model.files import write_json
from pocketlm.model.json_shape import JsonObject, read_object
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import prepare, scheme
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

Report = Callable[[str], None]
FOLDS = 5
REFERENCE_EVERY = 5  # shapes between two measurements of the reference


@dataclass(frozen=True, kw_only=True)
class MeasureShapesConfig:
    """hidden_sizes, intermediate_factors (times hidden_size), num_hidden_layers, kv_heads,
    local_every: the space, of which num_shapes are drawn. kv_heads: key-value heads; each serves
    `queries_per_kv` query heads of the model's own head_dim. local_every: 0 for global layers
    alone, n for one global layer in n (and the first and last), the others with `sliding_window`.

    runtime: gguf or pte. scheme: a row of model/quant.py for the weights, None for float16 (gguf)
    or float32 (pte). context: tokens of the prompt. repeats: rounds over all shapes, of which each
    shape's median counts. max_spread: the reference, measured again and again, may vary by no more;
    else the machine is too busy to say anything. threads: None takes the physical cores.
    """

    name: str
    hidden_sizes: tuple[int, ...]
    intermediate_factors: tuple[float, ...]
    num_hidden_layers: tuple[int, ...]
    kv_heads: tuple[int, ...]
    queries_per_kv: int
    local_every: tuple[int, ...] = (0, 4)
    sliding_window: int = 512  # of local layers; Pro's
    num_shapes: int = 60
    runtime: Literal["gguf", "pte"] = "gguf"
    scheme: str | None = "int4_group32"
    context: int = 2048
    new_tokens: int = 8
    repeats: int = 3
    max_spread: float = 0.05
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.runtime not in ("gguf", "pte"):
            raise ValueError(f"{self.name}.runtime {self.runtime!r} is unknown; known: gguf, pte")
        if self.num_shapes < 2 * FOLDS:
            raise ValueError(
                f"{self.name}.num_shapes {self.num_shapes} is too few to hold some out; take "
                f"{2 * FOLDS} or more"
            )
        if self.repeats < 2:
            raise ValueError(f"{self.name}.repeats {self.repeats}: two or more show the spread")
        if self.context < 2 or self.new_tokens < 2:
            raise ValueError(f"{self.name}: context and new_tokens must be at least 2")
        for field in ("hidden_sizes", "intermediate_factors", "num_hidden_layers", "kv_heads"):
            if not getattr(self, field):
                raise ValueError(f"{self.name}.{field} is empty: there are no shapes to measure")
        if self.scheme is not None:
            scheme(self.scheme)

    def summary(self) -> str:
        return f"{self.num_shapes} shapes as {self.runtime}, prompts of {self.context:,} tokens"


def measure_shapes(config: MeasureShapesConfig, out: Path, *, model: Path) -> Path:
    """`out`, with shapes.json: of each shape its fields, parameters, seconds to the first token and
    tokens a second after it, and how well a model of the others predicts it.

    model: a checkpoint, for its tokenizer and for all fields that are not drawn. Weights are
    random: they take as long as trained ones. Each measurement is kept as soon as it is made, so an
    interrupted stage goes on. ValueError where the reference, the shape in the middle, varied by
    more than max_spread.
    """
    tokenizer, like = Tokenizer.load(model), shape_of(model)
    shapes = drawn_shapes(config, like)
    rounds = [_measured(config, out, number, shapes, tokenizer) for number in range(config.repeats)]
    reference = [seconds for one in rounds for seconds in one["reference"]]
    spread = (max(reference) - min(reference)) / statistics.median(reference)
    if spread > config.max_spread:
        raise ValueError(
            f"{config.name}: the same file took {min(reference):.3f} to {max(reference):.3f} s, "
            f"{spread:.0%} apart; with more than {config.max_spread:.0%} the machine is too busy "
            f"to compare shapes. Stop other programs, delete {out.name} and measure again, or "
            "raise max_spread"
        )
    rows = []
    for place, shape in enumerate(shapes):
        times = [one["shapes"][place] for one in rounds]
        rows.append(
            {
                "shape": asdict(shape),
                "parameters": num_parameters(shape),
                "flops": forward_flops(shape, config.context),
                "seconds": statistics.median(time["seconds"] for time in times),
                "tokens_per_second": statistics.median(time["pace"] for time in times),
            }
        )
    write_json(out / "shapes.json", judged(config, shapes, rows, spread))
    return out


def drawn_shapes(config: MeasureShapesConfig, like: ModelConfig) -> list[ModelConfig]:
    """num_shapes different shapes of the space, by the seed. ValueError where it has fewer, or
    where one cannot be.
    """
    space = list(
        product(
            config.hidden_sizes,
            config.intermediate_factors,
            config.num_hidden_layers,
            config.kv_heads,
            config.local_every,
        )
    )
    if len(space) < config.num_shapes:
        raise ValueError(
            f"{config.name}: the space has {len(space)} shapes, num_shapes is {config.num_shapes}"
        )
    chosen = random.Random(config.seed).sample(space, config.num_shapes)
    return [_shape(config, like, *fields) for fields in chosen]


def _shape(
    config: MeasureShapesConfig,
    like: ModelConfig,
    hidden: int,
    factor: float,
    layers: int,
    kv_heads: int,
    local_every: int,
) -> ModelConfig:
    kinds = ModelConfig.local_global(layers, local_every) if local_every else ()
    return replace(
        like,
        hidden_size=hidden,
        intermediate_size=32 * max(1, round(factor * hidden / 32)),  # blocks of four-bit weights
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * config.queries_per_kv,
        num_key_value_heads=kv_heads,
        max_position_embeddings=config.context + config.new_tokens,
        layer_types=kinds,
        sliding_window=config.sliding_window if kinds else None,
        no_rope_layers=(),
    )


def _measured(
    config: MeasureShapesConfig,
    out: Path,
    number: int,
    shapes: Sequence[ModelConfig],
    tokenizer: Tokenizer,
) -> JsonObject:
    """One round over all shapes: each once, the reference between them."""
    file = out / f"round-{number + 1}.json"
    if file.is_file() and len((done := read_object(file))["shapes"]) == len(shapes):
        return done
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    kept = read_object(file) if file.is_file() else JsonObject({"shapes": [], "reference": []}, "")
    reference = sorted(shapes, key=num_parameters)[len(shapes) // 2]
    columns = (TextColumn("  {task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        TemporaryDirectory() as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task("", total=len(shapes), completed=len(kept["shapes"]))
        for place in range(len(kept["shapes"]), len(shapes)):
            words = f"round {number + 1} of {config.repeats}, shape {place + 1} of {len(shapes)}"
            progress.update(bar, description=words)
            if place % REFERENCE_EVERY == 0:
                time = _speed_of(config, reference, tokenizer, Path(folder))
                kept["reference"].append(time["seconds"])
            kept["shapes"].append(_speed_of(config, shapes[place], tokenizer, Path(folder)))
            write_json(file, kept)
            progress.advance(bar)
    return read_object(file)


def _speed_of(
    config: MeasureShapesConfig, shape: ModelConfig, tokenizer: Tokenizer, folder: Path
) -> dict[str, float]:
    """Seconds to the first token and the pace after it, of a file with random weights."""
    network = Transformer(shape)
    if config.scheme is not None:
        network = prepare(network, scheme(config.scheme))
    path = folder / f"shape.{config.runtime}"
    length = config.context + config.new_tokens
    if config.runtime == "gguf":
        write_gguf(network, tokenizer, path, "q4_0" if config.scheme else "f16")
    else:
        from pocketlm.export.pte import write_pte

        write_pte(network, tokenizer, path, context_length=length)
    del network
    threads = config.threads or available_cores()
    with opened(path, threads=threads) as model:
        speed = measure_speed(model, config.context, config.new_tokens, 1)
    return {
        "seconds": speed["time_to_first_token_seconds"],
        "pace": speed["decode_tokens_per_second"],
    }


def judged(
    config: MeasureShapesConfig,
    shapes: Sequence[ModelConfig],
    rows: Sequence[dict[str, Any]],
    spread: float,
) -> dict[str, Any]:
    """shapes.json: how well latency is predicted for shapes that were held out, beside what
    parameters and FLOPs alone tell.
    """
    seconds = [row["seconds"] for row in rows]
    predicted = held_out(shapes, seconds, config.context, folds=FOLDS)
    model = fit_latency(shapes, seconds, config.context)
    for row, guess in zip(rows, predicted, strict=True):
        row["held_out_seconds"] = float(guess)
    names = ("constant", "layer", "attention product", "feed-forward", "attention pair", "head")
    return {
        "runtime": config.runtime,
        "scheme": config.scheme,
        "context": config.context,
        "threads": config.threads or available_cores(),
        "reference_spread": spread,
        "held_out": {
            "r2": explained(list(predicted), seconds),
            "kendall": kendall(list(predicted), seconds),
        },
        "kendall_of_parameters": kendall([row["parameters"] for row in rows], seconds),
        "kendall_of_flops": kendall([row["flops"] for row in rows], seconds),
        "seconds_of_parts": dict(zip(names, _shares(model.costs, shapes, config), strict=True)),
        "noise": model.noise,
        "shapes": list(rows),
    }


def _shares(
    costs: Any, shapes: Sequence[ModelConfig], config: MeasureShapesConfig
) -> Iterator[float]:
    """Of the shapes' mean latency by the additive part, the seconds of each part."""
    mean = sum(parts_of(shape, config.context) for shape in shapes) / len(shapes)
    return iter((mean * costs).tolist())
