"""What makes tokens for the server, whichever runtime computes them: a prompt in, pieces of text
out.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One answer that is asked for.

    ids: the prompt. top_logprobs: how many of the likeliest tokens are reported beside each one
    made; None for no log-probabilities at all. grammar: what the answer is held to, as fields of
    llama-server's request; {} for nothing.
    """

    ids: list[int]
    max_new_tokens: int
    stop_ids: set[int]
    stop_strings: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    top_logprobs: int | None = None
    grammar: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A token and its natural log-probability before temperature and other restrictions. data: its
    bytes, which need not be whole characters. likeliest: the tokens that could have stood there,
    the likeliest first.
    """

    data: bytes
    logprob: float
    likeliest: tuple["Score", ...] = ()

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one or more tokens add to an answer.

    text: often "", while a character or what may be a stop string is unfinished. tokens: how many
    were made. ended: "stop" for an end of the model's own or a stop string, "length" where
    max_new_tokens were made; None while the answer goes on. cached: of the last piece, tokens of
    the prompt that an earlier answer had already computed. drafted, accepted: of the last piece,
    tokens that a smaller model proposed, and those of them that were taken.
    """

    text: str
    tokens: int = 0
    scores: tuple[Score, ...] = ()
    ended: Literal["stop", "length"] | None = None
    cached: int = 0
    drafted: int = 0
    accepted: int = 0


class Unavailable(Exception):
    """The model does not answer now; the text says why. A later request may succeed."""


class Backend(Protocol):
    """A model that answers several requests at once.

    slots: answers that are made side by side; the caller never asks for more. constrains: whether
    `Wanted.grammar` is honoured.
    """

    kind: str
    tokenizer: Tokenizer
    max_length: int
    slots: int
    constrains: bool

    def answer(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer as they are made; the last one says how it ended.

        Closing the iterator stops the computation. Unavailable where the model fails.
        """
        ...

    def healthy(self) -> bool:
        """Whether the model can answer."""
        ...

    def close(self) -> None:
        """Stop everything that runs, and free the model."""
        ...
