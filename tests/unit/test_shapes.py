"""Shapes measured on this device, and the model of their latency."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.commands.shapes import numbers, seconds_of
from pocketlm.eval import latency_model
from pocketlm.eval.latency_model import (
    explained,
    fit_latency,
    held_out,
    kendall,
    non_negative_fit,
    parts_of,
)
from pocketlm.inference.open import opened
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages import measure_shapes as stage
from pocketlm.stages.measure_shapes import MeasureShapesConfig, drawn_shapes, measure_shapes

LIKE = small(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
CONFIG = MeasureShapesConfig(
    name="shapes",
    hidden_sizes=(32, 64, 96),
    intermediate_factors=(1.0, 2.0),
    num_hidden_layers=(1, 2, 3),
    kv_heads=(1, 2),
    queries_per_kv=2,
    num_shapes=12,
    sliding_window=8,
    context=40,
    new_tokens=4,
    repeats=2,
    threads=1,
    max_spread=1e9,
)


def many_shapes(count: int) -> list[ModelConfig]:
    drawn = random.Random(0)
    return [
        replace(
            LIKE,
            hidden_size=drawn.choice((256, 384, 512, 768)),
            intermediate_size=drawn.choice((768, 1024, 2048, 3072)),
            num_hidden_layers=drawn.choice((6, 9, 12, 18, 24)),
            num_attention_heads=(heads := drawn.choice((4, 8, 12))),
            num_key_value_heads=heads // 4,
            head_dim=64,
        )
        for _ in range(count)
    ]


def seconds_like(shapes: list[ModelConfig], noise: float) -> list[float]:
    """An additive cost, a bend that no sum of parts has, and noise."""
    drawn = np.random.default_rng(1)
    costs = np.array([2e-3, 1e-4, 2e-11, 1e-11, 3e-10, 4e-10])
    bend = [1 + 0.2 * np.sin(shape.hidden_size / 150) for shape in shapes]
    exact = np.array([parts_of(shape, 512) @ costs for shape in shapes]) * bend
    return (exact * np.exp(noise * drawn.standard_normal(len(shapes)))).tolist()


def test_the_additive_part_finds_the_costs_it_was_made_of_and_none_below_zero() -> None:
    drawn = np.random.default_rng(0)
    matrix = drawn.random((30, 4)) * [1, 1e6, 1e-3, 10]
    truth = np.array([3.0, 2e-6, 0.0, 0.5])
    assert non_negative_fit(matrix, matrix @ truth) == pytest.approx(truth, rel=1e-6, abs=1e-9)
    # torch's own least squares would take a negative cost here
    target = matrix @ np.array([3.0, 2e-6, -100.0, 0.5])
    free = torch.linalg.lstsq(torch.from_numpy(matrix), torch.from_numpy(target)[:, None]).solution
    assert free.min() < 0
    found = non_negative_fit(matrix, target)
    assert found.min() == 0
    error = np.square(matrix @ found - target).sum()
    for i in range(4):  # no coordinate could move and be better
        for step in (1e-4, -1e-4):
            other = found.copy()
            other[i] = max(0.0, other[i] * (1 + step) + (step > 0) * 1e-12)
            assert np.square(matrix @ other - target).sum() >= error - 1e-9


def test_shapes_held_out_are_predicted_and_better_than_by_the_additive_part_alone() -> None:
    shapes = many_shapes(60)
    seconds = seconds_like(shapes, 0.01)
    predicted = held_out(shapes, seconds, 512)
    assert explained(list(predicted), seconds) > 0.98
    additive = []
    for fold in range(5):
        rest = [i for i in range(60) if i % 5 != fold]
        model = fit_latency([shapes[i] for i in rest], [seconds[i] for i in rest], 512)
        additive += [(i, model.additive(shapes[i])) for i in range(fold, 60, 5)]
    alone = [value for _, value in sorted(additive)]
    assert explained(list(predicted), seconds) > explained(alone, seconds) + 0.005
    assert kendall(list(predicted), seconds) > kendall(alone, seconds)


def test_the_spread_of_a_prediction_is_that_of_the_noise_and_grows_far_away() -> None:
    shapes = many_shapes(60)
    model = fit_latency(shapes, seconds_like(shapes, 0.05), 512)
    near = [model.predict(shape) for shape in shapes]
    assert 0.02 < np.median([spread / mean for mean, spread in near]) < 0.12
    far, spread = model.predict(replace(shapes[0], hidden_size=8192, num_hidden_layers=100))
    assert spread / far > 1.2 * np.median([s / m for m, s in near])


def test_kendall_is_that_of_its_definition() -> None:
    drawn = random.Random(2)
    for _ in range(20):
        first = [drawn.randrange(5) for _ in range(8)]
        second = [drawn.randrange(5) for _ in range(8)]
        more, ties = 0, [0, 0]
        for i in range(8):
            for j in range(i):
                a, b = first[i] - first[j], second[i] - second[j]
                more += (a * b > 0) - (a * b < 0)
                ties[0] += a != 0
                ties[1] += b != 0
        expected = more / (ties[0] * ties[1]) ** 0.5 if all(ties) else 0.0
        assert kendall(first, second) == pytest.approx(expected)


def test_too_few_shapes_and_times_of_nothing_are_refused() -> None:
    shapes = many_shapes(4)
    with pytest.raises(ValueError, match="cannot be held out in 5 turns"):
        held_out(shapes, [1.0] * 4, 512)
    with pytest.raises(ValueError, match="not above 0 seconds"):
        fit_latency(shapes, [1.0, 2.0, 0.0, 1.0], 512)
    with pytest.raises(ValueError, match="at least two"):
        fit_latency(shapes[:1], [1.0], 512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("like")
    tokenizer = train_tokenizer(["The quick brown fox jumps over the lazy dog."] * 4, 280)
    save_checkpoint(folder, Transformer(replace(LIKE, vocab_size=tokenizer.vocab_size)), tokenizer)
    return folder


def test_shapes_are_drawn_from_the_space_once_each_and_keep_the_rest(checkpoint: Path) -> None:
    drawn = drawn_shapes(CONFIG, LIKE)
    assert len(set(map(repr, drawn))) == 12
    for shape in drawn:
        assert shape.hidden_size in (32, 64, 96) and shape.num_hidden_layers in (1, 2, 3)
        assert shape.intermediate_size in (shape.hidden_size, 2 * shape.hidden_size)
        assert shape.num_attention_heads == 2 * shape.num_key_value_heads
        assert shape.head_dim == LIKE.head_dim and shape.max_position_embeddings == 44
        assert shape.sliding_window == (8 if shape.layer_types else None)
    assert drawn != drawn_shapes(replace(CONFIG, seed=1), LIKE)
    with pytest.raises(ValueError, match="the space has 72 shapes, num_shapes is 73"):
        drawn_shapes(replace(CONFIG, num_shapes=73), LIKE)


def test_every_file_is_measured_and_an_interrupted_measurement_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")
    speeds: list[int] = []
    real = stage.measure_speed

    def stopping(model: Any, *arguments: Any) -> dict[str, float]:
        if len(speeds) == 9:
            speeds.append(0)
            raise KeyboardInterrupt
        speeds.append(model.max_length)
        return real(model, *arguments)

    monkeypatch.setattr(stage, "measure_speed", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure_shapes(CONFIG, tmp_path, model=checkpoint)
    kept = read_json(tmp_path / "round-1.json")
    measure_shapes(CONFIG, tmp_path, model=checkpoint)
    assert read_json(tmp_path / "round-1.json")["shapes"][: len(kept["shapes"])] == kept["shapes"]
    assert len(speeds) - 1 == 2 * (12 + 3)  # shapes, and the reference before every fifth
    assert set(speeds) == {0, 44}
    report = read_json(tmp_path / "shapes.json")
    rows = report["shapes"]
    assert len(rows) == 12 and all(row["seconds"] > 0 < row["tokens_per_second"] for row in rows)
    assert set(report["held_out"]) == {"r2", "kendall"}
    assert report["runtime"] == "gguf" and report["context"] == 40 and report["threads"] == 1


def test_times_that_lie_apart_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")
    times = iter([0.1, 0.2] * 100)
    monkeypatch.setattr(
        stage,
        "measure_speed",
        lambda *_: {"time_to_first_token_seconds": next(times), "decode_tokens_per_second": 1.0},
    )
    with pytest.raises(ValueError, match="the machine is too busy to compare shapes"):
        measure_shapes(replace(CONFIG, max_spread=0.05), tmp_path, model=checkpoint)
    assert not (tmp_path / "shapes.json").exists()


def test_a_pte_is_measured_too(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    tokenizer = stage.Tokenizer.load(checkpoint)
    shape = drawn_shapes(CONFIG, replace(LIKE, vocab_size=tokenizer.vocab_size))[0]
    config = replace(CONFIG, runtime="pte", scheme=None)
    speed = stage._speed_of(config, shape, tokenizer, tmp_path)
    assert speed["seconds"] > 0 < speed["pace"]
    with opened(tmp_path / "shape.pte") as model:
        assert model.max_length == 44


def test_the_command_lists_what_answers_in_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from typer.testing import CliRunner

    from pocketlm.cli import app

    def instead(config: MeasureShapesConfig, out: Path, *, model: Path) -> Path:
        shapes = drawn_shapes(config, stage.shape_of(model))
        rows = [
            {
                "shape": json.loads(json.dumps(stage.asdict(shape))),
                "parameters": stage.num_parameters(shape),
                "flops": latency_model.forward_flops(shape, config.context),
                "seconds": shape.num_hidden_layers / 10,
                "tokens_per_second": 10.0,
            }
            for shape in shapes
        ]
        write_json(out / "shapes.json", stage.judged(config, shapes, rows, 0.01))
        return out

    instead.__module__, instead.__qualname__ = measure_shapes.__module__, "measure_shapes"
    monkeypatch.setattr(stage, "measure_shapes", instead)
    options = ["--layers", "1,2,3", "--hidden", "32,64,96", "--feed-forward", "1,2"]
    options += ["--num-shapes", "20", "--context", "40", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, ["shapes", str(checkpoint), "--target-ttft", "250ms", *options]
    )
    assert result.exit_code == 0, result.output
    assert "of 20 shapes begin to answer a prompt of 40 tokens within 0.25 s" in " ".join(
        result.output.split()
    )
    listed = [line for line in result.output.splitlines() if line.strip().startswith("│")]
    assert listed and all(line.split("│")[1].strip() in ("1", "2") for line in listed)
    lines = [line for line in result.output.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("text", "seconds"), [("4s", 4.0), ("250ms", 0.25), ("0.5", 0.5), ("2e-1s", 0.2)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "0", "nan", "inf", "4m"])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a time such as 4s or 250ms"):
        seconds_of(text)


def test_numbers_are_read_or_refused() -> None:
    assert numbers("--layers", "1,2", int) == (1, 2) and numbers("--layers", None, int) == ()
    for text in ("", "1,", "a", "0", "1,-2"):
        with pytest.raises(ValueError, match="--layers"):
            numbers("--layers", text, int)
    for changes in ({"num_shapes": 3}, {"repeats": 1}, {"hidden_sizes": ()}, {"context": 1}):
        with pytest.raises(ValueError, match=r"shapes"):
            replace(CONFIG, **changes)
