"""What ExecuTorch computes from a .pte file is what the network it was written from computes."""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pocketlm.export import pte_network
from pocketlm.export.pte_network import PteNetwork
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.quant import SCHEMES, prepare, quantize_weight
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
from pocketlm.export.pte import write_pte
from pocketlm.export.read_back_pte import absent_tensors
from pocketlm.inference.executorch import PteModel, load_kernels

VOCABULARY = 264
CONTEXT = 96  # four times the ring of a local layer, twelve windows
CHUNK = 16
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
INT4 = SCHEMES["int4_group32"]


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Calls of at most CHUNK tokens: so a short text takes many, and the ring of a local layer
    turns over.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pte_network, "CHUNK_TOKENS", CHUNK)
        load_kernels()
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a banana and a bandana and an ananas"] * 4, VOCABULARY)


GEMMA = {"qk_norm_weight": True, "gemma_blocks": True, "rope_local_base_freq": 300.0}


def network(seed: int = 0, **fields: Any) -> Transformer:
    """A small network whose weights and norms are large enough for every part of it to matter."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "layer_types": (LOCAL, GLOBAL),
        "sliding_window": 8,
        "initializer_range": 0.2,
    }
    model = Transformer(ModelConfig(**{**config, **fields}), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return model


def random_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(
        VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


@pytest.fixture(scope="module")
def model() -> Transformer:
    return network()


@pytest.fixture(scope="module")
def float_file(
    model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("float") / "small.pte"
    return write_pte(model, tokenizer, path, context_length=CONTEXT)


@pytest.fixture(scope="module")
def int4_file(
    model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("int4") / "small.pte"
    return write_pte(prepare(copy.deepcopy(model), INT4), tokenizer, path, context_length=CONTEXT)


@pytest.fixture
def opened(float_file: Path) -> Iterator[PteModel]:
    with closing(PteModel(float_file)) as pte:
        yield pte


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qk_norm_weight": True},
        {"use_qk_norm": False, "tie_word_embeddings": False},
        {"layer_types": (), "sliding_window": None},
        {"sliding_window": CONTEXT},
        {"sliding_window": CONTEXT - 4},
        {"layer_repeats": 2},
        {"use_qk_norm": False, "qkv_bias": True},
        {"use_qk_norm": False, "no_rope_layers": (0, 1)},
        GEMMA,
        {"rope_scaling": SCALING},
    ],
    ids=lambda fields: ",".join(f"{k}={v}" for k, v in fields.items()) or "as exported",
)
@torch.no_grad()
def test_the_network_as_exported_computes_what_the_transformer_computes(
    fields: dict[str, Any],
) -> None:
    model = network(**fields)
    exported = PteNetwork(model, CONTEXT, None).eval()
    ids = torch.tensor([random_ids(CONTEXT)])
    calls = [(0, 16), (16, 23), (23, 24), (24, 40), (40, 56), (56, 72), (72, 88), (88, 96)]
    parts = [exported(ids[:, a:b], torch.tensor([a])) for a, b in calls]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [CHUNK, 7, 1], ids=["prefill", "odd chunks", "token by token"])
def test_a_float_file_gives_the_logits_of_the_network_beyond_the_window(
    opened: PteModel, model: Transformer, tokenizer: Tokenizer, chunk: int
) -> None:
    opened.chunk = chunk
    ids = random_ids(CONTEXT)
    expected = LanguageModel(model, tokenizer).logits(ids)
    assert opened.max_length == CONTEXT and expected.std() > 0.5
    np.testing.assert_allclose(opened.logits(ids), expected, atol=1e-4, rtol=0)


def test_a_float_file_generates_what_the_network_generates(
    opened: PteModel, model: Transformer, tokenizer: Tokenizer
) -> None:
    prompts = [random_ids(5, 1), random_ids(40, 2), random_ids(90, 3)]
    options: dict[str, Any] = {"max_new_tokens": 50, "stop_ids": set()}
    for prompt in prompts:
        expected = LanguageModel(model, tokenizer).generate([prompt], **options)
        assert len(expected[0]) == min(50, CONTEXT - len(prompt))
        assert opened.generate([prompt], **options) == expected
    sampling = Sampling(
        temperature=0.8, top_k=90, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=7
    )
    drawn = {**options, "sampling": sampling, "max_new_tokens": 6}
    assert opened.generate(prompts, **drawn) == LanguageModel(model, tokenizer).generate(
        prompts, **drawn
    )


def test_an_answer_depends_on_no_earlier_one(opened: PteModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "stop_ids": set()}
    first, second = random_ids(6, 1), random_ids(50, 2)
    alone = opened.generate([first], **options)
    opened.logits(random_ids(CONTEXT, 3))
    assert opened.generate([second, first], **options)[1:] == alone
    streams = [opened.stream(prompt, **options) for prompt in (first, second)]
    taken = list(zip(*streams, strict=True))
    assert [token for token, _ in taken] == alone[0]


def test_an_answer_ends_before_a_stop_id(opened: PteModel) -> None:
    prompt = random_ids(6, 1)
    whole = opened.generate([prompt], max_new_tokens=20, stop_ids=set())[0]
    stop = whole[9]
    assert (
        opened.generate([prompt], max_new_tokens=20, stop_ids={stop})[0]
        == whole[: whole.index(stop)]
    )


def test_the_tokenizer_lies_beside_the_file_and_nothing_half_written_is_left(
    float_file: Path, opened: PteModel, tokenizer: Tokenizer
) -> None:
    assert sorted(os.listdir(float_file.parent)) == ["small.pte", "small.tokenizer"]
    assert opened.tokenizer.encode("a banana") == tokenizer.encode("a banana")


def test_an_int4_file_holds_the_integers_and_scales_of_our_grid(
    int4_file: Path, model: Transformer
) -> None:
    content = int4_file.read_bytes()
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    assert len(matrices) == 1 + 2 * 7
    for name, weight in matrices.items():
        qweight, scale = quantize_weight(weight, INT4)
        levels = (qweight + 8).to(torch.uint8)
        assert (levels[:, 1::2] << 4 | levels[:, 0::2]).numpy().tobytes() in content, name
        assert scale.view(torch.uint8).numpy().tobytes() in content, name
    table, scale = quantize_weight(model.model.embed_tokens.weight, INT4)
    levels = (table + 8).to(torch.uint8)
    assert (levels[:, 0::2] << 4 | levels[:, 1::2]).numpy().tobytes() in content
    assert scale.to(torch.float16).view(torch.uint8).numpy().tobytes() in content


@torch.no_grad()
def test_every_tensor_is_found_in_the_file_and_one_that_is_not_is_measured(
    float_file: Path, int4_file: Path, model: Transformer
) -> None:
    for file, network in (
        (float_file, copy.deepcopy(model)),
        (int4_file, prepare(copy.deepcopy(model), INT4)),
    ):
        assert absent_tensors(file, network) == {}
        for name, parameter in network.named_parameters():
            kept = parameter.clone()
            parameter *= 2
            head = (
                {"the head of model.embed_tokens.weight"}
                if name == "model.embed_tokens.weight"
                else set()
            )
            found = absent_tensors(file, network)
            assert found.keys() == {name} | head
            assert all(gap == pytest.approx(0.5) for gap in found.values()), name
            parameter.copy_(kept)


@torch.no_grad()
def test_an_int4_file_computes_what_quantization_aware_training_computed(
    int4_file: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    """int8 turns the last bit of a float into a whole step: the yardstick is what such a bit does
    here.
    """
    ids = random_ids(CONTEXT)
    trained = prepare(copy.deepcopy(model), INT4)
    expected = LanguageModel(trained, tokenizer).logits(ids)
    generator = torch.Generator().manual_seed(0)

    def last_bits(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out * (1 + 1e-6 * torch.randn(out.shape, generator=generator))

    trained.model.embed_tokens.register_forward_hook(last_bits)
    yardstick = np.abs(LanguageModel(trained, tokenizer).logits(ids) - expected)
    int4_costs = np.abs(LanguageModel(model, tokenizer).logits(ids) - expected)
    with closing(PteModel(int4_file)) as pte:
        found = pte.logits(ids)
        pte.chunk = 1
        one_by_one = pte.logits(ids)
    # measured on one x86 CPU: max 3e-6; yardstick 0.22, mean 0.011
    for logits in (found, one_by_one):
        error = np.abs(logits - expected)
        assert error.max() <= 2 * yardstick.max() and error.mean() <= 2 * yardstick.mean()
        assert error.mean() <= 0.05 * int4_costs.mean()  # 0.54
        assert (logits.argmax(-1) == expected.argmax(-1)).mean() >= 0.95


@pytest.mark.parametrize(
    "fields",
    [
        {"use_qk_norm": False, "qkv_bias": True},
        {"use_qk_norm": False, "no_rope_layers": (0, 1)},
        GEMMA,
    ],
    ids=["biases", "layers without RoPE", "Gemma's blocks"],
)
def test_an_int4_file_of_another_family_computes_what_training_computed(
    fields: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trained = prepare(network(**fields), INT4)
    ids = random_ids(CONTEXT)
    with torch.no_grad():
        expected = LanguageModel(trained, tokenizer).logits(ids)
    path = write_pte(trained, tokenizer, tmp_path / "family.pte", context_length=CONTEXT)
    with closing(PteModel(path)) as pte:
        error = np.abs(pte.logits(ids) - expected)
    assert error.mean() <= 0.03  # without the biases 0.5 and more


def test_an_int4_file_stores_four_and_a_half_bits_a_weight(
    float_file: Path, int4_file: Path
) -> None:
    weights = 264 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    assert float_file.stat().st_size > 4 * weights
    # the rest is the graph, which does not grow with the network's width
    assert int4_file.stat().st_size - 4.5 / 8 * (weights + 264 * 64) < 100_000


def test_prompts_that_cannot_be_answered_are_refused(opened: PteModel) -> None:
    with pytest.raises(ValueError, match=f"97 tokens exceed the {CONTEXT} .* context_length"):
        opened.logits(random_ids(CONTEXT + 1))
    with pytest.raises(ValueError, match="97 tokens exceed"):
        opened.generate([random_ids(CONTEXT + 1)], max_new_tokens=1, stop_ids=set())
    with pytest.raises(ValueError, match="empty prompt"):
        list(opened.stream([], max_new_tokens=1, stop_ids=set()))
    with pytest.raises(ValueError, match="vocabulary of 264"):
        opened.logits([3, VOCABULARY])
    assert opened.generate([random_ids(CONTEXT)], max_new_tokens=5, stop_ids=set()) == [[]]
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.logits([3])


def test_a_file_that_is_no_whole_program_is_refused_by_name(
    float_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pte"):
        PteModel(tmp_path / "absent.pte")
    foreign = tmp_path / "foreign.pte"
    foreign.write_bytes(b"GGUF" + bytes(400))
    with pytest.raises(ValueError, match=r"foreign\.pte: not an ExecuTorch program"):
        PteModel(foreign)
    content = float_file.read_bytes()
    for length in (20, len(content) // 2, len(content) - 64):
        cut = tmp_path / "cut.pte"
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pte: (not an ExecuTorch program|truncated)"):
            PteModel(cut)
    alone = tmp_path / "alone.pte"
    alone.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"alone\.tokenizer"):
        PteModel(alone)


def test_a_program_that_is_no_language_model_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from executorch.exir import to_edge

    exported = torch.export.export(nn.ReLU(), (torch.ones(2),))
    (tmp_path / "relu.pte").write_bytes(to_edge(exported).to_executorch().buffer)
    (tmp_path / "relu.tokenizer").mkdir()
    tokenizer.save(tmp_path / "relu.tokenizer")
    with pytest.raises(ValueError, match=r"relu\.pte: no language model with its cache inside"):
        PteModel(tmp_path / "relu.pte")


def test_what_cannot_be_written_is_refused_before_the_work(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "never.pte"
    with pytest.raises(ValueError, match=r"context_length 97 .* 96 positions"):
        write_pte(model, tokenizer, path, context_length=CONTEXT + 1)
    with pytest.raises(ValueError, match=r"int4_group32_weight_only.* no XNNPACK kernel"):
        write_pte(
            prepare(copy.deepcopy(model), SCHEMES["int4_group32_weight_only"]),
            tokenizer,
            path,
            context_length=CONTEXT,
        )
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", lambda *_: "no disk"[99])
        with pytest.raises(IndexError):
            write_pte(
                network(num_hidden_layers=1, layer_types=()), tokenizer, path, context_length=16
            )
    monkeypatch.setitem(sys.modules, "executorch.kernels.quantized", None)
    with pytest.raises(ValueError, match=r"pip install 'pocketlm\[executorch\]'"):
        write_pte(model, tokenizer, path, context_length=CONTEXT)
    assert not list(tmp_path.iterdir())
