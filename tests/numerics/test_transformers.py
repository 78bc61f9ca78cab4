"""Our network, tokenizer and generation against Hugging Face's transformers, both ways through a
checkpoint folder.

Weights are random and large (std 0.1) and norms are far from one, so any slip of layout shows in
the logits.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import small
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

TOLERANCE = 1e-4  # of logits of about one unit, float32
QWEN3 = small(
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
LAYERS = (LOCAL, GLOBAL, LOCAL)
CONFIGS = {
    "weightless QK-norm": QWEN3,
    "learned QK-norm": replace(QWEN3, qk_norm_weight=True),
    "a window smaller than the text": replace(QWEN3, layer_types=LAYERS, sliding_window=7),
    "a window that divides the text": replace(QWEN3, layer_types=LAYERS, sliding_window=10),
    "a window larger than the text": replace(QWEN3, layer_types=LAYERS, sliding_window=100),
    "llama": replace(QWEN3, use_qk_norm=False),
    "llama, untied head": replace(QWEN3, use_qk_norm=False, tie_word_embeddings=False),
    "untied head": replace(QWEN3, tie_word_embeddings=False),
    "nine heads on three": replace(
        QWEN3, hidden_size=48, num_attention_heads=9, num_key_value_heads=3, head_dim=16
    ),
    "another theta and epsilon": replace(QWEN3, rope_theta=5e5, rms_norm_eps=1e-3),
}
IDS = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [
        "the quick brown fox",
        "I'll add 12 and 345, that's 357.",
        "été naïve 日本語\n\treturn x",
    ] * 4
    return train_tokenizer(texts, 300)


def network(config: ModelConfig) -> Transformer:
    model = Transformer(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all ones would hide a norm that is left out
            torch.nn.init.uniform_(
                parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name))
            )
    return model


def open_theirs(folder: Path) -> Any:
    """The folder as transformers opens it; not one tensor may be missing, left over or newly made
    up.
    """
    opened: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, told = opened
    assert not any(told.values()), told
    return model.eval()


@torch.no_grad()
def difference(ours: Transformer, theirs: Any, ids: Tensor = IDS) -> float:
    """The largest difference between the logits of the two; they must not be flat, or it would mean
    nothing.
    """
    expected = theirs(ids).logits
    assert expected.std() > 0.3
    return float((ours(ids) - expected).abs().max())


@pytest.mark.parametrize("layout", CONFIGS)
def test_transformers_computes_the_same_logits_from_our_checkpoint(layout, tokenizer, tmp_path):
    model = network(CONFIGS[layout])
    save_checkpoint(tmp_path, model, tokenizer)
    assert difference(model, open_theirs(tmp_path)) <= TOLERANCE  # 3.3e-6 measured


@pytest.mark.parametrize(
    "layout", ["weightless QK-norm", "a window smaller than the text", "llama"]
)
def test_transformers_generates_the_same_64_greedy_tokens(layout, tokenizer, tmp_path):
    model = network(CONFIGS[layout])
    save_checkpoint(tmp_path, model, tokenizer)
    theirs = open_theirs(tmp_path)
    theirs.generation_config.eos_token_id = None  # all 64, whatever they are
    prompt = IDS[:1, :24]
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )
    ours = LanguageModel(model, tokenizer).generate(
        prompt.tolist(), max_new_tokens=64, stop_ids=set()
    )
    assert ours[0] == expected[0, 24:].tolist()


def test_transformers_stops_where_our_stop_ids_stop(tokenizer, tmp_path):
    save_checkpoint(tmp_path, network(QWEN3), tokenizer)
    assert set(open_theirs(tmp_path).generation_config.eos_token_id) == tokenizer.stop_ids


@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox",
        "I'll add 12 to 3456, that's it.",
        " leading  and   inner spaces \n\n",
        "été 日本語 🙂\t",
        "",
        "٣ ½ x²",
    ],
)
def test_auto_tokenizer_gives_the_same_ids_and_text(text, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.decode(ids) == text


def test_auto_tokenizer_applies_the_same_chat_template(tokenizer, tmp_path):
    chat = Tokenizer(tokenizer.backend, chat_template=CHATML)
    chat.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "12 + 30?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "and\nthen?"},
    ]
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=False
        )
        assert chat.encode_chat(messages, add_generation_prompt=prompt) == expected
    assert theirs.eos_token_id == chat.end_of_turn_id and theirs.bos_token_id == chat.bos_id


@pytest.mark.parametrize(
    ("shard_size", "dtype"),
    [("5GB", torch.float32), ("100KB", torch.float32), ("5GB", torch.bfloat16)],
)
def test_a_llama_checkpoint_that_transformers_saved_gives_the_same_logits(
    shard_size, dtype, tokenizer, tmp_path
):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tie_word_embeddings=shard_size == "5GB",
        rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
    )
    theirs: Any = LlamaForCausalLM(config).eval().to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    (tmp_path / "ours").mkdir()
    tokenizer.save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_size == "5GB" else 3)
    ours, own_tokenizer = load_checkpoint(tmp_path)
    assert not ours.config.use_qk_norm and ours.config.rope_theta == 20000.0
    # opened anew: in bfloat16 it rounded its RoPE too
    assert difference(ours.eval(), open_theirs(tmp_path)) <= TOLERANCE
    text = "I'll add 12 and 345"
    assert own_tokenizer.encode(text) == tokenizer.encode(text)
    assert own_tokenizer.stop_ids == tokenizer.stop_ids
