"""The training loop: the same bits wherever it is interrupted, and nothing half-done on disk or in
the weights.
"""

import json
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import small
from torch import Tensor

from pocketlm.model.arithmetic import on_threads
from pocketlm.model.batch import Batch
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Attention, ComputeSettings, Transformer
from pocketlm.train.checkpoint import SaveConfig, saved_states
from pocketlm.train.loop import train, train_step
from pocketlm.train.losses import next_token_loss
from pocketlm.train.manifest import manifest_digest
from pocketlm.train.optim import (
    LONG_TRAINING,
    OptimConfig,
    compute_settings,
    computing,
    lr_at,
    make_optimizers,
    pays,
)
from pocketlm.train.resume import load_state

CONFIG = small(qk_norm_weight=True)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=6, warmup_steps=2, final_lr_share=0.1, compute_dtype="float32"
)


class Stopped(Exception):
    """What interrupts a training in these tests."""


def batches(step: int) -> list[Batch]:
    ids = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(step))
    return [Batch(input_ids=ids[i : i + 2, :-1], labels=ids[i : i + 2, 1:]) for i in (0, 2)]


def failing_at(stop: int) -> Callable[[int], list[Batch]]:
    def draw(step: int) -> list[Batch]:
        if step == stop:
            raise Stopped
        return batches(step)

    return draw


def run(
    out: Path,
    draw: Callable[[int], list[Batch]] = batches,
    optim: OptimConfig = OPTIM,
    **options: Any,
):
    """A fresh network, as a new process would make it, trained in `out`."""
    out.mkdir(exist_ok=True)
    model = options.pop("model", None) or Transformer(CONFIG)
    save = options.pop("save", None) or SaveConfig(
        every_steps=options.pop("save_every_steps", 2), keep_last=1
    )
    options = {"label": "test", "save": save} | options
    return train(model, draw, options.pop("loss_fn", next_token_loss), optim, out, **options)


def bits(model: Transformer) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone().view(torch.int32)
        for name, tensor in model.state_dict().items()
    }


def same_bits(one: Transformer, other: Transformer) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(bits(one).values(), bits(other).values(), strict=True)
    )


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["adamw", "muon"])
def optim(request) -> OptimConfig:
    return replace(OPTIM, optimizer=request.param)


@pytest.fixture(scope="module")
def unbroken(optim, tmp_path_factory) -> tuple[Transformer, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("unbroken")
    return run(out, optim=optim), logged(out)


FIGURES = ("step", "loss", "lr", "grad_norm", "tokens", "token_digest")


def figures(lines: list[dict[str, Any]]) -> list[list[float]]:
    """What training alone decides of each line, and not the clock."""
    return [[line[key] for key in FIGURES] for line in lines]


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("save_every", [1, 2, 4])
def test_resuming_at_any_step_gives_the_same_weights(stop, save_every, optim, unbroken, tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, failing_at(stop), optim, save_every_steps=save_every)
    drawn = []
    model = run(
        tmp_path,
        lambda step: drawn.append(step) or batches(step),
        optim,
        save_every_steps=save_every,
    )
    whole, lines = unbroken
    assert same_bits(model, whole)
    assert drawn == list(range(stop - stop % save_every, 6))
    assert figures(logged(tmp_path)) == figures(lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_kill_saves_the_step_it_is_in_and_resuming_gives_the_same_weights(
    number, optim, unbroken, tmp_path
):
    before = signal.getsignal(number)

    def killed(model: Transformer, batch: Batch) -> Tensor:
        if torch.equal(batch.input_ids, batches(2)[0].input_ids):
            os.kill(os.getpid(), number)
        return next_token_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, optim=optim, save_every_steps=100, loss_fn=killed)
    assert signal.getsignal(number) is before
    assert [state.name for state in saved_states(tmp_path)] == ["step-00000003"]
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2]
    assert same_bits(run(tmp_path, optim=optim), unbroken[0])
    assert [line["step"] for line in logged(tmp_path)] == list(range(6))


def test_being_interrupted_at_every_step_gives_the_same_weights(optim, unbroken, tmp_path):
    for stop in range(1, 6):
        with pytest.raises(Stopped):
            run(tmp_path, failing_at(stop), optim, save_every_steps=1)
    assert same_bits(run(tmp_path, optim=optim), unbroken[0])
    assert [line["step"] for line in logged(tmp_path)] == list(range(6))


# ---- what decides bits beside the inputs ----


def loss_of_threads(model: Transformer, batch: Batch) -> Tensor:
    """A loss with a term that shows the last bits of a sum of 100,000 terms, which torch's threads
    take in parts.
    """
    weights = torch.cat([parameter.flatten() for parameter in model.parameters()] * 4)
    return next_token_loss(model, batch) + (1e4 * weights.sum()).sin() / 1e3


def computed(out: Path, threads: int, draw: Callable[[int], list[Batch]] = batches) -> Transformer:
    with on_threads(threads):
        return run(
            out, draw, replace(OPTIM, optimizer="muon"), loss_fn=loss_of_threads, save_every_steps=1
        )


@pytest.mark.parametrize(("begun", "later"), [(1, 2), (2, 1)])
def test_a_training_goes_on_with_the_number_of_threads_it_began_with(begun, later, tmp_path, capfd):
    whole = computed(tmp_path / "whole", begun)
    # the number of threads does decide bits
    assert not same_bits(computed(tmp_path / "other", later), whole)
    capfd.readouterr()
    with pytest.raises(Stopped):
        computed(tmp_path / "broken", begun, failing_at(3))
    with on_threads(later):
        assert same_bits(computed(tmp_path / "broken", later), whole)
        assert torch.get_num_threads() == later
    output = capfd.readouterr().err
    assert (
        output.count(f"goes on with the number of threads it began with, {begun}, not {later}") == 1
    )
    assert not list((tmp_path / "whole" / "resume").glob("damaged*"))


def test_a_training_from_another_processor_says_that_its_last_bits_may_differ(
    tmp_path, capfd, monkeypatch
):
    with pytest.raises(Stopped):
        computed(tmp_path, 1, failing_at(3))
    capfd.readouterr()
    monkeypatch.setattr("pocketlm.model.arithmetic.processor_name", lambda: "Another 3000")
    computed(tmp_path, 2)
    output = capfd.readouterr().err
    assert output.count("its last bits may differ") == 1 and "-> Another 3000" in output
    manifest = json.loads((saved_states(tmp_path)[-1] / "state.json").read_text())
    assert (
        manifest["arithmetic"]["threads"] == 2
        and manifest["arithmetic"]["processor"] == "Another 3000"
    )


def test_a_state_written_before_threads_were_noted_is_read(tmp_path, capfd):
    with pytest.raises(Stopped):
        computed(tmp_path, 1, failing_at(3))
    for folder in saved_states(tmp_path):
        manifest = json.loads((folder / "state.json").read_text())
        del manifest["arithmetic"], manifest["sha256"]
        (folder / "state.json").write_text(
            json.dumps({**manifest, "sha256": manifest_digest(manifest)})
        )
    capfd.readouterr()
    computed(tmp_path, 1)
    assert "goes on" not in capfd.readouterr().err


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_process_did_before_changes_no_bit(threads, tmp_path):
    """Other shapes through the same kernels, and another allocation history."""
    first = computed(tmp_path / "first", threads)
    random = torch.Generator().manual_seed(1)
    # new blocks lie elsewhere, on other alignments
    kept = [torch.empty(97 * number + 1) for number in range(200)]
    del kept[::2]
    for size in (3, 130, 257):
        square = torch.randn(size, size, generator=random)
        torch.linalg.svd(square @ square)
        run(
            tmp_path / f"other-{size}",
            model=Transformer(replace(CONFIG, hidden_size=16 * (size % 3 + 1))),
        )
    assert same_bits(computed(tmp_path / "second", threads), first)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_four_bit_training_resumes_with_the_same_weights(name, tmp_path):
    def student() -> Transformer:
        return prepare(Transformer(CONFIG), SCHEMES[name])

    whole = run(tmp_path, model=student())
    with pytest.raises(Stopped):
        run(tmp_path / "broken", failing_at(3), model=student())
    assert same_bits(run(tmp_path / "broken", model=student()), whole)


WINDOWED = replace(
    CONFIG, layer_types=("full_attention", "sliding_attention"), sliding_window=8, layer_repeats=2
)


def gradients(model: Transformer, optim: OptimConfig) -> tuple[list[Tensor], int]:
    """(the loss and every gradient, how often a block ran) of one batch of packed documents."""
    runs: list[int] = []
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda *_: runs.append(1))
    place = torch.arange(16).expand(2, 16)
    batch = replace(batches(0)[0], positions=place % 11, doc_ids=place // 11)
    with computing(model, compute_settings(model, optim)):
        loss = next_token_loss(model, batch)
        loss.backward()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)], len(runs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [None, "int4_group32", "int4_channel"])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(name, dtype):
    results = []
    for every, runs in ((0, 4), (1, 8), (2, 6), (3, 6)):  # two blocks, each applied twice
        model = Transformer(WINDOWED)
        if name is not None:
            prepare(model, SCHEMES[name])
        batch_gradients, count = gradients(
            model, replace(OPTIM, checkpoint_every_n_blocks=every, compute_dtype=dtype)
        )
        assert count == runs
        results.append(batch_gradients)
    assert len(results[0]) == 1 + len(list(model.parameters()))
    for batch_gradients in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batch_gradients, results[0], strict=True))


def test_a_compiled_training_resumes_with_the_same_weights_and_is_near_the_other(tmp_path):
    optim = replace(OPTIM, compile="yes", num_steps=4)
    for name in (None, "int4_group32"):

        def student(name: str | None = name) -> Transformer:
            model = Transformer(replace(WINDOWED, layer_repeats=1))
            return prepare(model, SCHEMES[name]) if name else model

        folder = tmp_path / str(name)
        folder.mkdir()
        whole = run(folder / "whole", optim=optim, model=student())
        with pytest.raises(Stopped):
            run(folder / "broken", failing_at(2), optim, model=student())
        torch.compiler.reset()  # as a new process would begin
        assert same_bits(run(folder / "broken", optim=optim, model=student()), whole)
        run(folder / "plain", optim=replace(optim, compile="no"), model=student())
        losses = [[line["loss"] for line in logged(folder / kind)] for kind in ("whole", "plain")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3 if name else 1e-5)
        assert whole.compute == ComputeSettings()  # as before


def test_blocks_are_compiled_for_long_trainings_alone_and_where_there_is_a_compiler(monkeypatch):
    model = Transformer(CONFIG)
    steps = LONG_TRAINING // sum(p.numel() for p in model.parameters()) + 1
    assert pays(model, replace(OPTIM, num_steps=steps)) and not pays(
        model, replace(OPTIM, num_steps=steps - 1)
    )
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not pays(model, replace(OPTIM, num_steps=steps))


def test_without_prefetch_batches_are_made_after_the_step_before_has_updated_the_weights(tmp_path):
    model = Transformer(CONFIG)
    losses: list[Tensor] = []
    seen: list[tuple[int, int, float]] = []  # step, losses computed before, norm of the weights

    def drawn(step: int) -> list[Batch]:
        norm = model.model.embed_tokens.weight.detach().norm().item()
        seen.append((step, len(losses), norm))
        return batches(step)

    def loss_fn(model: Transformer, batch: Batch) -> Tensor:
        losses.append(next_token_loss(model, batch))
        return losses[-1]

    run(tmp_path, drawn, model=model, loss_fn=loss_fn, prefetch=False)
    assert [(step, before) for step, before, _ in seen] == [(n, 2 * n) for n in range(6)]
    assert len({norm for _, _, norm in seen}) == 6  # every step moved the weights first
    assert same_bits(model, run(tmp_path / "prefetched"))


def test_with_prefetch_the_next_batches_are_made_while_a_step_runs(tmp_path):
    made = threading.Event()

    def drawn(step: int) -> list[Batch]:
        if step == 1:
            made.set()
        return batches(step)

    def loss_fn(model: Transformer, batch: Batch) -> Tensor:
        assert made.wait(timeout=10)  # of step 0 here, so step 1's are ahead
        return next_token_loss(model, batch)

    run(tmp_path, drawn, loss_fn=loss_fn)


def test_a_finished_training_called_again_does_nothing(optim, unbroken, tmp_path):
    run(tmp_path, optim=optim)
    assert same_bits(run(tmp_path, failing_at(0), optim), unbroken[0])
    assert [line["step"] for line in logged(tmp_path)] == list(range(6))


def test_a_metrics_line_torn_by_a_crash_is_dropped(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, failing_at(3))  # step 2 is logged but not in the saved state
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    run(tmp_path)
    assert [line["step"] for line in logged(tmp_path)] == list(range(6))


def test_every_step_tells_its_figures(tmp_path):
    run(tmp_path)
    for step, line in enumerate(logged(tmp_path)):
        assert set(line) == {*FIGURES, "tokens_per_second", "seconds"}
        assert line["step"] == step and line["tokens"] == 64
        assert line["lr"] == lr_at(OPTIM, step) and line["loss"] == pytest.approx(
            math.log(300), rel=0.05
        )
        assert line["grad_norm"] > 0 and line["tokens_per_second"] > 0 and line["seconds"] >= 0
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(poison, tmp_path):
    def poisoned(model: Transformer, batch: Batch) -> Tensor:
        loss = next_token_loss(model, batch)
        return loss * poison if torch.equal(batch.input_ids, batches(3)[1].input_ids) else loss

    model = Transformer(CONFIG)
    at_step_3: list[dict[str, Tensor]] = []

    def watched(step: int) -> list[Batch]:
        at_step_3[:] = [bits(model)]
        return batches(step)

    with pytest.raises(FloatingPointError, match=r"step 3: loss .* the weights are untouched"):
        run(tmp_path, watched, loss_fn=poisoned, model=model)
    assert all(
        torch.equal(a, b) for a, b in zip(bits(model).values(), at_step_3[0].values(), strict=True)
    )
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2]
    assert [p.name for p in saved_states(tmp_path)] == ["step-00000002"]


def test_a_gradient_that_is_not_finite_stops_too():
    model = Transformer(CONFIG)
    before = bits(model)

    def steep(model: Transformer, batch: Batch) -> Tensor:
        # its value is 0, its slope infinite
        return (model.model.norm.weight - 1).abs().sqrt().sum()

    with pytest.raises(
        FloatingPointError, match=r"step 7: loss 0\.0, gradient norm nan|gradient norm inf"
    ):
        train_step(model, make_optimizers(model, OPTIM), batches(0), steep, 1e-2, 1.0, 7)
    assert all(
        torch.equal(a, b) for a, b in zip(bits(model).values(), before.values(), strict=True)
    )


def test_training_lowers_the_loss_of_what_it_repeats(optim, tmp_path):
    run(tmp_path, lambda step: batches(0), replace(optim, num_steps=15))
    lines = logged(tmp_path)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def schedule(**fields: Any) -> list[float]:
    """The learning rate of each step, and of the one after the last."""
    config = replace(
        OPTIM, **{"lr": 1.0, "num_steps": 14, "warmup_steps": 4, "final_lr_share": 0.1} | fields
    )
    return [lr_at(config, step) for step in range(config.num_steps + 1)]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_learning_rate_warms_up_peaks_and_ends_where_it_should(kind):
    lr = schedule(schedule=kind)
    assert lr[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # the first step already learns
    assert lr[9] == pytest.approx(0.55)  # half way down both are half way
    assert lr[14] == pytest.approx(0.1)
    assert lr[4:] == sorted(lr[4:], reverse=True)


def test_linear_falls_evenly_and_cosine_as_a_cosine():
    falls = [a - b for a, b in zip(schedule()[4:], schedule()[5:], strict=False)]
    assert falls == pytest.approx([0.09] * 10)
    assert schedule(schedule="cosine")[6] == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(0.2 * math.pi)) / 2
    )


def test_a_schedule_without_warm_up_starts_at_the_peak_and_a_flat_one_stays():
    assert schedule(warmup_steps=0)[0] == 1.0
    assert schedule(warmup_steps=0, final_lr_share=1.0) == pytest.approx([1.0] * 15)
    assert schedule(final_lr_share=0.0)[14] == 0.0 and schedule(final_lr_share=0.0)[13] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps 0 must be at least 1"),
        ({"warmup_steps": 6}, "warmup_steps 6 must be below num_steps 6"),
        ({"schedule": "wsd"}, "schedule 'wsd' is unknown; known: linear, cosine"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown; known: adamw, muon"),
        ({"lr": 0.0}, r"lr 0\.0 must be positive"),
        ({"compute_dtype": "float16"}, "compute_dtype 'float16' is unknown"),
        ({"compile": "maybe"}, "compile 'maybe' is unknown; known: auto, yes, no"),
        ({"checkpoint_every_n_blocks": -1}, "checkpoint_every_n_blocks -1 must not be negative"),
    ],
)
def test_a_config_that_cannot_train_says_which_field(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIM, **fields)


def groups(model: Transformer, config: OptimConfig) -> dict[str, tuple[str, float]]:
    """(optimizer, weight decay) of each parameter by name; each must be in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    results = [
        (names[id(p)], (type(optimizer).__name__, group["weight_decay"]))
        for optimizer in make_optimizers(model, config)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(results) == len(dict(results)) == len(names)
    return dict(results)


def test_adamw_decays_matrices_and_not_norms():
    for name, group in groups(Transformer(CONFIG), replace(OPTIM, weight_decay=0.3)).items():
        assert group == ("AdamW", 0.0 if "norm" in name else 0.3), name


def test_muon_moves_the_matrices_inside_the_blocks_and_adamw_the_rest():
    model = Transformer(replace(CONFIG, tie_word_embeddings=False))
    for name, group in groups(model, replace(OPTIM, optimizer="muon", weight_decay=0.3)).items():
        if "norm" in name:
            assert group == ("AdamW", 0.0), name
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert group == ("AdamW", 0.3), name
        else:
            assert group == ("Muon", 0.3), name


def test_frozen_parameters_have_no_optimizer():
    model = Transformer(CONFIG)
    model.model.embed_tokens.weight.requires_grad_(False)
    held = {
        id(p)
        for o in make_optimizers(model, OPTIM)
        for group in o.param_groups
        for p in group["params"]
    }
    assert (
        id(model.model.embed_tokens.weight) not in held
        and len(held) == len(list(model.parameters())) - 1
    )


def test_an_empty_folder_starts_at_step_0(tmp_path):
    model = Transformer(CONFIG)
    before = bits(model)
    assert load_state(model, make_optimizers(model, OPTIM), tmp_path) == 0
    assert all(
        torch.equal(a, b) for a, b in zip(bits(model).values(), before.values(), strict=True)
    )


def test_matrix_products_are_back_in_float32_after_training_in_bfloat16(tmp_path):
    model = run(tmp_path, optim=replace(OPTIM, compute_dtype="bfloat16", num_steps=3))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    fresh = Transformer(CONFIG)
    fresh.load_state_dict(model.state_dict())
    ids = batches(0)[0].input_ids
    assert torch.equal(model(ids), fresh(ids))
