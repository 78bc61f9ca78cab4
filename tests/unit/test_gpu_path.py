"""The GPU path, proven on a processor: whole steps on a device of fake tensors (fake_gpu.py),
blocks as one graph each that is compiled once, and batches that know what a GPU would be asked for.

What needs a GPU is in tests/gpu.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import obstacle
from fake_gpu import CASES
from shapes import small
from torch import Tensor, nn

from pocketlm import cli
from pocketlm.data.batches import BatchPlan, ConversationRows, make_batches
from pocketlm.model import transformer
from pocketlm.model.attention import attention_case
from pocketlm.model.batch import Batch, laid_out, moved
from pocketlm.model.kernels import choose, varlen
from pocketlm.model.kernels.choose import choose_kernel
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import ComputeSettings, Transformer, run_block
from pocketlm.train import loop, losses
from pocketlm.train.head_kernels import HEAD_LOSSES, library_loss, refusal
from pocketlm.train.lazy_logits import LazyLogits
from pocketlm.train.losses import Distillation, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, make_optimizers
from pocketlm.train.prefetch import ready
from pocketlm.train.vocab_blocks import label_places
from pocketlm.train.vocab_loss import head_loss

TESTS = Path(__file__).parents[1]
CPU, META, CUDA = (torch.device(name) for name in ("cpu", "meta", "cuda"))
CONFIG = small(
    num_attention_heads=4,
    num_key_value_heads=2,
    layer_types=(GLOBAL, LOCAL),
    sliding_window=24,
    max_position_embeddings=256,
)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=4, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)


# ---- whole steps on a fake device ----


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case of fake_gpu.py gave, in a process of its own."""
    if reason := obstacle():
        pytest.skip(reason)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    code = "import sys, fake_device; fake_device.load_guard(sys.argv[1]); import fake_gpu"
    folder = str(tmp_path_factory.mktemp("guard"))
    command = [sys.executable, "-c", f"{code}; fake_gpu.main()", folder]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("a loss that")])
def test_a_step_of_every_training_runs_on_a_gpu_and_waits_for_it_once(case, steps):
    """No tensor lies elsewhere, weights and states are float32, and no value is asked for but the
    losses and the gradient norm, at the end of a step.
    """
    seen = steps[case]
    assert "error" not in seen, seen["error"]
    assert seen["waits"] == 2 and seen["kept"] == ["cuda torch.float32"]


def test_packed_rows_and_windows_take_varlen_and_float32_takes_flex(steps):
    assert steps["pretrain"]["how"] == "bfloat16, sdpa+varlen (FA2)"
    assert steps["pretrain, documents apart"]["how"] == "bfloat16, varlen (FA2)"
    assert steps["float32"]["how"] == "float32, flex"
    assert steps["loss by torch"]["how"] == "bfloat16, varlen (FA2), loss by torch"


def test_the_fake_device_refuses_what_waits_and_what_mixes_devices(steps):
    assert steps["a loss that waits"]["error"].startswith("DataDependentOutputException")
    assert "cuda:0 and cpu" in steps["a loss that mixes devices"]["error"]


# ---- graphs ----


def conversations(length: int) -> Callable[[int], list[Batch]]:
    """Packed rows of [2, length] of conversations of 3 to 100 tokens, as `finetune` loads them."""
    draw = np.random.default_rng(0)
    rows = [
        (draw.integers(300, size=n).tolist(), (draw.random(n) < 0.7).tolist())
        for n in draw.integers(3, 101, size=400)
    ]
    plan = BatchPlan(seq_len=length, rows_per_step=2, micro_batch_size=2, seed=0)
    source = {"chat": ConversationRows(rows, length, eos_id=0)}
    return make_batches(source, {"chat": 1.0}, plan, separate_documents=True)


def on_meta(batch: Batch) -> Batch:
    return moved(laid_out(batch), lambda x: x.to("meta"))


def forward_and_backward(model: Transformer, batch: Batch) -> None:
    hidden = model.hidden(
        batch.input_ids, batch.positions, doc_ids=batch.doc_ids, documents=batch.documents
    )
    hidden.sum().backward()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Each graph that compiling made so far: whole blocks, without a break."""
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
        made.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)

    torch._dynamo.reset()
    compiled = torch.compile(run_block, backend=backend, fullgraph=True)
    monkeypatch.setattr(transformer, "compiled_block", lambda: compiled)
    return made


@pytest.mark.parametrize(("attention", "num_steps"), [("varlen", 50), ("blockwise", 10)])
def test_steps_of_other_packings_compile_each_kind_of_layer_once(attention, num_steps, graphs):
    """varlen on the meta device, with gradients: the block of a GPU is one graph."""
    on_cpu = attention == "blockwise"
    batches = conversations(128 if on_cpu else 256)
    with torch.device(CPU if on_cpu else META):
        model = Transformer(CONFIG)
    dtype = None if on_cpu else torch.bfloat16
    model.compute = ComputeSettings(attention=attention, compile=True, dtype=dtype)
    documents = set()
    for step in range(num_steps):
        (batch,) = batches(step)
        documents.add(int((batch.positions == 0).sum()))
        forward_and_backward(model, laid_out(batch) if on_cpu else on_meta(batch))
        assert len(graphs) == 2, f"step {step}"
    assert len(documents) > 3  # so they were different


@pytest.mark.parametrize("name", ["int4_group32", "int4_channel"])
def test_a_quantized_block_is_one_graph(name, graphs):
    with torch.device(META):
        model = prepare(Transformer(CONFIG), SCHEMES[name])
    model.compute = ComputeSettings(attention="varlen", compile=True, dtype=torch.bfloat16)
    for step in range(2):
        forward_and_backward(model, on_meta(conversations(256)(step)[0]))
    assert len(graphs) == 2


# ---- what the host knows of a batch ----


def test_a_batch_that_is_laid_out_gives_the_same_loss_to_the_bit_and_its_places_move_with_it():
    (batch,) = conversations(256)(3)
    laid = laid_out(batch)
    assert laid.label_places is not None and laid.documents is not None
    assert laid.num_labels == batch.num_labels == len(laid.label_places)
    assert torch.equal(laid.labels.flatten()[laid.label_places], batch.labels[batch.labels != -100])
    assert laid_out(laid) is laid
    model = Transformer(CONFIG)
    assert torch.equal(next_token_loss(model, laid), next_token_loss(model, batch))
    away = on_meta(batch)
    tensors = [away.input_ids, away.labels, away.positions, away.doc_ids, away.label_places]
    assert all(x is not None and x.is_meta for x in [*tensors, *(away.documents or ())])


def test_batches_are_laid_out_ahead_and_pinned_for_a_gpu_alone(monkeypatch):
    pinned: list[torch.Size] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x.shape) or x)
    (batch,) = ready(conversations(256), CPU)(0)
    assert batch.label_places is not None and not pinned
    (batch,) = ready(conversations(256), CUDA)(0)
    assert batch.label_places is not None and len(pinned) == 7


def test_a_step_reads_its_figures_once_however_many_micro_batches(monkeypatch):
    reads, read = [], loop.read_figures
    monkeypatch.setattr(loop, "read_figures", lambda x: reads.append(len(x)) or read(x))
    model, (batch,) = Transformer(CONFIG), conversations(256)(0)
    optimizers = make_optimizers(model, OPTIM)
    loss, norm, _ = loop.train_step(model, optimizers, [batch] * 3, next_token_loss, 1e-3, 1.0, 0)
    assert reads == [4] and loss > 0 and norm > 0


def test_labels_are_taken_from_a_block_alike_with_and_without_asking_for_their_number(monkeypatch):
    logits, labels = torch.randn(9, 12), torch.randint(30, (9,))
    words = slice(10, 22)
    asked = label_places(labels, words)
    monkeypatch.setattr(Tensor, "is_cpu", False)
    unasked = label_places(labels, words)
    monkeypatch.undo()
    assert asked.inside is None and unasked.inside is not None and 0 < len(asked.tokens) < 9
    chosen = unasked.of(logits)
    assert torch.equal(chosen[unasked.inside], asked.of(logits))
    assert not chosen[~unasked.inside].any()
    assert torch.equal(unasked.take_one(logits.clone()), asked.take_one(logits.clone()))


def test_the_command_lets_segments_of_a_gpus_memory_grow_unless_the_user_says_otherwise(
    monkeypatch,
):
    monkeypatch.setattr(cli, "app", lambda: None)
    for said, expected in (({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "x"}, "x")):
        environment = dict(said)
        monkeypatch.setattr(os, "environ", environment)
        cli.main()
        assert environment["PYTORCH_ALLOC_CONF"] == expected
    older = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    environment = dict(older)
    monkeypatch.setattr(os, "environ", environment)
    cli.main()
    assert older.items() <= environment.items()
    assert "PYTORCH_ALLOC_CONF" not in environment


# ---- which code serves ----


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        (None, ["flash_attn_interface"], "FA2"),
        ((8, 0), ["flash_attn_interface", "flash_attn.cute"], "FA2"),
        ((9, 0), [], "FA2"),
        ((9, 0), ["flash_attn_interface"], "FA3"),
        ((10, 0), ["flash_attn_interface", "flash_attn.cute"], "FA4"),
    ],
)
def test_the_flash_attention_of_this_gpu_is_activated_where_it_is_installed(
    capability, installed, expected, monkeypatch
):
    activated: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(varlen, "_is_installed", lambda package: package in installed)
    monkeypatch.setattr(varlen, "activate_flash_attention_impl", activated.append)
    assert varlen.flash_attention.__wrapped__() == expected
    assert activated == [name for name in [expected] if name != "FA2"]


@pytest.mark.parametrize(
    ("flash", "dtype", "expected"),
    [
        ("FA2", torch.bfloat16, "sdpa"),
        ("FA3", torch.bfloat16, "varlen"),
        ("FA3", torch.float32, "sdpa"),
    ],
)
def test_whole_rows_take_varlen_where_it_is_a_later_flash_attention(
    flash, dtype, expected, monkeypatch
):
    monkeypatch.setattr(choose, "flash_attention", lambda: flash)
    case = attention_case(CONFIG, 2, 64, CUDA, dtype)
    assert choose_kernel("auto", case).kernel.name == expected


def test_a_flash_attention_that_does_not_load_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(varlen, "_is_installed", lambda package: True)
    with pytest.raises(ValueError, match="flash_attn_interface is installed and does not load"):
        varlen.flash_attention.__wrapped__()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_torchs_own_loss_is_ours_by_value_and_gradient(weighted, dtype):
    tolerance = 1e-6 if dtype is None else 1e-2
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 32, generator=generator) for n in (50, 300))
    labels = torch.randint(300, (50,), generator=generator)
    weights = torch.rand(50, generator=generator) if weighted else None
    results = []
    for by_torch in (False, True):
        leaves = [nn.Parameter(x), nn.Parameter(weight)]
        logits = LazyLogits(leaves[0], leaves[1], dtype)
        if by_torch:
            loss = library_loss("torch", logits, labels, weights)
        else:
            loss = head_loss(logits, labels=labels, weights=weights)
        assert loss.dtype == torch.float32
        (3 * loss).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for ours, torchs in zip(*results, strict=True):
        assert (ours - torchs).norm() <= tolerance * ours.norm()


@pytest.mark.parametrize(
    ("name", "case", "advice"),
    [
        ("fast", {}, "is unknown; known: auto, chunked, torch, liger, cce"),
        ("liger", {"where": CPU}, "written for CUDA, not for cpu; take chunked"),
        ("cce", {"where": CPU}, "written for CUDA, not for cpu; take chunked"),
        ("liger", {}, "needs the package liger_kernel, which is not installed"),
        ("cce", {}, "needs the package cut_cross_entropy, which is not installed"),
        ("liger", {"weights": True}, "counts each token alike"),
        ("torch", {"teacher": True}, "no divergence from a teacher; take chunked"),
        ("chunked", {"weights": True, "teacher": True}, None),
        ("auto", {"where": CPU}, None),
        ("torch", {"weights": True, "where": CPU}, None),
    ],
)
def test_code_for_the_loss_that_cannot_serve_is_refused_with_what_to_take(name, case, advice):
    case = {"where": CUDA, "weights": False, "teacher": False, **case}
    problem = refusal(name, case.pop("where"), **case)
    assert problem is None if advice is None else advice in str(problem)


def test_a_named_loss_reaches_the_training_and_a_teacher_refuses_it():
    assert replace(OPTIM, head_loss="torch").head_loss in HEAD_LOSSES
    with pytest.raises(ValueError, match="head_loss 'fast' is unknown; known: auto, chunked"):
        replace(OPTIM, head_loss="fast")
    model, (batch,) = Transformer(CONFIG), conversations(256)(0)
    ours = next_token_loss(model, batch).detach()
    model.compute, named = ComputeSettings(head_loss="torch"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "library_loss", lambda name, *_: named.append(name) or ours)
        next_token_loss(model, batch)
    assert named == ["torch"]
    by_torch = next_token_loss(model, batch).detach()
    assert float(by_torch) == pytest.approx(float(ours), rel=1e-6)
    model.compute = ComputeSettings(head_loss="liger")
    with pytest.raises(ValueError, match="head_loss=liger is written for CUDA, not for cpu"):
        next_token_loss(model, batch)
    with pytest.raises(ValueError, match="head_loss=liger has no divergence from a teacher"):
        distillation_loss(lambda _: LazyLogits(torch.zeros(1, 300)), Distillation())(model, batch)
