"""A document, one text or one conversation: how it is rendered, cut, put in a split, and kept on
disk.
"""

import ast
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pocketlm.corpus.dedup import content_hash
from pocketlm.model.conversation import (
    ROW_FIELDS,
    Conversation,
    Message,
    conversation_of,
    is_conversation,
    plain,
    reasoning_of,
    valid_text,
)
from pocketlm.model.json_lines import json_lines, row_files

SPLITS = ("train", "validation", "probe")
# of turns in a conversation's plain text; others have none
LABELS = {"user": "Question: ", "assistant": "Answer: "}


@dataclass(frozen=True, kw_only=True)
class Document:
    """`text` is what pre-training reads; `chat` stands beside it when the document is a
    conversation.

    origin: hash of the whole file or row this is a part of. Parts of one origin share a split, so
    that no half of a file is trained on while the other half is probed. Empty: the text's own hash.
    dropped_by: why the reader of the source leaves it out; empty where it does not.
    """

    id: str
    text: str
    chat: Conversation | None = None
    family: str | None = None
    answer: str | None = None
    origin: str = ""
    dropped_by: str = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns of a conversation; none for plain text."""
        return self.chat.messages if self.chat else ()

    @property
    def prompts(self) -> list[str]:
        """The user turns of a conversation; empty for plain text."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


def conversation(
    id: str, messages: Sequence[Mapping[str, Any]] | Conversation, **fields: Any
) -> Document:
    """A conversation and its plain-text form: "Question: ...", newline, "Answer: ..." for each
    exchange.

    An answer's thinking stands before it in <think> tags, its calls of tools behind it as JSON.
    """
    chat = plain(messages)
    return Document(id=id, text="\n".join(map(_turn_text, chat.messages)), chat=chat, **fields)


def _turn_text(message: Message) -> str:
    thinking = reasoning_of(message)
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False)
        for call in message.get("tool_calls", ())
    ]
    parts = [f"<think>\n{thinking}\n</think>\n"] if thinking else []
    return (
        LABELS.get(message["role"], "") + "".join(parts) + "\n".join([message["content"], *calls])
    )


def row_document(
    row: Any, id: str, where: str, text_field: str | None, pair: tuple[str, str] | None = None
) -> Document:
    """The document of one JSON or parquet row.

    With `pair`, two fields are a user's turn and its answer; a dot goes deeper
    ("responses.0.response"), also into text that is JSON itself. With `text_field`, that field is
    the text. Without either, a row with "messages", or with "prompt" and "response", is a
    conversation, and any other is its "text". A conversation keeps what stands beside it: a system
    text, tools, chat_template_kwargs. ValueError says at `where` what the row lacks.
    """
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: a row must be an object with named fields, not {type(row).__name__}"
        )
    extra = {name: row[name] for name in ("family", "answer") if isinstance(row.get(name), str)}
    if pair is not None:
        prompt, response = (
            valid_text(_at(row, field, where), f'{where}: field "{field}"') for field in pair
        )
        beside = {
            name: row[name] for name in ("system", *ROW_FIELDS) if name in row and name not in pair
        }
        return conversation(
            id, conversation_of({"prompt": prompt, "response": response, **beside}, where), **extra
        )
    if text_field is None and is_conversation(row):
        return conversation(id, conversation_of(row, where), **extra)
    field = text_field or "text"
    if field not in row:
        missing = f'no field "{field}"' + (
            "" if text_field else ', nor "messages", nor "prompt" with "response"'
        )
        raise ValueError(
            f"{where}: {missing}; the row has {_names(row) or 'no fields'}; set text_field"
        )
    return Document(id=id, text=valid_text(row[field], f'{where}: field "{field}"'), **extra)


def _names(row: dict) -> str:
    """The names of its fields, as many as one reads."""
    names = ", ".join(map(str, row))
    return names if len(names) <= 200 else f"{names[:200]}... ({len(row)} fields)"


def _at(row: Any, field: str, where: str) -> Any:
    """What lies at a dotted place of a row: names in objects, numbers in lists, either of them
    written as JSON in a text. ValueError where nothing does.
    """
    value = row
    for key in field.split("."):
        try:
            value = json.loads(value) if isinstance(value, str) else value
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError, RecursionError):
            raise ValueError(f'{where}: no field "{field}"; the row has {_names(row)}') from None
    return value


def cut(document: Document, *, max_chars: int, split_code: bool) -> Iterator[Document]:
    """The document in pieces of at most `max_chars`, cut at line breaks.

    With `split_code`, Python text is first cut at its top-level definitions. Nothing is lost: the
    pieces joined are the text. A conversation is one piece whatever its length.
    """
    if document.chat:
        yield document
        return
    parts = split_definitions(document.text) if split_code else [document.text]
    pieces = [piece for part in parts for piece in _cut_lines(part, max_chars)]
    origin = document.origin or content_hash(document.text)
    for number, piece in enumerate(pieces):
        id = document.id if len(pieces) == 1 else f"{document.id}#{number}"
        yield replace(document, id=id, text=piece, origin=origin)


def split_definitions(code: str) -> list[str]:
    """Python source in parts: what precedes the first top-level definition, then each with what
    follows it.

    Comments right above a definition go with it. Code that does not parse stays whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            nodes = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [code]
    lines = code.splitlines(keepends=True)
    if len(lines) != code.count("\n") + (not code.endswith("\n")):
        return [code]  # form feeds and the like: ast counts other lines than str does
    starts = [0]
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        while start > starts[-1] and lines[start - 1].startswith("#"):
            start -= 1
        starts.append(start)
    return ["".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)]) if b > a]


def _cut_lines(text: str, max_chars: int) -> Iterator[str]:
    start = 0
    while len(text) - start > max_chars:
        end = start + max_chars
        # a paragraph's end where one is near
        blank = text.rfind("\n\n", start + max_chars // 2, end - 1)
        line = text.rfind("\n", start, end)
        end = blank + 2 if blank >= 0 else line + 1 if line >= 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Which split a document belongs to, from its origin's hash and the seed alone: the same text
    lands in the same split wherever it comes from.
    """

    validation_share: float
    probe_share: float
    seed: int

    def place(self, document: Document) -> float:
        """Where in [0, 1) the document's origin falls."""
        origin = document.origin or content_hash(document.text)
        return int(content_hash(origin, self.seed)[:13], 16) / 16**13

    def split(self, place: float) -> str:
        if place < self.validation_share:
            return "validation"
        return "probe" if place < self.validation_share + self.probe_share else "train"

    def moved(self, places: Mapping[str, Sequence[float]]) -> dict[float, str]:
        """{place: split} of origins that must leave "train", where a split with a share got none.

        A split above 0 that caught no origin takes the one with the nearest hash, so a small source
        can be probed too (where it has at least 3 origins). places: for each split its lowest
        places, all different; three of each are enough.
        """
        if sum(map(len, places.values())) < 3:
            return {}
        nearest = sorted(places["train"])
        moves = {}
        for split, share in (("validation", self.validation_share), ("probe", self.probe_share)):
            if share > 0 and not places[split]:
                moves[nearest.pop(0)] = split
        return moves


def document_json(document: Document) -> str:
    """One line of documents/<source>/<split>.jsonl."""
    row: dict[str, Any] = {"id": document.id}
    row |= document.chat.row() if document.chat else {"text": document.text}
    row |= {
        name: value
        for name in ("family", "answer")
        if (value := getattr(document, name)) is not None
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_documents(corpus: Path, source: str, split: str) -> Iterator[Document]:
    """Documents of a curated corpus, in the order of its shard. FileNotFoundError where there are
    none.
    """
    folder = corpus / "documents" / source
    files = row_files(folder, split)
    if not files:
        raise FileNotFoundError(
            f"{folder / split}.jsonl is missing; is {corpus} the output of a curate stage, and "
            f"{source!r} in it?"
        )
    for file in files:
        for number, row in json_lines(file, "curate again"):
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise ValueError(f"{file}:{number}: not a document with an id; curate again")
            yield row_document(row, row["id"], f"{file}:{number}", None)
