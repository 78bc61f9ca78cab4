"""Messages to prompt ids and an answer's text, as a server would use them: no terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pocketlm.inference.conversation import Answer, prompt_of, without_oldest_exchange
from pocketlm.inference.sampling import Sampling
from pocketlm.model.conversation import Conversation, Message
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from tests.chat_templates import QWEN3
from tests.unit.silent_runtime import SilentRuntime

LENGTHS = {"max_length": 1000, "max_new_tokens": 100}


def tokenizer(chat_template: str | None = CHATML) -> Tokenizer:
    trained = train_tokenizer(["user and assistant say hello"], 262)
    trained.chat_template = chat_template
    return trained


def turn(role: str, content: str = "") -> Message:
    return {"role": role, "content": content or role}


class Parrot(SilentRuntime):
    """Streams a fixed text and keeps what it was asked."""

    def __init__(self, text: str, max_length: int = 1000) -> None:
        self.tokenizer, self.max_length = tokenizer(), max_length
        self.answer = self.tokenizer.encode(text)
        self.options: dict[str, Any] = {}

    def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[int]:
        self.options = options
        yield from self.answer[: options["max_new_tokens"]]


def test_a_prompt_is_the_chat_templates_of_all_messages() -> None:
    messages = [turn("system"), turn("user"), turn("assistant"), turn("user", "more")]
    prompt = prompt_of(tokenizer(), messages, **LENGTHS)
    assert prompt.ids == tokenizer().encode_chat(messages)
    assert prompt.messages == messages
    assert prompt.dropped_exchanges == 0 and prompt.stop_strings == ()


def test_thinking_of_former_turns_goes_where_the_template_removes_it() -> None:
    thought = turn("assistant", "<think>\nsecret\n</think>\n\nfour")
    messages = [turn("user", "2 + 2?"), thought, turn("user", "sure?")]
    removing, keeping = tokenizer(QWEN3), tokenizer(CHATML)
    text = removing.decode(prompt_of(removing, messages, **LENGTHS).ids)
    assert "secret" not in text and "four" in text
    assert "secret" in keeping.decode(prompt_of(keeping, messages, **LENGTHS).ids)
    # and it takes no room: nothing is dropped for the sake of it
    thought["content"] = thought["content"].replace("secret", "secret " * 2000)
    prompt = prompt_of(removing, messages, **LENGTHS)
    assert prompt.dropped_exchanges == 0 and prompt.messages == messages
    assert prompt_of(keeping, messages, **LENGTHS).dropped_exchanges == 1


def test_tools_and_template_variables_reach_the_template_after_trimming_too() -> None:
    chat = tokenizer(QWEN3)
    long = [turn("user", "a" * 700), turn("assistant", "b"), turn("user", "c")]
    conversation = Conversation(
        messages=tuple(long),
        tools=({"type": "function", "function": {"name": "weather"}},),
        variables={"enable_thinking": False},
    )
    prompt = prompt_of(chat, conversation, **LENGTHS | {"max_new_tokens": 600})
    text = chat.decode(prompt.ids)
    assert prompt.dropped_exchanges == 1 and prompt.messages == long[2:]
    assert "weather" in text and "<think>\n\n</think>" in text and "aaa" not in text


@pytest.mark.parametrize("max_new_tokens", [60, 10_000])
def test_the_oldest_exchanges_are_dropped_until_an_answer_has_room(max_new_tokens: int) -> None:
    chat = tokenizer()
    exchanges = [
        message
        for letter in "abcdefgh"
        for message in (turn("user", letter * 30), turn("assistant", letter))
    ]
    messages = [turn("system"), *exchanges, turn("user", "last")]
    prompt = prompt_of(chat, messages, max_length=400, max_new_tokens=max_new_tokens)
    room = 400 - len(prompt.ids)
    # more than three quarters of the context is never kept free
    assert room >= min(max_new_tokens, 300)
    assert 0 < prompt.dropped_exchanges <= 8
    assert prompt.messages == [messages[0], *messages[1 + 2 * prompt.dropped_exchanges :]]
    one_more = [messages[0], *messages[2 * prompt.dropped_exchanges - 1 :]]
    assert 400 - len(chat.encode_chat(one_more)) < min(max_new_tokens, 300)


def test_a_base_model_gets_the_last_question_alone() -> None:
    base = tokenizer(None)
    messages = [turn("system"), turn("user", "one?"), turn("assistant"), turn("user", "two?")]
    prompt = prompt_of(base, messages, **LENGTHS)
    assert base.decode(prompt.ids, keep_special=True) == "<|endoftext|>Question: two?\nAnswer:"
    assert prompt.messages == messages[-1:] and prompt.stop_strings == ("\nQuestion:",)


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_conversation_without_a_question_or_with_too_long_a_one_is_refused(template) -> None:
    with pytest.raises(ValueError, match="needs a message of the user"):
        prompt_of(tokenizer(template), [turn("system")], **LENGTHS)
    with pytest.raises(ValueError, match="and the model reads 1000; shorten it"):
        prompt_of(tokenizer(template), [turn("user", "a b " * 1000)], **LENGTHS)


def test_whole_exchanges_go_and_instructions_and_tools_stay_with_theirs() -> None:
    opening, question, answer, tool = turn("system"), turn("user"), turn("assistant"), turn("tool")
    messages = [opening, question, answer, tool, answer, question, answer, question]
    shorter = without_oldest_exchange(messages)
    assert shorter is not None and shorter == [opening, question, answer, question]
    assert without_oldest_exchange(shorter) == [opening, question]
    assert (
        without_oldest_exchange([opening, question]) is None
        and without_oldest_exchange([opening]) is None
    )


def test_an_answer_comes_in_pieces_and_says_what_ended_it() -> None:
    model = Parrot("héllo ☃ bye")
    prompt = prompt_of(model.tokenizer, [turn("user")], **LENGTHS)

    def answer(**options: Any) -> tuple[list[str], Answer]:
        options = {"max_new_tokens": 100} | options
        made = Answer(model, prompt, **options)
        assert made.ended_by is None and made.text == ""
        return list(made), made

    pieces, whole = answer(sampling=Sampling(seed=4))
    assert "".join(pieces) == whole.text == "héllo ☃ bye" and len(pieces) > 3
    assert whole.ids == model.answer and whole.ended_by == "stop"
    assert model.options["sampling"] == Sampling(seed=4)
    assert model.options["stop_ids"] == model.tokenizer.stop_ids

    pieces, stopped = answer(stop_strings=("☃",))
    assert "".join(pieces) == stopped.text == "héllo " and stopped.ended_by == "stop"
    pieces, cut = answer(max_new_tokens=3)
    assert cut.ids == model.answer[:3] and cut.ended_by == "max_new_tokens"
    model.max_length = len(prompt.ids) + 3
    pieces, full = answer()
    assert full.ids == model.answer[:3] and full.ended_by == "context"


def test_an_answer_that_nobody_reads_further_keeps_what_there_is() -> None:
    model = Parrot("one two three")
    prompt = prompt_of(model.tokenizer, [turn("user")], **LENGTHS)
    answer = Answer(model, prompt, max_new_tokens=100)
    for count, _ in enumerate(answer, 1):
        if count == 5:
            break
    assert answer.text == "one t" and len(answer.ids) == 5 and answer.ended_by is None
