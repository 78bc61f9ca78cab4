"""A conversation in the terminal, with any Runtime: lines in, answers that grow, commands."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import Console

from pocketlm.inference.conversation import Answer, Prompt, has_turns, prompt_of
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import Sampling
from pocketlm.model.conversation import Message

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


# command -> the field of Sampling that it sets
SAMPLING_COMMANDS: dict[str, tuple[str, Callable[[str], float]]] = {
    "/temperature": ("temperature", float),
    "/top_k": ("top_k", int),
    "/top_p": ("top_p", float),
    "/min_p": ("min_p", float),
    "/penalty": ("repetition_penalty", float),
}
TALK = Sampling(top_p=0.95)
# Answer.ended_by -> what cut an answer
LIMITS = {"max_new_tokens": "/max_tokens allows no more", "context": "the context is full"}
NO_INSTRUCTIONS = "a base model has no turns, and takes no instructions: they are not used"


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


def chat(model: Runtime, config: ChatConfig, console: Console) -> list[Message]:
    """The conversation as it stood when the person left. Lines come from stdin, answers show as
    they grow.

    A base model has no turns: each line is then a question of its own.
    """
    remembers = has_turns(model.tokenizer)
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
            prompt = prompt_of(
                model.tokenizer,
                [*messages, {"role": "user", "content": line}],
                max_length=model.max_length,
                max_new_tokens=config.max_new_tokens,
            )
        except ValueError as error:
            _note(console, str(error))
            continue
        if prompt.dropped_exchanges:
            _note(console, f"the context is full: {_oldest(prompt.dropped_exchanges)} forgotten")
        turn += 1
        sampling = replace(config.sampling, seed=config.sampling.seed + turn)
        answer = _answer(model, prompt, replace(config, sampling=sampling), console)
        if remembers:
            messages = [*prompt.messages, {"role": "assistant", "content": answer}]
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
        if word in SAMPLING_COMMANDS:
            field, kind = SAMPLING_COMMANDS[word]
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


def _oldest(count: int) -> str:
    return "the oldest exchange is" if count == 1 else f"the {count} oldest exchanges are"


def _answer(model: Runtime, prompt: Prompt, config: ChatConfig, console: Console) -> str:
    """The answer, printed while it is made; Ctrl-C keeps what there is."""
    console.print("model ", style="bold magenta", end="")
    answer = Answer(
        model,
        prompt,
        max_new_tokens=config.max_new_tokens,
        sampling=config.sampling,
        stop_strings=config.stop,
    )
    printed = 0
    start = time.monotonic()
    try:
        for piece in answer:
            _write(console, piece)
            printed += len(piece)
    except KeyboardInterrupt:
        pass  # the person has read enough; what there is stays
    _write(console, answer.text[printed:])
    seconds = time.monotonic() - start
    cut = f"; cut there, for {LIMITS[answer.ended_by]}" if answer.ended_by in LIMITS else ""
    tokens = len(answer.ids)
    console.print(
        f"\n{tokens} tokens, {tokens / seconds:.1f} a second{cut}", style="dim", highlight=False
    )
    return answer.text  # as it was made, spaces too: the next prompt holds it again


def _write(console: Console, text: str) -> None:
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)
