"""A conversation as people's files have it, made plain: what each field means, and which are
refused by name.

Names are those of OpenAI's chat format and of transformers' chat templates. What a template does
with a field is the template's affair (`chat_template.py`); what is learnt of it, `answers.py`'s.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": text}, and what else the file says of it

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")  # transformers reads them as one field
LEARNT = ("weight", "train")  # OpenAI's and Mistral's, and axolotl's: whether an answer is learnt
ROW_FIELDS = ("tools", "chat_template_kwargs")  # beside the messages


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """messages: as a template reads them, fields with null left out. tools: JSON schemas of what
    may be called.

    variables: what else the template is given (`chat_template_kwargs` of transformers). learnt: for
    each message whether it is an answer to learn. where: the file and line, for messages.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    learnt: tuple[bool, ...] = ()
    where: str = field(default="", compare=False)

    def upto(self, count: int) -> "Conversation":
        """The first `count` messages of it."""
        return replace(self, messages=self.messages[:count], learnt=self.learnt[:count])

    def row(self) -> dict[str, Any]:
        """The JSON row that `conversation_of` reads as this conversation."""
        unlearnt = {i for i, message in enumerate(self.messages) if message["role"] == "assistant"}
        unlearnt -= {i for i, learn in enumerate(self.learnt) if learn}
        messages = [
            m | ({"weight": 0} if i in unlearnt else {}) for i, m in enumerate(self.messages)
        ]
        more = {"tools": list(self.tools)} if self.tools else {}
        return {"messages": messages, **more} | (
            {"chat_template_kwargs": self.variables} if self.variables else {}
        )


def plain(messages: Sequence[Mapping[str, Any]] | Conversation) -> Conversation:
    """A conversation of messages that are right already, such as those a program of ours puts
    together.
    """
    if isinstance(messages, Conversation):
        return messages
    return Conversation(
        messages=tuple(dict(message) for message in messages),
        learnt=tuple(message["role"] == "assistant" for message in messages),
    )


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row holds "messages", or a "prompt" with its "response"."""
    pair = row.get("prompt") is not None and row.get("response") is not None
    return row.get("messages") is not None or pair


def conversation_of(row: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of a row with "messages", or with "prompt" and "response" (and "system",
    "tools" beside them).

    ValueError, beginning with `where`, names the message and field that is wrong or cannot be
    honoured.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
        if row.get("system") is not None:
            raise ValueError(
                f'{where}: "system" stands beside "messages"; make it the first of them'
            )
    else:
        messages = [
            {"role": "user", "content": row.get("prompt")},
            {"role": "assistant", "content": row.get("response")},
        ]
        if row.get("system") is not None:
            messages.insert(0, {"role": "system", "content": row["system"]})
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f'{where}: "messages" must be a list of {{"role", "content"}} objects, '
            "with one at least"
        )
    read = [_message(message, f"{where}: message {i}") for i, message in enumerate(messages)]
    return Conversation(
        messages=tuple(message for message, _ in read),
        tools=_tools(row.get("tools"), where),
        variables=_variables(row.get("chat_template_kwargs"), where),
        learnt=tuple(learn for _, learn in read),
        where=where,
    )


def _message(message: Any, where: str) -> tuple[Message, bool]:
    """(the message as a template reads it, whether it is an answer to learn)."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = (
            f", not {message.get('role')!r}"
            if isinstance(message, dict) and "role" in message
            else ""
        )
        raise ValueError(f'{where} needs a "role" of {", ".join(ROLES)}{role}, and a "content"')
    kept = {key: value for key, value in message.items() if value is not None and key not in LEARNT}
    for name in REASONING:
        if name in kept:
            valid_text(kept[name], f'{where}, "{name}"')
    if "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], where)
        if not kept["tool_calls"]:
            del kept["tool_calls"]
    if "content" not in kept and ("tool_calls" in kept or kept.keys() & set(REASONING)):
        # an answer that only calls tools; templates add texts, and null is none
        kept["content"] = ""
    kept["content"] = _content(kept.get("content"), f'{where}, "content"')
    for name in ("name", "tool_call_id"):
        if name in kept:
            valid_text(kept[name], f'{where}, "{name}"')
    return kept, _is_learnt(message, where)


def _content(content: Any, where: str) -> str:
    """A text; of parts that are all texts, the texts one after the other."""
    if not isinstance(content, list):
        return valid_text(content, where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"{where} has a part of type {kind!r}; this network reads text alone")
    return "".join(valid_text(part.get("text"), where) for part in content)


def _is_learnt(message: dict[str, Any], where: str) -> bool:
    """Whether an answer is learnt: not where "weight" is 0 or "train" false. Other weights are
    refused.
    """
    answer = message["role"] == "assistant"
    learn = answer
    for name in LEARNT:
        value = message.get(name)
        if value is None:
            continue
        if value not in (0, 1) or isinstance(value, str):
            raise ValueError(f'{where}: "{name}" is {value!r}; an answer is learnt (1) or not (0)')
        if value and not answer:
            raise ValueError(
                f'{where}: "{name}" asks to learn what the {message["role"]} says; '
                "only answers are learnt"
            )
        learn = learn and bool(value)
    return learn


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f'{where}: "tool_calls" must be a list of objects')
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f'{where}: a call in "tool_calls" has no function with a "name"')
    return calls


def _tools(tools: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """The tools of a row; many data sets keep them as a text of JSON."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise ValueError(f'{where}: "tools" is a text that is no JSON') from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f'{where}: "tools" must be a list of objects (JSON schemas)')
    return tuple(tools) or None


def _variables(variables: Any, where: str) -> dict[str, Any]:
    if variables is None:
        return {}
    if not isinstance(variables, dict):
        raise ValueError(f'{where}: "chat_template_kwargs" must be an object')
    return {key: value for key, value in variables.items() if value is not None}


def valid_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{where} is {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds half a surrogate pair at character {error.start}; repair the text"
        ) from None
    return text


def reasoning_of(message: Message) -> str:
    """The thinking of a message, by whichever name; "" where it has none."""
    return next((message[name] for name in REASONING if message.get(name)), "")


def with_parsed_arguments(conversation: Conversation) -> Conversation:
    """The same, the arguments of calls as objects where they are texts of JSON (OpenAI's way)."""
    return replace(conversation, messages=tuple(_parsed(m) for m in conversation.messages))


def _parsed(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function", call))
        arguments = _object(function.get("arguments"))
        if arguments is not None:
            function["arguments"] = arguments
        calls.append({**call, "function": function} if "function" in call else function)
    return message | {"tool_calls": calls}


def _object(arguments: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def argument_texts(conversation: Conversation) -> list[str]:
    """The arguments of its calls that are texts."""
    calls = [call for m in conversation.messages for call in m.get("tool_calls", ())]
    arguments = [call.get("function", call).get("arguments") for call in calls]
    return [text for text in arguments if isinstance(text, str) and _object(text) is not None]
