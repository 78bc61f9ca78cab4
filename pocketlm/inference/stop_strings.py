"""Where an answer ends: at strings, found in the text as its ids come. Every runtime here uses this
one mechanism.

A stop string may begin in the middle of a token, go over several, and hold characters whose bytes
are tokens of their own.
"""

from collections.abc import Iterable, Iterator, Sequence

from pocketlm.model.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a character decodes to while some of its bytes are still to come


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text up to where the first of the strings to be complete begins; all of it where there is
    none.
    """
    ends = [
        (text.find(string) + len(string), -len(string)) for string in stop_strings if string in text
    ]
    end, length = min(ends, default=(len(text), 0))  # of two that end together, the longer one
    return text[: end + length]


def text_pieces(
    ids: Iterable[int], tokenizer: Tokenizer, stop_strings: Sequence[str]
) -> Iterator[str]:
    """The text of ids in pieces, as they come, ended before the first stop string; no id after it
    is asked for.

    What may be the beginning of a stop string or half a character waits for the next id. The pieces
    together are `before_stop` of the whole text.
    """
    ending = StopMatcher(tokenizer, stop_strings)
    for token in ids:
        if piece := ending.add(token):
            yield piece
        if ending.stopped:
            return
    if piece := ending.rest():
        yield piece


class StopText:
    """The text of one answer as pieces of it come, and whether a stop string is in it.

    stopped: a stop string is complete, so what comes after is no part of the answer.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        if "" in stop_strings:
            raise ValueError(
                "a stop string is empty: it would end every answer before its first word"
            )
        self.stop_strings = tuple(stop_strings)
        self.stopped = False
        self._held = ""  # text that may be the beginning of a stop string

    def give(self, text: str, *, final: bool = False) -> str:
        """Text that is now certain, often "". final: no more comes, so nothing waits."""
        text = self._held + text
        certain = before_stop(text, self.stop_strings)
        self.stopped = len(certain) < len(text)
        if not (self.stopped or final):
            certain = certain[: len(certain) - beginning_of(certain, self.stop_strings)]
        self._held = text[len(certain) :]
        return certain


def beginning_of(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of one of the strings."""
    longest = min(len(text), max(map(len, strings), default=1) - 1)
    return next(
        (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in strings)), 0
    )


class StopMatcher(StopText):
    """The same from the ids of an answer, as they come."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str]) -> None:
        super().__init__(stop_strings)
        self.tokenizer = tokenizer
        self._ids: list[int] = []  # the newest, those of `_known` whole characters before them
        # how many of them those are: a decoder may treat the first id of a text in its own way
        self._known = 0
        self._taken = 0  # characters of what comes after them that went on to `give`

    def add(self, token: int) -> str:
        """Text that is now certain, often ""."""
        self._ids.append(token)
        text = self._newest()
        whole = text.rstrip(UNFINISHED)
        new = whole[self._taken :]
        self._taken += len(new)
        if text and whole == text:
            self._ids, self._known, self._taken = (
                self._ids[self._known :],
                len(self._ids) - self._known,
                0,
            )
        return self.give(new)

    def reached(self, token: int) -> bool:
        """Whether a stop string is complete with this id."""
        self.add(token)
        return self.stopped

    def rest(self) -> str:
        """The text that was waiting, for no more ids come."""
        return self.give(self._newest()[self._taken :], final=True)

    def _newest(self) -> str:
        before = self.tokenizer.decode(self._ids[: self._known])
        return self.tokenizer.decode(self._ids)[len(before) :]
