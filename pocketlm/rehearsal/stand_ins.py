"""What a rehearsal puts in the place of what is not there: a tokenizer, models that speak it, and
rows of text in each source's own format.

A hub data set becomes a folder that `datasets` opens as it opens the hub: the same config, split
and fields, one JSON file of rows. So reading it goes through the very code that reads the hub.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

ROWS = 32  # of each source
SENTENCES = 6  # of a text
VOCAB_SIZE = 320
WORDS = (
    *("water", "river", "stone", "garden", "paper", "letter", "number", "winter", "summer"),
    *("morning", "evening", "market", "village", "teacher", "student", "question", "answer"),
    *("history", "reason", "measure", "balance", "circle", "carries", "follows", "contains"),
    *("produces", "compares", "explains", "returns", "changes", "divides", "slowly", "quickly"),
    *("rarely", "often", "always", "never", "early", "late", "again", "twice", "together"),
)
SHAPE = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=10_000.0,
)


def sentence(draw: random.Random, words: int = 6) -> str:
    """Words in a drawn order, of a drawn number: no two alike."""
    return f"{' '.join(draw.sample(WORDS, words))} {draw.randrange(10_000)}."


def make_tokenizer() -> Tokenizer:
    """A small tokenizer of the words that rehearsals are written in."""
    draw = random.Random(0)
    return train_tokenizer([sentence(draw) for _ in range(500)], VOCAB_SIZE)


def make_model(folder: Path, positions: int) -> None:
    """A checkpoint of random weights with that tokenizer, reading so many positions."""
    folder.mkdir(parents=True)
    shape = replace(SHAPE, max_position_embeddings=positions)
    save_checkpoint(folder, Transformer(shape, seed=0), make_tokenizer())


def make_labels(file: Path) -> None:
    """Labelled sentences, from which a scorer of quality learns in an instant what stands in for
    one of the hub.
    """
    draw = random.Random(0)
    rows = [{"text": sentence(draw, 3 + number % 8), "label": number % 8} for number in range(32)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_answers(file: Path) -> None:
    """Questions of single words with an answer and two of which one is preferred, for files that a
    user gives: both answers of a pair share a short row.
    """
    draw = random.Random(0)
    fields = ("prompt", "answer", "chosen", "rejected")
    rows = [dict(zip(fields, draw.sample(WORDS, 4), strict=True)) for _ in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_source(source: Any, folder: Path, *, chats: bool) -> Any:
    """The source reading generated rows of its own format, which are now in `folder`; a source
    that is on this machine, or makes its own text, as it is.

    chats: rows that name no fields are conversations, because a stage learns answers from them.
    """
    if getattr(source, "dataset", None):
        folder.mkdir(parents=True)
        _write_rows(source, folder / "rows.jsonl", chats)
        config = getattr(source, "config", None) or "default"
        split = getattr(source, "split", None) or "train"
        files = f"  data_files:\n  - split: {json.dumps(split)}\n    path: rows.jsonl\n"
        card = f"---\nconfigs:\n- config_name: {json.dumps(config)}\n{files}---\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
        return replace(source, dataset=str(folder))
    path = getattr(source, "path", None)
    if path is None or Path(path).expanduser().exists():
        return source
    folder.mkdir(parents=True)
    _write_rows(source, folder / "rows.jsonl", chats)
    return replace(source, path=str(folder / "rows.jsonl"))


def _write_rows(source: Any, file: Path, chats: bool) -> None:
    draw = random.Random(source.name)
    rows = [json.dumps(row_of(source, draw, chats=chats)) for _ in range(ROWS)]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")


def row_of(source: Any, draw: random.Random, *, chats: bool) -> dict[str, Any]:
    """One row with the fields that the source reads."""
    prompt_field, response_field = (
        getattr(source, name, None) for name in ("prompt_field", "response_field")
    )
    question, answer = sentence(draw, 4), sentence(draw, 3)
    row: dict[str, Any] = {}
    if prompt_field and response_field:
        put(row, prompt_field, question)
        put(row, response_field, answer)
    elif chats:
        row["messages"] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    else:
        text = " ".join(sentence(draw) for _ in range(SENTENCES))
        row[getattr(source, "text_field", None) or "text"] = text
    return row


def put(row: Any, place: str, value: str) -> None:
    """Sets a dotted place of a row, names in objects and numbers in lists, making what is on the
    way.
    """
    first, _, rest = place.partition(".")
    key: Any = int(first) if isinstance(row, list) else first
    if isinstance(row, list):
        row += [None] * (key + 1 - len(row))
    if not rest:
        row[key] = value
        return
    there = row[key] if isinstance(row, list) else row.get(key)
    if there is None:
        row[key] = [] if rest.split(".")[0].isdecimal() else {}
    put(row[key], rest, value)
