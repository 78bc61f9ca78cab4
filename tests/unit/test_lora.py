"""LoRA: what is trained, what it is merged to, and what it costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import small

from pocketlm.model.adapters import PREFIX, Adapter, merge_adapter
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.costs import num_parameters
from pocketlm.model.lora import (
    PROJECTIONS,
    LoRA,
    LoRALinear,
    add_lora,
    merge_lora,
    num_lora_parameters,
)
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.lazy_logits import LazyLogits
from pocketlm.train.memory import training_memory
from pocketlm.train.optim import OptimConfig
from pocketlm.train.vocab_loss import head_loss
from tests.unit.rank_processes import on_ranks

SHAPE = small(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
IDS = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0))
OPTIM = OptimConfig(
    lr=5e-3, num_steps=9, warmup_steps=0, final_lr_share=0.1, compute_dtype="float32"
)
CONFIG = FinetuneConfig(
    name="chat",
    optim=OPTIM,
    seq_len=64,
    rows_per_step=8,
    micro_batch_size=4,
    seed=3,
    lora=LoRA(rank=4, alpha=8.0),
    save=SaveConfig(every_steps=3, keep_last=1),
)


def drawn_factors(model: Transformer) -> None:
    """B is zero at first; here it is not."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            generator = torch.Generator().manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)


def test_factors_change_nothing_at_first_and_then_what_their_formula_says() -> None:
    model = Transformer(SHAPE, seed=1)
    before = model(IDS)
    how = LoRA(rank=3, alpha=6.0, projections=("q_proj", "down_proj"))
    add_lora(model, how, seed=5)
    assert torch.equal(model(IDS), before)
    drawn_factors(model)
    layer = model.model.layers[0].get_submodule("mlp.down_proj")
    assert isinstance(layer, LoRALinear)
    x = torch.randn(4, layer.in_features)
    low = x @ layer.lora_A.T
    expected = x @ layer.weight.T + 2.0 * (low @ layer.lora_B.T)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (
        all(
            name.endswith(("q_proj.lora_A", "q_proj.lora_B", "down_proj.lora_A", "lora_B"))
            for name in names
        )
        and len(names) == 2 * 2 * SHAPE.num_hidden_layers
    )
    model(IDS).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == names


def test_merged_it_computes_the_same_and_is_an_ordinary_network() -> None:
    model = add_lora(Transformer(SHAPE, seed=1), LoRA(rank=3), seed=5)
    drawn_factors(model)
    with torch.no_grad():
        before = model(IDS)
        after = merge_lora(model)(IDS)
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert list(model.state_dict()) == list(Transformer(SHAPE).state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_what_peft_would_read_as_an_adapter_is_merged_to_the_same(tmp_path: Path) -> None:
    how = LoRA(rank=3, alpha=5.0)
    model = add_lora(Transformer(SHAPE, seed=1), how, seed=5)
    drawn_factors(model)
    state = model.state_dict()
    factors = {
        f"{PREFIX}{name.replace('.lora_', '.lora_')}.weight": tensor.clone()
        for name, tensor in state.items()
        if "lora_" in name
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    tensors = dict(Transformer(SHAPE, seed=1).state_dict())
    adapter = Adapter(folder=tmp_path, scale=how.scale, rank=3, base=None)
    assert merge_adapter(tensors, adapter) == len(PROJECTIONS) * SHAPE.num_hidden_layers
    merged = merge_lora(model).state_dict()
    assert all(torch.equal(merged[name], tensors[name]) for name in merged)


@pytest.mark.parametrize("projections", [PROJECTIONS, ("v_proj",), ("gate_proj", "o_proj")])
def test_the_factors_are_counted(projections: tuple[str, ...]) -> None:
    how = LoRA(rank=5, projections=projections)
    model = add_lora(Transformer(SHAPE), how, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == num_lora_parameters(SHAPE, how)


def test_a_frozen_head_gets_no_gradient_and_changes_no_other() -> None:
    x, weight = torch.randn(40, 16), torch.randn(300, 16)
    labels = torch.randint(300, (40,))
    gradients = []
    for frozen in (False, True):
        inputs, head = x.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        head_loss(LazyLogits(inputs, head, None), labels=labels).backward()
        gradients.append(inputs.grad)
        assert (head.grad is None) == frozen
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]


def test_memory_is_that_of_what_is_trained() -> None:
    shape = replace(SHAPE, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    layout = {"rows": 1, "seq_len": 64, "accumulates": True, "masked": True, "saves": False}
    full = training_memory(shape, OPTIM, **layout)
    trained = num_lora_parameters(shape, LoRA(rank=8))
    lora = training_memory(shape, OPTIM, **layout, trained=trained)
    assert lora.states == 8 * trained and lora.gradients == 4 * trained
    assert lora.weights == full.weights + 4 * trained
    assert full.peak - lora.peak > 10 * (num_parameters(shape) - 2 * trained)


# ---- the stage ----


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a checkpoint, a corpus of conversations)."""
    folder = tmp_path_factory.mktemp("lora")
    texts = ["the quick brown fox jumps over the lazy dog, hello there user assistant"] * 4
    tokenizer = Tokenizer(train_tokenizer(texts, 290).backend, chat_template=CHATML)
    save_checkpoint(folder, Transformer(replace(SHAPE, vocab_size=290), seed=1), tokenizer)
    corpus = folder / "corpus" / "documents" / "chats"
    corpus.mkdir(parents=True)
    rows = [{"prompt": f"user {n}", "response": "fox " * (n % 7 + 1)} for n in range(40)]
    (corpus / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, folder / "corpus"


def run(config: FinetuneConfig, out: Path, start: tuple[Path, Path]) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    finetune(config, out, corpus=start[1], model=start[0])
    return load_checkpoint(out)[0].state_dict()


def test_a_stage_leaves_an_ordinary_checkpoint_in_which_only_the_layers_changed(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    before = load_checkpoint(start[0])[0].state_dict()
    after = run(CONFIG, tmp_path / "out", start)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(
        load_file(start[0] / "model.safetensors")
    )
    for name, tensor in before.items():
        if name.split(".")[-2] in PROJECTIONS:
            change = (after[name] - tensor).double()
            values = torch.linalg.svdvals(change)
            assert values[3] > 1e-6 and values[4] < 1e-5 * values[0], name  # of rank four
        else:
            assert torch.equal(after[name], tensor), name
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_activation_checkpointing_changes_no_bit(start: tuple[Path, Path], tmp_path: Path) -> None:
    plain = run(CONFIG, tmp_path / "plain", start)
    optim = replace(OPTIM, checkpoint_every_n_blocks=1)
    again = run(replace(CONFIG, optim=optim), tmp_path / "recomputed", start)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_stage_that_was_stopped_ends_with_the_same_bits(
    at: int, start: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(CONFIG, tmp_path / "whole", start)
    step: Callable[..., Any] = loop.train_step
    count = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == at + 1:
            raise Stopped
        return step(*arguments)

    out = tmp_path / "broken"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(Stopped):
            finetune(CONFIG, out, corpus=start[1], model=start[0])
    resumed = run(CONFIG, out, start)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def of_ranks(out: Path, model: Path, corpus: Path) -> str:
    return str(finetune(CONFIG, out, corpus=corpus, model=model))


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(start: tuple[Path, Path], tmp_path: Path) -> None:
    together = tmp_path / "together"
    together.mkdir()
    one = run(CONFIG, tmp_path / "alone", start)
    assert on_ranks(2, tmp_path, of_ranks, together, *start) == [str(together)] * 2
    two = load_checkpoint(together)[0].state_dict()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name


def test_what_cannot_be_is_refused_by_name(start: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="trained by adamw; muon would"):
        replace(CONFIG, optim=replace(OPTIM, optimizer="muon"))
    wrong: list[dict[str, Any]]
    wrong = [{"rank": 0}, {"alpha": 0.0}, {"projections": ()}, {"projections": ("head",)}]
    for fields in wrong:
        with pytest.raises(ValueError, match="LoRA: "):
            LoRA(**fields)
    rounded = prepare(Transformer(SHAPE), SCHEMES["int4_group32"])
    with pytest.raises(ValueError, match="q_proj is no plain linear layer"):
        add_lora(rounded, LoRA(), seed=0)
