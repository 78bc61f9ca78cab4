"""Conversations of a corpus, as ids and a mask of the tokens to learn; what is left out is counted,
by reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pocketlm.model.chat_template import ChatRefused
from pocketlm.model.conversation import Conversation, conversation_of, is_conversation
from pocketlm.model.files import read_json, write_json
from pocketlm.model.json_lines import json_lines, row_files
from pocketlm.model.tokenizer import Tokenizer

NO_CONVERSATION = 'no row is a conversation ("messages", or "prompt" and "response")'
AT_ONCE = 1000  # conversations encoded together, on all cores
NAMED = 3  # rows named for each reason
Pair = tuple[list[int], list[bool]]  # ids, and which of them are learnt


@dataclass(kw_only=True)
class Tally:
    """Counts of the conversations of some files. left_out: by reason; where: the first few of each
    reason.

    not_rendered: fields of messages that the template does not use, and that do not change what is
    said.
    """

    rows: int = 0
    learnt: int = 0
    examples: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    without_end: int = 0  # examples with an answer that ends in no token that ends answers
    words_as_text: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    where: dict[str, list[str]] = field(default_factory=dict)
    not_rendered: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, conversation: Conversation) -> None:
        self.left_out[reason] += 1
        places = self.where.setdefault(reason, [])
        if len(places) < NAMED:
            places.append(conversation.where)

    @property
    def share_left_out(self) -> float:
        return sum(self.left_out.values()) / max(1, self.rows)

    def lines(self) -> Iterator[str]:
        """What a person should know of it before training, one thing a line."""
        yield f"{self.learnt:,} of {self.rows:,} conversations are learnt" + (
            f", as {self.examples:,} examples" if self.examples != self.learnt else ""
        )
        for reason, count in self.left_out.most_common():
            places = ", ".join(self.where[reason]) + (
                ", ..." if count > len(self.where[reason]) else ""
            )
            yield f"{count:,} left out ({count / self.rows:.1%}): {reason} ({places})"
        for name, count in self.not_rendered.most_common():
            yield f'the chat template does not render "{name}" of {count:,} messages'
        if self.words_as_text:
            yield (
                f"{self.words_as_text:,} conversations spell special words, which are learnt as "
                "plain text"
            )

    def warning(self, tokenizer: Tokenizer) -> str | None:
        """That a model would not learn to stop, and what to do, where an answer ends in no token
        that ends answers.
        """
        if not self.without_end:
            return None
        return (
            f"warning: {self.without_end:,} of {self.examples:,} examples have an answer that ends "
            "in no token that ends "
            f"answers ({tokenizer.endings.summary()}), so the model will not learn to stop. Let "
            "the chat template put "
            f"{tokenizer.end_of_turn_token} behind an answer"
        )

    def as_json(self) -> dict[str, Any]:
        """conversations.json of a stage's folder."""
        return {
            "rows": self.rows,
            "learnt": self.learnt,
            "examples": self.examples,
            "tokens": self.tokens,
            "learnt_tokens": self.learnt_tokens,
            "examples_without_end": self.without_end,
            "special_words_as_text": self.words_as_text,
            "left_out": dict(self.left_out),
            "where": self.where,
            "fields_not_rendered": dict(self.not_rendered),
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Tally":
        """The tally that `as_json` gave."""
        return Tally(
            rows=content["rows"],
            learnt=content["learnt"],
            examples=content["examples"],
            tokens=content["tokens"],
            learnt_tokens=content["learnt_tokens"],
            without_end=content["examples_without_end"],
            words_as_text=content["special_words_as_text"],
            left_out=Counter(content["left_out"]),
            where=dict(content["where"]),
            not_rendered=Counter(content["fields_not_rendered"]),
        )


def too_long(seq_len: int) -> str:
    """Why a conversation of more tokens is left out: a row reads seq_len of them, and the one after
    is a label.
    """
    return f"longer than {seq_len + 1:,} tokens"


def read_conversations(file: Path) -> Iterator[Conversation]:
    """The conversation of each row of a JSON-lines file that has "messages" or "prompt" and
    "response".
    """
    for number, row in json_lines(file, advice="curate again"):
        if isinstance(row, dict) and is_conversation(row):
            yield conversation_of(row, str(row.get("id") or f"{file}:{number}"))


def encode_conversations(
    files: Sequence[Path], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Pair], int]:
    """((ids, mask of what is learnt) of each example that fits in seq_len, how many conversations
    were left out).

    ValueError when the files hold no conversation at all, or none that can be learnt.
    """
    pairs, tally = learnable(files, tokenizer, seq_len)
    return pairs, sum(tally.left_out.values())


def learnable(
    files: Sequence[Path], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Pair], Tally]:
    """The same with the tally: what was left out and why."""
    tally = Tally()
    return list(learnable_pairs(files, tokenizer, seq_len, tally)), tally


def learnable_pairs(
    files: Sequence[Path], tokenizer: Tokenizer, seq_len: int, tally: Tally
) -> Iterator[Pair]:
    """The same pairs one after another, a thousand conversations in memory; the tally is counted
    on.
    """
    conversations = (conversation for file in files for conversation in read_conversations(file))
    yield from _pairs(conversations, tokenizer, seq_len, tally)
    if not tally.examples:
        names = ", ".join(str(file) for file in files) or "the corpus"
        why = "; ".join(list(tally.lines())[1:]) if tally.left_out else NO_CONVERSATION
        if set(tally.left_out) == {too_long(seq_len)}:
            why = f"no conversation of at most {seq_len + 1} tokens ({tally.rows} are longer)"
        raise ValueError(f"{names}: {why}; nothing to train on")


def examples_of(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Pair], Tally]:
    """(ids, mask of what is learnt) of each example that fits in seq_len, and what became of all
    conversations.
    """
    tally = Tally()
    return list(_pairs(conversations, tokenizer, seq_len, tally)), tally


def _pairs(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, seq_len: int, tally: Tally
) -> Iterator[Pair]:
    remaining = iter(conversations)
    while batch := list(islice(remaining, AT_ONCE)):
        yield from _batch(batch, tokenizer, seq_len, tally)


def _batch(
    conversations: list[Conversation], tokenizer: Tokenizer, seq_len: int, tally: Tally
) -> list[Pair]:
    pairs: list[Pair] = []
    for conversation, result in zip(conversations, tokenizer.answers(conversations), strict=True):
        tally.rows += 1
        if isinstance(result, ChatRefused):
            tally.leave_out(
                str(result) if result.reason.startswith("the chat") else result.reason, conversation
            )
            continue
        if any(len(example.ids) - 1 > seq_len for example in result):  # the last is a label alone
            tally.leave_out(too_long(seq_len), conversation)
            continue
        tally.learnt += 1
        tally.examples += len(result)
        tally.without_end += sum(not example.ends for example in result)
        tally.words_as_text += any(example.words_as_text for example in result)
        tally.not_rendered.update(result[0].not_rendered)
        for example in result:
            tally.tokens += len(example.ids)
            tally.learnt_tokens += sum(example.learnt)
            pairs.append((example.ids, example.learnt))
    return pairs


def conversation_files(corpus: Path, sources: tuple[str, ...]) -> list[Path]:
    """The files of training conversations of these sources of a corpus; of all where none is
    named.
    """
    names = sources or tuple(sorted(p.name for p in (corpus / "documents").iterdir() if p.is_dir()))
    files: list[Path] = []
    for name in names:
        if not (parts := row_files(corpus / "documents" / name, "train")):
            raise FileNotFoundError(f"{corpus} has no source {name!r} with training documents")
        files += parts
    return files


def report_tally(tally: Tally, tokenizer: Tokenizer, out: Path, label: str) -> None:
    """Prints on stderr what is learnt and what is left out, warns where a model would not learn to
    stop, and writes conversations.json.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    loud = tally.share_left_out > 0.01
    for line in tally.lines():
        console.print(
            f"  {label}: {line}", style="yellow" if loud else "dim", soft_wrap=True, markup=False
        )
    if warning := tally.warning(tokenizer):
        console.print(f"  {label}: {warning}", style="bold yellow", soft_wrap=True, markup=False)
    out.mkdir(parents=True, exist_ok=True)
    file, content = out / "conversations.json", tally.as_json()
    if not file.is_file() or read_json(file) != content:  # a stage that goes on has it already
        write_json(file, content)
