"""The two requests that a model answers: a chat, and a text that goes on."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, MutableMapping
from contextlib import aclosing
from typing import Any

from pocketlm.serve.backend import Piece, Score, Unavailable
from pocketlm.serve.guard import Receive, Scope, Send, answer, refuse
from pocketlm.serve.jobs import Job, Service, chat_job, check_json, text_job
from pocketlm.serve.refusal import Refusal
from pocketlm.serve.replies import Json, event, message_of, thinking_delta
from pocketlm.serve.request_fields import json_object
from pocketlm.serve.thinking import Thinking, split
from pocketlm.serve.tool_calls import ToolCalls

STOPPED = Refusal(503, "the server is being stopped", headers={"Retry-After": "5"})


class Endpoint:
    """An ASGI application that answers one kind of request. chat: which of the two."""

    def __init__(self, service: Service, *, chat: bool) -> None:
        self.service, self.chat = service, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(receive, watched)
        except asyncio.CancelledError:  # the server is being stopped: its end is an end for clients
            if not begun:
                await refuse(send, STOPPED)
            else:
                await send({"type": "http.response.body", "body": event(STOPPED.body())})

    async def _answer(self, receive: Receive, send: Send) -> None:
        try:
            self.service.places.refuse_where_full()  # before any work is done for it
            body = json_object((await receive())["body"])
            # off the event loop: a long text takes a while to encode
            job = await asyncio.to_thread(self._job, body)
            work = self._stream(job, send) if job.options.stream else self._whole(job, send)
            if not await unless_gone(work, receive):
                self.service.metrics.add("disconnects_total")
        except Refusal as refusal:
            await refuse(send, refusal)

    def _job(self, body: Json) -> Job:
        """The request, checked, with its prompt."""
        service = self.service
        job = (
            chat_job(service.backend, body, service)
            if self.chat
            else text_job(service.backend, body, service)
        )
        if job.options.model not in (None, "", service.model):
            raise Refusal(
                404,
                f"there is no model {job.options.model[:80]!r} here; this server has "
                f"{service.model!r}",
                code="model_not_found",
                param="model",
            )
        return job

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        """The pieces of the answer, counted. A Refusal where there is no place, or no model."""
        service = self.service
        async with service.places.place():
            service.metrics.add("prompt_tokens_total", job.usage.prompt)
            try:
                async with aclosing(service.backend.answer(job.wanted)) as pieces:
                    async for piece in pieces:
                        if piece.tokens and not job.usage.completion:
                            seconds = time.monotonic() - job.start
                            service.metrics.add("first_token_seconds_sum", seconds)
                            service.metrics.add("first_token_seconds_count")
                        job.usage.completion += piece.tokens
                        job.usage.cached += piece.cached
                        service.metrics.add("completion_tokens_total", piece.tokens)
                        service.metrics.add("draft_tokens_total", piece.drafted)
                        service.metrics.add("draft_accepted_total", piece.accepted)
                        yield piece
            except Unavailable as error:
                raise Refusal(503, str(error), headers={"Retry-After": "1"}) from None
            service.metrics.add("answer_seconds_sum", time.monotonic() - job.start)
            service.metrics.add("answer_seconds_count")

    async def _whole(self, job: Job, send: Send) -> None:
        scores: list[Score] | None = None if job.wanted.top_logprobs is None else []
        text, ended, thinking = "", "stop", Thinking(job.opened)
        async with aclosing(self._pieces(job)) as pieces:
            async for piece in pieces:
                text += piece.text
                if scores is not None:
                    scores += piece.scores
                thinking.give(piece.text)
                job.usage.reasoning += piece.tokens if thinking.inside and self.chat else 0
                ended = piece.ended or ended
        inner: Json = {"text": text}
        if self.chat:
            reasoning, content = split(text, job.opened)
            calls: list[Json] = []
            if job.tool_names:
                splitter = ToolCalls(job.tool_names)
                parts = [*splitter.give(content), *splitter.give("", final=True)]
                calls = [part for part in parts if isinstance(part, dict)]
                content = "".join(part for part in parts if isinstance(part, str))
                ended = "tool_calls" if calls else ended
            if thinking.thought_before:
                job.usage.reasoning = 0  # how many of the tokens these were, nobody counted
            check_json(job, content, ended)
            inner = {"message": message_of(reasoning, content, calls)}
        whole = job.reply.whole(inner, job.usage, logprobs=job.reply.logprobs(scores), ended=ended)
        body = json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace")
        await answer(send, 200, body, "application/json")

    async def _stream(self, job: Job, send: Send) -> None:
        begun = False

        async def put(value: Json | str) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send(stream_start())
            await send({"type": "http.response.body", "body": event(value), "more_body": True})

        try:
            chunks = (
                chat_chunks(job, self._pieces(job))
                if self.chat
                else text_chunks(job, self._pieces(job))
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    await put(chunk)
            if job.options.include_usage:
                await put(job.reply.usage_chunk(job.usage))
            await put("[DONE]")
        except Refusal as refusal:
            if not begun:
                raise
            await put(refusal.body())
        await send({"type": "http.response.body", "body": b""})


def stream_start() -> Json:
    kind = (b"content-type", b"text/event-stream; charset=utf-8")
    headers = [kind, (b"cache-control", b"no-store")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def chat_chunks(job: Job, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Json, None]:
    """The chunks of a chat: the role, then thinking, content and calls as they come."""
    thinking, calls = Thinking(job.opened), ToolCalls(job.tool_names)
    waiting: list[Score] = []  # of tokens whose text has not come yet
    content, ended = "", "stop"
    async with aclosing(pieces):
        first = True
        async for piece in pieces:
            if first:
                yield job.reply.chunk({"role": "assistant", "content": ""})
                first = False
            waiting += piece.scores
            final = piece.ended is not None
            deltas = []
            for kind, text in thinking.give(piece.text, final=final):
                if kind == "reasoning":
                    deltas.append(thinking_delta(text))
                elif job.tool_names:
                    deltas += [_delta(part) for part in calls.give(text)]
                else:
                    deltas.append({"content": text})
            if final and job.tool_names:
                deltas += [_delta(part) for part in calls.give("", final=True)]
            job.usage.reasoning += piece.tokens if thinking.inside else 0
            if final and waiting and not deltas:
                deltas.append({"content": ""})
            for delta in deltas:
                content += delta.get("content", "")
                logprobs = job.reply.logprobs(waiting) if waiting else None
                waiting = []
                yield job.reply.chunk(delta, logprobs=logprobs)
            ended = piece.ended or ended
    ended = "tool_calls" if calls.count else ended
    check_json(job, content, ended)
    yield job.reply.chunk({}, ended=ended)


def _delta(part: str | Json) -> Json:
    return {"content": part} if isinstance(part, str) else {"tool_calls": [part]}


async def text_chunks(job: Job, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Json, None]:
    """The chunks of a text that goes on."""
    waiting: list[Score] = []
    offset, ended = 0, "stop"
    async with aclosing(pieces):
        async for piece in pieces:
            waiting += piece.scores
            if piece.text or (piece.ended and waiting):
                logprobs = job.reply.logprobs(waiting, offset) if waiting else None
                yield job.reply.chunk({"text": piece.text}, logprobs=logprobs)
                offset += sum(len(score.text) for score in waiting)
                waiting = []
            ended = piece.ended or ended
    yield job.reply.chunk({"text": ""}, ended=ended)


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Whether the work came to its end; it is stopped when the client leaves before that."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
