"""llama.cpp computes from our .gguf files what our network computes from the checkpoint.

The weights are random and large (std 0.1), so logits spread over about one unit and any slip of
layout shows.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.export.gguf import write_gguf
from pocketlm.export.gguf_architecture import gemma3_layers
from pocketlm.inference import libllama
from pocketlm.inference.llamacpp import SLOTS, GgufModel
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")

QWEN3 = small(
    vocab_size=320,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=5,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=1024,
    initializer_range=0.1,
)
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256
)
WINDOWED = replace(QWEN3, layer_types=ModelConfig.local_global(5), sliding_window=16)
GEMMA = replace(
    QWEN3,
    num_hidden_layers=7,
    qk_norm_weight=True,
    gemma_blocks=True,
    layer_types=gemma3_layers(7),
    sliding_window=16,
    rope_local_base_freq=1e4,
    rope_theta=1e6,
)
CONFIGS = {
    "qwen3": QWEN3,
    "qwen3 with learned QK-norm": replace(QWEN3, qk_norm_weight=True, tie_word_embeddings=False),
    "llama": replace(QWEN3, use_qk_norm=False),
    "qwen2": replace(QWEN3, hidden_size=288, use_qk_norm=False, qkv_bias=True),
    "qwen2, untied head": replace(
        QWEN3, hidden_size=288, use_qk_norm=False, qkv_bias=True, tie_word_embeddings=False
    ),
    "smollm3": replace(QWEN3, use_qk_norm=False, no_rope_layers=(1, 1, 1, 0, 1)),
    "gemma3": GEMMA,
    "gemma3, another theta in local layers": replace(GEMMA, rope_local_base_freq=700.0),
    "step35": WINDOWED,
    "step35 without QK-norm": replace(WINDOWED, use_qk_norm=False),
    "llama with Llama 3's scaled RoPE": replace(QWEN3, use_qk_norm=False, rope_scaling=SCALING),
    "llama with shared blocks": replace(
        QWEN3, use_qk_norm=False, num_hidden_layers=3, layer_repeats=2
    ),
    "step35 with shared blocks": replace(WINDOWED, layer_repeats=2),
}
IDS = torch.randint(3, 320, (600,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = [
        "alpha",
        "beta's",
        "I'll",
        "the",
        "Question:",
        "Answer:",
        "return",
        "x",
        "3.14",
        "12345",
    ]
    words += ["été", "日本語", "naïve", "\n"]
    shuffled = random.Random(0)
    texts = [" ".join(shuffled.choices(words, k=50)) for _ in range(100)]
    return Tokenizer(train_tokenizer(texts, 300).backend, chat_template=CHATML)


def network(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # ones would hide a norm that is left out
            torch.nn.init.uniform_(
                parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name))
            )
    return model


@pytest.fixture(scope="module")
def windowed(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Transformer, GgufModel]]:
    model = network(WINDOWED)
    path = write_gguf(model, tokenizer, tmp_path_factory.mktemp("windowed") / "m.gguf", "f32")
    file = GgufModel(path, cache_type="f32")
    yield model, file
    file.close()


def log_softmax(logits: np.ndarray) -> torch.Tensor:
    return torch.log_softmax(torch.as_tensor(logits), -1)


def test_both_thetas_of_gemma_are_read_from_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What float16 tables leave is far below what another theta changes, of either kind."""
    exact = LanguageModel(network(GEMMA), tokenizer).logits(IDS)
    for field in ("rope_theta", "rope_local_base_freq"):
        other = network(replace(GEMMA, **{field: 700.0}))
        ours = LanguageModel(other, tokenizer).logits(IDS)
        assert np.abs(ours - exact).max() > 0.1
        path = write_gguf(other, tokenizer, tmp_path / f"{field}.gguf", "f32")
        file = GgufModel(path, cache_type="f32")
        assert np.abs(file.logits(IDS) - ours).max() < 5e-3
        file.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_files_give_our_logits_and_our_greedy_tokens(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = network(CONFIGS[name])
    ours = LanguageModel(model, tokenizer)
    file = GgufModel(write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32"), cache_type="f32")
    expected = ours.logits(IDS)
    assert expected.std() > 0.5
    # llama.cpp looks Gemma's gelu up in a table of float16, and qwen2's network is wider
    bound = 5e-3 if name.startswith("gemma3") else 2e-4 if name.startswith("qwen2") else 1e-4
    np.testing.assert_allclose(file.logits(IDS), expected, atol=bound, rtol=0)
    options = {"max_new_tokens": 32, "stop_ids": set()}
    assert file.generate([IDS[:50]], **options) == ours.generate([IDS[:50]], **options)
    file.close()


def test_the_default_half_precision_cache_costs_little(
    windowed: tuple, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model, exact = windowed
    file = GgufModel(write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32"))
    error = (log_softmax(file.logits(IDS)) - log_softmax(exact.logits(IDS))).abs().max()
    assert 1e-6 < error < 1e-2
    file.close()


def test_ignoring_the_window_would_show(windowed: tuple, tokenizer: Tokenizer) -> None:
    model, file = windowed
    everywhere = Transformer(replace(WINDOWED, layer_types=(), sliding_window=None))
    everywhere.load_state_dict(model.state_dict())
    difference = np.abs(file.logits(IDS) - LanguageModel(everywhere, tokenizer).logits(IDS)).max(-1)
    assert difference[:16].max() < 1e-4 and difference[16:].max() > 0.5


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "smollm3", "step35"])
def test_q4_0_files_hold_the_very_weights_that_were_trained(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Weights exactly. Activations nearly: llama.cpp rounds them in blocks of 32, training each
    token.
    """
    model = prepare(network(CONFIGS[name]), SCHEMES["int4_group32"])
    weights_only = prepare(network(CONFIGS[name]), SCHEMES["int4_group32_weight_only"])
    grid = GgufModel(
        write_gguf(weights_only, tokenizer, tmp_path / "f32.gguf", "f32"), cache_type="f32"
    )
    expected = LanguageModel(weights_only, tokenizer).logits(IDS)
    np.testing.assert_allclose(grid.logits(IDS), expected, atol=1e-4, rtol=0)
    file = GgufModel(write_gguf(model, tokenizer, tmp_path / "q4_0.gguf", "q4_0"))
    found, trained = file.logits(IDS), LanguageModel(model, tokenizer).logits(IDS)
    distance = (log_softmax(found) - log_softmax(trained)).abs()
    agreement = (found.argmax(-1) == trained.argmax(-1)).mean()
    print(
        f"{name}: mean {distance.mean():.4f}, largest {distance.max():.3f}, same best token "
        f"{agreement:.3f}"
    )
    limit = 0.08 if name == "qwen2" else 0.05  # three times as wide: larger logits
    assert distance.mean() < limit and agreement >= 0.9
    grid.close()
    file.close()


def test_many_prompts_answer_as_each_alone(windowed: tuple, tokenizer: Tokenizer) -> None:
    model, file = windowed
    prompts = [IDS[i * 20 : i * 20 + 1 + 7 * i] for i in range(SLOTS + 5)]
    options = {"max_new_tokens": 12, "stop_ids": set(range(40))}
    together = file.generate(prompts, **options)
    assert together == [file.generate([prompt], **options)[0] for prompt in prompts]
    assert together == LanguageModel(model, tokenizer).generate(prompts, **options)
    assert together == [list(file.stream(prompt, **options)) for prompt in prompts]
    assert {len(answer) for answer in together} - {12}, (
        "no answer stopped early: the test shows nothing"
    )


def test_samples_are_those_of_the_checkpoint_with_the_same_seed(
    windowed: tuple, tokenizer: Tokenizer
) -> None:
    model, file = windowed
    options = {"max_new_tokens": 20, "stop_ids": set()}
    drawn = Sampling(
        temperature=0.8, top_k=90, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3
    )
    prompts = [IDS[:9], IDS[9:30]]
    found = file.generate(prompts, **options, sampling=drawn)
    assert found == LanguageModel(model, tokenizer).generate(prompts, **options, sampling=drawn)
    assert found != file.generate(prompts, **options, sampling=replace(drawn, seed=4))


def test_an_answer_ends_where_the_context_does(windowed: tuple, tmp_path: Path) -> None:
    _, file = windowed
    short = IDS + IDS[:420]
    assert [len(a) for a in file.generate([short], max_new_tokens=50, stop_ids=set())] == [4]
    with pytest.raises(ValueError, match="exceed the context of 1024"):
        file.logits(IDS * 2)
    with pytest.raises(ValueError, match="vocabulary"):
        file.logits([5, 320])
    with pytest.raises(ValueError, match="empty prompt"):
        file.generate([[]], max_new_tokens=1, stop_ids=set())


def test_two_streams_at_once_do_not_disturb_each_other(windowed: tuple) -> None:
    _, file = windowed
    options = {"max_new_tokens": 10, "stop_ids": set()}
    pairs = list(
        zip(file.stream(IDS[:30], **options), file.stream(IDS[30:70], **options), strict=True)
    )
    assert [list(column) for column in zip(*pairs, strict=True)] == [
        file.generate([prompt], **options)[0] for prompt in (IDS[:30], IDS[30:70])
    ]


def test_llama_cpp_tokenizes_as_we_do(windowed: tuple, tokenizer: Tokenizer) -> None:
    _, file = windowed
    drawn = random.Random(3)
    pieces = [
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "'s",
        "'LL",
        "a",
        "Ω",
        "é",
        "e\u0301",
        "1",
        "²",
        "½",
        "٣",
        "日",
    ]
    pieces += [
        "🙂",
        "ß",
        "!",
        "...",
        "_",
        "<|im_end|>",
        "return x",
        "12345",
        "\u200d",
        "नि",
        "\x00",
    ]
    for _ in range(500):
        text = "".join(drawn.choices(pieces, k=drawn.randint(1, 40)))
        expected = tokenizer.encode(text)
        assert file._model.tokenize(text, add_special=False, parse_special=False) == expected, repr(
            text
        )
        assert file.tokenizer.encode(text) == expected, repr(text)


def test_a_chat_prompt_has_the_same_ids_in_llama_cpp(windowed: tuple, tokenizer: Tokenizer) -> None:
    """llama.cpp renders the template, then tokenizes with special tokens and its start of text, if
    any.
    """
    _, file = windowed
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What's 3 + 4?\n\nIn one word."},
    ]
    rendered = file.tokenizer.render(messages, add_generation_prompt=True)
    assert file._model.tokenize(
        rendered, add_special=True, parse_special=True
    ) == tokenizer.encode_chat(messages)


def test_a_base_model_s_text_gets_its_document_separator_in_llama_cpp(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base = Tokenizer(tokenizer.backend)
    file = GgufModel(write_gguf(network(QWEN3), base, tmp_path / "m.gguf", "f16"))
    found = file._model.tokenize("The alpha", add_special=True, parse_special=True)
    assert found == [base.bos_id, *base.encode("The alpha")]
    file.close()


def test_a_file_cut_short_is_refused_and_a_closed_one_says_so(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write_gguf(network(QWEN3), tokenizer, tmp_path / "m.gguf", "q8_0")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ValueError, match="cannot load it"):
        GgufModel(cut)
    file = GgufModel(path)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.logits([1, 2])


def test_llama_cpp_says_nothing_on_the_terminal(
    tokenizer: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = GgufModel(write_gguf(network(QWEN3), tokenizer, tmp_path / "m.gguf", "q4_0"))
    file.generate([IDS[:5]], max_new_tokens=3, stop_ids=set())
    file.close()
    assert capfd.readouterr() == ("", "")


def test_another_memory_layout_or_no_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params = libllama.library().llama_context_default_params()
    with pytest.raises(ValueError, match=r"laid out otherwise.*install xllamacpp=="):
        libllama._check_layout(params, {**libllama.CONTEXT_DEFAULTS, "type_k": 0})
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ValueError, match=r"pocketlm\[llamacpp\]"):
        libllama.library.__wrapped__()
