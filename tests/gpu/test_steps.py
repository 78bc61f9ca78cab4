"""On a CUDA device: every training's step as the processor takes it, each attention kernel and code
of the loss, one wait a step, blocks compiled once, and training that goes on elsewhere.

What these shapes and dtypes do without a device is in unit/test_gpu_path.py.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fake_gpu import CASES, CONFIG, Case, batch_of
from torch import Tensor

from pocketlm.model.attention import find_documents
from pocketlm.model.batch import Batch, laid_out
from pocketlm.model.kernels.choose import KERNELS
from pocketlm.model.kernels.kernel import AttentionCase
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.distill import teacher as teachers
from pocketlm.train.distributed import fsdp
from pocketlm.train.head_kernels import PACKAGES, library_loss
from pocketlm.train.lazy_logits import LazyLogits
from pocketlm.train.losses import Distillation, LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import OptimConfig, compute_settings, make_optimizers
from pocketlm.train.prefetch import ready
from pocketlm.train.vocab_loss import head_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WIDE = replace(CONFIG, hidden_size=64, head_dim=64, vocab_size=320, initializer_range=0.1)
REAL = {name: case for name, case in CASES.items() if not name.startswith("a loss that")}
# beside exact arithmetic: bfloat16 has 8 bits, and the GPU's float32 sums go in another order
NARROW, EXACT = 3e-2, 1e-4
NARROW_PATH = 0.5  # of three steps: AdamW's first follow the sign of each gradient


def packing(seed: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """(positions, document ids) of documents of 1 to 200 tokens."""
    begins = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.01
    begins[:, 0] = True
    place = torch.arange(length).expand(rows, length)
    return place - torch.where(begins, place, 0).cummax(1).values, begins.long().cumsum(1)


@pytest.mark.parametrize("window", [None, 1, 40, 128, 129])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("varlen", torch.bfloat16), *product(("flex", "sdpa"), (torch.bfloat16, torch.float32))],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_kernel_gives_the_values_and_gradients_of_the_mask(packed, name, dtype, window):
    B, H, K, T, E = 3, 4, 2, 300, 64
    case = AttentionCase(
        device=CUDA,
        dtype=dtype,
        rows=B,
        num_tokens=T,
        num_heads=H,
        num_kv_heads=K,
        head_dim=E,
        window=window,
        packed=packed,
    )
    positions, doc_ids = packing(0, B, T)
    if not packed:
        positions, doc_ids = torch.arange(T).expand(B, T), torch.zeros(B, T, dtype=torch.long)
    documents = find_documents(positions.to(CUDA), doc_ids.to(CUDA)) if packed else None
    generator = torch.Generator().manual_seed(1)
    *drawn, upstream = (
        torch.randn(B, n, T, E, generator=generator).to(dtype) for n in (H, K, K, H)
    )
    gap = positions[:, :, None] - positions[:, None]
    mask = (doc_ids[:, :, None] == doc_ids[:, None]) & (gap >= 0) & (gap < (window or T))
    results = []
    for on_gpu in (True, False):
        where, exact = (CUDA, dtype) if on_gpu else (CPU, torch.float64)
        leaves = [x.to(where, exact).requires_grad_() for x in drawn]
        if on_gpu:
            kernel = KERNELS[name]
            q, k, v = leaves
            out = kernel.attend(q, k, v, kernel.prepare(case, documents))
        else:
            keys, values = (x.repeat_interleave(H // K, 1) for x in leaves[1:])
            out = F.scaled_dot_product_attention(leaves[0], keys, values, attn_mask=mask[:, None])
        out.backward(upstream.to(where, exact))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, right in zip(*results, strict=True):
        distance = (mine.cpu().double() - right).norm() / right.norm()
        assert distance <= (NARROW if dtype == torch.bfloat16 else EXACT)


# ---- whole steps ----


def network(case: Case, where: torch.device, seed: int = 0) -> Transformer:
    config = replace(WIDE, tie_word_embeddings=case.tied)
    model = Transformer(config, seed=seed)
    return (prepare(model, SCHEMES[case.scheme]) if case.scheme and not seed else model).to(where)


def loss_of(case: Case, optim: OptimConfig, where: torch.device) -> LossFn:
    if case.loss is not None:
        return case.loss
    live = teachers.live_teacher(network(case, where, seed=1), optim)
    return distillation_loss(live, Distillation(label_share=case.label_share))


def after_steps(
    case: Case, optim: OptimConfig, where: torch.device, patch: pytest.MonkeyPatch
) -> tuple[list[float], dict[str, Tensor]]:
    """(loss and gradient norm of three steps, the weights after them)."""
    patch.setattr(teachers, "shard_model", lambda model, *_, **__: model)
    model, batch = network(case, where), laid_out(batch_of(case.batch))
    loss_fn = loss_of(case, optim, where)
    model.compute = compute_settings(model, optim)
    optimizers, figures = make_optimizers(model, optim), []
    for step in range(3):
        figures += loop.train_step(model, optimizers, [batch, batch], loss_fn, 1e-3, 1.0, step)[:2]
    return figures, {name: x.detach().cpu() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_a_step_of_every_training_is_the_processors(name, compiled, monkeypatch):
    case = REAL[name]
    exact = case.optim.compute_dtype == "float32"
    on_gpu = replace(case.optim, compile="yes" if compiled else "no")
    on_cpu = replace(
        case.optim, compute_dtype="float32", attention="auto", head_loss="auto", compile="no"
    )
    with monkeypatch.context() as patch:
        figures, weights = after_steps(case, on_gpu, CUDA, patch)
    with monkeypatch.context() as patch:
        expected, right = after_steps(case, on_cpu, CPU, patch)
    assert figures == pytest.approx(expected, rel=1e-3 if exact else 0.1)
    start = network(case, CPU).state_dict()
    for key, value in right.items():
        # three steps move a weight by some hundredths of it: the path is compared, not the place
        moved, astray = value - start[key], weights[key] - value
        assert astray.norm() <= (0.02 if exact else NARROW_PATH) * moved.norm() + 1e-7, key


# a library's code may wait; the benchmark counts it
OWN_LOSS = [name for name, case in REAL.items() if case.optim.head_loss == "auto"]


@pytest.mark.parametrize("name", OWN_LOSS)
def test_the_host_waits_once_a_step(name, monkeypatch):
    case = REAL[name]
    monkeypatch.setattr(teachers, "shard_model", lambda model, *_, **__: model)
    model = network(case, CUDA)
    loss_fn = loss_of(case, case.optim, CUDA)
    model.compute = compute_settings(model, case.optim)
    optimizers = make_optimizers(model, case.optim)
    (batch,) = ready(lambda step: [batch_of(case.batch)], CUDA)(0)
    assert batch.input_ids.is_pinned()

    def step() -> None:
        loop.train_step(model, optimizers, [batch, batch], loss_fn, 1e-3, 1.0, 0)

    step()  # the first makes states, and compiles kernels
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("attention", ["varlen", "flex"])
def test_ten_packings_compile_each_kind_of_layer_once(attention):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    model = Transformer(WIDE).to(CUDA)
    optim = replace(CASES["pretrain"].optim, compile="yes", attention=attention)
    model.compute = compute_settings(model, optim)
    graphs = []
    for seed in range(10):
        positions, doc_ids = packing(seed, 2, 256)
        ids = torch.randint(320, (2, 256), generator=torch.Generator().manual_seed(seed))
        batch = Batch(input_ids=ids, labels=ids, positions=positions, doc_ids=doc_ids)
        next_token_loss(model, fsdp.to_device(batch, CUDA)).backward()
        graphs.append(counters["unique_graphs"])
    assert len(set(graphs)) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_a_librarys_loss_is_ours_by_value_and_gradient(name):
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 128, generator=generator) for n in (512, 4096))
    labels = torch.randint(4096, (512,), generator=generator).to(CUDA)
    results = []
    for ours in (True, False):
        leaves = [t.to(CUDA).requires_grad_() for t in (x, weight)]
        logits = LazyLogits(leaves[0], leaves[1], torch.bfloat16)
        loss = (
            head_loss(logits, labels=labels) if ours else library_loss(name, logits, labels, None)
        )
        (loss / 512).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for mine, other in zip(*results, strict=True):
        assert (mine - other).norm() <= NARROW * mine.norm()


# ---- going on elsewhere ----


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("first", "then"), [(CUDA, CPU), (CPU, CUDA), (CUDA, CUDA)])
def test_a_training_goes_on_on_another_device(first, then, tmp_path, monkeypatch):
    optim = OptimConfig(
        lr=1e-3, num_steps=6, warmup_steps=0, final_lr_share=0.1, compute_dtype="float32"
    )
    batch = batch_of("packed")

    def run(name: str, where: torch.device, draw: Callable[[int], list[Batch]]) -> Transformer:
        monkeypatch.setattr(fsdp, "device", lambda: where)
        out: Path = tmp_path / name
        out.mkdir(exist_ok=True)
        save = SaveConfig(every_steps=2, keep_last=1)
        options = {"label": name, "save": save}
        return loop.train(Transformer(WIDE), draw, next_token_loss, optim, out, **options)

    def failing(step: int) -> list[Batch]:
        if step == 4:
            raise Stopped
        return [batch]

    with pytest.raises(Stopped):
        run("broken", first, failing)
    resumed = run("broken", then, lambda step: [batch])
    unbroken = run("whole", CPU, lambda step: [batch])
    for (key, value), right in zip(
        resumed.state_dict().items(), unbroken.state_dict().values(), strict=True
    ):
        assert (value.cpu() - right).norm() <= 1e-3 * right.norm(), key
