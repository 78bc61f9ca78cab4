"""Conversations through people's chat templates: the ids, prompts and masks of transformers, over
the shapes in use.
"""

from pathlib import Path
from typing import Any

import pytest
import transformers
from chat_templates import KINDS, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlm.model.chat_template import ChatRefused, MarkedEncoder
from pocketlm.model.conversation import Conversation, conversation_of, plain
from pocketlm.model.tokenizer import Tokenizer

SLOW_SETUP = (
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.differing_executors,
)
ONE = [
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "It is 42."},
]
TWO = [
    *ONE,
    {"role": "user", "content": "the dog's\nname?"},
    {"role": "assistant", "content": "fox\n\n"},
]
SYSTEM = [{"role": "system", "content": "be brief"}, *TWO]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]
WITH_TOOLS = [
    {"role": "user", "content": "weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12 degrees"},
    {"role": "assistant", "content": "It is 12 degrees."},
]
THINKING = [
    *ONE,
    ONE[0],
    {"role": "assistant", "reasoning_content": "10 + 30, and 2", "content": "42"},
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Of each kind ours and transformers'."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {
        name: write_tokenizer(root / name.replace(" ", "-"), kind) for name, kind in KINDS.items()
    }
    return {
        name: (Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


def theirs_of(
    theirs: Any, messages: list[dict], **options: Any
) -> tuple[list[int], list[int]] | None:
    """(ids, mask of marked generations) by transformers; None where its template refuses."""
    try:
        result = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, **options
        )
    except Exception:  # what jinja or the template raises
        return None
    return result["input_ids"], result["assistant_masks"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "messages", [ONE, TWO, SYSTEM, ONE[:1]], ids=["one", "two", "system", "question"]
)
def test_ids_and_prompts_are_those_of_transformers(
    name: str, messages: list[dict], tokenizers
) -> None:
    ours, theirs = tokenizers[name]
    for prompt in (False, True):
        expected = theirs_of(theirs, messages, add_generation_prompt=prompt)
        if expected is None:
            with pytest.raises(ChatRefused, match="the chat template refuses"):
                ours.encode_chat(messages, add_generation_prompt=prompt)
        else:
            assert ours.encode_chat(messages, add_generation_prompt=prompt) == expected[0]
            text = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert ours.render(messages, add_generation_prompt=prompt) == text


@pytest.mark.parametrize("name", ["llama 3", "qwen 2.5", "qwen 3"])
def test_tools_and_calls_reach_the_template(name: str, tokenizers) -> None:
    ours, theirs = tokenizers[name]
    conversation = conversation_of({"messages": WITH_TOOLS, "tools": TOOLS}, "here")
    expected = theirs.apply_chat_template(WITH_TOOLS, tools=TOOLS, return_dict=False)
    assert ours.encode_chat(conversation, add_generation_prompt=False) == expected
    as_text = {**CALL, "function": {**CALL["function"], "arguments": '{"city": "Oslo"}'}}
    openai = [
        WITH_TOOLS[0],
        {**WITH_TOOLS[1], "content": None, "tool_calls": [as_text]},
        *WITH_TOOLS[2:],
    ]
    same = conversation_of({"messages": openai, "tools": TOOLS}, "here")
    assert ours.encode_chat(same, add_generation_prompt=False) == expected
    (examples,) = ours.answers([conversation])
    assert isinstance(examples, list)
    learnt = "".join(written(ours, example) for example in examples)
    assert (
        learnt.count("get_weather") == 1
        and "It is 12 degrees." in learnt
        and "weather in" not in learnt
    )


def written(tokenizer: Tokenizer, example: Any) -> str:
    ids = [i for i, learn in zip(example.ids, example.learnt, strict=True) if learn]
    return tokenizer.decode(ids, keep_special=True)


@pytest.mark.parametrize("name", ["chatml, marked", "smollm 3"])
@pytest.mark.parametrize("messages", [ONE, TWO], ids=["one", "two"])
def test_masks_are_transformers_where_the_template_marks_generations(
    name: str, messages, tokenizers
) -> None:
    ours, theirs = tokenizers[name]
    expected = theirs_of(theirs, messages)
    assert expected is not None
    ((ids, mask),) = ours.encode_conversations([messages])
    assert ids == expected[0][: len(ids)] and mask == [bool(own) for own in expected[1]][: len(ids)]
    assert not any(expected[1][len(ids) :])


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("chatml, marked", "smollm 3", "deepseek r1")]
)
@pytest.mark.parametrize("messages", [ONE, TWO], ids=["one", "two"])
def test_an_answer_and_its_end_are_learnt_after_the_ids_of_the_prompt(
    name: str, messages, tokenizers
) -> None:
    ours, theirs = tokenizers[name]
    examples = ours.answers([messages])[0]
    assert isinstance(examples, list)
    answers = messages[1::2]
    assert len(examples) in (1, len(answers))
    learnt = "".join(written(ours, example) for example in examples)
    for answer in answers:
        assert answer["content"].strip() in learnt
    for question in messages[::2]:
        assert question["content"] not in learnt
    for number, example in enumerate(examples):
        last = number if len(examples) > 1 else len(answers) - 1
        whole = theirs.apply_chat_template(messages[: 2 * last + 2], return_dict=False)
        assert example.ids == whole[: len(example.ids)]
        assert example.ends and example.ids[-1] in ours.stop_ids and example.learnt[-1]
        prompt = theirs.apply_chat_template(
            messages[: 2 * last + 1], add_generation_prompt=True, return_dict=False
        )
        # there a space may join what comes before and after the boundary
        if not KINDS[name].sentencepiece:
            assert example.ids[: len(prompt)] == prompt and not example.learnt[len(prompt) - 1]
            assert example.learnt[len(prompt)]


def test_thinking_is_learnt_with_the_answer_it_belongs_to(tokenizers) -> None:
    ours, theirs = tokenizers["qwen 3"]
    first, second = ours.answers([conversation_of({"messages": THINKING}, "here")])[0]
    assert written(ours, first) == "<think>\n\n</think>\n\nIt is 42.<|im_end|>"
    assert written(ours, second) == "<think>\n10 + 30, and 2\n</think>\n\n42<|im_end|>"
    assert second.ids == theirs.apply_chat_template(THINKING, return_dict=False)[: len(second.ids)]


def test_a_thinking_that_the_template_cuts_is_learnt_as_the_model_will_write_it(tokenizers) -> None:
    ours, theirs = tokenizers["deepseek r1"]
    talk = [ONE[0], {"role": "assistant", "content": "<think>\n10 + 30, and 2\n</think>\n\n42"}]
    ((example,),) = ours.answers([talk])
    prompt = theirs.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    assert example.ids[: len(prompt)] == prompt and example.learnt == [False] * len(prompt) + [
        True
    ] * (len(example.ids) - len(prompt))
    assert written(ours, example) == "10 + 30, and 2\n</think>\n\n42<｜end▁of▁sentence｜>"
    (refused,) = ours.answers([ONE])
    assert isinstance(refused, ChatRefused) and "opens a thinking that the answer lacks" in str(
        refused
    )


@pytest.mark.parametrize(
    ("name", "message", "reason"),
    [
        (
            "chatml",
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            'does not render "tool_calls"',
        ),
        (
            "chatml",
            {"role": "assistant", "content": "42", "reasoning_content": "so"},
            'not render "reasoning_content"',
        ),
        ("llama 2", {"role": "user", "content": "again"}, "roles must alternate"),
        ("chatml", {"role": "assistant", "content": "42", "name": "Ada"}, 'does not render "name"'),
    ],
)
def test_what_a_template_does_not_say_is_refused_by_name(
    name: str, message, reason: str, tokenizers
) -> None:
    ours, _ = tokenizers[name]
    talk = [ONE[0], message] if message["role"] == "assistant" else [ONE[0], message, ONE[1]]
    (refused,) = ours.answers([conversation_of({"messages": talk}, "here")])
    assert isinstance(refused, ChatRefused) and reason in str(refused)


def test_tools_that_a_template_ignores_are_refused_by_name(tokenizers) -> None:
    ours, _ = tokenizers["chatml"]
    (refused,) = ours.answers([conversation_of({"messages": ONE, "tools": TOOLS}, "here")])
    assert isinstance(refused, ChatRefused) and '"tools"' in str(refused)
    (refused,) = ours.answers(
        [
            conversation_of(
                {"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}}, "here"
            )
        ]
    )
    assert isinstance(refused, ChatRefused) and "enable_thinking" in str(refused)


def test_variables_of_a_row_reach_the_template(tokenizers) -> None:
    ours, theirs = tokenizers["smollm 3"]
    row = {"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}}
    expected = theirs.apply_chat_template(ONE, enable_thinking=False, return_dict=False)
    assert ours.encode_chat(conversation_of(row, "here"), add_generation_prompt=False) == expected


@pytest.mark.parametrize("name", ["chatml", "llama 3", "qwen 3", "zephyr", "chatml, marked"])
def test_an_answer_of_weight_0_is_read_and_not_learnt(name: str, tokenizers) -> None:
    ours, _ = tokenizers[name]
    talk = [TWO[0], {**TWO[1], "weight": 0}, TWO[2], {**TWO[3], "train": True}]
    (examples,) = ours.answers([conversation_of({"messages": talk}, "here")])
    assert isinstance(examples, list) and len(examples) == 1
    learnt = written(ours, examples[0])
    assert "fox" in learnt and "It is 42." not in learnt
    assert "It is 42." in ours.decode(examples[0].ids, keep_special=True)


def test_a_chat_that_begins_with_the_assistant(tokenizers) -> None:
    hello = [{"role": "assistant", "content": "Hello!"}, *TWO]
    ours, theirs = tokenizers["chatml"]
    ((example,),) = ours.answers([hello])
    assert example.ids == theirs.apply_chat_template(hello, return_dict=False)[: len(example.ids)]
    assert written(ours, example) == "Hello!<|im_end|>It is 42.<|im_end|>fox\n\n<|im_end|>"
    (refused,) = tokenizers["gemma"][0].answers([hello])
    assert isinstance(refused, ChatRefused) and "roles must alternate" in str(refused)


TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_categories=("Cs",)),
        st.sampled_from(list(" \n\t<>|/_\u2581\u3000\u200d\ufeff\xa0\x00\u0301")),
    ),
    max_size=30,
)
WORDS = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "</s>",
        "<s>",
        "<think>",
        "</think>",
        "<tool_call>",
        "<|eot_id|>",
        "<end_of_turn>",
        "",
    ]
)


@st.composite
def conversations(draw: st.DrawFn, words: bool = False) -> list[dict[str, str]]:
    def content() -> str:
        return draw(TEXT) + (draw(WORDS) + draw(TEXT) if words else "") or "x"

    turns = draw(st.integers(1, 3))
    return [
        {"role": role, "content": content()} for _ in range(turns) for role in ("user", "assistant")
    ]


def spells_added(ours: Tokenizer, messages: list[dict[str, str]]) -> bool:
    added = [token.content for token in ours.backend.get_added_tokens_decoder().values()]
    return any(token in message["content"] for token in added for message in messages)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_SETUP, derandomize=True)
def test_random_conversations_have_the_ids_of_transformers(
    name: str, data: st.DataObject, tokenizers
) -> None:
    ours, theirs = tokenizers[name]
    messages = data.draw(conversations())
    if spells_added(ours, messages):
        return
    for count, prompt in ((len(messages), False), (len(messages) - 1, True)):
        expected = theirs_of(theirs, messages[:count], add_generation_prompt=prompt)
        assert expected is not None
        assert ours.encode_chat(messages[:count], add_generation_prompt=prompt) == expected[0]
    examples = ours.answers([messages])[0]
    if isinstance(examples, ChatRefused):
        assert name == "deepseek r1" or not all(m["content"].strip() for m in messages)
        return
    for example in examples:
        assert len(example.ids) == len(example.learnt) and example.learnt[-1]


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_SETUP, derandomize=True)
def test_special_words_in_random_conversations_are_text(
    name: str, data: st.DataObject, tokenizers
) -> None:
    """As many special tokens as the template writes with other contents, and the text comes
    back.
    """
    ours, _ = tokenizers[name]
    messages = data.draw(conversations(words=True))
    plain_ones = [{**message, "content": "x"} for message in messages]
    ids, expected = ours.encode_chat(messages), ours.encode_chat(plain_ones)
    assert [i for i in ids if i in ours.special_ids] == [
        i for i in expected if i in ours.special_ids
    ]
    rendering = ours.render(messages, add_generation_prompt=True)
    if not KINDS[name].sentencepiece:
        assert ours.decode(ids, keep_special=True) == rendering


@pytest.mark.parametrize("name", KINDS)
def test_marked_encoding_gives_the_ids_of_plain_encoding(name: str, tokenizers) -> None:
    """Where no message spells a special word, the two ways of encoding a rendering are one."""
    ours, _ = tokenizers[name]
    encoder = MarkedEncoder(ours.backend)
    for messages in (ONE, TWO):
        rendering = ours.template.render(plain(messages), add_generation_prompt=True)
        ids, places = encoder.encode(rendering)
        assert ids == ours.encode_chat(messages)
        assert places == ours._chat_backend.encode(rendering.text, add_special_tokens=False).offsets


def test_threads_that_encode_plain_text_and_chats_do_not_disturb_each_other(tokenizers) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ours, _ = tokenizers["chatml"]
    text, messages = "a text that spells <|im_end|> twice <|im_end|>", TWO
    expected = ours.encode(text), ours.encode_chat(messages), ours.encode_conversations([messages])

    def both(number: int) -> bool:
        found = ours.encode(text), ours.encode_chat(messages), ours.encode_conversations([messages])
        return found == expected

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(both, range(400)))
    assert not ours.special_ids & set(expected[0])


def test_templates_by_name(tmp_path: Path) -> None:
    """A list of templates, as older files have it: the default one, and tool_use where there are
    tools.
    """
    import json

    folder = write_tokenizer(tmp_path / "t", KINDS["chatml"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [
        {"name": "default", "template": KINDS["chatml"].template},
        {"name": "tool_use", "template": "{{ tools | tojson }}" + KINDS["chatml"].template},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    chat = Conversation(messages=tuple(ONE), tools=tuple(TOOLS), learnt=(False, True))
    assert ours.encode_chat(ONE) == theirs.apply_chat_template(
        ONE, add_generation_prompt=True, return_dict=False
    )
    assert ours.encode_chat(chat) == theirs.apply_chat_template(
        ONE, tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode_chat(chat) == ours.encode_chat(chat)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_chat(chat) == again.apply_chat_template(
        ONE, tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
