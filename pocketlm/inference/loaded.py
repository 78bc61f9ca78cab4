"""`from pocketlm import load`: a model in a few lines of Python, whichever file it is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from pocketlm.inference.conversation import Answer, Prompt, prompt_of
from pocketlm.inference.open import open_model
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import Sampling
from pocketlm.model.conversation import Message
from pocketlm.model.hub_folder import model_at


def load(
    path: str | Path, *, threads: int | None = None, context_length: int | None = None
) -> "Model":
    """The model at `path`: a checkpoint folder, a .gguf or a .pte, or a hub id, OWNER/NAME, which
    is fetched into the hub's cache.

    threads: the runtime's own choice by default. context_length: see `open_model`. An error of one
    sentence for what is no model.
    """
    return Model(open_model(model_at(path), threads=threads, context_length=context_length))


class Model:
    """A model that is open. A `with` statement, or `close`, frees it.

    runtime: what computes it, for all that is not here. Sampling's options are fields of
    `Sampling`: temperature (0 takes the likeliest token), top_p, top_k, min_p, repetition_penalty,
    seed.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def max_length(self) -> int:
        """Tokens of the longest text, prompt and answer together."""
        return self.runtime.max_length

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[False] = False,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[True],
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]: ...

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> str | Iterator[str]:
        """The answer to a conversation, or to one question; where `stream`, in pieces as it is
        made.

        messages: a text of the user, or {"role", "content"} of each turn. ValueError where they do
        not fit the context.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        prompt = prompt_of(
            self.runtime.tokenizer, turns, max_length=2**40, max_new_tokens=max_tokens
        )
        return self._answer(prompt, stream, max_tokens, stop, sampling)

    @overload
    def generate(
        self,
        text: str,
        *,
        stream: Literal[False] = False,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> str: ...

    @overload
    def generate(
        self,
        text: str,
        *,
        stream: Literal[True],
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        text: str,
        *,
        stream: bool = False,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> str | Iterator[str]:
        """What goes on from a plain text, without a chat template; options as those of `chat`."""
        tokenizer = self.runtime.tokenizer
        ids = [*tokenizer.document_start, *tokenizer.encode(text)]
        return self._answer(Prompt(ids=ids, messages=[]), stream, max_tokens, stop, sampling)

    def log_probs(self, text: str) -> list[tuple[str, float]]:
        """Each token of a text with its natural log-probability, given those before it.

        The first token has one where the tokenizer has a token that begins documents; else it is
        left out.
        """
        tokenizer = self.runtime.tokenizer
        ids = [*tokenizer.document_start, *tokenizer.encode(text)]
        values = self.runtime.log_probs(ids).tolist()
        return [(tokenizer.decode([i]), value) for i, value in zip(ids[1:], values, strict=True)]

    def close(self) -> None:
        """Free the model; it is of no use afterwards."""
        self.runtime.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _answer(
        self,
        prompt: Prompt,
        stream: bool,
        max_tokens: int,
        stop: Sequence[str],
        sampling: dict[str, Any],
    ) -> str | Iterator[str]:
        if len(prompt.ids) >= self.max_length:
            raise ValueError(
                f"the prompt is {len(prompt.ids)} tokens, and the model reads {self.max_length} "
                "with its answer; shorten it"
            )
        answer = Answer(
            self.runtime,
            prompt,
            max_new_tokens=max_tokens,
            sampling=Sampling(**sampling),
            stop_strings=stop,
        )
        return iter(answer) if stream else "".join(answer)
