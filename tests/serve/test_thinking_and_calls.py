"""What of an answer is thinking and what is a call, however its text is cut into pieces."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pocketlm.model.conversation import plain
from pocketlm.serve.thinking import Thinking, opens_thinking, split, without_thinking
from pocketlm.serve.tool_calls import ToolCalls

CASES = [  # (text, whether the prompt opened thinking, thinking, content)
    ("plain", False, "", "plain"),
    (" plain < text", False, "", " plain < text"),
    ("<think>\nwhy\n</think>\n\nso", False, "why", "so"),
    (" \n<think>why</think>so", False, "why", "so"),
    ("\nwhy\n</think>\n\nso", True, "why", "so"),
    ("<think>never closed \n", False, "never closed", ""),
    ("never closed", True, "never closed", ""),
    ("<think></think>so", False, "", "so"),
    ("<think>a</think>b</think>c", False, "a", "b</think>c"),
    ("write <think> in a text", False, "", "write <think> in a text"),
    ("<thin", False, "", "<thin"),
    ("<think>a < b </thin", False, "a < b </thin", ""),
    ("", False, "", ""),
]


def cuts(text: str) -> Iterator[list[str]]:
    """The text whole, in single characters, and in two at each place."""
    yield [text]
    yield list(text)
    yield from ([text[:place], text[place:]] for place in range(1, len(text)))


def given(thinking: Thinking, pieces: Iterable[str]) -> tuple[str, str]:
    """(thinking, content) of an answer that comes in pieces."""
    parts = [part for piece in pieces for part in thinking.give(piece)]
    parts += thinking.give("", final=True)
    reasoning, content = (
        "".join(part for kind, part in parts if kind == wanted)
        for wanted in ("reasoning", "content")
    )
    return reasoning, content


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), CASES)
def test_thinking_is_split_off_however_the_text_comes(
    text: str, opened: bool, reasoning: str, content: str
) -> None:
    assert split(text, opened) == (reasoning, content)
    for pieces in cuts(text):
        thinking = Thinking(opened)
        assert given(thinking, pieces) == (reasoning, content), pieces
        assert not thinking.thought_before


def test_a_closing_tag_without_an_opening_one_makes_thinking_of_what_is_before_it() -> None:
    text = "hm, 3 and 4\n</think>\n7"
    assert split(text, opened=False) == ("hm, 3 and 4", "7")
    thinking = Thinking(opened=False)
    parts = [*thinking.give(text), *thinking.give("", final=True)]
    # in a stream it was given before anybody could know
    assert parts == [("content", "hm, 3 and 4\n"), ("content", "7")] and thinking.thought_before


def test_a_prompt_that_opens_thinking_is_seen() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_thinking_of_earlier_turns_is_taken_out_and_that_between_calls_is_kept() -> None:
    thought = {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "<think>mine</think>"},
        thought,
        {"role": "user", "content": "and?"},
        thought,
        {"role": "tool", "content": "4"},
    ]
    kept = without_thinking(plain(messages)).messages
    assert kept[0] == messages[0] and kept[1] == {"role": "assistant", "content": "b"}
    assert kept[2:] == tuple(messages[2:])


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, [{"a": 1, "b": "é"}]),
        (f"Let me see. {CALL}\n{CALL}", ["Let me see.", *[{"a": 1, "b": "é"}] * 2]),
        (f"{OTHER} x", [f"{OTHER} x"]),
        ("<tool_call>{no json</tool_call>", ["<tool_call>{no json</tool_call>"]),
        ("<tool_call>[1]</tool_call>", ["<tool_call>[1]</tool_call>"]),
        ("<tool_call>never closed", ["<tool_call>never closed"]),
        ("a <tool", ["a <tool"]),
        (CALL.replace("arguments", "parameters"), [{"a": 1, "b": "é"}]),
    ],
)
def test_calls_are_taken_out_however_the_text_comes(text: str, expected: list[Any]) -> None:
    for pieces in cuts(text):
        calls = ToolCalls({"add"})
        parts = [part for piece in pieces for part in calls.give(piece)]
        parts += calls.give("", final=True)
        joined: list[Any] = []
        for part in parts:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        arguments = [
            part if isinstance(part, str) else json.loads(part["function"]["arguments"])
            for part in joined
        ]
        assert arguments == expected, pieces
        made = [part for part in joined if isinstance(part, dict)]
        assert [call["index"] for call in made] == list(range(len(made)))
        assert len({call["id"] for call in made}) == len(made)
        assert all(call["type"] == "function" for call in made)


def test_every_pair_of_cases_ends_alike_in_one_piece_or_many() -> None:
    """Two answers one after the other: the second's tags are text once the first has content."""
    for (first, opened, _, content), (second, *_rest) in itertools.product(CASES, CASES):
        if not content:
            continue
        text = first + second
        assert given(Thinking(opened), [text]) == given(Thinking(opened), text), text
