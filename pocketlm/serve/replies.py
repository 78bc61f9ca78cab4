"""The objects of OpenAI's API that answers are sent as.

Every chunk has id, object, created and model; finish_reason is null until the last one.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketlm.serve.backend import Score

Json = dict[str, Any]


@dataclass(kw_only=True)
class Usage:
    """Tokens of one request. The token that ends an answer is not counted. reasoning: those of
    `completion` that were thinking. cached: those of `prompt` that were computed before.
    """

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0

    def body(self) -> Json:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer's objects. usage_asked: chunks then have a usage, null but in the last one."""

    model: str
    chat: bool
    usage_asked: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }

    def chunk(self, delta: Json, *, logprobs: Json | None = None, ended: str | None = None) -> Json:
        """A piece of a stream. delta: of a chat, or {"text": ...}."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        inner = {"delta": delta} if self.chat else delta
        choice = {"index": 0, **inner, "logprobs": logprobs, "finish_reason": ended}
        usage = {"usage": None} if self.usage_asked else {}
        return {**self.head(kind), "choices": [choice], **usage}

    def usage_chunk(self, usage: Usage) -> Json:
        """The last one of a stream whose usage was asked for."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head(kind), "choices": [], "usage": usage.body()}

    def whole(self, inner: Json, usage: Usage, *, logprobs: Json | None, ended: str) -> Json:
        """An answer that is not streamed. inner: {"message": ...} or {"text": ...}."""
        kind = "chat.completion" if self.chat else "text_completion"
        choice = {"index": 0, **inner, "logprobs": logprobs, "finish_reason": ended}
        return {**self.head(kind), "choices": [choice], "usage": usage.body()}

    def logprobs(self, scores: Sequence[Score] | None, offset: int = 0) -> Json | None:
        """Log-probabilities as this kind of answer has them; None where none are asked for.

        offset: characters of the answer before these tokens.
        """
        if scores is None:
            return None
        return chat_logprobs(scores) if self.chat else text_logprobs(scores, offset)


def chat_logprobs(scores: Sequence[Score]) -> Json:
    content = [
        {**_token(score), "top_logprobs": [_token(other) for other in score.likeliest]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _token(score: Score) -> Json:
    return {"token": score.text, "logprob": score.logprob, "bytes": list(score.data)}


def text_logprobs(scores: Sequence[Score], offset: int) -> Json:
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{other.text: other.logprob for other in s.likeliest} for s in scores],
        "text_offset": offsets,
    }


def message_of(reasoning: str, content: str, calls: Sequence[Json]) -> Json:
    """The message of a whole answer. Thinking stands in both fields that clients read."""
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if reasoning:
        message |= thinking_delta(reasoning)
    if calls:
        # the place in a stream is no part of a whole message
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        message["content"] = content or None
    return message


def thinking_delta(text: str) -> Json:
    return {"reasoning_content": text, "reasoning": text}


def event(value: Json | str) -> bytes:
    """A server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
