"""Every layout in and out, against transformers: what Meta, Llama and Qwen publish is what our
network computes.

Weights are random and large (std 0.1) and norms are far from one, so any slip of layout shows in
the logits.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shapes import small
from torch import Tensor
from transformers import AutoModelForCausalLM

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.layouts import LAYOUTS, half_split, interleaved, native_layout
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import unrolled

TOLERANCE = 1e-4  # of logits of about one unit, float32
NARROW = {"vocab_size": 320, "max_position_embeddings": 128, "num_hidden_layers": 3}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DENSE_LLAMA4 = {
    "moe_layers": [],
    "num_local_experts": 0,
    "no_rope_layers": [1, 1, 1],
    "attention_chunk_size": 128,
    "attn_temperature_tuning": True,  # acts on layers without RoPE alone, of which there are none
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    **NARROW,
}
R1_140M = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
PRO_HEADS = {
    "hidden_size": 160,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
GEMMA = {
    **NARROW,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 9,
    "pad_token_id": None,
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "R1's odd width, 9 heads on 3": (
        "Llama4Text",
        {
            **DENSE_LLAMA4,
            **R1_140M,
            "intermediate_size_mlp": 96,
            "rope_parameters": {"rope_theta": 8e6},
        },
    ),
    "llama4_text, layers named chunked": (
        "Llama4Text",
        {
            **DENSE_LLAMA4,
            **PRO_HEADS,
            "intermediate_size_mlp": 64,
            "layer_types": ["chunked_attention"] * 3,
        },
    ),
    "llama4_text without QK-norm": (
        "Llama4Text",
        {**DENSE_LLAMA4, **PRO_HEADS, "intermediate_size_mlp": 64, "use_qk_norm": False},
    ),
    "Llama 3.2: scaled RoPE": (
        "Llama",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": LLAMA3_ROPE,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2: biases": (
        "Qwen2",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2, windows in the upper layers": (
        "Qwen2",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    "SmolLM3: every fourth layer without RoPE": (
        "SmolLM3",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
        },
    ),
    "SmolLM3, other layers without RoPE, windows in them, untied": (
        "SmolLM3",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "no_rope_layers": [0, 1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 9,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3, windows in the upper layers": (
        "Qwen3",
        {
            **NARROW,
            **PRO_HEADS,
            "intermediate_size": 64,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    "Qwen3, its own head_dim": (
        "Qwen3",
        {
            **NARROW,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
        },
    ),
    "Gemma 3: five local layers to one global": (
        "Gemma3Text",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "layer_types": None,
            "query_pre_attn_scalar": 32,
            "head_dim": 32,
        },
    ),
    "Gemma 3, untied, scaled RoPE in the global layers, other thetas": (
        "Gemma3Text",
        {
            **GEMMA,
            "num_hidden_layers": 3,
            "layer_types": [GLOBAL, LOCAL, LOCAL],
            "query_pre_attn_scalar": 16,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "rope_parameters": {
                GLOBAL: {**LLAMA3_ROPE, "rope_theta": 3e5},
                LOCAL: {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "cwm: windows, no QK-norm": (
        "Cwm",
        {
            **NARROW,
            **PRO_HEADS,
            "intermediate_size": 64,
            "layer_types": [GLOBAL, LOCAL, GLOBAL],
            "sliding_window": 200,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
}
SHAPE = small(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
    initializer_range=0.1,
)
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
WINDOWS = {"layer_types": (LOCAL, GLOBAL, LOCAL), "sliding_window": 7}
GEMMA_BLOCKS = replace(
    SHAPE, qk_norm_weight=True, gemma_blocks=True, rope_local_base_freq=300.0, **WINDOWS
)
OURS: dict[str, tuple[ModelConfig, str | None]] = {
    "llama4_text": (
        replace(SHAPE, hidden_size=576, num_attention_heads=9, num_key_value_heads=3),
        "llama4_text",
    ),
    "llama4_text without QK-norm": (replace(SHAPE, use_qk_norm=False), "llama4_text"),
    "llama with scaled RoPE": (replace(SHAPE, use_qk_norm=False, rope_scaling=SCALING), None),
    "qwen3 with scaled RoPE": (replace(SHAPE, rope_scaling=SCALING), None),
    "qwen2, its own head_dim": (replace(SHAPE, use_qk_norm=False, qkv_bias=True), None),
    "qwen2, windows, untied": (
        replace(
            SHAPE,
            hidden_size=128,
            use_qk_norm=False,
            qkv_bias=True,
            tie_word_embeddings=False,
            **WINDOWS,
        ),
        None,
    ),
    "smollm3": (replace(SHAPE, use_qk_norm=False, no_rope_layers=(1, 1, 0)), None),
    "smollm3, windows, untied, its own head_dim": (
        replace(
            SHAPE,
            hidden_size=128,
            use_qk_norm=False,
            no_rope_layers=(0, 1, 1),
            tie_word_embeddings=False,
            **WINDOWS,
        ),
        None,
    ),
    "gemma3": (GEMMA_BLOCKS, None),
    "gemma3, every layer global, untied, scaled RoPE": (
        replace(
            GEMMA_BLOCKS,
            layer_types=(),
            sliding_window=None,
            rope_local_base_freq=None,
            tie_word_embeddings=False,
            rope_scaling=SCALING,
        ),
        None,
    ),
    "cwm": (replace(SHAPE, use_qk_norm=False, **WINDOWS), None),
    "cwm, untied, a window beyond the text": (
        replace(
            SHAPE,
            use_qk_norm=False,
            tie_word_embeddings=False,
            layer_types=(LOCAL,) * 3,
            sliding_window=99,
        ),
        None,
    ),
}
IDS = torch.randint(3, 320, (2, 60), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        ["the quick brown fox", "12 and 345, that's 357.", "été naïve 日本語\n\treturn x"] * 4, 300
    )


def uneven_norms(model: torch.nn.Module) -> None:
    """All ones would hide a norm that is left out, and zeros a bias."""
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(
                parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name))
            )


@torch.no_grad()
def assert_the_same(
    ours: Transformer, theirs: Any, tokenizer: Tokenizer, ids: Tensor = IDS
) -> None:
    """Logits within TOLERANCE at every position, and the same 64 greedy tokens."""
    expected = theirs(ids).logits
    assert expected.std() > 0.3  # flat logits would mean nothing
    assert (ours(ids) - expected).abs().max() <= TOLERANCE
    theirs.generation_config.eos_token_id = None
    prompt = ids[:1, :24]
    answer = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )
    found = LanguageModel(ours, tokenizer).generate(
        prompt.tolist(), max_new_tokens=64, stop_ids=set()
    )
    assert found[0] == answer[0, 24:].tolist()


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_saved_is_what_our_network_computes(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kind, fields = THEIRS[name]
    config = getattr(transformers, f"{kind}Config")(
        **{"initializer_range": 0.1, "eos_token_id": 2, **fields}
    )
    torch.manual_seed(0)
    model_class = f"{kind.removesuffix('Text')}ForCausalLM"
    theirs = getattr(transformers, model_class)(config).eval()
    uneven_norms(theirs)
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours, _ = load_checkpoint(tmp_path)
    assert_the_same(ours.eval(), theirs, tokenizer)


@pytest.mark.parametrize("name", OURS)
def test_stock_transformers_computes_what_we_write(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config, layout = OURS[name]
    ours = Transformer(config).eval()
    uneven_norms(ours)
    save_checkpoint(tmp_path, ours, tokenizer, layout=layout)
    opened: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    theirs, told = opened
    assert not any(told.values()), told
    assert_the_same(ours, theirs.eval(), tokenizer)
    again, _ = load_checkpoint(tmp_path)
    assert again.config == config
    assert torch.equal(again.eval()(IDS), ours(IDS))


def test_shared_blocks_are_two_layers_in_a_row_with_the_same_weights(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """MobileLLM-LS: as the published loop without a cache, and cached decoding as the full
    forward.
    """
    config = replace(SHAPE, use_qk_norm=False, layer_repeats=2)
    ours = Transformer(config).eval()
    uneven_norms(ours)
    save_checkpoint(tmp_path, ours, tokenizer)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["layer_sharing"], written["share_embedding"]) == (
        "mobilellm",
        True,
        True,
    )
    again, _ = load_checkpoint(tmp_path)
    assert again.config == config and torch.equal(again(IDS), ours(IDS))
    plain = tmp_path / "plain"
    plain.mkdir()
    save_checkpoint(plain, unrolled(ours), tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    assert theirs.config.num_hidden_layers == 6
    assert_the_same(ours, theirs, tokenizer)


@pytest.mark.parametrize(
    ("field", "value"), [("share_embedding", True), ("tie_word_embeddings", True)]
)
def test_mobilellm_of_2024_is_read_under_its_own_model_type(
    field, value, tokenizer, tmp_path
) -> None:
    ours = Transformer(replace(SHAPE, use_qk_norm=False)).eval()
    save_checkpoint(tmp_path, ours, tokenizer, layout="mobilellm")
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "share_embedding": False,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    again, _ = load_checkpoint(tmp_path)
    assert again.config == ours.config and torch.equal(again(IDS), ours(IDS))


@pytest.mark.parametrize("qk_norm", [True, False])
def test_mobilellm_pro_is_read_in_metas_layout_and_comes_out_as_one_that_transformers_opens(
    qk_norm: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Meta's class is code on the hub; its fields and names follow Llama 4's, as config.json and
    report show.
    """
    config = replace(SHAPE, use_qk_norm=qk_norm, **WINDOWS)
    ours = Transformer(config).eval()
    uneven_norms(ours)
    write_as_pro(tmp_path, ours, tokenizer)
    again, _ = load_checkpoint(tmp_path)
    assert again.config == config and torch.equal(again.eval()(IDS), ours(IDS))
    out, back = tmp_path / "out", tmp_path / "back"
    out.mkdir()
    back.mkdir()
    save_checkpoint(out, again, tokenizer)
    save_checkpoint(back, again, tokenizer, layout="mobilellm-pro")
    assert (back / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()
    assert (
        load_file(back / "model.safetensors").keys()
        == load_file(tmp_path / "model.safetensors").keys()
    )
    assert torch.equal(load_checkpoint(back)[0].eval()(IDS), ours(IDS))
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert theirs.config.model_type == ("qwen3" if qk_norm else "cwm")
    assert_the_same(again, theirs, tokenizer)


def write_as_pro(folder: Path, model: Transformer, tokenizer: Tokenizer, **changes: Any) -> None:
    """A folder as Meta's MobileLLM-Pro: Llama 4's names and RoPE, made from its dense text
    layout.
    """
    llama4, config = LAYOUTS["llama4_text"], model.config
    save_file(
        {
            llama4.name_out(n): llama4.tensor_out(n, t, config).contiguous()
            for n, t in model.state_dict().items()
            if "q_norm" not in n and "k_norm" not in n
        },
        folder / "model.safetensors",
    )
    tokenizer.save(folder)
    fields = {
        "architectures": ["MobileLLMP1ForCausalLM"],
        "model_type": "mobilellm_p1_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": 8192,
        "intermediate_size_mlp": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "use_qk_norm": config.use_qk_norm,
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "attention_chunk_size": 8192,
        "attn_scale": 0.1,
        "initializer_range": config.initializer_range,
    } | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in fields.items() if v is not None})
    )


@pytest.mark.parametrize(
    "field", ["use_qk_norm", "layer_types", "sliding_window", "rope_theta", "intermediate_size_mlp"]
)
def test_nothing_of_pro_is_guessed(field: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_as_pro(tmp_path, Transformer(replace(SHAPE, **WINDOWS)), tokenizer, **{field: None})
    with pytest.raises(ValueError, match=f"field {field} is missing"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_layers": [0], "num_local_experts": 4}, "a mixture of experts"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers leaves layers without RoPE"),
        # Llama 4's default: every fourth
        ({"no_rope_layers": []}, "no_rope_layers leaves layers without RoPE"),
        (
            {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 64},
            "attention_chunk_size 64 is below",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope type 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "rope type llama3 lacks factor",
        ),
        (
            {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 1.0}},
            "high_freq_factor 1.0 must exceed",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"attention_bias": True}, "cannot honour attention_bias"),
    ],
)
def test_what_this_network_would_compute_otherwise_is_refused(
    changes, message, tokenizer, tmp_path
) -> None:
    save_checkpoint(tmp_path, Transformer(SHAPE), tokenizer, layout="llama4_text")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (replace(SHAPE, qk_norm_weight=True), "llama4_text", "its QK-norm has weights"),
        (replace(SHAPE, **WINDOWS), "llama4_text", "it has local layers"),
        (SHAPE, "llama", "it has QK-norm"),
        (
            replace(SHAPE, use_qk_norm=False, qkv_bias=True),
            "llama4_text",
            "queries, keys and values have biases",
        ),
        (replace(SHAPE, use_qk_norm=False, qkv_bias=True), "llama", "have biases"),
        (
            replace(SHAPE, use_qk_norm=False, no_rope_layers=(1, 1, 0)),
            "llama",
            "it has layers without RoPE",
        ),
        (SHAPE, "smollm3", "it has QK-norm"),
        (replace(SHAPE, use_qk_norm=False), "qwen2", "have no biases"),
        (replace(SHAPE, use_qk_norm=False), "qwen3", "it has no QK-norm"),
        (replace(SHAPE, use_qk_norm=False), "cwm", "it has no local layers"),
        (
            replace(SHAPE, use_qk_norm=False, layer_repeats=2),
            "llama",
            "it applies blocks more than once",
        ),
        (
            replace(SHAPE, use_qk_norm=False, layer_repeats=3),
            "mobilellm",
            "it applies blocks 3 times",
        ),
        (SHAPE, "mobilellm-pro", "it has no local layers"),
        (
            replace(SHAPE, qk_norm_weight=True, **WINDOWS),
            "mobilellm-pro",
            "its QK-norm has weights",
        ),
    ],
)
def test_a_layout_that_cannot_hold_a_network_says_why(
    config, layout, message, tokenizer, tmp_path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, Transformer(config), tokenizer, layout=layout)
    assert not list(tmp_path.iterdir())


def test_rows_of_heads_move_as_a_whole_and_back() -> None:
    rows = torch.arange(3 * 8 * 5).view(24, 5)
    assert torch.equal(half_split(interleaved(rows, 8), 8), rows)
    assert torch.equal(interleaved(torch.arange(8), 8), torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]))


def test_the_native_layout_is_one_that_transformers_computes_exactly() -> None:
    assert native_layout(SHAPE).name == native_layout(replace(SHAPE, **WINDOWS)).name == "qwen3"
    assert native_layout(replace(SHAPE, use_qk_norm=False)).name == "llama"
    assert native_layout(replace(SHAPE, use_qk_norm=False, **WINDOWS)).name == "cwm"
