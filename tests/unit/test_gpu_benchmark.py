"""benchmarks/gpu.py on a processor, with tiny networks: its arithmetic, its rows and its page."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketlm.model.costs import block_matrices, num_parameters
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import Transformer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def load() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu = load()
CASES = gpu.all_cases()


def test_the_table_covers_networks_lengths_kernels_losses_and_trainings():
    rows = CASES.values()
    assert {"r1-140m", "r1-360m", "r1-950m", "pro"} == {case.model for case in rows}
    for name in ("r1-140m", "r1-360m", "r1-950m"):
        assert {2048, 4096} <= {case.seq_len for case in rows if case.model == name}
    assert {4096, 32_768} <= {case.seq_len for case in rows if case.model == "pro"}
    assert {"auto", "sdpa", "flex", "varlen"} == {case.attention for case in rows}
    assert {"auto", "torch", "liger", "cce"} == {case.head_loss for case in rows}
    assert {True, False} == {case.compile for case in rows} and 1 in {c.checkpoint for c in rows}
    assert len({case.rows for case in rows if case.seq_len == 2048}) >= 4
    assert any(case.teacher == "llama-8b" for case in rows) and any(c.scheme for c in rows)
    assert any(case.packed == "sft" and case.seq_len == 32_768 for case in rows)
    assert 8.02e9 < num_parameters(gpu.LLAMA_8B) < 8.04e9  # Llama 3.1 8B has 8.03


def test_operations_are_those_that_torch_counts_for_products_and_all_causal_pairs():
    config = replace(
        gpu.tiny_network(PRESETS["r1-140m"]), num_key_value_heads=4, tie_word_embeddings=True
    )
    with torch.device("meta"):
        model, ids = Transformer(config), torch.zeros(2, 64, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(ids)
    # torch counts all of T x T, which is 2 T / (T + 1) times the causal pairs
    pairs = 2 * 2 * 64 * 65 // 2
    attention = 4 * 4 * 16 * pairs
    rest = counter.get_total_flops() - attention * 2 * 64 / 65
    assert gpu.forward_flops(config, [64, 64], 128) == rest + attention


def test_r1_950m_takes_what_the_arithmetic_of_published_utilisations_says():
    """6 N and attention: about 6.1 GFLOP a token at 2,048 tokens, so 55 % of an H100 is 89,000
    tokens a second.
    """
    each = 3 * gpu.forward_flops(PRESETS["r1-950m"], [2048], 2048) / 2048
    assert each == pytest.approx(6.1e9, rel=0.02)
    assert 0.55 * (gpu.peak_flops("NVIDIA H100 80GB HBM3") or 0) / each == pytest.approx(
        89_000, rel=0.02
    )


def test_a_window_and_short_documents_take_fewer_pairs():
    assert [gpu.causal_pairs(n, None) for n in (1, 2, 10)] == [1, 3, 55]
    for length, window in ((10, 4), (4, 10), (7, 7), (9, 1)):
        written_out = sum(min(t + 1, window) for t in range(length))
        assert gpu.causal_pairs(length, window) == written_out


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_makers_figure_is_that_of_the_device(name, flops):
    assert gpu.peak_flops(name) == flops


def test_documents_fill_their_rows_and_labels_of_prompts_do_not_count():
    case = gpu.tiny(CASES["r1-950m 32k, sft"])
    (batch,) = gpu.batches_of(case, 512)(0)
    lengths = gpu.document_lengths(batch)
    assert sum(lengths) == case.tokens and len(lengths) > 2
    assert 0 < batch.num_labels < case.tokens and batch.positions is not None
    assert int((batch.positions == 0).sum()) == len(lengths)
    assert not torch.equal(batch.input_ids, gpu.batches_of(case, 512)(1)[0].input_ids)


NAMES = (
    "r1-140m 2k",
    "pro 4k, documents",
    "r1-950m 2k, loss by torch",
    "r1-950m 2k, muon",
    "r1-950m 2k, checkpointing",
    "r1-950m 2k, distil from 8B",
    "pro 2k, int4_channel from itself",
    "r1-950m 32k, sft",
)


def test_every_kind_of_case_is_measured_and_what_cannot_run_says_why(tmp_path):
    refused = ("r1-950m 2k, varlen", "r1-950m 2k, loss by liger")
    names = [*NAMES, *refused]
    rows = [gpu.run(name, gpu.tiny(CASES[name]), CPU, small=True) for name in names]
    for row in rows[: len(NAMES)]:
        assert "problem" not in row, row
        assert row["tokens_per_second"] > 0 and row["of_ceiling"] > 0 and row["tflops"] > 0
        # what only a GPU tells
        assert row["mfu"] is row["ceiling"] is row["peak_gib"] is row["waits"] is None
    assert "runs on CUDA alone" in rows[-2]["problem"]
    assert "written for CUDA" in rows[-1]["problem"]
    gpu.write(tmp_path, gpu.machine(CPU), rows)
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["case"] for row in kept["rows"]] == names
    lines = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line[0:1] == "|"]
    assert len(lines) == 2 + len(names) and len({line.count("|") for line in lines}) == 1


def test_the_products_of_a_step_are_its_operations_without_attention():
    config = gpu.tiny_network(PRESETS["r1-950m"])
    teacher = gpu.tiny_network(gpu.LLAMA_8B)
    for name in ("r1-950m 2k", "r1-950m 2k, distil from 8B"):
        case = gpu.tiny(CASES[name])
        steps = [gpu.batches_of(case, 512)(number) for number in range(2)]
        products = gpu.step_products(case, config, steps, True, CPU)
        counted = sum((f + 2 * b) * 2 * m * k * n for f, b, (m, k, n) in products)
        attention = 3 * attention_flops(config)
        if case.teacher:
            attention += attention_flops(teacher)
        assert counted == gpu.operations(case, config, steps, small=True) - attention


def attention_flops(config: ModelConfig) -> int:
    """Of a forward pass over two documents of 64 tokens."""
    products = 2 * 128 * block_matrices(config) * config.applications
    return gpu.forward_flops(config, [64] * 2, 0) - products


def test_blocks_that_are_recomputed_have_their_forward_products_twice():
    config = gpu.tiny_network(PRESETS["r1-950m"])
    case = gpu.tiny(CASES["r1-950m 2k, checkpointing"])
    steps = [gpu.batches_of(case, 512)(0)]
    *blocks, head = gpu.step_products(case, config, steps, True, CPU)
    assert all(forward == 2 * backward for forward, backward, _ in blocks)
    assert head[0] == head[1]


def test_a_distilled_and_an_undistilled_step_differ_by_a_forward_pass_of_the_teacher():
    case = gpu.tiny(CASES["r1-950m 2k, distil from 8B"])
    config = gpu.tiny_network(PRESETS["r1-950m"])
    steps = [gpu.batches_of(case, 512)(0)]
    alone = gpu.operations(replace(case, teacher=""), config, steps, small=True)
    taught = gpu.operations(case, config, steps, small=True)
    assert taught - alone == gpu.forward_flops(gpu.tiny_network(gpu.LLAMA_8B), [64] * 2, 128)
