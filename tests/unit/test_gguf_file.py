"""A written .gguf says what the checkpoint was; what is no such file is refused in words."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from shapes import small
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from pocketlm.export.gguf import write_gguf
from pocketlm.export.gguf_architecture import architecture, gemma3_layers
from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.gguf_splits import IGNORES_MERGES, SPLITS
from pocketlm.inference.gguf_tokenizer import tokenizer_of
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCALE, SCHEMES, dequantize_weight, prepare, quantize_weight
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

TEXTS = [
    "Question: 12 apples and 7 pears?\nAnswer: 19 ",
    "def add(a, b):\n    return a + b\n",
    "naïve 日本語 I'll ",
]
GLOBAL = small(
    vocab_size=288,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=512,
    rope_theta=12345.0,
)
LOCAL_GLOBAL = replace(GLOBAL, layer_types=ModelConfig.local_global(3), sliding_window=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS, 280).backend, chat_template=CHATML)


def fields(path: Path) -> dict:
    """The metadata as the `gguf` package reads it."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    read = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in read}


def test_the_architecture_follows_from_layers_and_norms() -> None:
    assert architecture(GLOBAL) == "qwen3"
    assert architecture(replace(GLOBAL, use_qk_norm=False)) == "llama"
    assert architecture(LOCAL_GLOBAL) == "step35"
    assert architecture(replace(LOCAL_GLOBAL, use_qk_norm=False)) == "step35"
    heads = GLOBAL.num_attention_heads * GLOBAL.head_dim
    biased = replace(GLOBAL, use_qk_norm=False, qkv_bias=True, hidden_size=heads)
    assert architecture(biased) == "qwen2"
    fourth = replace(GLOBAL, use_qk_norm=False, num_hidden_layers=4, no_rope_layers=(1, 1, 1, 0))
    assert architecture(fourth) == "smollm3"
    gemma = replace(
        GLOBAL,
        num_hidden_layers=6,
        qk_norm_weight=True,
        gemma_blocks=True,
        layer_types=gemma3_layers(6),
        sliding_window=8,
        rope_local_base_freq=1e4,
    )
    assert architecture(gemma) == "gemma3"
    for beyond, says in (
        (replace(LOCAL_GLOBAL, use_qk_norm=False, qkv_bias=True), "no sliding windows"),
        (replace(LOCAL_GLOBAL, use_qk_norm=False, no_rope_layers=(1, 1, 0)), "has no windows"),
        (
            replace(GLOBAL, use_qk_norm=False, no_rope_layers=(1, 1, 0)),
            "leaves RoPE out of every fourth layer, and nothing else",
        ),
        (replace(biased, hidden_size=heads + 32), "head_dim is"),
        (replace(gemma, layer_types=(), rope_local_base_freq=None), "after each five local ones"),
        (replace(gemma, tie_word_embeddings=False), "a tied head"),
    ):
        with pytest.raises(ValueError, match=says):
            architecture(beyond)


@pytest.mark.parametrize("config", [GLOBAL, LOCAL_GLOBAL], ids=["global", "local"])
def test_the_gguf_package_reads_back_what_was_written(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write_gguf(
        Transformer(config), tokenizer, tmp_path / "m.gguf", "f32", name="Mine", license="mit"
    )
    found, kind = fields(path), architecture(config)
    assert found["general.architecture"] == kind
    assert (found["general.name"], found["general.license"]) == ("Mine", "mit")
    assert found[f"{kind}.context_length"] == 512 and found[f"{kind}.rope.freq_base"] == 12345.0
    assert (found[f"{kind}.attention.head_count"], found[f"{kind}.attention.head_count_kv"]) == (
        9,
        3,
    )
    assert found["tokenizer.ggml.pre"] == "smollm" and found["tokenizer.chat_template"] == CHATML
    assert found["tokenizer.ggml.token_type"] == [3] * 3 + [1] * 277 + [5] * 8
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert ("output.weight" in tensors(path)) == (kind == "step35")
    if kind == "step35":
        assert found["step35.attention.sliding_window_pattern"] == [False, True, False]
        assert (found["step35.rope.dimension_count"], found["step35.rope.dimension_count_swa"]) == (
            64,
            32,
        )
    own = read_header(path)
    for name, value in found.items():
        if not name.startswith("GGUF."):
            assert own[name] == value, name
    assert own.tensors["blk.0.ffn_gate.weight"] == (160, 96)
    assert list(tmp_path.iterdir()) == [path]


def test_a_base_model_s_text_starts_with_the_document_separator(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base = Tokenizer(tokenizer.backend)
    found = fields(write_gguf(Transformer(GLOBAL), base, tmp_path / "m.gguf", "f16"))
    assert found["tokenizer.ggml.add_bos_token"] is True and "tokenizer.chat_template" not in found


@pytest.mark.parametrize("dtype", ["f32", "f16", "q4_0"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["int4_group32", "int4_channel"])
def test_a_four_bit_model_is_written_as_its_grid_in_every_dtype(
    name: str, dtype: str, tied: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A channel's one scale stands in each of its blocks; here it clips, as a learned one does."""
    scheme = SCHEMES[name]
    model = prepare(Transformer(replace(GLOBAL, tie_word_embeddings=tied)), scheme)
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if n.endswith(SCALE)):
            parameter.mul_(0.6)
    state = model.state_dict()
    stored = tensors(write_gguf(model, tokenizer, tmp_path / "m.gguf", dtype))
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
        "blk.2.ffn_down.weight": "model.layers.2.mlp.down_proj.weight",
        **({} if tied else {"output.weight": "lm_head.weight"}),
    }.items():
        scale = state.get(f"{ours.removesuffix('weight')}{SCALE}")
        grid = dequantize_weight(*quantize_weight(state[ours], scheme, scale))
        np.testing.assert_array_equal(stored[theirs], grid.numpy())


def llama_style_tokenizer(split: str, ignore_merges: bool = False) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|begin|>", "<|end|>", "<|eot_id|>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return Tokenizer(
        backend, bos_token="<|begin|>", eos_token="<|end|>", end_of_turn_token="<|eot_id|>"
    )


@pytest.mark.parametrize("kind", ["smollm", *SPLITS])
def test_the_file_alone_gives_the_tokenizer_back(
    kind: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    original = (
        tokenizer
        if kind == "smollm"
        else llama_style_tokenizer(SPLITS[kind], kind in IGNORES_MERGES)
    )
    path = write_gguf(Transformer(GLOBAL), original, tmp_path / "m.gguf", "f16")
    found = tokenizer_of(read_header(path))
    assert fields(path)["tokenizer.ggml.pre"] == kind
    for text in [*TEXTS, "  a\n\n b\t<|im_end|> 3.14159 ½ ٣ Ünï\r\n", "", " "]:
        assert found.encode(text) == original.encode(text)
        assert found.decode(original.encode(text)) == text
    same = ("bos_id", "eos_id", "end_of_turn_id", "stop_ids", "special_ids", "chat_template")
    assert [getattr(found, name) for name in same] == [getattr(original, name) for name in same]


def test_a_tokenizer_llama_cpp_would_split_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WAYS"):
        write_gguf(
            Transformer(GLOBAL), llama_style_tokenizer(r"\p{L}+|\s+"), tmp_path / "m.gguf", "f32"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        ({"hidden_size": 80}, "q4_0", "token_embd.weight has rows of 80"),
        ({"intermediate_size": 40}, "q8_0", "ffn_down.weight has rows of 40"),
        ({"vocab_size": 100}, "f32", "280 tokens"),
        ({}, "q4_k", "unknown GGUF dtype"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(
    change: dict, dtype: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(Transformer(replace(GLOBAL, **change)), tokenizer, tmp_path / "m.gguf", dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "f32"), (1e6, "f16"), (1e6, "q4_0")])
def test_weights_beyond_the_format_are_refused_and_the_old_file_stays(
    value: float, dtype: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = Transformer(GLOBAL)
    path = write_gguf(model, tokenizer, tmp_path / "m.gguf", dtype)
    before = path.read_bytes()
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight")[3, 4] = value
    with pytest.raises(ValueError, match=r"blk\.2\.ffn_up\.weight"):
        write_gguf(model, tokenizer, path, dtype)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_and_foreign_files_are_refused_in_words(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = write_gguf(Transformer(GLOBAL), tokenizer, tmp_path / "whole.gguf", "f16").read_bytes()
    broken = tmp_path / "broken.gguf"
    for size in (4, 9, 30, 200, 1500, 5000):
        broken.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_header(broken)
    for content in (b"", b"GG", b"PK\x03\x04 not this"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="not a GGUF file"):
            read_header(broken)
    broken.write_bytes(whole.replace(b"qwen3", b"bert3"))
    with pytest.raises(ValueError, match="'bert3'"):
        read_header(broken)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.gguf")
