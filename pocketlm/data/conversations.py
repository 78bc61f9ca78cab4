"""Conversations of a corpus, as ids and a mask of the assistant's tokens."""

import json
from collections.abc import Iterator
from pathlib import Path

from pocketlm.data.batches import ConversationRows
from pocketlm.model.tokenizer import Message, Tokenizer

NO_CONVERSATION = 'no row is a conversation ("messages", or "prompt" and "response")'


def read_conversations(file: Path) -> Iterator[tuple[int, list[Message]]]:
    """(line number, messages) of each row of a JSON-lines file that has "messages" or "prompt" and "response"."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: not JSON ({error.msg}, column {error.colno})") from None
            if "messages" in row:
                yield number, row["messages"]
            elif "prompt" in row and "response" in row:
                turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
                yield number, turns


def encode_conversations(
    files: list[Path], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[tuple[list[int], list[bool]]], int]:
    """((ids, assistant's mask) of each conversation that fits in seq_len, how many were too long and left out).

    ValueError when the files hold no conversation at all, or none that fits.
    """
    kept: list[tuple[list[int], list[bool]]] = []
    too_long = 0
    for file in files:
        rows = list(read_conversations(file))
        try:
            encoded = tokenizer.encode_conversations([messages for _, messages in rows])
        except ValueError:
            encoded = [_encode_row(file, number, messages, tokenizer) for number, messages in rows]
        for (number, _), (ids, mask) in zip(rows, encoded, strict=True):
            if not any(mask):
                raise ValueError(
                    f"{file}:{number}: the conversation has no assistant turn, so there is nothing to learn"
                )
            if len(ids) > seq_len:
                too_long += 1
            else:
                kept.append((ids, mask))
    if not kept:
        names = ", ".join(str(file) for file in files) or "the corpus"
        why = f"no conversation of at most {seq_len} tokens ({too_long} are longer)"
        raise ValueError(f"{names}: {why if too_long else NO_CONVERSATION}; nothing to train on")
    return kept, too_long


def _encode_row(file: Path, number: int, messages: list[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """One row alone, so that the error names its line."""
    try:
        return tokenizer.encode_conversations([messages])[0]
    except ValueError as error:
        raise ValueError(f"{file}:{number}: {error}") from None


def conversation_rows(
    corpus: Path, sources: tuple[str, ...], tokenizer: Tokenizer, seq_len: int, *, packed: bool = True
) -> ConversationRows:
    """Rows of the training conversations of these sources of a corpus: packed, or one conversation a row."""
    names = sources or tuple(sorted(p.name for p in (corpus / "documents").iterdir() if p.is_dir()))
    files = [corpus / "documents" / name / "train.jsonl" for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{corpus} has no source {file.parent.name!r} with training documents")
    conversations, _ = encode_conversations(files, tokenizer, seq_len)
    return ConversationRows(conversations, seq_len, tokenizer.eos_id, packed=packed)
