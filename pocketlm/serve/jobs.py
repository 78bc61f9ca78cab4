"""A request as the work it asks for: its prompt made, its limits compared with the model's."""

import json
import time
from dataclasses import dataclass, field

from pocketlm.inference.conversation import prompt_of
from pocketlm.model.chat_template import ChatRefused
from pocketlm.serve.backend import Backend, Wanted
from pocketlm.serve.metrics import Metrics
from pocketlm.serve.refusal import Refusal
from pocketlm.serve.replies import Json, Reply, Usage
from pocketlm.serve.request_fields import (
    ChatRequest,
    Defaults,
    Options,
    TextRequest,
    chat_request,
    text_request,
)
from pocketlm.serve.thinking import OPEN, opens_thinking, without_thinking
from pocketlm.serve.waiting import Places

NO_LIMIT = 2**40  # tokens: the length of a prompt is compared here, not where it is made
TAIL = 8  # ids at the end of a prompt in which a template opens thinking


@dataclass(frozen=True, kw_only=True)
class Service:
    """What answers need. model: the name clients give."""

    backend: Backend
    model: str
    places: Places
    metrics: Metrics
    defaults: Defaults


@dataclass(kw_only=True)
class Job:
    """One request that is being answered. opened: its prompt ends inside of thinking."""

    options: Options
    wanted: Wanted
    reply: Reply
    tool_names: frozenset[str] = frozenset()
    json: bool = False
    opened: bool = False
    usage: Usage = field(default_factory=Usage)
    start: float = field(default_factory=time.monotonic)


def chat_job(backend: Backend, body: Json, service: Service) -> Job:
    request = chat_request(body, service.defaults, constrains=backend.constrains)
    tokenizer, conversation = backend.tokenizer, without_thinking(request.conversation)
    template = tokenizer.template
    if template is None and (len(conversation.messages) > 1 or request.tool_names):
        raise Refusal(
            400,
            "this is a base model without turns: it answers one message of a user, without "
            "tools; /v1/completions goes on with any text",
            param="messages",
        )
    try:
        unseen = template is not None and request.tool_names and template.ignores(conversation)
        prompt = prompt_of(tokenizer, conversation, max_length=NO_LIMIT, max_new_tokens=1)
    except (ChatRefused, ValueError) as error:
        raise Refusal(400, str(error), param="messages") from None
    if unseen and "tools" in unseen:
        raise Refusal(400, "tools: this model's chat template does not show them", param="tools")
    opened = OPEN in (tokenizer.chat_template or "") and opens_thinking(
        tokenizer.decode(prompt.ids[-TAIL:], keep_special=True)
    )
    if opened and request.grammar:
        raise Refusal(
            400,
            "response_format: this model's template opens <think>, and thinking is no JSON",
            param="response_format",
        )
    job = _job(backend, request.options, prompt.ids, prompt.stop_strings, service, request=request)
    job.opened = opened
    return job


def text_job(backend: Backend, body: Json, service: Service) -> Job:
    request: TextRequest = text_request(body, service.defaults)
    tokenizer = backend.tokenizer
    if isinstance(request.prompt, str):
        ids = [*tokenizer.document_start, *tokenizer.encode(request.prompt)]
    else:
        ids = request.prompt
        if not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
            raise Refusal(
                400,
                f"prompt holds ids that are not from 0 to {tokenizer.vocab_size - 1}",
                param="prompt",
            )
    return _job(backend, request.options, ids, (), service)


def _job(
    backend: Backend,
    options: Options,
    ids: list[int],
    stop_strings: tuple[str, ...],
    service: Service,
    request: ChatRequest | None = None,
) -> Job:
    room = backend.max_length - len(ids)
    if room < 1:
        raise Refusal(
            400,
            f"the prompt is {len(ids)} tokens, and the model reads {backend.max_length} with its "
            "answer; shorten it",
            code="context_length_exceeded",
            param="messages" if request else "prompt",
        )
    wanted = Wanted(
        ids=ids,
        max_new_tokens=min(options.max_tokens, room),
        stop_ids=backend.tokenizer.stop_ids,
        stop_strings=(*stop_strings, *options.stop),
        sampling=options.sampling,
        top_logprobs=options.top_logprobs,
        grammar=request.grammar if request else {},
    )
    reply = Reply(model=service.model, chat=request is not None, usage_asked=options.include_usage)
    return Job(
        options=options,
        wanted=wanted,
        reply=reply,
        tool_names=request.tool_names if request else frozenset(),
        json=request.json if request else False,
        usage=Usage(prompt=len(ids)),
    )


def check_json(job: Job, content: str, ended: str) -> None:
    """Nothing, or a Refusal where an answer that had to be JSON is none: the engine of the grammar
    lets an answer go on without it where it fails.
    """
    if not job.json or ended != "stop":
        return
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        raise Refusal(
            500,
            "the answer is no JSON: llama.cpp did not hold it to the schema; simplify the schema",
            code="grammar_failed",
            param="response_format",
        ) from None
