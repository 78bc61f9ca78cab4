"""Tiny tokenizers of each kind that llama.cpp knows, and a model of one block to carry them."""

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from pocketlm.export.text_agreement import HARD_TEXTS
from pocketlm.inference.gguf_splits import WAYS
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import CHATML, Tokenizer
from pocketlm.model.transformer import Transformer

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] "
    "== 'user' "
    "else m['content'] + eos_token }}{% endfor %}"
)
NAMES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "end_of_turn_token": "</s>"}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "use_qk_norm": False,
}


def tiny(vocab_size: int, **fields: Any) -> Transformer:
    return Transformer(ModelConfig(vocab_size=vocab_size, **(SHAPE | fields)))


def byte_level(way: str = "smollm", **options: Any) -> Tokenizer:
    """A chat tokenizer that splits in one of llama.cpp's ways, with special words and one that is
    none.
    """
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=WAYS[way].ignores_merges))
    backend.pre_tokenizer = WAYS[way].pre_tokenizer()  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [END, TURN, TURN_END, "<think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(HARD_TEXTS * 3, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    options.setdefault("chat_template", CHATML)
    return Tokenizer(backend, **options)


def sentencepiece(before: str = "legacy", chat_template: str | None = None) -> Tokenizer:
    """Like Llama 2's: before is "legacy", as its published tokenizer.json has it, or a scheme of
    Metaspace, as transformers makes of it; "gemma" puts no space anywhere.
    """
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])  # type: ignore[assignment]
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)])  # type: ignore[assignment]
    special = ["<unk>", "<s>", "</s>"]
    every = [*special, *(f"<0x{value:02X}>" for value in range(256))]
    backend.train_from_iterator(
        HARD_TEXTS[:6] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=every, show_progress=False),
    )
    content = json.loads(backend.to_str())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] in special
    ]
    if before == "gemma":
        content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        content["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    elif before != "legacy":
        content["normalizer"] = None
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": before,
            "split": False,
        }
    if before in ("gemma", "never"):  # no space to take away again
        content["decoder"]["decoders"].pop()
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    return Tokenizer(made, chat_template=chat_template, **NAMES)


def with_gap() -> Tokenizer:
    """Words up to id 299, then a turn's start and end at 310 and 311."""
    content = json.loads(byte_level().backend.to_str())
    words = {
        word: i
        for word, i in content["model"]["vocab"].items()
        if i < 300 and word not in (TURN, TURN_END)
    }
    kept = {left + right for left, right in content["model"]["merges"]} & words.keys()
    content["model"]["merges"] = [
        pair
        for pair in content["model"]["merges"]
        if pair[0] + pair[1] in kept and {*pair} <= words.keys()
    ]
    content["model"]["vocab"] = words | {TURN: 310, TURN_END: 311}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    ids = {END: words[END], TURN: 310, TURN_END: 311}
    content["added_tokens"] = [{"id": i, "content": word, **flags} for word, i in ids.items()]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), chat_template=CHATML)


def unigram() -> Tokenizer:
    """llm-jp's kind, which a .gguf cannot hold."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(HARD_TEXTS[:2] * 6, trainer)
    return Tokenizer(backend, **NAMES)
