"""A .gguf file comes in again as the network it was written from; what is not ours to read is
refused in words.
"""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.export.gguf import write_gguf
from pocketlm.export.gguf_architecture import gemma3_layers
from pocketlm.export.import_gguf import read_gguf, stored_tensors
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCHEMES, FakeQuantEmbedding, FakeQuantLinear, prepare
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

SHAPE = small(
    vocab_size=288,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=512,
    rope_theta=12345.0,
    rms_norm_eps=1e-6,
    qk_norm_weight=True,
    initializer_range=0.02,
)
LLAMA = replace(SHAPE, use_qk_norm=False, qk_norm_weight=False)
WINDOWS = replace(SHAPE, layer_types=ModelConfig.local_global(4), sliding_window=16)
CONFIGS = {
    "qwen3": SHAPE,
    "llama": LLAMA,
    "llama, untied": replace(LLAMA, tie_word_embeddings=False),
    "qwen2": replace(LLAMA, hidden_size=288, qkv_bias=True),
    "smollm3": replace(LLAMA, num_hidden_layers=4, no_rope_layers=(1, 1, 1, 0)),
    "gemma3": replace(
        SHAPE,
        num_hidden_layers=6,
        gemma_blocks=True,
        layer_types=gemma3_layers(6),
        sliding_window=16,
        rope_local_base_freq=1e4,
    ),
    "step35": WINDOWS,
    "step35, untied": replace(WINDOWS, tie_word_embeddings=False),
    "step35 without QK-norm": replace(WINDOWS, use_qk_norm=False, qk_norm_weight=False),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [
        "Question: 12 apples and 7 pears?\nAnswer: 19 ",
        "def add(a, b):\n    return a + b\n",
        "naïve 日本語 I'll ",
    ]
    return Tokenizer(train_tokenizer(texts, 280).backend, chat_template=CHATML)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_float32_file_is_the_very_network(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = Transformer(CONFIGS[name], seed=3)
    read, own = read_gguf(write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32"))
    assert read.config == CONFIGS[name]
    for (n, tensor), (other, found) in zip(
        model.state_dict().items(), read.state_dict().items(), strict=True
    ):
        assert n == other and torch.equal(tensor, found)
    text = "12 pears, naïve 日本語 I'll"
    assert own.encode(text) == tokenizer.encode(text) and own.chat_template == CHATML
    assert own.stop_ids == tokenizer.stop_ids


def test_blocks_become_the_values_they_stand_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = prepare(Transformer(LLAMA, seed=1), SCHEMES["int4_group32"])
    read, _ = read_gguf(write_gguf(model, tokenizer, tmp_path / "m.gguf", "q4_0"))
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, FakeQuantLinear | FakeQuantEmbedding)
    }
    assert len(layers) == 4 * 7 + 1
    with torch.no_grad():
        for name, layer in layers.items():
            assert torch.equal(read.get_parameter(f"{name}.weight"), layer.grid_weight())


def edited(
    path: Path, changes: dict[str, object], extra: dict[str, np.ndarray], leave_out: str = ""
) -> Path:
    """A copy of the file with metadata and tensors changed, by the `gguf` package."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(
        path.with_name("edited.gguf"), reader.fields["general.architecture"].contents()
    )
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key == leave_out:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, inner)
    for key, value in changes.items():
        writer.add_key_value(
            key,
            value,
            gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32,
        )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, value in extra.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("edited.gguf")


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, {}, "its RoPE is scaled"),
        ({}, {"rope_freqs.weight": np.ones(16, np.float32)}, "its RoPE is scaled"),
        ({"llama.expert_count": 4}, {}, "a mixture of experts"),
        (
            {},
            {"blk.0.attn_q.bias": np.ones(288, np.float32)},
            r"no place for the tensor blk\.0\.attn_q\.bias",
        ),
        (
            {},
            {"blk.9.attn_q.weight": np.ones((288, 96), np.float32)},
            r"unexpected model\.layers\.9",
        ),
    ],
)
def test_what_this_network_does_not_have_is_refused(
    changes, extra, message, tokenizer, tmp_path
) -> None:
    path = write_gguf(Transformer(LLAMA), tokenizer, tmp_path / "m.gguf", "f32")
    with pytest.raises(ValueError, match=message):
        read_gguf(edited(path, changes, extra))


def test_a_file_of_another_program_may_leave_out_what_follows_from_the_rest(
    tokenizer, tmp_path
) -> None:
    """As SmolLM2's: no head widths, no end-of-turn id; the turn ends as llama.cpp knows it, by its
    text.
    """
    square = replace(LLAMA, head_dim=32, hidden_size=288)
    path = write_gguf(Transformer(square, seed=2), tokenizer, tmp_path / "m.gguf", "f32")
    for key in (
        "llama.attention.key_length",
        "llama.attention.value_length",
        "tokenizer.ggml.eot_token_id",
    ):
        path = edited(path, {}, {}, leave_out=key).rename(tmp_path / f"{key}.gguf")
    read, own = read_gguf(path)
    assert (
        read.config == square
        and own.end_of_turn_token == "<|im_end|>"
        and own.stop_ids == tokenizer.stop_ids
    )


def test_a_scaled_rope_is_written_as_a_tensor_that_is_not_one_of_the_networks(
    tokenizer, tmp_path
) -> None:
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    model = Transformer(replace(LLAMA, rope_scaling=scaling))
    path = write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    assert {name for name, _ in stored_tensors(path)} == set(model.state_dict())
    for config in (SHAPE, WINDOWS):
        with pytest.raises(ValueError, match="has no Llama 3 rope_scaling"):
            write_gguf(
                Transformer(replace(config, rope_scaling=scaling)),
                tokenizer,
                tmp_path / "no.gguf",
                "f32",
            )
    assert not (tmp_path / "no.gguf").exists()


def test_a_file_cut_short_names_the_tensor(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(Transformer(LLAMA), tokenizer, tmp_path / "m.gguf", "f16")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"reaches beyond the end of the file"):
        read_gguf(path)
