"""What of an answer is thinking, as its text comes: between <think> and </think>.

A chat template may open the tag itself, so that the answer holds the closing one alone; a model
may never close it, for its tokens were spent; and some close it without opening.
"""

from dataclasses import replace
from typing import Literal

from pocketlm.inference.stop_strings import beginning_of
from pocketlm.model.conversation import REASONING, Conversation, Message

OPEN, CLOSE = "<think>", "</think>"
Part = tuple[Literal["content", "reasoning"], str]


class Thinking:
    """Splits one answer. opened: the prompt ends inside of thinking.

    A tag opens thinking only at the beginning of an answer, and one that closes it counts once:
    later ones are text. A closing tag without an opening one makes the content before it thinking;
    what a stream gave of it by then stays given, and `thought_before` says so.
    """

    def __init__(self, opened: bool) -> None:
        self.inside = opened
        self.thought_before = False
        self._begun = opened  # some text was there, or a tag
        self._closed = False
        self._trim = opened  # white space at the beginning of thinking, or behind it, is no part
        self._held = ""

    def give(self, text: str, *, final: bool = False) -> list[Part]:
        """The parts that are now certain. final: no more comes."""
        text, self._held = self._held + text, ""
        parts: list[Part] = []
        if not self._begun:
            opening = text.lstrip()
            if opening.startswith(OPEN):
                text = opening[len(OPEN) :]
                self.inside = self._begun = self._trim = True
            elif OPEN.startswith(opening) and not final:  # white space, or the tag's beginning
                self._held = text
                return []
            else:
                self._begun = True
        if not self._closed and CLOSE in text:
            before, _, text = text.partition(CLOSE)
            self._add(parts, before.rstrip() if self.inside else before)
            self.thought_before = not self.inside
            self.inside, self._closed, self._trim = False, True, True
        if not (self._closed or final):
            certain = text[: len(text) - beginning_of(text, (CLOSE,))]
            # white space before the closing tag is no part of the thinking
            certain = certain.rstrip() if self.inside else certain
            text, self._held = certain, text[len(certain) :]
        self._add(parts, text.rstrip() if final and self.inside else text)
        return parts

    def _add(self, parts: list[Part], text: str) -> None:
        text = text.lstrip() if self._trim else text
        if text:
            self._trim = False
            parts.append(("reasoning" if self.inside else "content", text))


def split(text: str, opened: bool) -> tuple[str, str]:
    """(thinking, content) of a whole answer."""
    thinking = Thinking(opened)
    parts = [*thinking.give(text), *thinking.give("", final=True)]
    if thinking.thought_before:
        before, _, after = text.partition(CLOSE)
        return before.strip(), after.lstrip()
    reasoning, content = (
        "".join(part for kind, part in parts if kind == wanted)
        for wanted in ("reasoning", "content")
    )
    return reasoning, content


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends inside of thinking: its template wrote the opening tag."""
    return prompt.rstrip().endswith(OPEN)


def without_thinking(conversation: Conversation) -> Conversation:
    """The conversation without the thinking of earlier turns, whether it stands in a field of its
    own or in the content. That of answers since the last user's turn, which called tools, stays.
    """
    messages = conversation.messages
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else 0
    earlier = [_answered(m) if m["role"] == "assistant" else m for m in messages[:last]]
    return replace(conversation, messages=(*earlier, *messages[last:]))


def _answered(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key not in REASONING}
    return kept | {"content": split(kept["content"], opened=False)[1]}
