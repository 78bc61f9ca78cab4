"""Conversations for any surface, a terminal or a server: messages to prompt ids, and the answer's
text as it grows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.inference.stop_strings import before_stop, text_pieces
from pocketlm.model.conversation import Conversation, Message, plain
from pocketlm.model.tokenizer import Tokenizer

# a base model goes on to the next question: not part of its answer. A chat model ends its turn
RUN_ON = "\nQuestion:"

EndedBy = Literal["stop", "max_new_tokens", "context"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """ids: what the model reads. messages: those that the ids hold; of a base model the last
    question alone. dropped_exchanges: how many of the oldest did not fit. stop_strings: texts that
    end an answer to it.
    """

    ids: list[int]
    messages: list[Message]
    dropped_exchanges: int = 0
    stop_strings: tuple[str, ...] = ()


def has_turns(tokenizer: Tokenizer) -> bool:
    """Whether a model chats: its tokenizer has a chat template. A base model has none, and is given
    each question by itself.
    """
    return tokenizer.chat_template is not None


def prompt_of(
    tokenizer: Tokenizer,
    conversation: Sequence[Message] | Conversation,
    *,
    max_length: int,
    max_new_tokens: int,
) -> Prompt:
    """The prompt for the next answer, of fewer than `max_length` tokens.

    The chat template decides what of former turns is shown; one that leaves out their thinking, as
    Qwen 3's does, is given it and leaves it out. While the prompt leaves less room than
    max_new_tokens, or than three quarters of max_length if that is less (our choice), the oldest
    exchange is dropped whole: a user's turn and all that answered it. Instructions before the first
    user's turn and tools stay. A base model reads "Question: …\\nAnswer:" of the last user's turn.
    ValueError: no user's turn to answer, or one that fills the context by itself.
    """
    whole = plain(conversation)
    if not any(message["role"] == "user" for message in whole.messages):
        raise ValueError("a conversation needs a message of the user to answer; there is none")
    if has_turns(tokenizer):
        prompt = _trimmed(tokenizer, whole, max(max_length // 4, max_length - max_new_tokens))
    else:
        question = [m for m in whole.messages if m["role"] == "user"][-1]
        ids = tokenizer.encode(f"Question: {question['content']}\nAnswer:")
        prompt = Prompt(
            ids=[*tokenizer.document_start, *ids], messages=[question], stop_strings=(RUN_ON,)
        )
    if len(prompt.ids) >= max_length:
        raise ValueError(
            f"that is {len(prompt.ids)} tokens with its prompt, and the model reads {max_length}; "
            "shorten it"
        )
    return prompt


def _trimmed(tokenizer: Tokenizer, conversation: Conversation, limit: int) -> Prompt:
    """The prompt of as many of the latest exchanges as fit in `limit` tokens; of the last one if
    none do.
    """
    messages, dropped = list(conversation.messages), 0
    ids = tokenizer.encode_chat(conversation)
    while len(ids) > limit and (shorter := without_oldest_exchange(messages)) is not None:
        messages, dropped = shorter, dropped + 1
        ids = tokenizer.encode_chat(replace(conversation, messages=tuple(messages), learnt=()))
    return Prompt(ids=ids, messages=messages, dropped_exchanges=dropped)


def without_oldest_exchange(messages: Sequence[Message]) -> list[Message] | None:
    """The messages without the first user's turn and what follows it up to the next one; None if it
    is the last.

    Messages before the first user's turn, such as instructions, stay.
    """
    turns = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return [*messages[: turns[0]], *messages[turns[1] :]] if len(turns) > 1 else None


class Answer:
    """An answer while it is made: iterate over it once for its text in pieces.

    ids: those made so far. text: the answer so far, before any stop string. ended_by, once the
    pieces are at their end: "stop" (by itself, or a stop string), "max_new_tokens" or "context".
    Whoever stops iterating before that keeps what there is.
    """

    def __init__(
        self,
        model: Runtime,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop_strings: Sequence[str] = (),
    ) -> None:
        """stop_strings: besides the prompt's own."""
        self._tokenizer = model.tokenizer
        self._stop_strings = (*prompt.stop_strings, *stop_strings)
        room = model.max_length - len(prompt.ids)
        self._limit = min(max_new_tokens, room)
        self._limited_by: EndedBy = "max_new_tokens" if max_new_tokens <= room else "context"
        self._stream = model.stream(
            prompt.ids,
            max_new_tokens=self._limit,
            stop_ids=model.tokenizer.stop_ids,
            sampling=sampling,
        )
        self.ids: list[int] = []
        self.ended_by: EndedBy | None = None

    def __iter__(self) -> Iterator[str]:
        yield from text_pieces(self._recorded(), self._tokenizer, self._stop_strings)
        whole = self._tokenizer.decode(self.ids)
        cut = len(self.ids) == self._limit and before_stop(whole, self._stop_strings) == whole
        self.ended_by = self._limited_by if cut else "stop"

    def _recorded(self) -> Iterator[int]:
        for token in self._stream:
            self.ids.append(token)
            yield token

    @property
    def text(self) -> str:
        return before_stop(self._tokenizer.decode(self.ids), self._stop_strings)
