"""Conversations of a corpus, as ids and a mask of the tokens to learn; what is left out is counted,
by reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from pocketlm.model.answers import Example
from pocketlm.model.chat_template import ChatRefused
from pocketlm.model.conversation import Conversation, conversation_of, is_conversation
from pocketlm.model.files import read_json, write_json
from pocketlm.model.json_lines import json_lines, row_files
from pocketlm.model.tokenizer import Tokenizer

NO_CONVERSATION = 'no row is a conversation ("messages", or "prompt" and "response")'
AT_ONCE = 1000  # conversations encoded together, on all cores
UNREADABLE = "a row that cannot be read"
NAMED = 3  # rows named for each reason
Pair = tuple[list[int], list[bool]]  # ids, and which of them are learnt
TooLong = Literal["drop", "truncate"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is learnt of the conversations of some sources.

    seq_len: a row reads so many tokens, and the one after is a label. too_long: a conversation of
    more is left out, or keeps its beginning. max_conversations: of a source, taken evenly spaced;
    one that is not named gives all.
    """

    seq_len: int
    too_long: TooLong = "drop"
    max_conversations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.too_long not in get_args(TooLong):
            raise ValueError(
                f"too_long {self.too_long!r} is unknown; known: {', '.join(get_args(TooLong))}"
            )
        for name, most in self.max_conversations.items():
            if most < 1:
                raise ValueError(f"max_conversations of {name} is {most}; it must be at least 1")

    @property
    def long(self) -> str:
        """Of a conversation beyond them, in words to count by."""
        return f"longer than {self.seq_len + 1:,} tokens"


@dataclass(kw_only=True)
class Tally:
    """Counts of the conversations of some files. left_out, truncated: by reason; where: the first
    few of each reason.

    not_rendered: fields of messages that the template does not use, and that do not change what is
    said. beyond_cap: not among the rows, because max_conversations is below what the source holds.
    sources: the same of each source.
    """

    rows: int = 0
    learnt: int = 0
    examples: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    without_end: int = 0  # examples with an answer that ends in no token that ends answers
    words_as_text: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    where: dict[str, list[str]] = field(default_factory=dict)
    not_rendered: Counter[str] = field(default_factory=Counter)
    beyond_cap: int = 0
    sources: dict[str, "Tally"] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        self.left_out[reason] += 1
        self._name(reason, where)

    def truncate(self, reason: str, where: str) -> None:
        self.truncated[reason] += 1
        self._name(reason, where)

    def _name(self, reason: str, where: str) -> None:
        places = self.where.setdefault(reason, [])
        if len(places) < NAMED:
            places.append(where)

    def add(self, other: "Tally") -> None:
        """Counts what another tally counted too."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in REASONS:
            getattr(self, name).update(getattr(other, name))
        for reason, places in other.where.items():
            self.where[reason] = [*self.where.get(reason, []), *places][:NAMED]
        self.sources.update(other.sources)

    @property
    def share_left_out(self) -> float:
        return sum(self.left_out.values()) / max(1, self.rows)

    def lines(self) -> Iterator[str]:
        """What a person should know of it before training, one thing a line."""
        yield f"{self.learnt:,} of {self.rows:,} conversations are learnt" + (
            f", as {self.examples:,} examples" if self.examples != self.learnt else ""
        )
        for what, reasons in (("left out", self.left_out), ("truncated", self.truncated)):
            for reason, count in reasons.most_common():
                places = ", ".join(self.where[reason]) + (
                    ", ..." if count > len(self.where[reason]) else ""
                )
                yield f"{count:,} {what} ({count / self.rows:.1%}): {reason} ({places})"
        if self.beyond_cap:
            yield f"{self.beyond_cap:,} more are not taken: max_conversations"
        for name, count in self.not_rendered.most_common():
            yield f'the chat template does not render "{name}" of {count:,} messages'
        if self.words_as_text:
            spelt = f"{self.words_as_text:,} conversations spell special words"
            yield f"{spelt}, which are learnt as plain text"

    def warning(self, tokenizer: Tokenizer) -> str | None:
        """That a model would not learn to stop, and what to do, where an answer ends in no token
        that ends answers.
        """
        if not self.without_end:
            return None
        return (
            f"warning: {self.without_end:,} of {self.examples:,} examples have an answer that ends "
            f"in no token that ends answers ({tokenizer.endings.summary()}), so the model will not "
            f"learn to stop. The chat template should put {tokenizer.end_of_turn_token} there"
        )

    def as_json(self) -> dict[str, Any]:
        """conversations.json of a stage's folder."""
        content = {WRITTEN.get(name, name): getattr(self, name) for name in COUNTS}
        content |= {WRITTEN.get(name, name): dict(getattr(self, name)) for name in REASONS}
        content["where"] = self.where
        if self.sources:
            content["sources"] = {name: tally.as_json() for name, tally in self.sources.items()}
        return content

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Tally":
        """The tally that `as_json` gave, perhaps that of an earlier version, which counted less."""
        tally = Tally(where=dict(content["where"]))
        for name in COUNTS:
            setattr(tally, name, content.get(WRITTEN.get(name, name), 0))
        for name in REASONS:
            setattr(tally, name, Counter(content.get(WRITTEN.get(name, name), {})))
        for name, source in content.get("sources", {}).items():
            tally.sources[name] = Tally.from_json(source)
        return tally


COUNTS = (
    *("rows", "learnt", "examples", "tokens", "learnt_tokens"),
    *("without_end", "words_as_text", "beyond_cap"),
)
REASONS = ("left_out", "truncated", "not_rendered")
WRITTEN = {  # names in conversations.json, where they are others
    "without_end": "examples_without_end",
    "words_as_text": "special_words_as_text",
    "not_rendered": "fields_not_rendered",
}


def read_conversations(file: Path, tally: Tally | None = None) -> Iterator[Conversation]:
    """The conversation of each row of a JSON-lines file that has "messages" or "prompt" and
    "response". A row that cannot be read is a ValueError; with a tally, it is left out and counted.
    """

    def leave_out(error: ValueError) -> None:
        if tally is None:
            raise error
        tally.rows += 1
        tally.leave_out(UNREADABLE, str(error))

    for number, row in json_lines(file, advice="curate again", unreadable=leave_out):
        if isinstance(row, dict) and is_conversation(row):
            try:
                conversation = conversation_of(row, str(row.get("id") or f"{file}:{number}"))
            except ValueError as error:
                leave_out(error)
            else:
                yield conversation


def encode_conversations(
    files: Sequence[Path], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Pair], int]:
    """((ids, mask of what is learnt) of each example that fits in seq_len, how many conversations
    were left out), for scripts. ValueError: the files hold none that can be learnt.
    """
    tally = Tally()
    pairs = list(learnable_pairs({"": files}, tokenizer, Limits(seq_len=seq_len), tally))
    return pairs, sum(tally.left_out.values())


def learnable_pairs(
    files: Mapping[str, Sequence[Path]], tokenizer: Tokenizer, limits: Limits, tally: Tally
) -> Iterator[Pair]:
    """(ids, mask of what is learnt) of each example of the sources' files that the limits admit,
    one source after another, a thousand conversations in memory; the tally is counted on.

    ValueError when the files hold no conversation at all, or none that can be learnt.
    """
    for source, parts in files.items():
        counted = Tally()
        yield from _pairs(_taken(source, parts, limits, counted), tokenizer, limits, counted)
        tally.add(counted)
        if counted.rows:
            tally.sources[source] = counted
    if not tally.examples:
        names = ", ".join(str(file) for parts in files.values() for file in parts)
        why = "; ".join(list(tally.lines())[1:]) if tally.left_out else NO_CONVERSATION
        if set(tally.left_out) == {limits.long}:
            longest = limits.seq_len + 1
            why = f"no conversation of at most {longest} tokens ({tally.rows} are longer)"
        raise ValueError(f"{names or 'the corpus'}: {why}; nothing to train on")


def _taken(
    source: str, files: Sequence[Path], limits: Limits, tally: Tally
) -> Iterator[Conversation]:
    """The conversations of a source, evenly spaced where there are more than max_conversations, so
    that a file in order of topics or difficulty gives of all. Counting them first reads it twice.
    """
    conversations = (one for file in files for one in read_conversations(file, tally))
    most = limits.max_conversations.get(source)
    if most is None:
        yield from conversations
        return
    count = sum(1 for file in files for _ in read_conversations(file, Tally()))
    taken = min(most, count)
    tally.beyond_cap += count - taken
    for number, conversation in enumerate(conversations):
        if (number + 1) * taken // count > number * taken // count:
            yield conversation


def examples_of(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, limits: Limits
) -> tuple[list[Pair], Tally]:
    """(ids, mask of what is learnt) of each example that the limits admit, and what became of all
    conversations.
    """
    tally = Tally()
    return list(_pairs(conversations, tokenizer, limits, tally)), tally


def _pairs(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, limits: Limits, tally: Tally
) -> Iterator[Pair]:
    remaining = iter(conversations)
    while batch := list(islice(remaining, AT_ONCE)):
        yield from _batch(batch, tokenizer, limits, tally)


def _batch(
    conversations: list[Conversation], tokenizer: Tokenizer, limits: Limits, tally: Tally
) -> list[Pair]:
    pairs: list[Pair] = []
    for conversation, result in zip(conversations, tokenizer.answers(conversations), strict=True):
        tally.rows += 1
        if isinstance(result, ChatRefused):
            reason = str(result) if result.reason.startswith("the chat") else result.reason
            tally.leave_out(reason, conversation.where)
            continue
        examples = _within(result, limits, conversation, tally)
        if not examples:
            continue
        tally.learnt += 1
        tally.examples += len(examples)
        tally.without_end += sum(not example.ends for example in examples)
        tally.words_as_text += any(example.words_as_text for example in examples)
        tally.not_rendered.update(examples[0].not_rendered)
        for example in examples:
            tally.tokens += len(example.ids)
            tally.learnt_tokens += sum(example.learnt)
            pairs.append((example.ids, example.learnt))
    return pairs


def _within(
    examples: list[Example], limits: Limits, conversation: Conversation, tally: Tally
) -> list[Example]:
    """The examples of a conversation as its row can hold them; none where it is left out, which is
    counted, as a truncation is.
    """
    if all(len(example.ids) - 1 <= limits.seq_len for example in examples):
        return examples  # the last id is a label alone
    if limits.too_long == "drop":
        tally.leave_out(limits.long, conversation.where)
        return []
    cut = [part for one in examples if (part := beginning(one, limits.seq_len)) is not None]
    if cut:
        tally.truncate(limits.long, conversation.where)
    else:
        tally.leave_out(f"{limits.long}, and no answer begins in them", conversation.where)
    return cut


def beginning(example: Example, seq_len: int) -> Example | None:
    """The example without what lies beyond seq_len tokens and a label, up to its last token that is
    learnt then; None where none is.

    An answer that is cut loses its end, so no model learns to stop there. `ends` stays: it tells
    whether the chat template ends answers.
    """
    learnt = example.learnt[: seq_len + 1]
    last = max((place for place, learn in enumerate(learnt) if learn), default=0)
    if not last:  # the first token is read, and never a label
        return None
    return replace(example, ids=example.ids[: last + 1], learnt=learnt[: last + 1])


def conversation_files(corpus: Path, sources: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of training conversations of these sources of a corpus, by source; of all where
    none is named.
    """
    names = sources or tuple(sorted(p.name for p in (corpus / "documents").iterdir() if p.is_dir()))
    files = {name: row_files(corpus / "documents" / name, "train") for name in names}
    if missing := [name for name, parts in files.items() if not parts]:
        raise FileNotFoundError(f"{corpus} has no source {missing[0]!r} with training documents")
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
