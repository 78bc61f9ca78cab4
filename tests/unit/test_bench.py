"""`pocketlm bench`: sizes follow from the shape and from what the runtimes allocate, speeds from
the clock.
"""

import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
import torch
from shapes import small
from typer.testing import CliRunner

import pocketlm.stages.bench as stage
from pocketlm.cli import app
from pocketlm.commands.bench_table import bench_table
from pocketlm.eval import hardware as machine
from pocketlm.export.gguf import write_gguf
from pocketlm.export.pte_network import PteNetwork
from pocketlm.inference.open import opened
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.quant import SCHEMES
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.bench import BenchConfig, bench, chosen_contexts, measure

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")
pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
from pocketlm.export.pte import write_pte
from pocketlm.inference import libllama
from pocketlm.inference.executorch import PteModel
from pocketlm.inference.llamacpp import GgufModel

WINDOW, KV_NUMBERS = 16, 2 * 2 * 32  # keys and values, two heads of 32
SHAPE = small(
    vocab_size=320,
    hidden_size=96,
    intermediate_size=160,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    layer_types=(LOCAL, GLOBAL),
    sliding_window=WINDOW,
)
KINDS = ("checkpoint", "model.gguf", "model.pte")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a banana and a bandana and an ananas"] * 4, 262)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model of random weights in the three kinds; the .pte holds 128 tokens."""
    folder = tmp_path_factory.mktemp("models")
    model = Transformer(SHAPE).eval()
    (folder / "checkpoint").mkdir()
    save_checkpoint(folder / "checkpoint", model, tokenizer)
    write_gguf(model, tokenizer, folder / "model.gguf", dtype="q4_0")
    write_pte(model, tokenizer, folder / "model.pte", context_length=128)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte a second, and no time spent on finding out."""
    monkeypatch.setattr(stage, "read_bandwidth", lambda: 1e9)


def kv_numbers(length: int, window: int) -> int:
    """Of SHAPE's two layers, one of which is local."""
    return KV_NUMBERS * (length + min(length, window))


# ---- sizes ----


@pytest.mark.parametrize("length", [5, WINDOW, 300])
def test_a_checkpoints_cache_holds_all_tokens_of_global_layers_and_a_window_of_local_ones(
    tokenizer: Tokenizer, length: int
) -> None:
    model = LanguageModel(Transformer(SHAPE), tokenizer)
    assert model.memory(length).kv_bytes == 4 * kv_numbers(length, WINDOW)
    rounded = LanguageModel(Transformer(SHAPE), tokenizer, int8_cache=True)
    assert rounded.memory(length).kv_bytes == kv_numbers(length, WINDOW)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_every_weight_but_not_a_table_of_its_own(
    tokenizer: Tokenizer, tied: bool
) -> None:
    network = Transformer(replace(SHAPE, tie_word_embeddings=tied))
    read = sum(
        p.numel() for name, p in network.named_parameters() if tied or "embed_tokens" not in name
    )
    assert LanguageModel(network, tokenizer).memory(40).step_bytes == 4 * (
        read + kv_numbers(40, WINDOW)
    )


@pytest.mark.parametrize(
    "shape", [SHAPE, replace(SHAPE, layer_types=(), sliding_window=None)], ids=["local", "global"]
)
@pytest.mark.parametrize("length", [100, 1000])
def test_the_cache_of_a_gguf_is_what_llama_cpp_says_it_allocates(
    tokenizer: Tokenizer, tmp_path: Path, shape: ModelConfig, length: int
) -> None:
    """In its log, to a hundredth of a MiB; so heads here are wide."""
    wide = replace(shape, head_dim=128, num_key_value_heads=4, max_position_embeddings=2048)
    file = write_gguf(Transformer(wide), tokenizer, tmp_path / "wide.gguf", dtype="f16")
    lines: list[str] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def log(level: int, text: bytes, _: object) -> None:
        lines.append(text.decode())

    library = libllama.library()
    model = GgufModel(file, threads=1)
    library.llama_log_set(log, None)
    try:
        list(model.stream([5], max_new_tokens=length - 1, stop_ids=set(range(320))))
    finally:
        library.llama_log_set(libllama._log, None)
        model.close()
    told = [
        float(found[1])
        for line in lines
        if (found := re.search(r"llama_kv_cache: size = +([\d.]+) MiB", line))
    ]
    assert len(told) == (2 if shape.layer_types else 1)  # global and local layers have a cache each
    kv_bytes = model.memory(length).kv_bytes
    assert kv_bytes is not None and kv_bytes / 2**20 == pytest.approx(sum(told), abs=0.011)


@pytest.mark.parametrize(
    "shape", [SHAPE, replace(SHAPE, layer_types=(), sliding_window=None)], ids=["untied", "tied"]
)
def test_a_step_of_a_gguf_reads_its_tensors_but_not_a_table_of_its_own(
    tokenizer: Tokenizer, tmp_path: Path, shape: ModelConfig
) -> None:
    file = write_gguf(Transformer(shape), tokenizer, tmp_path / "model.gguf", dtype="q4_0")
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    assert ("output.weight" in sizes) == bool(shape.layer_types)  # `step35` stores the head apart
    read = sum(sizes.values()) - (sizes["token_embd.weight"] if shape.layer_types else 0)
    window = WINDOW if shape.layer_types else 10**6
    with opened(file) as model:
        assert model.memory(200).step_bytes == read + 2 * kv_numbers(200, window)
        assert model.memory(10).step_bytes == read + 2 * kv_numbers(10, window)


def test_a_pte_tells_the_room_of_its_cache_and_what_a_step_reads(models: Path) -> None:
    model = PteModel(models / "model.pte", threads=1)
    ring = WINDOW + model.chunk - 1  # of a call, no token may overwrite what the first one sees
    assert model.memory(10).kv_bytes == model.memory(128).kv_bytes == 4 * kv_numbers(128, ring)
    linear = sum(
        p.numel() for name, p in Transformer(SHAPE).named_parameters() if "norm" not in name
    )
    for length in (10, 128):
        cache = KV_NUMBERS * (length + min(128, ring))
        assert model.memory(length).step_bytes == 4 * (linear + cache)
    # an older file
    model._facts = {name: value for name, value in model._facts.items() if "bytes" not in name}
    assert model.memory(10).kv_bytes is None and model.memory(10).step_bytes is None


def test_four_bit_layers_of_a_pte_count_four_and_a_half_bits_a_weight() -> None:
    network = PteNetwork(Transformer(SHAPE), 128, SCHEMES["int4_group32"])
    linear = sum(
        p.numel() for name, p in Transformer(SHAPE).named_parameters() if "norm" not in name
    )
    assert network.weight_bytes == linear * 4.5 / 8


# ---- the machine ----


def test_the_peak_of_memory_stays_when_the_memory_is_given_back() -> None:
    before = machine.memory_bytes()
    held = np.ones(2**24)  # 128 MiB
    high = machine.memory_bytes()
    del held
    assert machine.peak_memory_bytes() > high - 2**22  # the kernel's counts lag by some pages
    assert high - before > 2**26 and machine.memory_bytes() < high - 2**26


def test_the_bandwidth_is_bytes_over_the_seconds_of_the_fastest_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 3.0, 3.0, 5.0, 5.0, 9.0])  # reads of 3, 2 and 4 seconds
    monkeypatch.setattr(machine, "perf_counter", lambda: next(times))
    monkeypatch.setattr(machine, "READS", 3)
    monkeypatch.setattr(machine, "READ_BYTES", 4096)
    assert machine.read_bandwidth() == 4096 / 2


def test_the_physical_cores_are_those_this_process_may_use() -> None:
    assert 1 <= machine.available_cores() <= len(os.sched_getaffinity(0))


# ---- figures ----


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_is_measured_at_each_context(
    models: Path, quick: None, kind: str
) -> None:
    heard: list[str] = []
    config = BenchConfig(name="bench", contexts=(40, 20), new_tokens=4, repeats=1)
    found = measure(config, models / kind, 1, heard.append)
    assert torch.get_num_threads() == 1
    assert list(found["contexts"]) == ["20", "40"] and found["left_out"] == []
    assert "40 tokens, run 2 of 2" in heard
    assert (
        0 < found["memory_before_bytes"] <= found["peak_memory_bytes"] and found["load_seconds"] > 0
    )
    with opened(models / kind) as model:
        for context, row in found["contexts"].items():
            wait, pace = row["time_to_first_token_seconds"], row["decode_tokens_per_second"]
            assert row["prefill_tokens_per_second"] == pytest.approx((int(context) - 4) / wait)
            assert row["kv_bytes"] == model.memory(int(context)).kv_bytes
            assert row["step_bytes"] == model.memory(int(context)).step_bytes
            assert stage.share_of_limit(row, 1e9) == pytest.approx(pace * row["step_bytes"] / 1e9)
    size = found["bytes"]
    assert (
        size
        == (models / kind / "model.safetensors" if kind == "checkpoint" else models / kind)
        .stat()
        .st_size
    )


def test_the_threads_are_every_runtimes(models: Path) -> None:
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count

    for threads in (2, 1):
        for kind in KINDS:
            with opened(models / kind, threads=threads) as model:
                assert torch.get_num_threads() == threads
                if kind == "model.gguf":
                    assert isinstance(model, GgufModel) and model.threads == threads
                if kind == "model.pte":
                    assert _threadpool_get_thread_count() == threads


def test_usual_contexts_longer_than_the_model_are_left_out_and_asked_ones_refused(
    tmp_path: Path,
) -> None:
    usual, asked = BenchConfig(name="bench"), BenchConfig(name="bench", contexts=(2048, 64))
    assert chosen_contexts(usual, tmp_path, 2048) == ([128, 1024, 2048], [4096, 8192])
    assert chosen_contexts(asked, tmp_path, 2048) == ([64, 2048], [])
    with pytest.raises(
        ValueError,
        match="longest text is 1024 tokens, so there is no context 2048; give contexts up",
    ):
        chosen_contexts(asked, tmp_path, 1024)
    with pytest.raises(ValueError, match="no context 128"):
        chosen_contexts(usual, tmp_path, 96)


def test_an_asked_context_too_long_for_one_model_stops_before_any_is_measured(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(stage, "in_own_process", unexpected)
    paths = [models / kind for kind in KINDS]
    with pytest.raises(ValueError, match=r"model\.pte: its longest text is 128 tokens"):
        bench(BenchConfig(name="bench", contexts=(129,)), tmp_path, models=paths)


def test_a_model_that_was_measured_is_not_measured_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def own(tell: Any, config: BenchConfig, path: Path, threads: int) -> dict[str, Any]:
        if len(measured) == 1:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(path.name)
        row = {"step_bytes": 10**6, "decode_tokens_per_second": 100.0}
        return {"contexts": {"128": row}, "bandwidth_bytes_per_second": 1e9 if path.suffix else 2e9}

    monkeypatch.setattr(stage, "in_own_process", own)
    paths = [models / kind for kind in KINDS[:2]]
    with pytest.raises(KeyboardInterrupt):
        bench(BenchConfig(name="bench"), tmp_path, models=paths)
    bench(BenchConfig(name="bench"), tmp_path, models=paths)
    assert measured == ["checkpoint", "interrupted", "model.gguf"]
    found = json.loads((tmp_path / "bench.json").read_text())["models"].values()
    # of the best, 2 GB/s
    assert [figures["contexts"]["128"]["share_of_limit"] for figures in found] == [0.05, 0.05]


def killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_told(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_answer", killed)
    with pytest.raises(
        ValueError, match=r"model\.gguf: .* ended with status -9, killed: was the memory enough\?"
    ):
        bench(BenchConfig(name="bench"), tmp_path, models=[models / "model.gguf"])


def test_what_is_not_known_or_left_out_is_said_in_the_table(models: Path, quick: None) -> None:
    from rich.console import Console

    found = measure(BenchConfig(name="bench", repeats=1), models / "model.pte", 1, print)
    found["contexts"]["128"] |= {"kv_bytes": None, "step_bytes": None, "share_of_limit": None}
    console = Console(width=80, record=True, file=io.StringIO())
    settings = {"threads": 1, "repeats": 1, "new_tokens": 32, "bandwidth_bytes_per_second": 2e9}
    console.print(bench_table({**settings, "models": {"small": found}}))
    shown = " ".join(console.export_text().split())
    assert "small: " in shown and "at most 128 tokens, so without 1024, 2048, 4096, 8192" in shown
    assert shown.count("? │") == 2 and "export it again" in shown


# ---- the command ----


def pocketlm(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_all_kinds_are_measured_each_in_a_process_of_its_own(models: Path, tmp_path: Path) -> None:
    held = np.ones(2**27)  # a gigabyte here must not be in the figures there
    file = tmp_path / "speed.json"
    options = (
        "--contexts",
        "24,100",
        "--new-tokens",
        "4",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--json",
        file,
    )
    status, shown = pocketlm("bench", *(models / kind for kind in KINDS), *options)
    assert status == 0, shown
    report = json.loads(file.read_text())
    assert {name: report[name] for name in ("threads", "repeats", "new_tokens")} == dict(
        threads=1, repeats=1, new_tokens=4
    )
    assert [figures["path"] for figures in report["models"].values()] == list(KINDS)
    for label, figures in report["models"].items():
        assert f"{label}: " in shown and list(figures["contexts"]) == ["24", "100"]
        assert 2**20 < figures["peak_memory_bytes"] < held.nbytes
        assert 1e8 < figures["bandwidth_bytes_per_second"] <= report["bandwidth_bytes_per_second"]
        rows = figures["contexts"].values()
        assert all(row["share_of_limit"] > 0 for row in rows)
        assert [row["peak_memory_bytes"] for row in rows] == sorted(
            row["peak_memory_bytes"] for row in rows
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such model"),
        (["notes.txt"], "notes.txt: not a model"),
        (["broken.gguf"], "broken.gguf is not a GGUF file"),
        (["checkpoint", "--contexts", "1k"], "--contexts 1k: give numbers of tokens"),
        (["checkpoint", "--contexts", ""], "give numbers of tokens"),
        (
            ["checkpoint", "--contexts", "32"],
            "context 32 has no room for a prompt before 32 new tokens",
        ),
        (
            ["checkpoint", "--contexts", "128,2048"],
            "longest text is 1024 tokens, so there is no context 2048",
        ),
        (["checkpoint", "--new-tokens", "1"], "new_tokens 1"),
        (["checkpoint", "--repeats", "0"], "repeats 0"),
        (["checkpoint", "--threads", "0"], "threads 0"),
        (["checkpoint", "--json", "no/speed.json"], "there is no folder no"),
    ],
)
def test_a_mistake_is_one_message(
    models: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("COLUMNS", "200")
    Path("notes.txt").write_text("one")
    Path("broken.gguf").write_text("two")
    status, shown = pocketlm("bench", *words)
    assert status == 2 and message in shown and "Traceback" not in shown


def test_an_interrupted_bench_leaves_no_process_behind(models: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "bench",
        "checkpoint",
        "--contexts",
        "1024",
        "--repeats",
        "1000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=models
    )
    deadline = time.monotonic() + 60
    children: list[psutil.Process] = []
    while not any(child.num_threads() > 1 for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in shown and "Traceback" not in shown
    assert children and not psutil.wait_procs(children, timeout=10)[1]
