"""A conversation in the terminal, with a checkpoint, a .gguf or a .pte alike."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console

from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.inference.stop_strings import before_stop, text_pieces
from pocketlm.model.tokenizer import Message, Tokenizer

HELP = """\
/reset            forget the conversation
/system TEXT      begin again, with these instructions for the model
/temperature X    0 is the likeliest answer; 0.7 varies
/top_k N          draw from the N likeliest words alone; 0 from all
/top_p X          draw from the likeliest words that together have this probability
/min_p X          draw from words at least this share as likely as the likeliest
/penalty X        make words that were there before less likely; 1 does not
/max_tokens N     the longest answer
/quit             leave, as Ctrl-D and Ctrl-C do (in an answer Ctrl-C stops the answer)"""


DRAWN: dict[str, tuple[str, Callable[[str], float]]] = {  # command -> the field of Sampling it sets
    "/temperature": ("temperature", float),
    "/top_k": ("top_k", int),
    "/top_p": ("top_p", float),
    "/min_p": ("min_p", float),
    "/penalty": ("repetition_penalty", float),
}
TALK = Sampling(top_p=0.95)
# a base model goes on to the next question: not part of its answer. A chat model ends its turn
RUN_ON = "\nQuestion:"
NO_INSTRUCTIONS = "a base model has no turns, and takes no instructions: they are not used"


class ChatModel(Protocol):
    """What a conversation needs of a runtime."""

    tokenizer: Tokenizer
    max_length: int

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]: ...


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How answers are drawn, and the instructions they follow."""

    sampling: Sampling = TALK
    max_new_tokens: int = 512
    system: str | None = None
    stop: tuple[str, ...] = ()  # texts before which an answer ends

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for an answer; choose 1 or "
                "more"
            )
        if "" in self.stop:
            raise ValueError(
                "stop: an empty text would end every answer before its first word; leave it out"
            )


def chat(model: ChatModel, config: ChatConfig, console: Console) -> list[Message]:
    """The conversation as it stood when the person left. Lines come from stdin, answers show as
    they grow.

    A base model has no turns: each line is then a question of its own, "Question: …\\nAnswer:".
    """
    remembers = model.tokenizer.chat_template is not None
    kind = (
        "a chat model"
        if remembers
        else "a base model: every line is a question of its own, and it remembers none"
    )
    console.print(f"{kind}; /help lists the commands", style="dim", highlight=False)
    if config.system and not remembers:
        _note(console, NO_INSTRUCTIONS)
    messages = _opening(config)
    turn = 0
    while (line := _read(console)) is not None:
        if not line:
            continue
        if line.startswith("/"):
            if line in ("/quit", "/exit"):
                break
            if line.startswith("/system") and not remembers:
                _note(console, NO_INSTRUCTIONS)
                continue
            config, messages = _command(line, config, messages, console)
            continue
        try:
            asked = [*messages, {"role": "user", "content": line}]
            prompt, asked = _prompt(model, asked, config, console)
        except ValueError as error:
            _note(console, str(error))
            continue
        turn += 1
        drawn = replace(config.sampling, seed=config.sampling.seed + turn)
        answer = _answer(model, prompt, replace(config, sampling=drawn), console)
        if remembers:
            messages = [*asked, {"role": "assistant", "content": answer}]
    return messages


def _read(console: Console) -> str | None:
    """The next line, or None when the person leaves."""
    try:
        return console.input("[bold cyan]you[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _command(
    line: str, config: ChatConfig, messages: list[Message], console: Console
) -> tuple[ChatConfig, list[Message]]:
    """Settings and conversation after a line that begins with a slash."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    try:
        if word == "/reset":
            _note(console, "forgotten")
            return config, _opening(config)
        if word == "/system":
            config = replace(config, system=rest or None)
            _note(
                console,
                "begun again with these instructions"
                if rest
                else "begun again without instructions",
            )
            return config, _opening(config)
        if word in DRAWN:
            field, kind = DRAWN[word]
            return replace(
                config, sampling=replace(config.sampling, **{field: kind(rest)})
            ), messages
        if word == "/max_tokens":
            return replace(config, max_new_tokens=int(rest)), messages
    except ValueError as error:
        _note(console, f"{word}: {error}")
        return config, messages
    _note(console, HELP if word == "/help" else f"no command {word}\n{HELP}")
    return config, messages


def _opening(config: ChatConfig) -> list[Message]:
    return [{"role": "system", "content": config.system}] if config.system else []


def _prompt(
    model: ChatModel, messages: list[Message], config: ChatConfig, console: Console
) -> tuple[list[int], list[Message]]:
    """Ids to answer, and the messages they hold; ValueError if one line fills the context.

    When the context is full the oldest exchanges go, each whole: a user's turn and all that
    answered it.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        ids = [
            *tokenizer.document_start,
            *tokenizer.encode(f"Question: {messages[-1]['content']}\nAnswer:"),
        ]
    else:
        ids = tokenizer.encode_chat(messages)
        # what an answer must not need
        room = max(model.max_length // 4, model.max_length - config.max_new_tokens)
        forgotten = 0
        while len(ids) > room and (shorter := without_oldest_exchange(messages)) is not None:
            messages, forgotten = shorter, forgotten + 1
            ids = tokenizer.encode_chat(messages)
        if forgotten:
            count = (
                "the oldest exchange is"
                if forgotten == 1
                else f"the {forgotten} oldest exchanges are"
            )
            _note(console, f"the context is full: {count} forgotten")
    if len(ids) >= model.max_length:
        raise ValueError(
            f"that is {len(ids)} tokens with its prompt, and the model reads {model.max_length}; "
            "shorten it"
        )
    return ids, messages


def without_oldest_exchange(messages: list[Message]) -> list[Message] | None:
    """The messages without the first user's turn and what follows it up to the next one; None if it
    is the last.

    What stands before the first user's turn, such as instructions, stays.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return [*messages[: asked[0]], *messages[asked[1] :]] if len(asked) > 1 else None


def _answer(model: ChatModel, prompt: list[int], config: ChatConfig, console: Console) -> str:
    """The answer, printed while it is made; Ctrl-C keeps what there is."""
    console.print("model ", style="bold magenta", end="")
    tokenizer = model.tokenizer
    stop_strings = config.stop if tokenizer.chat_template else (RUN_ON, *config.stop)
    ids: list[int] = []
    shown = ""
    limit = min(config.max_new_tokens, model.max_length - len(prompt))
    start = time.monotonic()
    stream = model.stream(
        prompt, max_new_tokens=limit, stop_ids=tokenizer.stop_ids, sampling=config.sampling
    )
    try:
        for piece in text_pieces(
            (ids.append(token) or token for token in stream), tokenizer, stop_strings
        ):
            _write(console, piece)
            shown += piece
    except KeyboardInterrupt:
        pass  # the person has read enough; what there is stays
    text = tokenizer.decode(ids)
    answer = before_stop(text, stop_strings)
    _write(console, answer[len(shown) :])
    seconds = time.monotonic() - start
    cut = ""
    if len(ids) == limit and answer == text:
        why = (
            "/max_tokens allows no more"
            if limit == config.max_new_tokens
            else "the context is full"
        )
        cut = f"; cut there, for {why}"
    console.print(
        f"\n{len(ids)} tokens, {len(ids) / seconds:.1f} a second{cut}", style="dim", highlight=False
    )
    return answer  # as it was made, spaces too: the next prompt holds it again


def _write(console: Console, text: str) -> None:
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)
