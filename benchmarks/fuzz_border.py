"""Damaged and odd files at the border: each is read as transformers reads it, or refused with one
message of ours.

    OMP_NUM_THREADS=1 python benchmarks/fuzz_border.py --inputs 10000 --seed 7
    python benchmarks/fuzz_border.py --inputs 500 --seed 1 --files config.json

Small valid folders (llama, qwen3 with windows, cwm, llama4_text; one of them in shards) have one
file changed: fields dropped, doubled, retyped, made extreme, exchanged or added; JSON nested, cut,
its bytes flipped, its encoding changed. What must hold of every input:

    loaded    transformers loads it too, with equal logits (config.json, the index) or ids
    (tokenizer files)
    refused   a ValueError or FileNotFoundError that names the file or folder
    never     another exception, or accepted where transformers refuses (JUSTIFIED says where that
    is meant)

Printed: how many inputs of each file were loaded and refused, and each fault with the seed that
makes it again.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from border_changes import LLAMA3, WINDOWS, changed
from safetensors.torch import load_file, save_file

from pocketlm.corpus.local import read_local
from pocketlm.data.conversations import Limits, examples_of
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer

TOLERANCE = 1e-4
IDS = torch.randint(3, 290, (1, 24), generator=torch.Generator().manual_seed(0))
TEXTS = (
    "The quick brown fox, 12 + 30 = 42.\n\tna\u00efve \u65e5\u672c <|im_end|>",
    "  two  spaces ",
)
ALL = "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"
ALL += "generation_config.json", "special_tokens_map.json", "chats.jsonl"
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DENSE = {
    "intermediate_size_mlp": 24,
    "moe_layers": [],
    "num_local_experts": 0,
    "no_rope_layers": [1, 1],
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen3": (
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "cwm": (
        "CwmForCausalLM",
        {
            "layer_types": WINDOWS,
            "sliding_window": 5,
            "rope_parameters": {**LLAMA3, "rope_theta": 1e4},
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            "layer_types": WINDOWS,
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "full_attention": {**LLAMA3, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
            "pad_token_id": 0,
        },
    ),
    "llama4_text": ("Llama4ForCausalLM", {**DENSE, "attention_chunk_size": 64}),
}
JUSTIFIED = (  # (words of transformers' refusal, why it is read here all the same)
    ("FlashAttention", "which kernel computes attention; the numbers are the same"),
    ("Unk token", "a word that the family's own class wants; tokenizer.json is read as it is"),
    ("attn_implementation", "which kernel computes attention; the numbers are the same"),
)


@dataclass
class Tally:
    """What came of the inputs: counts by (file, outcome), and the faults in words."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    messages: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--files", default=",".join(ALL), help="which files are changed, separated by commas"
    )
    parser.add_argument("--messages", action="store_true", help="print the commonest refusals")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(Path(folder), arguments.inputs, arguments.seed, arguments.files.split(","))
    for (name, outcome), count in sorted(tally.counts.items()):
        print(f"{name:30} {outcome:35} {count:6}")
    if arguments.messages:
        print(*(f"{count:6} {text}" for text, count in tally.messages.most_common(80)), sep="\n")
    print(*tally.faults, sep="\n")
    seconds = time.monotonic() - started
    print(
        f"{arguments.inputs} inputs, seed {arguments.seed}, {seconds:.0f} s: {len(tally.faults)} "
        "faults"
    )
    sys.exit(1 if tally.faults else 0)


def fuzz(folder: Path, inputs: int, seed: int, files: list[str]) -> Tally:
    """What came of `inputs` changed files, written below an empty folder. Input i follows from
    (seed, i) alone.
    """
    tally, bases = Tally(), write_bases(folder)
    with quiet():
        for number in range(inputs):
            draw = random.Random(f"{seed} {number}")
            name = files[number % len(files)]
            having = [base for base in bases.values() if (base / name).is_file()]
            base = draw.choice(having)
            content = changed((base / name).read_bytes(), draw, name)
            (folder / "tried").mkdir()
            for path in base.iterdir():
                (folder / "tried" / path.name).symlink_to(path)
            (folder / "tried" / name).unlink()
            if content is not None:
                (folder / "tried" / name).write_bytes(content)
            outcome, fault = try_input(folder / "tried", name, tally)
            tally.counts[name, outcome] += 1
            if fault:
                tally.faults.append(
                    f"seed {seed} input {number} {base.name}/{name}: {fault}\n    {content!r:.1500}"
                )
            shutil.rmtree(folder / "tried")
    return tally


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither the notes of transformers, nor warnings, nor our own lines on stderr."""
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


# ---- the valid folders ----


def write_bases(folder: Path) -> dict[str, Path]:
    """A folder a model type, and "shards"; all with every file of ALL that belongs there."""
    tokenizer = train_tokenizer(
        ["the quick brown fox jumps over the lazy dog", "12 + 30 = 42, hello"] * 4, 290
    )
    tokenizer = Tokenizer(tokenizer.backend, chat_template=CHATML)
    bases = {}
    for name, (kind, fields) in MODELS.items():
        model_class = getattr(transformers, kind)
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**(SHAPE | fields))).eval()
        bases[name] = folder / "bases" / name
        model.save_pretrained(bases[name])
        tokenizer.save(bases[name])
        theirs = json.loads((bases[name] / "tokenizer_config.json").read_text())
        del theirs["pocketlm"]  # as any other folder, which transformers' classes open here too
        (bases[name] / "tokenizer_config.json").write_text(json.dumps(theirs))
        special = {
            "bos_token": "<|endoftext|>",
            "eos_token": {"content": "<|im_end|>", "lstrip": False},
        }
        (bases[name] / "special_tokens_map.json").write_text(json.dumps(special))
        (bases[name] / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [0, 2], "bos_token_id": 0})
        )
        chat = [
            {"role": "user", "content": "12 + 30?"},
            {"role": "assistant", "content": "42, <b>\u00e9</b>"},
        ]
        rows: list[dict[str, Any]] = [{"messages": chat}, {"prompt": "hi", "response": "hello"}]
        rows.append({"messages": [{"role": "system", "content": "brief"}, *chat, *chat], "id": 7})
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 30}}}
        asked = {
            "role": "assistant",
            "content": "",
            "tool_calls": [call],
            "weight": 0,
            "reasoning_content": "sum",
        }
        rows.append(
            {
                "messages": [chat[0], asked, {"role": "tool", "content": "42"}, chat[1]],
                "tools": [],
                "train": True,
            }
        )
        (bases[name] / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bases["shards"] = Path(shutil.copytree(bases["llama"], folder / "bases" / "shards"))
    split_weights(bases["shards"])
    bases["ours"] = Path(shutil.copytree(bases["llama"], folder / "bases" / "ours"))
    tokenizer.save(bases["ours"])
    (bases["ours"] / "special_tokens_map.json").unlink()  # which ours do not have
    return bases


def split_weights(folder: Path) -> None:
    """model.safetensors becomes two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for file in set(places.values()):
        held = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 4 * sum(t.numel() for t in tensors.values())},
        "weight_map": places,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- what becomes of them ----


def try_input(folder: Path, name: str, tally: Tally) -> tuple[str, str | None]:
    """(the outcome in a few words, the fault or None) of one changed folder."""
    ours: Any = None
    try:
        ours = read_chats(folder / name) if name == "chats.jsonl" else load_checkpoint(folder)
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        plain = type(error) in (ValueError, FileNotFoundError) and str(folder) in str(error)
        if plain:
            tally.messages[f"{name}: {str(error).replace(str(folder), '')[:110]}"] += 1
            return "refused", None
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "another exception",
            f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})",
        )
    if name == "chats.jsonl":
        return "loaded", None
    compare = compare_logits if name in ALL[:2] else compare_ids
    try:
        different = compare(folder, *ours)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        words = f"{type(error).__name__}: {error}"
        for known, why in JUSTIFIED:
            if known in words:
                return f"loaded; {why}"[:35], None
        return "accepted, refused by transformers", f"transformers refuses it: {words[:300]}"
    return ("loaded, different", different) if different else ("loaded, as transformers", None)


def read_chats(file: Path) -> list[Any]:
    """The examples of a file of conversations, as fine-tuning learns them."""
    chats = [document.chat for document in read_local(file, None) if document.chat is not None]
    tokenizer = opened_tokenizer(file.with_name("tokenizer.json").resolve().parent)
    return examples_of(chats, tokenizer, Limits(seq_len=512))[0]


@cache
def opened_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@torch.no_grad()
def compare_logits(folder: Path, model: Any, tokenizer: Tokenizer) -> str | None:
    """By how much our logits differ from transformers', or None within TOLERANCE. Raises what
    transformers raises.
    """
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = IDS % model.config.vocab_size
    expected, found = (
        theirs(ids)[0] if not theirs.config.return_dict else theirs(ids).logits,
        model.eval()(ids),
    )
    gap = float((found - expected).abs().max())
    both_odd = not bool(torch.isfinite(expected).all()) and not bool(torch.isfinite(found).all())
    return None if both_odd or gap <= TOLERANCE else f"logits differ by {gap:.3g}"


def compare_ids(folder: Path, model: Any, tokenizer: Tokenizer) -> str | None:
    """Which text has other ids in transformers, or None. Raises what transformers raises."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if (folder / "generation_config.json").is_file():
        transformers.GenerationConfig.from_pretrained(folder)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        if expected != tokenizer.encode(text):
            return f"{text!r} is {tokenizer.encode(text)[:12]} and {expected[:12]}"
    return None


if __name__ == "__main__":
    main()
