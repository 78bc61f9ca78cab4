"""The terminal conversation: it remembers, forgets, shows whole characters, and survives what
people type.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from pocketlm.inference.sampling import Sampling
from pocketlm.model.tokenizer import CHATML, Message, Tokenizer, train_tokenizer
from pocketlm.serve.terminal import ChatConfig, chat
from tests.unit.silent_runtime import SilentRuntime


class Parrot(SilentRuntime):
    """Answers with fixed text, token by token, and keeps the prompts it was given."""

    def __init__(
        self, answer: str, *, chat_template: str | None = CHATML, max_length: int = 1000
    ) -> None:
        self.tokenizer: Tokenizer = train_tokenizer(["user and assistant say hello"], 262)
        self.tokenizer.chat_template = chat_template
        self.max_length = max_length
        self.answer = answer
        self.prompts: list[str] = []
        self.seen: list[dict[str, Any]] = []

    def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[int]:
        self.prompts.append(self.tokenizer.decode(prompt, keep_special=True))
        self.seen.append(options)
        yield from self.tokenizer.encode(self.answer)[: options["max_new_tokens"]]


def talk(
    model: Parrot,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    config: ChatConfig | None = None,
) -> tuple[list[Message], str]:
    """The conversation, and what was shown."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    shown = io.StringIO()
    messages = chat(model, config or ChatConfig(), Console(file=shown, width=200))
    return messages, shown.getvalue()


def test_a_conversation_carries_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Parrot("héllo ☃ [bold]")
    messages, shown = talk(model, ["one", "", "two"], monkeypatch, ChatConfig(system="be kind"))
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert (
        model.prompts[1].startswith("<|im_start|>system\nbe kind<|im_end|>")
        and "héllo ☃ [bold]" in model.prompts[1]
    )
    assert shown.count("héllo ☃ [bold]") == 2 and "\ufffd" not in shown


def test_commands_change_how_answers_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Parrot("yes")
    drawn = ["/temperature 0.5", "/top_k 40", "/top_p 0.8", "/min_p 0.1", "/penalty 1.2"]
    lines = [*drawn, "/max_tokens 2", "one", "/reset", "two", "/quit", "three"]
    messages, shown = talk(model, lines, monkeypatch)
    expected = Sampling(
        temperature=0.5, top_k=40, top_p=0.8, min_p=0.1, repetition_penalty=1.2, seed=1
    )
    assert model.seen[0]["sampling"] == expected and model.seen[0]["max_new_tokens"] == 2
    assert model.seen[1]["sampling"] == replace(expected, seed=2) and "one" not in model.prompts[1]
    assert [message["content"] for message in messages if message["role"] == "user"] == [
        "two"
    ] and "forgotten" in shown


def test_a_mistake_in_a_command_or_a_line_is_told_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Parrot("yes", max_length=120)
    lines = ["/temperature hot", "/temperature -1", "/nothing", "long " * 200, "short"]
    messages, shown = talk(model, lines, monkeypatch)
    for told in ("could not convert", "is below 0", "no command /nothing", "the model reads 120"):
        assert told in shown
    assert [message["content"] for message in messages] == ["short", "yes"]


def test_the_oldest_turns_go_when_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Parrot("yes", max_length=200)
    messages, shown = talk(
        model, ["a" * 30, "b" * 30, "c" * 30], monkeypatch, ChatConfig(max_new_tokens=60)
    )
    assert (
        "the oldest exchange is forgotten" in shown
        and "aaa" not in model.prompts[-1]
        and "ccc" in model.prompts[-1]
    )
    assert messages[0]["role"] == "user"


def test_a_base_model_is_asked_one_question_at_a_time_and_cut_where_it_runs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Parrot(" 42\nQuestion: and then", chat_template=None)
    messages, shown = talk(model, ["what?", "why?"], monkeypatch)
    assert model.prompts[1] == "<|endoftext|>Question: why?\nAnswer:" and not messages
    assert "42" in shown and "and then" not in shown and "Quest" not in shown


def test_a_chat_models_answer_ends_with_its_turn_and_not_where_a_base_model_runs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = "\nQuestion: how are you?\nAnswer: fine\n\n\nbye"
    messages, shown = talk(Parrot(answer), ["one"], monkeypatch)
    assert messages[-1]["content"] == answer and "how are you?" in shown and "bye" in shown


def test_an_answer_that_was_cut_says_what_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["one", "/reset", "/max_tokens 3", "one"]
    _, shown = talk(Parrot("yes and no"), lines, monkeypatch)
    assert (
        shown.count("cut there") == 1
        and "3 tokens" in shown
        and "/max_tokens allows no more" in shown
    )
    prompt = len(Parrot("").tokenizer.encode_chat([{"role": "user", "content": "one"}]))
    _, shown = talk(Parrot("yes and no", max_length=prompt + 4), ["one"], monkeypatch)
    assert "4 tokens" in shown and "cut there, for the context is full" in shown
    _, shown = talk(
        Parrot("yes and"), ["/max_tokens 7", "one"], monkeypatch, ChatConfig(stop=(" and",))
    )
    assert "cut there" not in shown  # a stop text ended it


def test_a_base_model_says_that_it_takes_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Parrot(" 42", chat_template=None)
    _, shown = talk(model, ["/system be brief", "what?"], monkeypatch, ChatConfig(system="be kind"))
    assert shown.count("takes no instructions: they are not used") == 2
    assert model.prompts == ["<|endoftext|>Question: what?\nAnswer:"]


def test_an_answer_ends_before_a_stop_text_and_the_conversation_keeps_it_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Parrot("the héllo ☃ ends here")
    messages, shown = talk(model, ["one"], monkeypatch, ChatConfig(stop=("never", "☃ e")))
    assert messages[-1]["content"] == "the héllo " and "the héllo" in shown and "☃" not in shown
    with pytest.raises(ValueError, match="stop: an empty text"):
        ChatConfig(stop=("",))


def test_an_answer_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        ChatConfig(max_new_tokens=0)
