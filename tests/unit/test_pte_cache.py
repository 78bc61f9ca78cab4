"""A .pte whose cache is int8: a quarter of the bytes, and of its logits what rounding keys and
values costs, no more.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor

from pocketlm.export import pte_network
from pocketlm.export.pte_network import FloatCache, PteNetwork
from pocketlm.inference.kv_cache import KVCache
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import SCHEMES
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import ExportConfig, export, real_passages

pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
from pocketlm.inference.executorch import PteModel, load_kernels

VOCABULARY = 264
CONTEXT = 1024
TEXT = 600  # 26 times the ring of the local layer; and attention takes 512 keys at a time
CHUNK = 16
WINDOW = 8
STEPS = 60
CONFIG = small(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    layer_types=(LOCAL, GLOBAL),
    sliding_window=WINDOW,
    initializer_range=0.2,
)


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Calls of at most CHUNK tokens: so the ring of the local layer turns over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pte_network, "CHUNK_TOKENS", CHUNK)
        load_kernels()
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a banana and a bandana and an ananas"] * 4, VOCABULARY)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """A network that has read what files are compared on, so that its likeliest tokens are no
    ties.
    """
    model = Transformer(CONFIG, seed=0)
    passages = real_passages(LanguageModel(model, tokenizer), CONTEXT, None)
    rows = torch.tensor([passage.ids[: min(len(p.ids) for p in passages)] for passage in passages])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(VOCABULARY, (TEXT,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def exported(
    model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    for name in ("m", "out"):
        (folder / name).mkdir()
    save_checkpoint(folder / "m", model, tokenizer)
    return export(
        ExportConfig(name="files", formats=("pte",), int8_cache=True),
        folder / "out",
        model=folder / "m",
    )


@pytest.fixture(scope="module")
def file(exported: Path) -> Path:
    return exported / "model.pte"


@torch.no_grad()
def in_chunks(network: PteNetwork, ids: list[int]) -> np.ndarray:
    starts = range(0, len(ids), CHUNK)
    return torch.cat(
        [network(torch.tensor([ids[a : a + CHUNK]]), torch.tensor([a])) for a in starts], 1
    )[0].numpy()


def cache_bytes(network: PteNetwork) -> dict[str, int]:
    buffers = {name: b for name, b in network.named_buffers() if ".cache." in name}
    return {name: b.numel() * b.element_size() for name, b in buffers.items()}


def planned_bytes(file: Path) -> int:
    """What a program sets aside for its cache and for what it computes."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans: Any = deserialize_pte_binary(file.read_bytes()).program.execution_plan
    return next(sum(plan.non_const_buffer_sizes) for plan in plans if plan.name == "forward")


def test_a_model_trained_for_an_int8_cache_has_one() -> None:
    trained = Transformer(CONFIG)
    sizes = [
        cache_bytes(PteNetwork(trained, CONTEXT, SCHEMES[name]))
        for name in ("int4_group32", "int4_group32_int8_cache")
    ]
    assert all(4 * sizes[1][name] == size for name, size in sizes[0].items())


def test_keys_and_values_take_a_quarter_of_the_bytes(model: Transformer, file: Path) -> None:
    whole, small = (
        cache_bytes(PteNetwork(model, CONTEXT, None, int8_cache=int8)) for int8 in (False, True)
    )
    slots = CONTEXT + WINDOW + CHUNK - 1  # the global layer's and the ring
    assert sum(whole.values()) == 2 * slots * 2 * 16 * 4
    assert all(4 * small[name] == size for name, size in whole.items())
    # a scale and a zero point a head
    assert sum(small.values()) - sum(whole.values()) // 4 == 2 * slots * 2 * (4 + 1)
    assert (
        sum(small.values()) < planned_bytes(file) < sum(small.values()) + 0.2 * sum(whole.values())
    )


class RoundedCache(FloatCache):
    """Attention in float32 on queries, keys and values that were rounded, each token and head by
    itself.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Any, ring: Any) -> Tensor:
        return super().forward(rounded(q), rounded(k), rounded(v), start, ring)


def rounded(x: Tensor) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    return (((x / scale).round() + zero).clamp(-128, 127) - zero) * scale


@pytest.mark.parametrize("chunk", [CHUNK, 7, 1], ids=["prefill", "odd chunks", "token by token"])
def test_the_file_computes_on_rounded_queries_keys_and_values_beyond_the_window(
    file: Path, model: Transformer, ids: list[int], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pte_network, "FloatCache", RoundedCache)
        expected = in_chunks(PteNetwork(model, CONTEXT, None).eval(), ids)
    with closing(PteModel(file)) as pte:
        pte.chunk = chunk
        found = pte.logits(ids)
    error = np.abs(found - expected)  # where the last bit of a float turns a step of int8
    assert error.max() <= 0.1 and error.mean() <= 0.05 * np.abs(found - read(model, ids)).mean()


@torch.no_grad()
def read(model: Transformer, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids]))[0].numpy()


@torch.no_grad()
def test_it_costs_no_more_than_our_own_int8_cache(
    file: Path, model: Transformer, ids: list[int]
) -> None:
    exact = read(model, ids)
    cache = KVCache(CONFIG, 1, CONTEXT, int8=True)
    ours = model.head(model.hidden(torch.tensor([ids]), None, cache))[0].numpy()
    with closing(PteModel(file)) as pte:
        found = pte.logits(ids)
    cost = np.abs(ours - exact).mean()
    assert 0 < cost < 0.02 * exact.std()
    assert np.abs(found - exact).mean() <= 1.5 * cost
    assert (found.argmax(-1) == exact.argmax(-1)).mean() >= 0.95


def test_an_answer_depends_on_no_earlier_one(file: Path, ids: list[int]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "stop_ids": set()}
    with closing(PteModel(file)) as pte:
        alone = pte.generate([ids[:6]], **options)
        pte.logits(ids[::-1])
        assert pte.generate([ids[:50], ids[:6]], **options)[1:] == alone


def test_export_counts_how_it_agrees(exported: Path) -> None:
    found = json.loads((exported / "export.json").read_text())["agreement"]["model.pte"]
    assert found["top_token"] >= 0.985 and 0 < found["kl"] < 1e-3
