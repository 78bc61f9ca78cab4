"""The body of a request, read: which fields count, and which are refused by name.

Names are those of OpenAI's API, and top_k, min_p, repetition_penalty and chat_template_kwargs as
vLLM and llama-server have them. A field that nobody knows is ignored, for clients send many; one
that is known and would change the answer, and cannot be honoured here, is refused.
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from pocketlm.inference.sampling import Sampling
from pocketlm.model.conversation import Conversation, conversation_of
from pocketlm.serve.json_schema import check_schema
from pocketlm.serve.refusal import Refusal
from pocketlm.serve.tool_calls import call_grammar

MOST_STOPS, LONGEST_STOP = 16, 500  # strings, and characters of one; our choice
MOST_LOGPROBS = 20  # OpenAI's limit
LARGEST_SEED = 2**63 - 1
# values of fields that change nothing; any other value of them is refused by name
NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({}, []),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "grammar": ("",),
    "guided_json": (),
    "parallel_tool_calls": (True,),
}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request does not say it. Temperature 0.7 and top_p 0.95 are our choice:
    at OpenAI's 1 and 1 a model of this size wanders. max_tokens: of an answer, thinking included.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both kinds of requests say. max_tokens: asked for or by default; the context may leave
    fewer.
    """

    model: str | None
    stream: bool
    include_usage: bool
    max_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    top_logprobs: int | None


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """grammar: see `Wanted`. tool_names: of the functions that the answer may call. json: whether
    the content must be JSON.
    """

    options: Options
    conversation: Conversation
    grammar: dict[str, Any] = field(default_factory=dict)
    tool_names: frozenset[str] = frozenset()
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """prompt: a text, or ids."""

    options: Options
    prompt: str | list[int]


def json_object(data: bytes) -> dict[str, Any]:
    """The object that a body is; a Refusal says what else it is."""
    try:
        body = json.loads(data, parse_constant=_no_number)
        if not isinstance(body, dict):
            raise ValueError(f"it is {_kind(body)}, and must be an object")
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refusal(400, "the body holds half a surrogate pair; repair the text") from None
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON that is read here: {error}") from None
    return body


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def chat_request(body: dict[str, Any], defaults: Defaults, *, constrains: bool) -> ChatRequest:
    """A body of /v1/chat/completions. constrains: whether the model can be held to a grammar."""
    most = _number(body, "top_logprobs", 0, MOST_LOGPROBS, integer=True)
    wanted = _flag(body, "logprobs")
    if most is not None and not wanted:
        raise _wrong("top_logprobs", "needs logprobs to be true")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else None
    options = _options(body, defaults, limit or "max_tokens", int(most or 0) if wanted else None)
    row = {key: body.get(key) for key in ("messages", "tools", "chat_template_kwargs")}
    if row["messages"] is None:
        raise _wrong("messages", "is missing: a list of {role, content} objects")
    try:
        conversation = conversation_of(row, "the request")
    except (ValueError, AttributeError, TypeError) as error:
        raise Refusal(400, str(error), param="messages") from None
    if conversation.messages[-1]["role"] == "assistant":
        raise _wrong("messages", "end with an answer; the last must be a user's or a tool's")
    tools, forced = _tools(body, conversation, constrains)
    shape = _response_format(body, constrains)
    if shape is not None and forced:
        raise _wrong("response_format", "and a tool_choice that forces a call exclude each other")
    grammar = {} if shape is None else {"json_schema": shape}
    if forced:
        grammar = {"grammar": call_grammar(forced)}
    if not tools:
        conversation = Conversation(
            messages=conversation.messages, variables=conversation.variables
        )
    return ChatRequest(
        options=options,
        conversation=conversation,
        grammar=grammar,
        tool_names=frozenset(tool["function"]["name"] for tool in tools),
        json=shape is not None,
    )


def text_request(body: dict[str, Any], defaults: Defaults) -> TextRequest:
    """A body of /v1/completions."""
    most = _number(body, "logprobs", 0, MOST_LOGPROBS, integer=True)
    options = _options(body, defaults, "max_tokens", None if most is None else int(most))
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    ids = isinstance(prompt, list) and all(type(i) is int for i in prompt)
    if not prompt or not (isinstance(prompt, str) or ids):
        raise _wrong("prompt", "must be one text, or one list of ids, that is not empty")
    assert isinstance(prompt, str | list)
    for name in ("response_format", "tools"):
        if body.get(name):
            raise _wrong(name, "is answered by /v1/chat/completions alone")
    return TextRequest(options=options, prompt=prompt)


def _options(
    body: dict[str, Any], defaults: Defaults, limit: str, top_logprobs: int | None
) -> Options:
    for name, values in NOTHING.items():
        if body.get(name) is not None and body[name] not in values:
            raise _wrong(name, f"is {_short(body[name])}, which this server does not do")
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise _wrong("stream_options", f"is {_kind(stream_options)}, and must be an object")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("model", f"is {_kind(model)}, and must be a text")
    seed = _number(body, "seed", -1, LARGEST_SEED, integer=True)
    return Options(
        model=model,
        stream=_flag(body, "stream"),
        include_usage=_flag(stream_options, "include_usage"),
        max_tokens=int(_number(body, limit, 1, 2**31, integer=True) or defaults.max_tokens),
        stop=_stop(body.get("stop")),
        sampling=Sampling(
            temperature=_or(_number(body, "temperature", 0, 100), defaults.temperature),
            top_p=_or(_number(body, "top_p", 0, 1, above=True), defaults.top_p),
            top_k=int(_or(_number(body, "top_k", 0, 2**31, integer=True), 0)),
            min_p=_or(_number(body, "min_p", 0, 1), 0.0),
            repetition_penalty=_or(_number(body, "repetition_penalty", 0, 100, above=True), 1.0),
            # llama-server's -1, and none, are a seed nobody knows
            seed=secrets.randbelow(LARGEST_SEED) if seed is None or seed < 0 else int(seed),
        ),
        top_logprobs=top_logprobs,
    )


def _stop(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else (stop or [])
    if (
        not isinstance(texts, list)
        or len(texts) > MOST_STOPS
        or not all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in texts)
    ):
        raise _wrong(
            "stop", f"must be a text or up to {MOST_STOPS}, of 1 to {LONGEST_STOP} characters"
        )
    return tuple(texts)


def _tools(
    body: dict[str, Any], conversation: Conversation, constrains: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(tools that may be called, those of which one must be)."""
    tools = list(conversation.tools or ())
    for place, tool in enumerate(tools):
        function = tool.get("function")
        function = function if isinstance(function, dict) else {}
        name = function.get("name")
        if tool.get("type") != "function" or not isinstance(name, str) or not name:
            raise _wrong("tools", f'{place} is no {{"type": "function", "function": {{"name"}}}}')
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise _wrong("tools", f"{place} has parameters that are {_kind(parameters)}")
    choice = body.get("tool_choice")
    if choice in (None, "auto"):
        return tools, []
    if choice == "none":
        return [], []
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    forced = [t for t in tools if choice == "required" or t["function"]["name"] == name]
    if not forced:
        raise _wrong("tool_choice", f"is {_short(choice)}, and no tool of the request fits")
    if not constrains:
        raise _wrong(
            "tool_choice", f"is {_short(choice)}: only a .gguf can be forced to call; use auto"
        )
    for tool in forced:
        check_schema(tool["function"].get("parameters") or {}, "tools")
    return tools, forced


def _response_format(body: dict[str, Any], constrains: bool) -> dict[str, Any] | None:
    """The JSON schema that the content must have, or None for any text."""
    shape = body.get("response_format")
    if shape is None:
        return None
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise _wrong("response_format", "has a type of text, json_object or json_schema")
    if not constrains:
        raise _wrong("response_format", f"{kind}: only a .gguf can be held to JSON; leave it out")
    if kind == "json_object":
        return {"type": "object"}
    inner = shape.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise _wrong("response_format", 'needs "json_schema": {"name", "schema"}')
    check_schema(schema, "response_format")
    return schema


def _number(
    body: dict[str, Any],
    name: str,
    low: float,
    high: float,
    *,
    integer: bool = False,
    above: bool = False,
) -> float | None:
    """A number of a range, its lower end left out where `above`; None where there is none."""
    value = body.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or (integer and not whole) or not low <= value <= high or (above and value == low):
        kind = "a whole number" if integer else "a number"
        span = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise _wrong(name, f"is {_short(value)}, and must be {kind} {span}")
    return int(value) if integer else value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(name, f"is {_short(value)}, and must be true or false")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _wrong(name: str, what: str) -> Refusal:
    return Refusal(400, f"{name} {what}", param=name)


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}..."


KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def _kind(value: Any) -> str:
    return "null" if value is None else KINDS.get(type(value), "a number")
