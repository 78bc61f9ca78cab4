"""Pairs of answers, one preferred to the other, as ids and a mask of each answer's tokens; what is
left out is counted, by reason.

Rows as the Hugging Face hub has them: "prompt", "chosen" and "rejected" as texts; the three as
messages; or "chosen" and "rejected" as whole conversations with a common beginning.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.data.conversation_store import StoredConversations, StoredRows
from pocketlm.data.conversations import AT_ONCE, NAMED, UNREADABLE
from pocketlm.data.conversations import Pair as Encoded
from pocketlm.model.chat_template import ChatRefused
from pocketlm.model.conversation import Conversation, conversation_of
from pocketlm.model.json_lines import json_lines
from pocketlm.model.tokenizer import Tokenizer

FORMS = 'a preference has "prompt", "chosen" and "rejected", or the last two as conversations'
NO_LOSER = 'no loser: "rejected" is missing or empty'
NO_WINNER = 'no winner: "chosen" is missing or empty'
NO_PROMPT = "no prompt, and the two conversations begin with no common user's turn"
ALIKE = "both answers are the same"
APART = "the two sides ask different things"
OTHER_PROMPT = 'what the conversations ask is not their "prompt"'
Sides = tuple[Conversation, Conversation]  # chosen, rejected


@dataclass(kw_only=True)
class PairTally:
    """What became of the rows of a file of preferences. where: the first few rows of a reason."""

    rows: int = 0
    pairs: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    where: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        self.left_out[reason] += 1
        places = self.where.setdefault(reason, [])
        if len(places) < NAMED:
            places.append(where)

    def lines(self) -> Iterator[str]:
        """What a person should know of it before training, one thing a line."""
        yield f"{self.pairs:,} of {self.rows:,} pairs are learnt"
        for reason, count in self.left_out.most_common():
            places = ", ".join(self.where[reason])
            more = ", ..." if count > len(self.where[reason]) else ""
            yield f"{count:,} left out ({count / self.rows:.1%}): {reason} ({places}{more})"

    def as_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("rows", "pairs", "tokens")}
        answers = {"answer_tokens": self.answer_tokens, "left_out": dict(self.left_out)}
        return {**fields, **answers, "where": self.where}


def read_pairs(
    file: Path, tokenizer: Tokenizer, seq_len: int, tally: PairTally
) -> Iterator[Encoded]:
    """(ids, mask of the answer's tokens) of each chosen answer, followed by that of its rejected
    one.

    seq_len: the two have a row together. ValueError: no row is a pair that can be learnt.
    """
    sides = _sides(file, tally)
    while batch := list(islice(sides, AT_ONCE)):
        yield from _encoded(batch, tokenizer, seq_len, tally)
    if not tally.pairs:
        why = "; ".join(list(tally.lines())[1:]) or f"no row is a pair: {FORMS}"
        raise ValueError(f"{file}: {why}; nothing to train on")


def _sides(file: Path, tally: PairTally) -> Iterator[Sides]:
    def unreadable(error: ValueError) -> None:
        tally.rows += 1
        tally.leave_out(UNREADABLE, str(error))

    for number, row in json_lines(file, advice="mend the row", unreadable=unreadable):
        where = f"{file}:{number}"
        if not isinstance(row, dict) or not {"chosen", "rejected"} & row.keys():
            unreadable(ValueError(f"{where}: {FORMS}"))
            continue
        try:
            sides = sides_of(row, where)
        except Unpaired as reason:
            tally.rows += 1
            tally.leave_out(str(reason), where)
        except ValueError as error:
            unreadable(error)
        else:
            tally.rows += 1
            yield sides


class Unpaired(Exception):
    """Why a row is no pair: a reason to count by."""


def sides_of(row: dict[str, Any], where: str) -> Sides:
    """The two conversations of a row, of which the answers after the common beginning are learnt.

    Unpaired: one side is missing, both say the same, or there is nothing that both answer.
    ValueError, beginning with `where`: a message that cannot be read.
    """
    for name, reason in (("rejected", NO_LOSER), ("chosen", NO_WINNER)):
        answer = row.get(name)
        if not answer or (isinstance(answer, str) and not answer.strip()):
            raise Unpaired(reason)
    chosen, rejected = (_conversation(row, name, where) for name in ("chosen", "rejected"))
    shared = 0
    for one, other in zip(chosen.messages, rejected.messages, strict=False):
        if one != other:
            break
        shared += 1
    if shared == len(chosen.messages) == len(rejected.messages):
        raise Unpaired(ALIKE)
    if not any(message["role"] == "user" for message in chosen.messages[:shared]):
        raise Unpaired(NO_PROMPT)
    for side, reason in ((chosen, NO_WINNER), (rejected, NO_LOSER)):
        answers = [m for m in side.messages[shared:] if m["role"] == "assistant"]
        if not any(str(m["content"]).strip() or m.get("tool_calls") for m in answers):
            raise Unpaired(reason)
    if {side.messages[shared]["role"] for side in (chosen, rejected)} != {"assistant"}:
        raise Unpaired(APART)
    _check_prompt(row.get("prompt"), chosen.messages[:shared])
    return _answers_of(chosen, shared), _answers_of(rejected, shared)


def _check_prompt(prompt: Any, shared: Sequence[Any]) -> None:
    """Nothing, or Unpaired where a prompt stands beside conversations that ask something else."""
    turns = [message["content"] for message in shared if message["role"] == "user"]
    wanted = prompt
    if isinstance(prompt, list):
        wanted = next((m.get("content") for m in reversed(prompt) if m.get("role") == "user"), None)
    if isinstance(wanted, str) and wanted.strip() not in {turn.strip() for turn in turns}:
        raise Unpaired(OTHER_PROMPT)


def _conversation(row: dict[str, Any], name: str, where: str) -> Conversation:
    answer, prompt = row[name], row.get("prompt")
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(answer, list) or not all(isinstance(turn, dict) for turn in answer):
        raise ValueError(f'{where}: "{name}" is to be a text or a list of messages')
    whole = answer
    if answer[0].get("role") == "assistant":  # it answers a prompt that stands beside it
        if not prompt:
            raise Unpaired(NO_PROMPT)
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(before, list):
            raise ValueError(f'{where}: "prompt" is to be a text or a list of messages')
        whole = [*before, *answer]
    fields = {key: row[key] for key in ("tools", "chat_template_kwargs") if key in row}
    if isinstance(row.get("system"), str) and whole[0].get("role") != "system":
        whole = [{"role": "system", "content": row["system"]}, *whole]
    return conversation_of({"messages": whole, **fields}, f"{where}, {name}")


def _answers_of(side: Conversation, shared: int) -> Conversation:
    """The conversation, of which the assistant's turns after the common ones are learnt."""
    learnt = tuple(
        number >= shared and message["role"] == "assistant"
        for number, message in enumerate(side.messages)
    )
    return replace(side, learnt=learnt)


def _encoded(
    batch: list[Sides], tokenizer: Tokenizer, seq_len: int, tally: PairTally
) -> list[Encoded]:
    results = tokenizer.answers([side for pair in batch for side in pair])
    encoded: list[Encoded] = []
    for number, (chosen, _) in enumerate(batch):
        sides = results[2 * number : 2 * number + 2]
        refused = [side for side in sides if isinstance(side, ChatRefused)]
        if refused:
            tally.leave_out(refused[0].reason, chosen.where)
            continue
        # of a template that leaves thinking out of earlier turns the last example is the answer
        pair = [side[-1] for side in sides if not isinstance(side, ChatRefused)]
        length = sum(len(one.ids) - 1 for one in pair)
        if length > seq_len:
            tally.leave_out(f"both answers take more than {seq_len:,} tokens", chosen.where)
            continue
        if pair[0].ids == pair[1].ids:
            tally.leave_out(ALIKE, chosen.where)
            continue
        tally.pairs += 1
        tally.tokens += length
        tally.answer_tokens += sum(sum(one.learnt) for one in pair)
        encoded += [(one.ids, one.learnt) for one in pair]
    return encoded


class PairRows(StoredRows):
    """Rows of a store of pairs: document 0 is the chosen conversation, document 1 the rejected one.
    numbers: which pairs of the store.
    """

    def __init__(self, folder: Path, seq_len: int, eos_id: int, numbers: Sequence[int]) -> None:
        self.seq_len, self.eos_id = seq_len, eos_id
        self.conversations = StoredConversations(folder)  # type: ignore[assignment]
        self.rows = [(2 * n, 2 * n + 1) for n in numbers]  # type: ignore[assignment]
        self.numbers = list(numbers)


def split_pairs(count: int, share: float) -> tuple[list[int], list[int]]:
    """(numbers of the pairs to train on, of those held out): `share` of them, evenly spaced, at
    least one and never all where the share is above 0.
    """
    held = min(count - 1, max(1, round(share * count))) if share > 0 and count > 1 else 0
    out = set(np.linspace(0, count - 1, held).round().astype(int).tolist()) if held else set()
    return [n for n in range(count) if n not in out], sorted(out)
